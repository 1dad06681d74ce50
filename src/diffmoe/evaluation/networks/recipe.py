"""How the small network is trained: a fixed recipe, so that equal data give the equal network."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, cos, pi

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.networks.features import check_images
from diffmoe.evaluation.networks.small import SmallClassifier, SmallNetwork, check_side, made_of
from diffmoe.randomness import normals, permutation, uniforms

__all__ = ["RECIPE", "train_small_network"]

RECIPE = "1"  # rises with every change that gives other weights
_STEPS, _BATCH = 400, 128
_MOST = 20_000  # images that are used
_PEAK, _WARM, _DECAY = 6e-3, 0.1, 0.05  # learning rate, share of steps it rises, weight decay
_SMOOTHING = 0.1  # of labels
_NOISE = 0.3  # largest deviation of added noise, of images in [-1, 1]


def train_small_network(
    images: UInt8[Tensor, "N 3 H W"],
    labels: Int[Tensor, "N"],
    *,
    classes: int,
    seed: int = 0,
    progress: bool = False,
) -> SmallNetwork:
    """The classifier of labelled images of 8 to 64 pixels, trained on the CPU in float32.

    One thread trains it, whatever the number allowed: gradients add up in another order in
    several. So equal images, labels and seeds give the equal network, bit by bit, on processors
    of one kind. At most 20,000 images are used, evenly spread over the classes, a tenth of each
    class is held out, and noise and shifts keep the features from hanging on grain and place.
    """
    _check(images, labels, classes)
    with _one_thread():
        rank = _rank_in_class(labels, seed)
        used = _evenly(rank, labels)
        images, labels, rank = images[used], labels[used].long(), rank[used]
        held = rank < _held_out(labels, classes)
        classifier = _initial(images.shape[2], classes, seed)
        _fit(classifier, images[~held], labels[~held], seed, progress)
        _measure_statistics(classifier, images[~held])
        state = {name: tensor.detach() for name, tensor in classifier.state_dict().items()}
        network = made_of(state, images.shape[2], classes, 0.0)
        accuracy = _accuracy(network, images[held], labels[held])
    return made_of(state, images.shape[2], classes, accuracy)


# --- which images ---------------------------------------------------------------------------------


def _rank_in_class(labels: Int[Tensor, "N"], seed: int) -> Int[Tensor, "N"]:
    """The place of each image in a shuffled row of its class."""
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(seed, f"small network/class {label}", len(members))
        rank[members] = torch.from_numpy(order)
    return rank


def _evenly(rank: Int[Tensor, "N"], labels: Int[Tensor, "N"]) -> Int[Tensor, "M"]:
    """The first of each class, then the second of each, and so on, as many as are used."""
    turn = torch.argsort(rank * (int(labels.max()) + 1) + labels)
    return turn[:_MOST].sort().values


def _held_out(labels: Int[Tensor, "N"], classes: int) -> Int[Tensor, "N"]:
    """How many images of the class of each image are held out: a tenth, at least one."""
    return (labels.bincount(minlength=classes) // 10).clamp_min(1)[labels]


# --- training -------------------------------------------------------------------------------------


def _initial(side: int, classes: int, seed: int) -> SmallClassifier:
    """The untrained classifier: normal weights after He et al. 2015."""
    with torch.device("meta"):  # initial values would draw from the global generator
        classifier = SmallClassifier(side, classes)
    state = {}
    for name, tensor in classifier.state_dict().items():
        if tensor.ndim > 1:
            values = normals(seed, f"small network/{name}", 0, 1, tuple(tensor.shape))[0]
            state[name] = values * (2 / values[0].numel()) ** 0.5
        else:
            ones = name.endswith((".1.weight", "running_var"))  # of normalizations
            state[name] = torch.full(tensor.shape, float(ones)).to(tensor.dtype)
    classifier.load_state_dict(state, assign=True)
    return classifier


def _fit(
    classifier: SmallClassifier,
    images: UInt8[Tensor, "N 3 H W"],
    labels: Int[Tensor, "N"],
    seed: int,
    progress: bool,
) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_PEAK, weight_decay=_DECAY)
    order = _order(len(labels), seed)
    for step in tqdm(range(_STEPS), desc="small network", unit="step", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = _rate((step + 0.5) / _STEPS)
        chosen = order[step]
        _, logits = classifier(_varied(images[chosen], seed, step))
        loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _rate(done: float) -> float:
    """The learning rate where a share of the steps is done: a line up, half a cosine down."""
    if done < _WARM:
        return _PEAK * done / _WARM
    return _PEAK * (1 + cos(pi * (done - _WARM) / (1 - _WARM))) / 2


def _order(count: int, seed: int) -> Int[Tensor, "steps batch"]:
    """The images of each step: a new shuffle of all of them whenever they are spent."""
    rounds = range(ceil(_STEPS * _BATCH / count))
    orders = [torch.from_numpy(permutation(seed, f"small network/{i}", count)) for i in rounds]
    return torch.cat(orders)[: _STEPS * _BATCH].view(_STEPS, _BATCH)


def _varied(images: UInt8[Tensor, "B 3 H W"], seed: int, step: int) -> Float[Tensor, "B 3 H W"]:
    """Images in [-1, 1], shifted by a pixel or two, with noise of random strength."""
    first, count = step * _BATCH, len(images)
    drawn = uniforms(seed, "small network/variation", first, count, 3)
    noise = normals(seed, "small network/noise", first, count, tuple(images.shape[1:]))
    strength = _NOISE * drawn[:, 0, None, None, None]
    return _shifted(images.float() / 127.5 - 1, drawn[:, 1:]) + strength * noise


def _shifted(
    images: Float[Tensor, "B 3 H W"], drawn: Float[Tensor, "B 2"]
) -> Float[Tensor, "B 3 H W"]:
    """Images moved by what numbers in [0, 1) say, their borders repeated."""
    side = images.shape[2]
    most = 1 if side < 16 else 2
    wide = functional.pad(images, [most] * 4, mode="replicate")
    places = (drawn * (2 * most + 1)).long().tolist()
    return torch.stack([wide[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(places)])


@torch.no_grad()
def _measure_statistics(classifier: SmallClassifier, images: UInt8[Tensor, "N 3 H W"]) -> None:
    """Set the means and variances of normalizations to those of the images as they are."""
    norms = [part for part in classifier.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    for part in images[: len(images) // _BATCH * _BATCH or None].split(_BATCH):
        classifier(part.float() / 127.5 - 1)


def _accuracy(
    network: SmallNetwork, images: UInt8[Tensor, "N 3 H W"], labels: Int[Tensor, "N"]
) -> float:
    probabilities = network.features(images).probabilities
    assert probabilities is not None
    return float((probabilities.argmax(dim=1) == labels).double().mean())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(before)


# --- bad input ------------------------------------------------------------------------------------


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    check_images(images)
    check_side(images)
    if classes < 2:
        raise ConfigError(
            f"{classes} class is too few for the small network, which tells classes apart",
            remedy="give a set of two classes or more, or take another network",
        )
    _check_labels(labels, len(images), classes)


def _check_labels(labels: Tensor, count: int, classes: int) -> None:
    if labels.is_floating_point() or labels.shape != (count,):
        raise DataError(
            f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not name the classes of"
            f" {count} images",
            remedy="give one whole number for each image",
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"labels {int(labels.min())} to {int(labels.max())} are not those of {classes} classes",
            remedy=f"give labels from 0 to {classes - 1}",
        )
    sizes = labels.long().bincount(minlength=classes)
    if int(sizes.min()) < 2:
        raise DataError(
            f"class {int(sizes.argmin())} has {int(sizes.min())} images, too few for the small"
            " network, which trains on one part of each class and is measured on another",
            remedy="give two images or more of each class",
        )
