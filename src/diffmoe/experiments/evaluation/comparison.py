"""Two evaluations side by side: what differs in their protocols first, the numbers after that."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.errors import ConfigError, DataError
from diffmoe.experiments.evaluation.work import FORMAT

__all__ = ["Comparison", "compare"]

_PLACES = ("place", "run")  # where things lay changes no number
_MADE = "samples.made"  # how samples were made is what a comparison is about
_OWN = ("samples.images_sha256",)  # other samples, other pixels
_LARGEST = 2 << 20  # bytes; read, JSON takes thirty times as many
_LONG = 44  # letters of a value that are shown


@dataclass(frozen=True)
class Comparison:
    """What differs between two evaluations, and their numbers."""

    protocol: dict[str, tuple[Any, Any]]  # makes numbers incomparable
    made: dict[str, tuple[Any, Any]]  # what the comparison is about: how samples were made
    values: dict[str, tuple[float | None, float | None]]
    deviations: dict[str, tuple[float | None, float | None]]

    @property
    def is_fair(self) -> bool:
        """Whether the numbers were measured in the same way."""
        return not self.protocol

    def lines(self) -> list[str]:
        """The differences of protocol, how the samples differ, the numbers."""
        same = "protocol: the same reference, network, number of images, settings and versions"
        return [
            *(
                _table("the protocols differ: these numbers are not comparable", self.protocol)
                if self.protocol
                else [same]
            ),
            "",
            *_table("the samples were made with", self.made),
            *([] if self.made else ["the samples were made in the same way, as far as is known"]),
            "",
            *self._numbers(),
        ]

    def _numbers(self) -> Iterator[str]:
        width = max(map(len, self.values), default=0)
        yield f"{'':<{width}}{'A':>16}{'B':>16}{'B - A':>16}{'B / A':>10}"
        for name, (a, b) in self.values.items():
            apart, ratio = f"{'':>16}", ""
            if a is not None and b is not None:
                apart = f"{b - a:>+16.5g}"
                ratio = f"{b / a:>10.3f}" if a else ""
            spread = self.deviations.get(name, (None, None))
            yield f"{name:<{width}}{_number(a)}{_number(b)}{apart}{ratio}{_spread(spread)}".rstrip()


def compare(first: Path | str, second: Path | str) -> Comparison:
    """Two files that `evaluate` wrote, side by side.

    Numbers are matched by name, those of Frechet distances without the number of samples, of which
    the protocols tell.
    """
    a, b = (_read(Path(path)) for path in (first, second))
    found = dict(_differences(a["protocol"], b["protocol"]))
    made = {name: pair for name, pair in found.items() if name.startswith(_MADE)}
    protocol = {n: pair for n, pair in found.items() if n not in made and n not in _OWN}
    return Comparison(
        protocol=protocol,
        made={name.removeprefix(f"{_MADE}."): pair for name, pair in made.items()},
        values=_paired(a["values"], b["values"]),
        deviations=_paired(a["deviations"], b["deviations"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("no evaluation is so large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the file is no evaluation", where=str(path), remedy="give what diffmoe evaluate wrote"
        ) from error
    parts = ("values", "deviations", "protocol")
    whole = isinstance(content, dict) and content.get("format") == FORMAT
    if not whole or not all(isinstance(content.get(part), dict) for part in parts):
        raise DataError(
            f"the file is no evaluation of format {FORMAT!r}",
            where=str(path),
            remedy="give what diffmoe evaluate wrote",
        )
    numbers = [*content["values"].values(), *content["deviations"].values()]
    if not all(isinstance(value, (int, float)) for value in numbers):
        raise DataError("the file holds values that are no numbers", where=str(path))
    return content


def _differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The leaves in which two records differ, by their dotted names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if key not in _PLACES:
                yield from _differences(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))
    elif a != b:
        yield name, (a, b)


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Numbers of both by name; a number of samples in a name is kept only where both agree."""
    ours = {name.split("@")[0]: name for name in a}
    theirs = {name.split("@")[0]: name for name in b}
    found = {}
    for short in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(short), theirs.get(short)
        name = left if left == right and left is not None else short
        found[name] = (a.get(left or ""), b.get(right or ""))
    return found


def _table(title: str, rows: dict[str, tuple[Any, Any]]) -> list[str]:
    if not rows:
        return []
    width = max(map(len, rows))
    return [
        f"{title}:",
        *(f"  {name:<{width}}  {_short(a)} -> {_short(b)}" for name, (a, b) in rows.items()),
    ]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _spread(deviations: tuple[float | None, float | None]) -> str:
    """What both numbers vary by, where they are of several parts: a ratio may be noise."""
    known = ["-" if one is None else f"{one:.2g}" for one in deviations]
    return "" if known == ["-", "-"] else f"  (± {known[0]}, ± {known[1]})"


def _number(value: float | None) -> str:
    return f"{'-':>16}" if value is None else f"{value:>16.6g}"
