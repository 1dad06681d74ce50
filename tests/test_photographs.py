"""The whole way on real photographs, as a user goes it: prepare, train, sample, evaluate.

Patches of scikit-learn's two sample photographs as PNG files, a small autoencoder with random
weights. Preparing and sampling are killed once and gone on with.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoders import autoencoder

PATCH, STRIDE, SIDE, COUNT = 48, 40, 32, 300
MODEL = (
    "--model.width 32 --model.depth 2 --model.heads 2 --model.patch-size 4 --model.pool-images 8"
    " --model.router.num-experts 4 --training.global-batch 16 --loop.steps 12"
    " --loop.checkpoint-every 6 --sampling.steps 4 --sampling.guidance 1"
)


def photographs(folder: Path) -> int:
    """Patches of each photograph in a sub-folder of its own; returns how many."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    number = 0
    for name, pixels in zip(("china", "flower"), found.images, strict=True):
        (folder / name).mkdir(parents=True)
        height, width = pixels.shape[:2]
        for top in range(0, height - PATCH, STRIDE):
            for left in range(0, width - PATCH, STRIDE):
                patch = pixels[top : top + PATCH, left : left + PATCH]
                Image.fromarray(patch).save(folder / name / f"{number:04d}.png")
                number += 1
    return number


def started(home: Path, words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DIFFMOE_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "diffmoe", *words.split()],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(home: Path, words: str) -> str:
    job = started(home, words)
    said, complaint = job.communicate(timeout=240)
    assert job.returncode == 0, complaint
    return said


def killed(home: Path, words: str, ripe: Callable[[], bool]) -> None:
    """Start a command and kill it as soon as `ripe` says so."""
    job = started(home, words)
    while not ripe():
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL


def parts(folder: Path) -> int:
    return len(list(folder.glob("part-*")))


@pytest.mark.timeout(600)
def test_from_photographs_to_numbers(tmp_path: Path) -> None:
    number = photographs(tmp_path / "photos")
    autoencoder().save_pretrained(tmp_path / "autoencoder")

    prepare = (
        f"prepare photos --autoencoder autoencoder --side {SIDE} --shard 32 --out latents --quiet"
    )
    killed(tmp_path, prepare, lambda: parts(tmp_path / "latents.parts") >= 2)
    kept = parts(tmp_path / "latents.parts")
    assert 2 <= kept < -(-number // 32) and not (tmp_path / "latents").exists()
    said = done(tmp_path, prepare)
    record = json.loads((tmp_path / "latents" / "cache.json").read_text())
    assert sum(shard["images"] for shard in record["shards"]) == number
    assert record["class_names"] == ["china", "flower"] and record["source"]["images"] == number
    assert not (tmp_path / "latents.parts").exists()

    train = next(line for line in said.splitlines() if line.startswith("next: "))
    words = train.partition(" train ")[2]
    done(tmp_path, f"train {words} {MODEL} --run run --quiet")

    sample = f"sample run --count {COUNT} --batch 8 --out samples.npz --quiet"
    killed(tmp_path, sample, lambda: parts(tmp_path / "samples.npz.parts") >= 1)
    assert not (tmp_path / "samples.npz").exists()
    done(tmp_path, sample)
    with np.load(tmp_path / "samples.npz") as drawn:
        assert drawn["arr_0"].shape == (COUNT, SIDE, SIDE, 3)
        assert drawn["arr_0"].dtype == np.uint8
        assert np.bincount(drawn["arr_1"]).tolist() == [COUNT // 2, COUNT // 2]
    assert not (tmp_path / "samples.npz.parts").exists()

    evaluate = "evaluate samples.npz --reference photos --crop --network small --out e.json --quiet"
    said = done(tmp_path, evaluate)
    content = json.loads((tmp_path / "e.json").read_text())
    values, made = content["values"], content["protocol"]["samples"]["made"]
    assert values[f"fd_small@{COUNT}"] > 0 and 0 <= values["agreement"] <= 1
    assert f"fd_small@{COUNT}" in said and "precision" in said
    assert made["step"] == 12 and made["weights"] == "ema" and made["count"] == COUNT
    assert len(made["weights_sha256"]) == 64 and made["sampling"]["steps"] == 4
    assert made["trained_on"]["codec"] == record["autoencoder"]["identity"] == made["decoder"]
    again = started(tmp_path, "evaluate run --count 20 --quiet")
    assert "was trained on latents" in again.communicate(timeout=60)[1] and again.returncode == 2
