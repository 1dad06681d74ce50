"""The words of `sample` as a record: a field is a flag, its default the flag's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from diffmoe.arguments.records import FLAT
from diffmoe.config import Checked, SamplingConfig
from diffmoe.errors import ConfigError

__all__ = ["SampleCommand"]


@dataclass(frozen=True, kw_only=True)
class SampleCommand(Checked):
    """Draw images from a run: one for each label or prompt, or `count`, each from its own seed.

    Any number of processes may run the same command at once, and one that was stopped goes on.
    """

    group: ClassVar[str] = "sample"
    settings: Annotated[SamplingConfig, FLAT]
    labels: tuple[str, ...] = ()  # numbers or names of classes, in turn; none = as `law` says
    prompts: tuple[str, ...] = ()  # of a run that reads captions, in turn; none = some it keeps
    prompt_file: Path | None = None  # prompts, one a line, or a .jsonl with "prompt" in each
    geneval: Path | None = None  # GenEval's metadata: draw its prompts into its scorer's folders
    count_each: int = 4  # images of each prompt, with geneval
    seeds: tuple[int, ...] = ()  # a seed for each image; none = one after the other from `seed`
    count: int | None = None  # images; None = as many as labels or seeds, 16 without either
    law: Literal["balanced", "random"] = "balanced"  # all classes in turn, or drawn by the seed
    seed: int = 0  # the first, where no seeds are given
    out: Path | None = None  # folder to write, or file of format npz; None = below the run
    format: Literal["png", "npz", "webdataset"] | None = None  # None = as out is called, or png
    device: str = "auto"  # auto, cpu, cuda, ...
    strict: bool = False  # the same bits in any batch: on CPUs, by one thread and fixed kernels
    capture: bool = False  # record the network as a CUDA graph and replay it, for small batches
    quiet: bool = False  # no progress bar

    def relations(self) -> Iterator[ConfigError]:
        """What is drawn is said once."""
        wanted = [name for name in _WANTED if getattr(self, name) not in ((), None)]
        if len(wanted) > 1:
            yield ConfigError(f"{_flags(wanted)} do not go together", remedy="give one of them")
        idle = [name for name in _IDLE if getattr(self, name) != getattr(SampleCommand, name)]
        if self.geneval is not None and idle:
            yield ConfigError(
                f"--geneval and {_flags(idle)} do not go together",
                remedy="it draws --count-each images of every prompt, from --seed on",
            )
        if self.geneval is None and self.count_each != SampleCommand.count_each:
            yield ConfigError(
                "--count-each goes with --geneval", remedy="say --count: prompts have their turn"
            )


_WANTED = ("labels", "prompts", "prompt_file", "geneval")
_IDLE = ("seeds", "count", "law", "format")  # said by the metadata


def _flags(names: list[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)
