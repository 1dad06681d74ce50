"""What all feature networks share: blocks, exact arithmetic, and the Inception network as one."""

import pytest
import torch
from torch import Tensor

from diffmoe.codec import blocks, exact_arithmetic
from diffmoe.errors import DataError
from diffmoe.evaluation.inception import Inception
from diffmoe.evaluation.networks import BLOCK, FeatureNetwork, Features, InceptionNetwork
from diffmoe.evaluation.networks.features import check_images
from inception_reading import images, random_state


def test_blocks_are_full_and_the_last_is_filled_with_its_last_row() -> None:
    rows = torch.arange(2 * BLOCK + 3)
    found = list(blocks(rows, BLOCK))
    assert [count for _, count in found] == [BLOCK, BLOCK, 3]
    assert all(len(block) == BLOCK for block, _ in found)
    assert torch.equal(torch.cat([block[:count] for block, count in found]), rows)
    assert found[-1][0][3:].unique().tolist() == [2 * BLOCK + 2]


def test_features_join_and_part() -> None:
    one = Features(torch.ones(3, 2), None, torch.zeros(3, 4))
    both = Features.joined([one, one.first(1)])
    assert both.pooled.shape == (4, 2) and both.probabilities.shape == (4, 4)
    assert both.spatial is None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (torch.zeros(1, 3, 8, 8), "images of torch.float32 and shape"),
        (images(1)[0], "cannot be evaluated"),
        (images(1)[:, :1], r"shape \(1, 1, 40, 56\)"),
        (images(1)[:0], r"shape \(0, 3, 40, 56\) hold nothing"),
        (images(1), "images of 40 x 56 pixels do not fit the small network"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(wrong: Tensor, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        check_images(wrong, 40)
    assert "\n" not in str(caught.value)


def test_arithmetic_is_exact_and_left_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    cudnn = torch.backends.cudnn
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with exact_arithmetic(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
                assert cudnn.deterministic and not cudnn.allow_tf32
                assert not torch.is_grad_enabled()
            assert torch.get_float32_matmul_precision() == "high" and torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision(before)


# --- Inception ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> Inception:
    network = Inception()
    network.load_state_dict(random_state())
    network.fingerprint = "abc"
    return network.requires_grad_(False).eval()


def test_inception_gives_what_the_bare_network_gives(
    inception: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of two: the last digits depend on a batch's size."""
    monkeypatch.setattr("diffmoe.evaluation.networks.inception_network.BLOCK", 2)
    network: FeatureNetwork = InceptionNetwork(inception)
    assert (network.name, network.fingerprint, network.side) == ("inception", "abc", None)
    pixels = images(3)
    found = network.features(pixels)
    first, last = inception(pixels[:2]), inception(pixels[2:].repeat(2, 1, 1, 1))
    for name in ("pooled", "spatial", "probabilities"):
        wanted = torch.cat([getattr(first, name), getattr(last, name)[:1]])
        assert torch.equal(getattr(found, name), wanted), name
    assert found.pooled.dtype == found.spatial.dtype == torch.float32
    assert found.probabilities.dtype == torch.float64
    alone = network.features(pixels[:1])
    assert torch.equal(alone.pooled, found.pooled[:1])
    assert torch.equal(alone.probabilities, found.probabilities[:1])
