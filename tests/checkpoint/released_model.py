"""A slow model whose state dict is exactly the released layout, written from its description.

Every product that the package computes in one call is a loop here: patches, heads, experts and
the rows they take. It imports nothing of the package and runs in any float dtype.
"""

import math

import torch
from torch import Tensor, nn

KINDS = ("dense", "token_choice", "expert_choice", "batch_pool")


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normalized(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-6)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


class SiLU(nn.Module):
    """Takes place 0 or 1 of a sequence, so that the layers have the layout's numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


class Feed(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        return linear(self.fc2, gelu_tanh(linear(self.fc1, rows)))


class Mixture(nn.Module):
    """The experts of a block; subclasses say which rows of which image an expert takes."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Feed(width, hidden) for _ in range(experts))

    def router(self) -> Tensor:
        return self.gate_weight

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        logits = rows @ self.router().T
        share = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
        share = share / share.sum(dim=1, keepdim=True)
        result = torch.zeros_like(rows)
        for expert, taken in enumerate(self.taken(rows, share, x.shape[1])):
            for row in taken:
                result[row] += share[row, expert] * self.experts[expert](rows[row])
        return result.reshape(x.shape)


def best(values: Tensor, count: int, offset: int = 0) -> list[int]:
    """The rows of the `count` largest values."""
    ranked = sorted(range(len(values)), key=lambda row: (-values[row].item(), row))
    return [offset + row for row in ranked[:count]]


class TokenChoice(Mixture):
    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__(width, hidden, experts)
        self.gate = nn.Linear(width, experts, bias=False)

    def router(self) -> Tensor:
        return self.gate.weight

    def taken(self, rows: Tensor, share: Tensor, tokens: int) -> list[list[int]]:
        favourite = [int(row.argmax()) for row in share]
        return [
            [row for row, choice in enumerate(favourite) if choice == expert]
            for expert in range(share.shape[1])
        ]


