"""Which device a name means, and which process of a job this is."""

import pytest
import torch

from diffmoe.device import is_first_process, resolve_device
from diffmoe.errors import ConfigError


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_local_rank_has_its_own_accelerator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, device: asked.append(device) or torch.zeros(()))
    for rank in ("", "0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        resolve_device(name)
    resolve_device("cuda:1")  # named by number: meant as it is
    assert [str(device) for device in asked] == ["cuda", "cuda:0", "cuda:3", "cuda:1"]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^machine\.device meta cannot be used here"):
        resolve_device("meta")


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("", True), ("0", True), ("2", False)])
def test_the_first_process_is_known(
    rank: str | None, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first
