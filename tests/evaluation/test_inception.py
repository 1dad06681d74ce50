"""The Inception network against a plain reading of the paper; no file of weights is needed."""

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.errors import DataError
from diffmoe.evaluation.inception import Inception, resize_like_tensorflow
from diffmoe.evaluation.inception_blocks import MIXED, Block, Mixed
from diffmoe.evaluation.inception_weights import INCEPTION_FILES, load_inception
from inception_reading import Reading, golden_shapes, images, random_state

OUTPUTS = {
    "Mixed_5b": (256, 35),
    "Mixed_5c": (288, 35),
    "Mixed_5d": (288, 35),
    "Mixed_6a": (768, 17),
    "Mixed_6b": (768, 17),
    "Mixed_6c": (768, 17),
    "Mixed_6d": (768, 17),
    "Mixed_6e": (768, 17),
    "Mixed_7a": (1280, 8),
    "Mixed_7b": (2048, 8),
    "Mixed_7c": (2048, 8),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("inception")
    torch.save(random_state(), folder / INCEPTION_FILES[0])
    yield folder / INCEPTION_FILES[0]
    shutil.rmtree(folder)  # 95 MB


@pytest.fixture(scope="module")
def network(weights: Path) -> Inception:
    return load_inception(weights)


@pytest.fixture(scope="module")
def wide(weights: Path) -> Inception:
    return load_inception(weights, dtype=torch.float64)


# --- the network ---------------------------------------------------------------------------------


def test_the_features_are_those_of_a_plain_reading(wide: Inception) -> None:
    found, wanted = wide(images(1)), Reading(random_state())(images(1))
    for name in ("pooled", "spatial", "logits", "unbiased_logits"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert other.std() > 0.05, name
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_single_precision_is_near(network: Inception, wide: Inception) -> None:
    found, wanted = network(images(1)), wide(images(1))
    assert found.pooled.dtype == torch.float32
    for name in ("pooled", "spatial", "logits"):
        one, other = getattr(found, name).double(), getattr(wanted, name)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_it_is_the_network_of_torch_fidelity(
    network: Inception, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
        monkeypatch.setitem(sys.modules, f"torchvision{module}", MagicMock(__path__=[]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
        names = ["2048", "logits_unbiased", "logits"]
        other = package.FeatureExtractorInceptionV3(
            "inception", names, feature_extractor_weights_path=str(weights)
        )
    spatial = []
    other.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2]))
    for height, width in ((256, 256), (40, 56), (299, 299), (320, 512)):
        pixels = images(1, height, width)
        found = network(pixels)
        with torch.no_grad():
            pooled, unbiased, logits = other(pixels)
        rows = spatial.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(found.pooled, pooled) and torch.equal(found.spatial, rows)
        torch.testing.assert_close(found.unbiased_logits, unbiased, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)


# --- the network's parts ------------------------------------------------------------------------


def test_it_holds_the_tensors_of_the_weight_files_and_no_others(network: Inception) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == golden_shapes()
    assert len(found) == 94 * 5 + 2
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 23_885_392


def test_the_grids_are_those_of_table_1(network: Inception) -> None:
    found = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: found.update({name: y.shape})
        )
        for name in OUTPUTS
    ]
    features = network(images(2))
    for hook in hooks:
        hook.remove()
    assert found == {name: (2, width, n, n) for name, (width, n) in OUTPUTS.items()}
    assert features.pooled.shape == (2, 2048) and features.spatial.shape == (2, 2023)
    assert features.logits.shape == features.unbiased_logits.shape == (2, 1008)


def test_an_image_has_its_features_in_any_batch(network: Inception, wide: Inception) -> None:
    for net, near in ((network, 1e-4), (wide, 1e-11)):
        alone, together = net(images(1)), net(torch.cat([images(1), images(2, seed=1)]))
        for name in ("pooled", "spatial", "logits"):
            one, other = getattr(alone, name)[0], getattr(together, name)[0]
            torch.testing.assert_close(one, other, rtol=near, atol=near)
        assert torch.equal(net(images(1)).pooled, alone.pooled)


def test_it_cannot_be_trained_by_accident(network: Inception) -> None:
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.train()(images(1)).pooled, network.eval()(images(1)).pooled)


def test_reduced_precision_around_it_changes_nothing(network: Inception) -> None:
    before = network(images(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images(1)).logits, before.logits)