class ExpertChoice(Mixture):
    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__(width, hidden, experts)
        self.gate_weight = nn.Parameter(torch.zeros(experts, width))

    def taken(self, rows: Tensor, share: Tensor, tokens: int) -> list[list[int]]:
        experts = share.shape[1]
        taken: list[list[int]] = [[] for _ in range(experts)]
        for start in range(0, len(rows), tokens):
            for expert in range(experts):
                image = share[start : start + tokens, expert]
                taken[expert] += best(image, tokens // experts, start)
        return taken


class BatchPool(Mixture):
    """Inference by the paper's Algorithm 4: how many by the predictor, which by affinity."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__(width, hidden, experts)
        self.gate_weight = nn.Parameter(torch.zeros(experts, width))
        self.capacity_predictor = nn.Sequential(
            nn.Linear(width, width), SiLU(), nn.Linear(width, experts)
        )
        self.register_buffer("expert_threshold", torch.zeros(experts))
        self.register_buffer("ema_decay", torch.full((1,), 0.95))
        self.counts: list[int] = []  # rows each expert took in the last pass

    def taken(self, rows: Tensor, share: Tensor, tokens: int) -> list[list[int]]:
        first, _, second = self.capacity_predictor
        demand = linear(second, silu(linear(first, rows)))
        wanted = 1 / (1 + torch.exp(-demand))
        self.counts = [
            sum(bool(value > self.expert_threshold[e]) for value in wanted[:, e])
            for e in range(share.shape[1])
        ]
        return [best(share[:, e], count) for e, count in enumerate(self.counts)]


MIXTURES = {
    "token_choice": TokenChoice,
    "expert_choice": ExpertChoice,
    "batch_pool": BatchPool,
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        size, mixed = width // self.heads, torch.zeros_like(x)
        q, k, v = linear(self.qkv, x).split(width, dim=-1)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores = torch.exp(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size))
            mixed[..., part] = scores / scores.sum(dim=-1, keepdim=True) @ v[..., part]
        return linear(self.proj, mixed)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), mlp
        self.adaLN_modulation = nn.Sequential(SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = linear(self.adaLN_modulation[1], silu(condition))[:, None].chunk(6, dim=-1)
        shift, scale, gate = parts[:3]
        x = x + gate * self.attn(normalized(x) * (1 + scale) + shift)
        shift, scale, gate = parts[3:]
        return x + gate * self.mlp(normalized(x) * (1 + scale) + shift)


class Embedder(nn.Module):
    """A module of one or two named parts, for the names' sake."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class ReleasedModel(nn.Module):
    """A diffusion transformer with released tensor names."""

    def __init__(
        self,
        kind: str,
        *,
        heads: int,
        width: int = 24,
        depth: int = 4,
        experts: int = 3,
        side: int = 4,  # tokens along one side
        patch: int = 2,
        channels: int = 4,
        classes: int = 7,
        ratio: int = 4,
        period: int = 2,
    ) -> None:
        super().__init__()
        self.side, self.patch, self.channels = side, patch, channels
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, width), requires_grad=False)
        self.x_embedder = Embedder(proj=nn.Conv2d(channels, width, patch, patch))
        self.t_embedder = Embedder(
            mlp=nn.Sequential(nn.Linear(256, width), SiLU(), nn.Linear(width, width))
        )
        self.y_embedder = Embedder(embedding_table=nn.Embedding(classes + 1, width))
        feeds = [
            MIXTURES[kind](width, ratio * width, experts)
            if kind != "dense" and index % period == period - 1
            else Feed(width, ratio * width)
            for index in range(depth)
        ]
        self.blocks = nn.ModuleList(Block(width, heads, feed) for feed in feeds)
        self.final_layer = Embedder(
            linear=nn.Linear(width, patch * patch * 2 * channels),
            adaLN_modulation=nn.Sequential(SiLU(), nn.Linear(width, 2 * width)),
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """All 2C output channels at the network's own times."""
        first, _, second = self.t_embedder.mlp
        condition = linear(second, silu(linear(first, self.waves(t))))
        condition = condition + self.y_embedder.embedding_table.weight[labels]
        tokens = self.embedded(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        layer = self.final_layer
        shift, scale = linear(layer.adaLN_modulation[1], silu(condition))[:, None].chunk(2, -1)
        return self.image(linear(layer.linear, normalized(tokens) * (1 + scale) + shift))

    def velocity(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Flow: x_0 - eps at time t in [0, 1], t = 0 noise; the other half is unused."""
        return self(x, t, labels)[:, : self.channels]

    def epsilon(self, x: Tensor, step: Tensor, labels: Tensor) -> Tensor:
        """DDPM: the noise at an integer step; the other half is the variance."""
        return self(x, step, labels)[:, : self.channels]

    def waves(self, t: Tensor) -> Tensor:
        angles = [t * math.exp(-math.log(10000) * i / 128) for i in range(128)]
        return torch.stack([torch.cos(a) for a in angles] + [torch.sin(a) for a in angles], dim=1)

    def cells(self) -> list[tuple[int, slice, slice]]:
        """Each token with the rows and columns of its patch."""
        spans = [slice(i * self.patch, (i + 1) * self.patch) for i in range(self.side)]
        return [
            (row * self.side + column, spans[row], spans[column])
            for row in range(self.side)
            for column in range(self.side)
        ]

    def embedded(self, x: Tensor) -> Tensor:
        weight, bias = self.x_embedder.proj.weight, self.x_embedder.proj.bias
        patches = [x[:, None, :, rows, columns] for _, rows, columns in self.cells()]
        return torch.stack([(p * weight).sum(dim=(2, 3, 4)) + bias for p in patches], dim=1)

    def image(self, tokens: Tensor) -> Tensor:
        pixels, p = self.side * self.patch, self.patch
        result = tokens.new_zeros(len(tokens), 2 * self.channels, pixels, pixels)
        for token, rows, columns in self.cells():
            cell = tokens[:, token].reshape(-1, p, p, 2 * self.channels)
            result[:, :, rows, columns] = cell.permute(0, 3, 1, 2)
        return result


@torch.no_grad()
def randomized(model: ReleasedModel, seed: int) -> ReleasedModel:
    """The model with every tensor random and of effect: no zero gates, thresholds that cut."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("expert_threshold"):
            value = torch.sigmoid(0.3 * noise)
        elif name.endswith("ema_decay"):
            value = torch.full_like(noise, 0.95)
        else:
            spread = 1.0 if name.endswith(("gate_weight", "gate.weight")) else 0.7
            value = noise * spread / math.sqrt(max(tensor.shape[-1], 4))
        tensor.copy_(value)
    return model
