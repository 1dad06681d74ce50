"""The ways to keep images, by name."""

from pathlib import Path

from diffmoe.errors import ConfigError
from diffmoe.sampling.output.arrays import NpzFile
from diffmoe.sampling.output.folders import PictureFolder, TarShards
from diffmoe.sampling.output.records import Output

__all__ = ["FORMATS", "output_of"]

FORMATS: dict[str, Output] = {
    output.name: output for output in (PictureFolder(), NpzFile(), TarShards())
}
_OF_FILES = {".npz", ".tar", ".zip"}  # suffixes that no folder should have


def output_of(format: str | Output | None, out: Path | None) -> Output:
    """The format of that name, or else the one that the suffix of `out` tells.

    Raises ConfigError if there is none of that name, or the two contradict each other.
    """
    suffix = "" if out is None else out.suffix.lower()
    output = _named(format or ("npz" if suffix == ".npz" else "png"))
    name = output.name
    if out is not None and name == "npz" and suffix != ".npz":
        raise ConfigError(
            f"format npz writes one file, and {out} is not called so",
            remedy=f"use --out {out}.npz, or leave --format out for a folder of pictures",
        )
    if name != "npz" and suffix in _OF_FILES:
        raise ConfigError(
            f"format {name} writes a folder, and {out} is called as a file",
            remedy=f"use --out {out.with_suffix('') if out else ''}, or a .npz for format npz",
        )
    return output


def _named(format: str | Output) -> Output:
    if not isinstance(format, str):
        return format
    if format not in FORMATS:
        raise ConfigError(f"format {format} is unknown", remedy=f"use {', '.join(FORMATS)}")
    return FORMATS[format]
