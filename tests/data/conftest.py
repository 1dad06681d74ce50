"""Run configs and folders of images small enough to be read many times."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffmoe.config import FolderData, RunConfig
from diffmoe.presets import preset


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """Builds a run on a folder: 8 x 8 samples, 64 images a batch, pools of 4."""

    def build(path: Path | None, *, flip: bool = False, **changes: Any) -> RunConfig:
        base = preset("digits-dense")
        machine = {
            name: changes.pop(name) for name in ("micro_batch", "workers") if name in changes
        }
        return replace(
            base,
            model=replace(base.model, pool_images=4, **changes),
            data=FolderData(path=path, flip=flip),
            machine=replace(base.machine, **machine),
        )

    return build


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """22 images in the classes bird, cat and dog."""
    for name, count in (("dog", 9), ("bird", 6), ("cat", 7)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for seed in range(count):
            image = photograph(12, 9, seed=100 * count + seed)
            image.save(tmp_path / "images" / name / f"{seed}.png")
    return tmp_path / "images"


@pytest.fixture
def make_latents(tmp_path: Path) -> Callable[..., Path]:
    """Writes latents and labels into a folder."""

    def write(shape: tuple[int, ...] = (6, 1, 8, 8), **arrays: Any) -> Path:
        random = np.random.default_rng(0)
        content = {
            "latents": random.normal(size=shape).astype(np.float32),
            "labels": np.arange(shape[0]) % 3,
        }
        for name, array in (content | arrays).items():
            np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        return tmp_path

    return write
