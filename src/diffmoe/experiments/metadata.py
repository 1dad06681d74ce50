"""Prompts with what their pictures must hold: lines of GenEval's `evaluation_metadata.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffmoe.errors import ConfigError, DataError
from diffmoe.experiments.prompts import Asked, fault_of, refuse_no_text, text_lines
from diffmoe.sampling import GenEvalFolder

__all__ = ["asked_of_metadata", "check_metadata", "geneval_seed", "read_metadata"]

_MOST_EACH, _MOST_PROMPTS = 2**12, 2**20  # images of a prompt, prompts: so that seeds differ


def read_metadata(path: Path) -> list[str]:
    """The lines of a file of GenEval's metadata, each as it stands there.

    Raises ConfigError if there is no such file or nothing in it, DataError naming a line that the
    scorer could not use.
    """
    found = []
    for number, line in text_lines(path):
        if line.strip():
            check_metadata(line, f"line {number}", str(path))
            found.append(line.strip())
    if not found:
        raise ConfigError(
            "the file holds no prompts",
            where=str(path),
            remedy="give GenEval's evaluation_metadata.jsonl, or one like it",
        )
    return found


def check_metadata(line: str, what: str, where: str) -> dict[str, Any]:
    """A prompt's metadata; raises DataError, which calls them `what`, if they are none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damage(what, "is no JSON", where) from error
    if not isinstance(found, dict):
        raise _damage(what, "is no object", where)
    for name in ("tag", "prompt"):
        if not isinstance(found.get(name), str) or not found[name].strip():
            raise _damage(what, f"has no text as {name}", where)
    if fault := fault_of(found["prompt"]):
        raise _damage(what, f"has a prompt that {fault}", where)
    if not found.get("include"):
        raise _damage(what, "includes nothing", where)
    for name in ("include", "exclude"):
        clauses = found.get(name, [])
        if not isinstance(clauses, list):
            raise _damage(what, f"has no list as {name}", where)
        for place, clause in enumerate(clauses):
            if fault := _fault(clause, place):
                raise _damage(what, f"{name}s something that {fault}", where)
    return found


def _fault(clause: Any, place: int) -> str:
    """What is wrong with a clause of metadata; empty if nothing is."""
    if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
        return "has no class"
    count = clause.get("count")
    if type(count) is not int or not 1 <= count <= 10**6:
        return "has no count of 1 or more"
    if not isinstance(clause.get("color", ""), str):
        return "has a color that is no text"
    return "" if "position" not in clause else _misplaced(clause["position"], place)


def _misplaced(position: Any, place: int) -> str:
    fits = (
        isinstance(position, list)
        and len(position) == 2
        and isinstance(position[0], str)
        and type(position[1]) is int
        and 0 <= position[1] < place
    )
    return "" if fits else "has a position that is no relation to something before it"


def _damage(what: str, fault: str, where: str) -> DataError:
    return DataError(
        f"{what} {fault}",
        where=where,
        remedy="give a JSON of tag, include and prompt, as GenEval's",
    )


def asked_of_metadata(lines: Sequence[str], each: int, first_seed: int) -> Asked:
    """`each` images of every prompt, kept in the folders that GenEval's scorer reads."""
    prompts = tuple(json.loads(line)["prompt"] for line in lines)
    refuse_no_text(prompts, "prompt")
    if not 1 <= each <= _MOST_EACH or len(prompts) > _MOST_PROMPTS:
        raise ConfigError(
            f"{each} images of each of {len(prompts):,} prompts cannot be drawn at once",
            remedy=f"use 1..{_MOST_EACH} images, and {_MOST_PROMPTS:,} prompts at most",
        )
    labels = [number for number in range(len(prompts)) for _ in range(each)]
    seeds = [geneval_seed(first_seed, n, k) for n in range(len(prompts)) for k in range(each)]
    return Asked(labels, seeds, prompts, format=GenEvalFolder(tuple(lines)))


def geneval_seed(first: int, prompt: int, image: int) -> int:
    """The seed of an image of a prompt: no two images have the same, whatever `first` is."""
    if not 0 <= first < 2**31:
        raise ConfigError(f"seed {first} is out of range", remedy="use 0..2^31 - 1")
    return (first * _MOST_PROMPTS + prompt) * _MOST_EACH + image
