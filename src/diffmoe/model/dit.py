"""The diffusion transformer: patches, times and conditions in, a prediction and its routing out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmoe.config import ModelConfig
from diffmoe.errors import ConfigError
from diffmoe.model.condition import (
    CaptionEmbedder,
    Condition,
    Conditioning,
    LabelEmbedder,
    build_embedder,
)
from diffmoe.model.embed import (
    PatchEmbedder,
    TimeEmbedder,
    position_table,
    unpatchify,
)
from diffmoe.model.experts import Experts
from diffmoe.model.layers import (
    Attention,
    CrossAttention,
    FeedForward,
    Modulate,
    Modulation,
    modulated_norm,
    steady,
)
from diffmoe.model.router import ROUTERS, Router
from diffmoe.model.routing import Routing, RoutingPlan

__all__ = ["DiT", "MixtureOfExperts", "Prediction", "build_model", "empty_model"]


@dataclass(frozen=True)
class Prediction:
    """What one forward pass returns: the network's output and one record for each MoE layer."""

    sample: Float[Tensor, "B C H W"]
    routing: tuple[Routing, ...]


class MixtureOfExperts(nn.Module):
    """A router and the experts that execute its record (Sec. 3, Alg. 3)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = config.router
        self.router: Router = ROUTERS[type(options)](config, layer)
        self.experts = Experts(options.num_experts, config.width, config.mlp_ratio * config.width)

    def forward(
        self, x: Float[Tensor, "B T D"], plan: RoutingPlan
    ) -> tuple[Float[Tensor, "B T D"], Routing]:
        """The experts' gated sum and the record of who took what."""
        routing = self.router.route(x, plan)
        return self.experts(x.flatten(0, 1), routing).view_as(x), routing


class Block(nn.Module):
    """adaLN-Zero transformer block: attention, then a dense FFN or a mixture of experts.

    Where the condition is a caption, its tokens are attended to in between.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.modulate = Modulate(config.width, parts=6)
        self.attention = Attention(config.width, config.heads)
        self.cross = CrossAttention(config.width, config.heads) if config.reads_text else None
        self.feed_forward: FeedForward | MixtureOfExperts
        if index in config.moe_blocks:
            self.feed_forward = MixtureOfExperts(config, config.moe_blocks.index(index))
        else:
            self.feed_forward = FeedForward(config.width, config.mlp_ratio * config.width)

    def forward(
        self, x: Float[Tensor, "B T D"], given: Conditioning, plan: RoutingPlan
    ) -> tuple[Float[Tensor, "B T D"], Routing | None]:
        """The tokens after all branches, and the routing record of a MoE block."""
        parts = self.modulate(given.vector)
        mix, feed = Modulation(*parts[:3]), Modulation(*parts[3:])
        x = x + mix.gate * self.attention(modulated_norm(x, mix.shift, mix.scale))
        if self.cross is not None and given.text is not None and given.mask is not None:
            x = x + self.cross(F.layer_norm(x, x.shape[-1:], eps=1e-6), given.text, given.mask)
        rows = modulated_norm(x, feed.shift, feed.scale)
        if isinstance(self.feed_forward, MixtureOfExperts):
            output, routing = self.feed_forward(rows, plan)
            return x + feed.gate * output, routing
        return x + feed.gate * self.feed_forward(rows), None


class DiT(nn.Module):
    """DiT backbone with dense or mixture-of-experts feed-forward layers (method of Table 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        patch, width = config.patch_size, config.width
        self.patches = PatchEmbedder(config.channels, width, patch)
        self.positions = nn.Parameter(torch.empty(1, config.tokens, width), requires_grad=False)
        self.times = TimeEmbedder(width)
        embedder = build_embedder(config)
        if isinstance(embedder, CaptionEmbedder):
            self.captions = embedder
        else:
            self.labels = embedder
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.final_modulate = Modulate(width, parts=2)
        self.final = nn.Linear(width, patch * patch * config.out_channels)

    @property
    def moe_layers(self) -> list[MixtureOfExperts]:
        """The mixture-of-experts layers, first to last."""
        layers = [block.feed_forward for block in self.blocks]
        return [layer for layer in layers if isinstance(layer, MixtureOfExperts)]

    def forward(
        self,
        x_t: Float[Tensor, "B C H W"],
        t: Float[Tensor, "B"],
        condition: Condition,
        plan: RoutingPlan,
    ) -> Prediction:
        """The network's raw output for noisy images `x_t` at network times `t`."""
        _check_geometry(x_t, self.config)
        x = self.patches(x_t.to(self.patches.weight.dtype)) + self.positions
        given = self.conditioned(t, condition)
        records = []
        for block in self.blocks:
            x, routing = self._run(block, x, given, plan)
            records.append(routing)
        shift, scale = self.final_modulate(given.vector)
        tokens = steady(self.final, modulated_norm(x, shift, scale))
        sample = unpatchify(tokens, self.config.patch_size, self.config.out_channels)
        return Prediction(sample, tuple(r for r in records if r is not None))

    def conditioned(self, t: Float[Tensor, "B"], condition: Condition) -> Conditioning:
        """What times and conditions do to the blocks."""
        given: Conditioning = self.condition_embedder(condition)
        return given._replace(vector=self.times(t) + given.vector)

    @property
    def condition_embedder(self) -> LabelEmbedder | CaptionEmbedder:
        """What makes vectors of classes, or of captions."""
        return self.captions if self.config.reads_text else self.labels

    def _run(
        self, block: nn.Module, x: Tensor, given: Conditioning, plan: RoutingPlan
    ) -> tuple[Tensor, Routing | None]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, given, plan, use_reentrant=False)
        return block(x, given, plan)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """DiT's initialisation: xavier-uniform linears, zero biases, zero adaLN and output.

        Attention to captions begins at zero as well.

        Experts and routers set their own parameters and buffers.
        """
        for module in _outside_of_experts(self):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.flatten(1), generator=generator)
        nn.init.zeros_(self.patches.bias)
        for weight in (self.times.fc1.weight, self.times.fc2.weight):
            nn.init.normal_(weight, std=0.02, generator=generator)
        self.condition_embedder.initialize(generator)
        zero = (m.proj for m in self.modules() if isinstance(m, (Modulate, CrossAttention)))
        for zeroed in (self.final, *zero):
            nn.init.zeros_(zeroed.weight)
            nn.init.zeros_(zeroed.bias)
        side = self.config.input_size // self.config.patch_size
        self.positions.copy_(position_table(self.config.width, side))
        for layer in self.moe_layers:
            layer.experts.initialize(generator)
            layer.router.initialize(generator)


def _outside_of_experts(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        if not isinstance(child, MixtureOfExperts):
            yield from _outside_of_experts(child)


def empty_model(config: ModelConfig) -> DiT:
    """A network on the CPU whose parameters are still to be filled; its buffers are zero."""
    with torch.device("meta"):
        model = DiT(config)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    return model


def build_model(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> DiT:
    """A freshly initialised network; its weights depend on (config, seed) only."""
    model = empty_model(config)
    model.initialize(torch.Generator().manual_seed(seed))
    return model.to(device)


def _check_geometry(x_t: Tensor, config: ModelConfig) -> None:
    wanted = (config.channels, config.input_size, config.input_size)
    if tuple(x_t.shape[1:]) != wanted:
        raise ConfigError(
            f"the model takes images of shape {wanted}, got {tuple(x_t.shape[1:])}",
            remedy="resize or encode the images first",
        )
