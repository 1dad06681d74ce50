"""What an evaluation leaves behind, and that it replaces nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.errors import StorageError
from diffmoe.experiments.evaluation.work import FORMAT

__all__ = ["Evaluated", "content_of", "plain", "refuse_foreign"]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, as it stands in its file."""

    path: Path
    content: dict[str, Any]
    summary: tuple[str, ...] = ()  # in words of its own, where it has some

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name."""
        return dict(self.content["values"])

    @property
    def cautions(self) -> list[str]:
        """What to say beside the numbers."""
        return list(self.content["cautions"])


def refuse_foreign(out: Path) -> None:
    """Raise StorageError if a file that no evaluation wrote would be replaced."""
    if out.exists() and content_of(out).get("format") != FORMAT:
        raise StorageError(
            f"{out.name} was not written by an evaluation and would be lost",
            where=str(out),
            remedy="choose another --out",
        )


def content_of(out: Path) -> dict[str, Any]:
    """What an evaluation wrote; nothing where there is none."""
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))
