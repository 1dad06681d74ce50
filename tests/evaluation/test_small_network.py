"""The small network: its recipe, what it says of images, and the cache that keeps it."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.networks import (
    BLOCK,
    FeatureNetwork,
    SmallNetwork,
    cache_folder,
    find_small_network,
    recipe,
    small_network,
    train_small_network,
)

DATA = "60 stripes"


def stripes(count: int, side: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grey noise with a bright line whose row is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label + 1] += 190
    return images, labels


IMAGES, LABELS = stripes(60, 8)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of few steps."""
    monkeypatch.setattr(recipe, "_STEPS", 4)
    monkeypatch.setattr(recipe, "_BATCH", 16)


@pytest.fixture(scope="module")
def network() -> SmallNetwork:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_STEPS", 60)
        patch.setattr(recipe, "_BATCH", 32)
        return train_small_network(IMAGES, LABELS, classes=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> Path:
    monkeypatch.setenv("DIFFMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def state_of(network: SmallNetwork) -> dict[str, Tensor]:
    return dict(network.classifier.state_dict())


def equal(one: SmallNetwork, other: SmallNetwork) -> bool:
    pairs = zip(state_of(one).values(), state_of(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- training -----------------------------------------------------------------------------------


def test_it_reads_98_of_100_digits_it_has_not_seen() -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = torch.from_numpy(scans.images * 255 / 16).round().to(torch.uint8)
    found = train_small_network(
        grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(scans.target), classes=10
    )
    assert found.held_out_accuracy >= 0.98
    assert found.features(grey[:2, None].repeat(1, 3, 1, 1)).pooled.shape == (2, 64)


def test_equal_data_give_the_equal_network_whatever_the_threads(short: None) -> None:
    images, labels = stripes(60, 16)
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    found = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(train_small_network(images, labels, classes=3))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert equal(found[0], found[1]) and equal(found[1], found[2])
    assert len({network.fingerprint for network in found}) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_data_or_seeds_give_other_networks(short: None) -> None:
    base = train_small_network(IMAGES, LABELS, classes=3)
    assert base.fingerprint != train_small_network(IMAGES, LABELS, classes=3, seed=1).fingerprint
    changed = IMAGES.clone()
    changed[:20] += 1
    assert base.fingerprint != train_small_network(changed, LABELS, classes=3).fingerprint


@pytest.mark.parametrize("side", [8, 11, 16, 32, 33, 64])
def test_it_works_on_small_and_larger_images(side: int, short: None) -> None:
    images, labels = stripes(12, side)
    found = train_small_network(images, labels, classes=3)
    assert found.side == side and found.features(images).pooled.shape == (12, 64)


@pytest.mark.parametrize(("side", "grid"), [(8, 4), (16, 4), (32, 4), (64, 4), (11, 6)])
def test_the_last_stage_keeps_a_grid(side: int, grid: int, short: None) -> None:
    images, labels = stripes(6, side)
    found = train_small_network(images, labels, classes=3)
    assert found.classifier.stages(images.float()).shape == (6, 64, grid, grid)


def test_a_tenth_of_each_class_is_held_out_and_not_trained_on(
    monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    seen: list[Tensor] = []
    fit: Callable[..., None] = recipe._fit
    monkeypatch.setattr(recipe, "_fit", lambda *a: (seen.extend(a[1:3]), fit(*a))[1])
    labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 2)
    images = torch.arange(67, dtype=torch.uint8)[:, None, None, None].expand(67, 3, 8, 8)
    train_small_network(images, labels, classes=3)
    assert seen[1].bincount().tolist() == [36, 23, 1]
    assert torch.equal(labels[seen[0][:, 0, 0, 0].long()], seen[1])


def test_many_images_are_thinned_evenly_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 30)
    rank = recipe._rank_in_class(labels, seed=0)
    for label in range(3):
        assert sorted(rank[labels == label].tolist()) == list(range(int((labels == label).sum())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_MOST", 27)
        used = recipe._evenly(rank, labels)
    assert labels[used].bincount().tolist() == [10, 7, 10]
    assert used.tolist() == sorted(set(used.tolist()))


def test_shifts_are_those_of_a_loop() -> None:
    images = torch.rand(4, 3, 16, 16)
    drawn = torch.tensor([[0.0, 0.99], [0.5, 0.5], [0.99, 0.0], [0.3, 0.7]])
    found = recipe._shifted(images, drawn)
    for image, moved, (down, across) in zip(images, found, drawn.tolist(), strict=True):
        dy, dx = int(down * 5) - 2, int(across * 5) - 2
        for y in range(16):
            for x in range(16):
                row, column = min(max(y + dy, 0), 15), min(max(x + dx, 0), 15)
                assert torch.equal(moved[:, y, x], image[:, row, column])


def test_noise_is_of_another_strength_for_each_image_and_step() -> None:
    grey = torch.full((64, 3, 8, 8), 128, dtype=torch.uint8)
    one, other = recipe._varied(grey, 0, 0), recipe._varied(grey, 0, 1)
    spread = one.std(dim=(1, 2, 3))
    assert spread.min() < 0.05 and 0.2 < spread.max() < 0.35
    assert not torch.equal(one, other) and torch.equal(one, recipe._varied(grey, 0, 0))


def test_the_rate_rises_and_falls() -> None:
    rates = [recipe._rate(i / 100) for i in range(101)]
    top = rates.index(max(rates))
    assert rates[0] == 0 and max(rates) == recipe._PEAK and rates[-1] < 1e-9
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


# --- features -----------------------------------------------------------------------------------


def test_features_are_those_before_the_head(network: SmallNetwork) -> None:
    found = network.features(IMAGES)
    x = IMAGES[:1].double() / 127.5 - 1
    wide = network.classifier.double()
    grid = wide.stages(x)
    pooled = torch.stack([grid[0, c].sum() / grid[0, c].numel() for c in range(64)])
    logits = wide.head.weight @ pooled + wide.head.bias
    network.classifier.float()
    torch.testing.assert_close(found.pooled[0].double(), pooled, rtol=1e-4, atol=1e-5)
    wanted = logits.exp() / logits.exp().sum()
    torch.testing.assert_close(found.probabilities[0], wanted, rtol=1e-3, atol=1e-5)
    assert found.probabilities.dtype == torch.float64 and found.spatial is None


def test_it_reads_the_classes(network: SmallNetwork) -> None:
    images, labels = stripes(30, 8, seed=1)
    right = network.features(images).probabilities.argmax(dim=1) == labels
    assert network.held_out_accuracy == 1 and right.double().mean() > 0.95


def test_an_image_has_its_features_whatever_comes_with_it(network: SmallNetwork) -> None:
    images = stripes(BLOCK + 1, 8, seed=2)[0]
    whole = network.features(images)
    for count in (1, 7, BLOCK):
        part = network.features(images[:count])
        assert torch.equal(part.pooled, whole.pooled[:count])
        assert torch.equal(part.probabilities, whole.probabilities[:count])
    assert torch.equal(network.features(images[BLOCK:]).pooled, whole.pooled[BLOCK:])
    turned = network.features(images[:BLOCK].flip(0)).pooled.flip(0)
    assert torch.equal(turned, whole.pooled[:BLOCK])


def test_it_is_a_feature_network(network: SmallNetwork) -> None:
    one: FeatureNetwork = network
    assert (one.name, one.side) == ("small", 8)
    assert one.fingerprint == network.to("cpu").fingerprint and len(one.fingerprint) == 64
    assert not any(p.requires_grad for p in network.classifier.parameters())


def test_the_fingerprint_is_the_hash_of_the_tensors(network: SmallNetwork) -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(network).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    assert network.fingerprint == digest.hexdigest()


# --- the cache ----------------------------------------------------------------------------------


def kept(**changes: int) -> SmallNetwork:
    return small_network(IMAGES, LABELS, classes=3, fingerprint_of_data=DATA, **changes)


def test_a_network_is_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_small_network(DATA, side=8, classes=3) is None
    first = kept()
    monkeypatch.setattr("diffmoe.evaluation.networks.cache.train_small_network", None)
    again = kept()
    assert equal(first, again) and again.held_out_accuracy == first.held_out_accuracy
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.features(IMAGES).pooled, first.features(IMAGES).pooled)
    (file,) = (cache / "networks").iterdir()
    assert file.name.startswith("small-v1-") and file.suffix == ".safetensors"


@pytest.mark.parametrize(
    "changes", [{"data": "other"}, {"side": 9}, {"classes": 4}, {"seed": 1}, {"recipe": "2"}]
)
def test_another_network_has_another_name(
    changes: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept()
    monkeypatch.setattr("diffmoe.evaluation.networks.cache.RECIPE", changes.pop("recipe", "1"))
    asked = {"side": 8, "classes": 3, "seed": 0} | changes
    same = asked.pop("data", DATA)
    if changes:
        assert find_small_network(same, **asked) is None
    else:
        assert find_small_network(DATA, side=8, classes=3) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "value", "tensor", "metadata"])
def test_a_damaged_file_is_trained_anew(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = kept()
    (file,) = (cache / "networks").iterdir()
    state, content = load_file(file), file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "value":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "tensor":
        save_file({"a": state["head.bias"]}, file, {"small_network": "{}"})
    else:
        save_file(state, file)
    with caplog.at_level(logging.WARNING):
        assert equal(kept(), first)
    assert "is damaged and will be trained again" in caplog.text
    caplog.clear()
    assert equal(kept(), first) and not caplog.text


def test_a_cache_that_cannot_be_written_to_is_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        assert kept().side == 8
    assert "is not kept and will be trained again" in caplog.text


def test_the_variables_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFMOE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "diffmoe"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "diffmoe"
    monkeypatch.setenv("DIFFMOE_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "classes", "what"),
    [
        (IMAGES.float(), LABELS, 3, "images of torch.float32"),
        (IMAGES[:, :1], LABELS, 3, "cannot be evaluated"),
        (IMAGES[:0], LABELS[:0], 3, "hold nothing to evaluate"),
        (IMAGES, LABELS[:5], 3, r"labels of torch.int64 and shape \(5,\) do not name"),
        (IMAGES, LABELS.float(), 3, "labels of torch.float32"),
        (IMAGES, LABELS - 1, 3, "labels -1 to 1 are not those of 3 classes — give labels from 0"),
        (IMAGES, LABELS, 2, "labels 0 to 2 are not those of 2 classes"),
        (IMAGES, LABELS, 4, "class 3 has 0 images, too few"),
        (IMAGES[:4], LABELS[:4], 3, "class 1 has 1 images, too few"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    images: Tensor, labels: Tensor, classes: int, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        train_small_network(images, labels, classes=classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "classes", "what"),
    [
        (IMAGES, 1, "1 class is too few"),
        (IMAGES[:, :, :7, :7], 3, "images of 7 x 7 pixels are none for the small network"),
        (IMAGES[..., :6], 3, "give square images of 8 to 64 pixels"),
        (IMAGES[..., :1, :1].expand(-1, -1, 65, 65), 3, "images of 65 x 65"),
    ],
)
def test_sets_the_network_is_not_made_for_are_refused(
    images: Tensor, classes: int, what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        train_small_network(images, LABELS, classes=classes)


def test_images_of_another_side_are_refused(network: SmallNetwork) -> None:
    with pytest.raises(DataError, match="images of 16 x 16 pixels do not fit the small network"):
        network.features(stripes(2, 16)[0])
