"""Draw images from a run and write them into its folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diffmoe.checkpoint import RunFolder, load
from diffmoe.codec import build_codec
from diffmoe.config import SamplingConfig, read_config
from diffmoe.device import resolve_device
from diffmoe.errors import StorageError
from diffmoe.sampling import check_request, decode, generate, stamp, write_samples

__all__ = ["sample"]


def sample(
    path: Path | str,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: SamplingConfig,
    out: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Write one PNG for each (label, seed), a contact sheet and a stamp; returns the folder.

    Without `out` the folder lies in the run and is named after what was asked for, so the same
    command writes the same folder. Raises StorageError if `out` holds anything but samples, which
    writing would remove.
    """
    if out is not None:
        _refuse_other_content(out)
    folder = RunFolder(Path(path))
    if folder.is_run:
        config = replace(read_config(folder.config), sampling=settings)  # checks them together
        check_request(config, labels, seeds)
    run = load(path, weights=settings.weights, device=resolve_device(device))
    latents = generate(run.model, run.config, labels, seeds, settings=settings, progress=progress)
    place = next(run.model.parameters()).device
    images = torch.cat(list(decode(build_codec(run.config.codec, place), latents, place)))
    facts = stamp(run, settings)
    asked = json.dumps([facts, list(labels), list(seeds)], default=str).encode()
    name = f"step-{run.step:08d}-{hashlib.sha256(asked).hexdigest()[:8]}"
    target = out or folder.samples / name
    write_samples(target, images, labels, seeds, facts)
    return target


def _refuse_other_content(out: Path) -> None:
    is_ours = (out / "samples.json").is_file() or (out.is_dir() and not any(out.iterdir()))
    if out.exists() and not is_ours:
        raise StorageError(
            "there is something else than samples", where=str(out), remedy="choose another --out"
        )