def test_probabilities_leave_the_bias_out(network: Inception) -> None:
    found = network(images(2))
    assert torch.equal(found.probabilities, found.unbiased_logits.double().softmax(dim=1))
    torch.testing.assert_close(found.logits - found.unbiased_logits, network.fc.bias.expand(2, -1))


def test_grey_levels_are_centred_on_128(network: Inception) -> None:
    seen = []
    hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for level in (0, 128, 255):
        network(torch.full((1, 3, 31, 37), level, dtype=torch.uint8))
    hook.remove()
    assert [x.unique().tolist() for x in seen] == [[-1], [0], [127 / 128]]
    assert seen[0].shape == (1, 3, 299, 299)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(1, 3, 8, 8), images(1)[0], images(1)[:, :1], images(1).permute(0, 2, 3, 1)],
)
def test_what_are_no_8_bit_rgb_images_is_refused(network: Inception, wrong: Tensor) -> None:
    with pytest.raises(DataError, match=r"give 8-bit RGB images of shape \(N, 3, H, W\)"):
        network(wrong)


def pool_by_loops(x: Tensor, kind: str, stride: int, pad: int) -> Tensor:
    height, width = x.shape[2:]
    rows = []
    for i in range(-pad, height - 2 + pad, stride):
        row = []
        for j in range(-pad, width - 2 + pad, stride):
            window = x[:, :, max(i, 0) : i + 3, max(j, 0) : j + 3]
            row.append(window.amax((2, 3)) if kind == "max" else window.mean((2, 3)))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def transparent(block: Block, width: int) -> Mixed:
    """A block whose convolutions hand on what they get."""
    made = Mixed(width, block).double()
    if block.pooled:
        eye = torch.eye(width).double()[:, :, None, None]
        made.branch_pool.conv.weight.data.copy_(eye)
        made.branch_pool.bn.weight.fill_(1)
        made.branch_pool.bn.running_var.fill_(1 - 0.001)
    return made


@pytest.mark.parametrize(
    ("pool", "pooled", "stride", "pad"),
    [("average", 3, 1, 1), ("max", 3, 1, 1), ("max", 0, 2, 0)],
)
@pytest.mark.parametrize("size", [(7, 9), (8, 5)])
def test_pools_are_those_of_loops_borders_included(
    pool: str, pooled: int, stride: int, pad: int, size: tuple[int, int]
) -> None:
    x = 5 + tiny.normals(2, 3, *size)
    block = transparent(Block((), pool, pooled), 3)
    torch.testing.assert_close(block(x), pool_by_loops(x, pool, stride, pad))


def test_a_constant_stays_what_it_is_at_the_borders() -> None:
    """An average that counted the padding would darken them."""
    x = torch.full((1, 3, 5, 5), 7.0).double()
    for pool in ("average", "max"):
        torch.testing.assert_close(transparent(Block((), pool, 3), 3)(x), x)


def test_only_the_last_block_pools_by_the_maximum_where_the_grid_stays() -> None:
    kept = {name: block.pool for name, block in MIXED.items() if block.pooled}
    assert kept.pop("Mixed_7c") == "max" and set(kept.values()) == {"average"}


# --- the resize ---------------------------------------------------------------------------------


def resize_by_loops(image: np.ndarray, size: int) -> np.ndarray:
    """In the float32 arithmetic of TensorFlow 1, one channel."""
    height, width = image.shape
    steps = np.float32(height) / np.float32(size), np.float32(width) / np.float32(size)
    found = np.zeros((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            y, x = np.float32(i) * steps[0], np.float32(j) * steps[1]
            top, left = int(y), int(x)
            low, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, across = y - np.float32(top), x - np.float32(left)
            upper = image[top, left] + (image[top, right] - image[top, left]) * across
            lower = image[low, left] + (image[low, right] - image[low, left]) * across
            found[i, j] = upper + (lower - upper) * down
    return found


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 23), (64, 48, 29), (29, 29, 29)])
def test_the_resize_is_that_of_loops(height: int, width: int, size: int) -> None:
    pixels = images(1, height, width).float()
    found = resize_like_tensorflow(pixels, size)
    for channel in range(3):
        wanted = resize_by_loops(pixels[0, channel].numpy(), size)
        assert np.array_equal(found[0, channel].numpy(), wanted)


def test_the_resize_starts_at_the_first_pixel_and_repeats_the_last() -> None:
    line = torch.tensor([[[[0.0, 8.0], [0.0, 8.0]]]])
    assert resize_like_tensorflow(line, 4)[0, 0, 0].tolist() == [0, 4, 8, 8]
