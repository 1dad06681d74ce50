"""Every way in which a name is usually misspelt, of every field that a config can have.

A letter is dropped, doubled, replaced or swapped with the next; the name is put into another
section, into the plural or out of it, into capitals; dashes and underscores change places.
"""

import random
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from diffmoe.arguments import TrainCommand
from diffmoe.config import SD_VAE, DDPMConfig, FolderData, RunConfig
from runs import changed, run_config
from tiny import ROUTERS

SECTIONS = ("model", "model.router", "objective", "data", "codec", "training", "loop", "sampling")


def configs() -> list[RunConfig]:
    """Configs that together have every field there is."""
    ddpm = {"objective": DDPMConfig(), "model.out_channels": 2, "sampling.sampler": "ddim"}
    other = {"data": FolderData(path=Path("x")), "codec": SD_VAE}
    return [*(run_config(router) for router in ROUTERS), changed(run_config(), ddpm | other)]


def letters(word: str) -> Iterator[str]:
    """The word with a letter dropped, doubled, replaced or swapped, and in other forms."""
    rng = random.Random(word)
    for _ in range(2):
        at = rng.randrange(len(word) - 1)
        yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        yield word[:at] + word[at + 1 :]
        yield word[:at] + word[at] + word[at:]
        yield word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]
    yield word.removesuffix("s") if word.endswith("s") else f"{word}s"
    yield word.upper()
    yield word.title()


def key_slips(word: str) -> Iterator[str]:
    """Misspelt forms of a key, which has underscores."""
    yield from letters(word)
    if "_" in word:
        yield word.replace("_", "-")
        yield word.replace("_", "")


def flags_of(record: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of a config, as they are written."""
    for entry in fields(record):
        value, name = getattr(record, entry.name), entry.name.replace("_", "-")
        if is_dataclass(value):
            yield from flags_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def flag_slips() -> Iterator[tuple[TrainCommand, list[tuple[str, str]]]]:
    """Commands, and for each many misspelt flags with those that were meant.

    Of flags that several commands have, one has its slips.
    """
    tried: set[str] = set()
    for config in configs():
        default = TrainCommand(config=config, run=Path("x"))
        flags = list(flags_of(config))
        slips: dict[str, str] = {}
        for flag in [flag for flag in flags if flag not in tried]:
            section, _, name = flag.rpartition(".")
            spelt = [f"{section}.{slip}" for slip in letters(name)]
            spelt += [f"--{other}.{name}" for other in SECTIONS]
            spelt += [f"--{name}"]
            if "-" in name:
                spelt += [f"{section}.{name.replace('-', '')}"]
            slips |= {one: flag for one in spelt if one not in flags and one not in slips}
        tried |= {*flags}
        yield default, list(slips.items())
