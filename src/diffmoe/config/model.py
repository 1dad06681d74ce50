"""What defines a network: nothing here has a default."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import ClassVar

from diffmoe.config.captions import NoText, TextConfig
from diffmoe.config.checks import Checked, at_least, is_sound, raised
from diffmoe.errors import ConfigError

__all__ = [
    "ROUTER_OPTIONS",
    "BatchPool",
    "Dense",
    "ExpertChoice",
    "ModelConfig",
    "RouterOptions",
    "TokenChoice",
    "register_options",
]


class RouterOptions(Checked):
    """Options of one kind of router: a frozen dataclass with `kind` and `num_experts`."""

    group: ClassVar[str] = "model.router"
    kind: ClassVar[str]  # its name in config.yaml
    selections: ClassVar[tuple[str, ...]] = ()  # that it obeys while sampling; () = it has its own
    num_experts: int  # E

    def check(self, tokens: int, pool_images: int) -> None:
        """Raise ConfigError if images of `tokens` tokens or pools of them do not fit."""


@dataclass(frozen=True, kw_only=True)
class Dense(RouterOptions):
    """Every feed-forward layer is one dense FFN; there are no experts."""

    kind: ClassVar[str] = "dense"
    num_experts: ClassVar[int] = 0  # type: ignore[misc]

    def check(self, tokens: int, pool_images: int) -> None:
        """A dense layer fits any pool."""


@dataclass(frozen=True, kw_only=True)
class TokenChoice(RouterOptions):
    """Each token takes its best experts (TC-DiT), kept even by the Switch balance loss."""

    kind: ClassVar[str] = "token_choice"
    num_experts: int  # E
    top_k: int  # experts a token takes
    balance_weight: float  # alpha of the balance loss; 0.01 in the paper's baseline

    def ranges(self) -> Iterator[ConfigError]:
        """There are experts, and the balance loss pulls the right way."""
        yield from _experts(self)
        yield from at_least(0, self, "balance_weight")

    def relations(self) -> Iterator[ConfigError]:
        """1 <= top_k <= num_experts."""
        if not 1 <= self.top_k <= self.num_experts:
            yield ConfigError(
                f"model.router.top_k {self.top_k} is not in 1..{self.num_experts}",
                remedy="a token takes at least one expert and at most all of them",
            )


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(RouterOptions):
    """Each expert takes its best tokens of every image (EC-DiT)."""

    kind: ClassVar[str] = "expert_choice"
    num_experts: int  # E
    capacity: float  # C, 1 = the work of one dense FFN

    def ranges(self) -> Iterator[ConfigError]:
        """There are experts."""
        yield from _experts(self)

    def relations(self) -> Iterator[ConfigError]:
        """0 < capacity <= num_experts."""
        yield from _capacity(self.capacity, self.num_experts)

    def check(self, tokens: int, pool_images: int) -> None:
        """Raise ConfigError if an expert would take no token of an image."""
        if tokens * self.capacity < self.num_experts:
            largest = max(1, int(tokens * self.capacity))
            raise ConfigError(
                f"model.router.num_experts {self.num_experts} leaves an expert no token: an image"
                f" has {tokens} tokens",
                remedy=f"use at most {largest} experts or more tokens an image",
            )


@dataclass(frozen=True, kw_only=True)
class BatchPool(RouterOptions):
    """Each expert takes its best tokens of a pool of images (DiffMoE, Sec. 3.2)."""

    kind: ClassVar[str] = "batch_pool"
    selections: ClassVar[tuple[str, ...]] = ("token", "pool", "gate", "image")
    num_experts: int  # E
    capacity: float  # C_train, 1 = the work of one dense FFN
    predictor_weight: float  # weight of the capacity predictor's loss (Eq. 13)
    threshold_decay: float  # decay of the tracked thresholds (Eq. 17), 0.95 in the paper

    def ranges(self) -> Iterator[ConfigError]:
        """There are experts, and thresholds are averages of what was seen."""
        yield from _experts(self)
        yield from at_least(0, self, "predictor_weight")
        decay = getattr(self, "threshold_decay", 0)
        if not 0 <= decay < 1:
            yield ConfigError(
                f"model.router.threshold_decay {decay} is not in [0, 1)",
                remedy="0.95 is the paper's",
            )

    def relations(self) -> Iterator[ConfigError]:
        """0 < capacity <= num_experts."""
        yield from _capacity(self.capacity, self.num_experts)

    def check(self, tokens: int, pool_images: int) -> None:
        """Raise ConfigError if an expert would take no token of a pool (K = 0)."""
        if tokens * pool_images * self.capacity < self.num_experts:
            smallest = math.ceil(self.num_experts / (tokens * self.capacity))
            raise ConfigError(
                f"model.pool_images {pool_images} makes a pool of {tokens * pool_images} tokens for"
                f" {self.num_experts} experts: K would be 0",
                remedy=f"use a pool of at least {smallest} images, and as training.global_batch a"
                " multiple of it",
            )


ROUTER_OPTIONS: dict[str, type[RouterOptions]] = {
    options.kind: options for options in (Dense, TokenChoice, ExpertChoice, BatchPool)
}


def register_options(options: type[RouterOptions]) -> None:
    """Let configs carry `options` under its `kind`; raises ConfigError if another class has it."""
    if not (is_dataclass(options) and issubclass(options, RouterOptions)):
        raise ConfigError(
            f"{options.__name__} cannot stand in a config",
            remedy="make it a frozen dataclass that derives from RouterOptions",
        )
    other = ROUTER_OPTIONS.setdefault(options.kind, options)
    if other.__qualname__ != options.__qualname__:
        raise ConfigError(
            f"router kind {options.kind!r} belongs to {other.__qualname__}",
            remedy="give the new options a kind of their own",
        )
    ROUTER_OPTIONS[options.kind] = options  # a notebook defines a class again and again


_CLASSES_ONLY = NoText()


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A diffusion transformer (DiT) whose odd feed-forward layers may be mixtures of experts."""

    group: ClassVar[str] = "model"
    input_size: int  # side of the square latent or image the network sees
    patch_size: int  # side of a patch; a token is one patch
    channels: int  # channels of the latent or image
    out_channels: int  # channels predicted: `channels`, or twice that with a learned variance
    width: int  # D
    depth: int  # transformer blocks
    heads: int  # attention heads
    mlp_ratio: int  # hidden width of a feed-forward layer / D
    num_classes: int  # classes; one more row is the null class of guidance; 0 = captions instead
    router: RouterOptions  # who chooses which expert sees which token
    moe_period: int  # blocks moe_period - 1, 2 * moe_period - 1, ... are MoE; 2 in the paper
    pool_images: int  # images whose tokens compete for an expert in training
    text: TextConfig = _CLASSES_ONLY  # what is read of captions, where they are the condition

    def ranges(self) -> Iterator[ConfigError]:
        """Sizes are those of a network."""
        for name, value in vars(self).items():
            if isinstance(value, int) and value < (name != "num_classes"):
                yield ConfigError(f"model.{name} {value} is not positive", remedy="use 1 or more")
            if name in _LARGEST and value > _LARGEST[name]:
                yield ConfigError(
                    f"model.{name} {value} is larger than any network of this kind",
                    remedy=f"use {_LARGEST[name]} at most",
                )

    def relations(self) -> Iterator[ConfigError]:
        """Sizes divide one another, and every expert finds tokens."""
        if self.input_size % self.patch_size:
            lower = self.input_size // self.patch_size * self.patch_size
            legal = " or ".join(str(n) for n in (lower, lower + self.patch_size) if n)
            yield ConfigError(
                f"model.input_size {self.input_size} is not a multiple of model.patch_size"
                f" {self.patch_size}",
                remedy=f"use {legal}",
            )
        yield from self._condition()
        if self.width % self.heads:
            yield ConfigError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}",
                remedy=f"use {_nearest_divisor(self.width, self.heads)} heads",
            )
        if self.width % 4:
            yield ConfigError(
                f"model.width {self.width} is not a multiple of 4",
                remedy="the 2-D position table needs sine and cosine for each of two axes",
            )
        if self.out_channels not in (self.channels, 2 * self.channels):
            yield ConfigError(
                f"model.out_channels {self.out_channels} fits no objective",
                remedy=f"use {self.channels}, or {2 * self.channels} with a learned variance",
            )
        if self.router.num_experts and not self.moe_blocks:
            yield ConfigError(
                f"model.moe_period {self.moe_period} is more than model.depth {self.depth}:"
                " no block would have experts",
                remedy=f"use at most {self.depth}",
            )
        if is_sound(self.router) and self.tokens:
            yield from raised(self.router.check, self.tokens, self.pool_images)

    def _condition(self) -> Iterator[ConfigError]:
        """Classes or captions, never both."""
        if self.reads_text and self.num_classes:
            yield ConfigError(
                f"model.num_classes {self.num_classes} does not go with model.text of kind"
                f" {self.text.kind}",
                remedy="set it to 0: captions are the condition",
            )
        if not self.reads_text and not self.num_classes:
            yield ConfigError(
                "model.num_classes 0 is not positive", remedy="use 1 or more, or a text preset"
            )

    @property
    def reads_text(self) -> bool:
        """Whether the condition is a caption, not a class."""
        return not isinstance(self.text, NoText)

    @property
    def tokens(self) -> int:
        """Tokens of an image, T."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def moe_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks whose feed-forward layer is a mixture of experts."""
        if self.router.num_experts == 0:
            return ()
        return tuple(range(self.moe_period - 1, self.depth, self.moe_period))

    @property
    def null_class(self) -> int:
        """Row of the label table that stands for "no class"."""
        return self.num_classes


# Far beyond any network of this kind: a slip of the keyboard is told before memory runs out.
_LARGEST = {
    "input_size": 2**14,
    "channels": 2**12,
    "out_channels": 2**13,
    "width": 2**16,
    "depth": 2**10,
    "mlp_ratio": 2**6,
    "num_classes": 2**24,
    "pool_images": 2**20,
}
_MOST_EXPERTS = 2**12


def _experts(options: RouterOptions) -> Iterator[ConfigError]:
    number = getattr(options, "num_experts", 1)
    if not 1 <= number <= _MOST_EXPERTS:
        yield ConfigError(
            f"model.router.num_experts {number} is not in 1..{_MOST_EXPERTS}",
            remedy="use the dense router for a network without experts",
        )


def _capacity(capacity: float, num_experts: int) -> Iterator[ConfigError]:
    if not 0 < capacity <= num_experts:
        yield ConfigError(
            f"model.router.capacity {capacity} is not in (0, {num_experts}]",
            remedy="1 is the work of one dense FFN",
        )


def _nearest_divisor(width: int, wanted: int) -> int:
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))
