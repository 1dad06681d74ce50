"""What a network is told of an image: a class, or a caption."""

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffmoe.captions import Captions
from diffmoe.config import FeatureText, ModelConfig, WordText
from diffmoe.errors import ConfigError
from diffmoe.model.layers import Attention, FeedForward, gelu, steady

__all__ = [
    "CaptionEmbedder",
    "Condition",
    "Conditioning",
    "LabelEmbedder",
    "build_embedder",
    "some_conditions",
]

Condition: TypeAlias = Tensor | Captions  # numbers of classes (B,), or captions
_HIDDEN_RATIO = 4  # hidden width of a feed-forward layer over words / their width


class Conditioning(NamedTuple):
    """What a condition does to a network, apart from the time."""

    vector: Float[Tensor, "B D"]  # modulates all blocks
    text: Float[Tensor, "B N D"] | None = None  # attended to by all blocks
    mask: Bool[Tensor, "B N"] | None = None  # which tokens of `text` are real


class LabelEmbedder(nn.Module):
    """A vector for each class; the last row is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, "B"]) -> Conditioning:
        """The vector of each label."""
        if not isinstance(labels, Tensor):
            raise ConfigError(
                "captions are no condition for this model", remedy="it knows classes by numbers"
            )
        return Conditioning(self.table(labels))

    def initialize(self, generator: torch.Generator) -> None:
        """DiT's N(0, 0.02)."""
        nn.init.normal_(self.table.weight, std=0.02, generator=generator)


class CaptionEmbedder(nn.Module):
    """Captions projected to the network's width (W -> D -> D, GELU-tanh); their mean modulates.

    A caption that says nothing is one learned token.
    """

    def __init__(self, config: WordText | FeatureText, width: int) -> None:
        super().__init__()
        self.words = WordReader(config) if isinstance(config, WordText) else None
        self.null = nn.Parameter(torch.empty(config.width))
        self.fc1 = nn.Linear(config.width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, captions: Captions) -> Conditioning:
        """Tokens of each caption, and the mean of those that are real."""
        if not isinstance(captions, Captions):
            raise ConfigError(
                "labels are no condition for this model",
                remedy="it reads captions: encode prompts with the run's text encoder",
            )
        first = torch.zeros_like(captions.mask)
        first[:, 0] = True
        nothing = first & ~captions.mask.any(dim=1, keepdim=True)
        mask = captions.mask | nothing
        found = captions.tokens if self.words is None else self.words(captions.tokens, mask)
        found = torch.where(nothing[..., None], self.null, found.to(self.null.dtype))
        text = steady(self.fc2, gelu(steady(self.fc1, found)))
        real = mask[..., None].to(torch.promote_types(text.dtype, torch.float32))
        return Conditioning((text * real).sum(dim=1) / real.sum(dim=1), text, mask)

    def initialize(self, generator: torch.Generator) -> None:
        """Unit-sized null token and words; linears are the network's as all others."""
        nn.init.normal_(self.null, generator=generator)
        if self.words is not None:
            nn.init.normal_(self.words.table.weight, generator=generator)
            nn.init.normal_(self.words.places, std=0.5, generator=generator)


class WordReader(nn.Module):
    """Words to vectors that know their caption: a table, places, pre-norm transformer layers."""

    def __init__(self, config: WordText) -> None:
        super().__init__()
        self.table = nn.Embedding(config.words, config.width)
        self.places = nn.Parameter(torch.empty(config.tokens, config.width))
        self.layers = nn.ModuleList(WordLayer(config) for _ in range(config.layers))

    def forward(
        self, words: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N W"]:
        """A vector of unit variance for each word."""
        x = self.table(words) + self.places
        for layer in self.layers:
            x = layer(x, mask)
        return _norm(x)


class WordLayer(nn.Module):
    """Attention between the words of a caption, then a dense FFN."""

    def __init__(self, config: WordText) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config.width, _HIDDEN_RATIO * config.width)

    def forward(
        self, x: Float[Tensor, "B N W"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N W"]:
        """The words after both branches."""
        x = x + self.attention(_norm(x), mask)
        return x + self.feed_forward(_norm(x))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def build_embedder(config: ModelConfig) -> LabelEmbedder | CaptionEmbedder:
    """What makes vectors of the condition that a network takes."""
    if isinstance(config.text, (WordText, FeatureText)):
        return CaptionEmbedder(config.text, config.width)
    return LabelEmbedder(config.num_classes, config.width)


def some_conditions(
    config: ModelConfig, images: int, device: torch.device | str = "cpu"
) -> Condition:
    """Conditions of the right form, unlike one another, for counts and trials; one says nothing."""
    image, reads = torch.arange(images, device=device), config.text
    if not isinstance(reads, (WordText, FeatureText)):
        return image % (config.num_classes + 1)
    token = torch.arange(reads.tokens, device=device)
    mask = token < image[:, None] % (reads.tokens + 1)
    place = image[:, None] * reads.tokens + token
    if isinstance(reads, WordText):
        return Captions(place % reads.words, mask)
    wave = torch.arange(reads.width, device=device) + 1
    return Captions((place[..., None] * wave).sin(), mask)
