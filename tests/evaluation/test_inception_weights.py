"""Where the Inception weights are looked for, and which files are refused."""

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffmoe.errors import ConfigError, StorageError
from diffmoe.evaluation.inception_weights import (
    INCEPTION_FILES,
    INCEPTION_VARIABLE,
    find_inception,
    load_inception,
)
from inception_reading import golden_shapes


def small_state(**changes: Tensor) -> dict[str, Tensor]:
    """A state of the right names and shapes in a small file: all values of a tensor are one."""
    whole = {name: torch.ones(1).expand(shape) for name, shape in golden_shapes().items()}
    return whole | changes


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small file that is right in all but its values."""
    torch.save(small_state(), tmp_path / "small.pth")
    return tmp_path / "small.pth"


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights; the folder where torch's cache keeps its files."""
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_missing_weights_are_one_error_that_says_all(no_weights: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_inception()
    told = str(caught.value)
    assert all(name in told and str(no_weights / name) in told for name in INCEPTION_FILES)
    assert "\n" not in told and INCEPTION_VARIABLE in told and "Apache-2.0" in told
    assert "toshas/torch-fidelity" in told and "mseitzer/pytorch-fid" in told


def test_a_path_goes_before_the_variable_and_that_before_the_cache(
    no_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in reversed(INCEPTION_FILES):
        (no_weights / name).touch()
        assert find_inception() == no_weights / name
    for name in ("set.pth", "named.pth"):
        (tmp_path / name).touch()
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "set.pth"))
    assert find_inception() == tmp_path / "set.pth"
    assert find_inception(tmp_path / "named.pth") == tmp_path / "named.pth"
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "lost.pth"))
    with pytest.raises(ConfigError, match=r"lost\.pth"):
        find_inception()


def test_the_fingerprint_is_that_of_the_file(small: Path) -> None:
    assert load_inception(small).fingerprint == hashlib.sha256(small.read_bytes()).hexdigest()


def test_loading_leaves_the_global_generator_alone(small: Path) -> None:
    before = torch.random.get_rng_state()
    load_inception(small)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_counters_of_batches_are_let_pass(tmp_path: Path) -> None:
    counter = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}
    torch.save(small_state(**counter), tmp_path / "small.pth")
    assert len(load_inception(tmp_path / "small.pth").state_dict()) == len(golden_shapes())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "lack 472 tensors, Conv2d_1a_3x3.bn.bias for one"),
        (small_state(**{"AuxLogits.fc.bias": torch.ones(1)}), "1 tensors too many, AuxLogits"),
        (small_state(**{"fc.bias": torch.ones(1000)}), r"fc.bias of shape \(1000,\) instead of"),
        (small_state(**{"fc.bias": torch.ones(1008, dtype=torch.int64)}), "fc.bias of torch.int64"),
        ([torch.ones(1)], "are no dict of tensors"),
        ({"fc.bias": 1.0}, "are no dict of tensors"),
        (argparse.Namespace(), "damaged, or a pickle of more than tensors"),
    ],
)
def test_files_that_are_not_the_network_are_refused(
    content: object, what: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(StorageError, match=what) as caught:
        load_inception(tmp_path / "wrong.pth")
    assert "\n" not in str(caught.value) and "wrong.pth" in str(caught.value)


def test_a_damaged_file_is_refused(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:10_000])
    with pytest.raises(StorageError, match="damaged"):
        load_inception(small)
