"""What is drawn from a run that reads captions: prompts, those of a file, or captions it keeps."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffmoe.checkpoint import RunFolder
from diffmoe.errors import ConfigError, DataError
from diffmoe.experiments.requests import request
from diffmoe.sampling import Output

__all__ = ["Asked", "fault_of", "prompted", "read_prompt_file", "refuse_no_text", "text_lines"]

_LOG = logging.getLogger(__name__)
_FIELDS = ("prompt", "caption", "text")  # of a line of JSON, the first one counts
_MOST_BYTES, _MOST_LETTERS = 2**26, 10_000  # of a file, of a prompt: more is a slip


@dataclass(frozen=True)
class Asked:
    """Images of a run: labels are numbers of the prompts, if there are some, else classes."""

    labels: Sequence[int]
    seeds: Sequence[int]
    prompts: tuple[str, ...] = ()
    law: str = "given"  # where the labels are from
    format: str | Output | None = None


def prompted(
    path: Path | str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    count: int | None,
    *,
    law: str = "balanced",
    first_seed: int = 0,
) -> Asked:
    """Images of prompts, which have their turn until there are `count`, or as many as seeds.

    Without prompts they are captions that the run keeps of its training, as many as there are
    seeds, or `count`, or 16. Raises ConfigError if what is given contradicts itself, a prompt is
    no text, or the run keeps no captions.
    """
    refuse_no_text(prompts, "prompt")
    if not prompts:
        kept = _kept(path)
        labels, own = request((), seeds, count, len(kept), law=law, first_seed=first_seed)
        return Asked(labels, own, kept, law)
    number = count if count is not None else max(len(prompts), len(seeds))
    turns = range(len(prompts))
    labels, own = request(
        turns, seeds, number, len(prompts), law=law, first_seed=first_seed, what="prompt"
    )
    return Asked(labels, own, tuple(prompts))


def _kept(path: Path | str) -> tuple[str, ...]:
    """Captions that a run keeps, said so."""
    kept = RunFolder(Path(path)).captions
    if not kept:
        raise ConfigError(
            "no prompts are given, and the run keeps no captions of its training",
            where=str(path),
            remedy="give --prompts, or a --prompt-file",
        )
    _LOG.info("no prompts are given: %d captions of the training have their turn", len(kept))
    return kept


def refuse_no_text(prompts: Sequence[str], what: str) -> None:
    """Raise ConfigError for a prompt that is no text, or longer than any is."""
    for number, prompt in enumerate(prompts):
        if fault := fault_of(prompt):
            raise ConfigError(f"{what} {number} {fault}", remedy="write it in UTF-8, and shorter")


def fault_of(prompt: str) -> str:
    """What is wrong with a prompt whatever a run may know of it; empty if nothing is."""
    if "\0" in prompt or any("\ud800" <= letter <= "\udfff" for letter in prompt):
        return "holds bytes that are no text"
    if len(prompt) > _MOST_LETTERS:
        return f"has {len(prompt):,} characters, more than {_MOST_LETTERS:,}"
    return ""


def read_prompt_file(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line, or of a .jsonl, one an object.

    An empty line of text is an empty prompt, a `#` begins no comment. Of an object the first field
    of `prompt`, `caption` and `text` counts. Raises ConfigError if there is no such file, DataError
    naming a line that cannot be read.
    """
    lines = text_lines(path)
    found = _of_json(path, lines) if path.suffix.lower() == ".jsonl" else lines
    prompts = []
    for number, prompt in found:
        if fault := fault_of(prompt):
            raise _damage(path, number, fault)
        prompts.append(prompt)
    if not any(prompt.strip() for prompt in prompts):
        raise ConfigError(
            "the file holds no prompt", where=str(path), remedy="write one a line into it"
        )
    return tuple(prompts)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of text, numbered from 1, without what ends them.

    Raises ConfigError if there is no such file, DataError where one is no UTF-8.
    """
    lines = _content(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise _damage(path, number, "is no UTF-8") from error


def _content(path: Path) -> bytes:
    """The bytes of a file, never more than a file of prompts has."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the file of prompts cannot be read ({reason})",
            where=str(path),
            remedy="give a file of text, one prompt a line",
        ) from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"the file is larger than {_MOST_BYTES >> 20} MiB, so it is none of prompts",
            where=str(path),
            remedy="give a file of text, one prompt a line",
        )
    return content


def _of_json(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damage(path, number, "is no JSON") from error
        known = entry if isinstance(entry, dict) else {}
        prompt = next((known[name] for name in _FIELDS if name in known), None)
        if not isinstance(prompt, str):
            raise _damage(path, number, f"has no text as {', '.join(_FIELDS)}")
        yield number, prompt


def _damage(path: Path, line: int, fault: str) -> DataError:
    return DataError(f"line {line} {fault}", where=str(path), remedy="correct the line")
