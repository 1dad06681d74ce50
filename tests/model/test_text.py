"""Captions as the condition: what is attended to, what padding and silence mean, what it costs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe.captions import Captions
from diffmoe.config import BatchPool, Dense, ModelConfig
from diffmoe.errors import ConfigError
from diffmoe.model import (
    DiT,
    RoutingPlan,
    activated_parameters,
    build_model,
    count_flops,
    count_parameters,
    some_conditions,
    unused_weights,
)
from diffmoe.model.layers import CrossAttention
from diffmoe.presets import preset
from texts import FEATURES, WORDS, some_captions, text_model

TEXTS = {"words": WORDS, "features": FEATURES}
PLAN = RoutingPlan(selection="token", policy="ema")


def stirred(config: ModelConfig) -> DiT:
    """A network in float64 of which no weight is zero, and whose thresholds are measured."""
    model = build_model(config, 0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise
        for layer in model.moe_layers:
            layer.router.load_state_dict(
                {
                    name: torch.full_like(value, 0.4) if "threshold" in name else value
                    for name, value in layer.router.state_dict().items()
                }
            )
    return model


def inputs(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.rand(count, generator=generator, dtype=torch.float64)


def predict(model: DiT, captions: Captions) -> Tensor:
    train = RoutingPlan(selection="train", pool_of_image=(0,) * len(captions.mask))
    return model(*inputs(len(captions.mask)), captions, train).sample


@torch.no_grad()
def test_cross_attention_is_that_of_loops() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2).double()
    x, text = torch.randn(3, 5, 8).double(), torch.randn(3, 4, 8).double()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    found = layer(x, text, mask)
    keys, values = (
        F.linear(text, w, b)
        for w, b in zip(layer.key_value.weight.chunk(2), layer.key_value.bias.chunk(2), strict=True)
    )
    queries = layer.query(x)
    for image in range(3):
        for token in range(5):
            mixed = []
            for head in (slice(0, 4), slice(4, 8)):
                likes = [
                    float(queries[image, token, head] @ keys[image, word, head]) / math.sqrt(4)
                    for word in range(4)
                    if mask[image, word]
                ]
                total = sum(math.exp(like) for like in likes)
                real = [word for word in range(4) if mask[image, word]]
                mixed.append(
                    sum(
                        math.exp(like) / total * values[image, word, head]
                        for like, word in zip(likes, real, strict=True)
                    )
                )
            wanted = layer.proj(torch.cat(mixed))
            assert torch.allclose(found[image, token], wanted, atol=1e-12)


@pytest.mark.parametrize("kind", TEXTS)
def test_padding_changes_neither_values_nor_gradients(kind: str) -> None:
    text = TEXTS[kind]
    model = stirred(text_model(text))
    captions = some_captions(text, [6, 3, 1, 0])
    if kind == "features":
        captions = Captions(captions.tokens.double(), captions.mask)
    other = some_captions(text, [6, 3, 1, 0], seed=9)
    kept = captions.mask if kind == "words" else captions.mask[..., None]
    changed = Captions(torch.where(kept, captions.tokens, other.tokens), captions.mask)
    assert not torch.equal(changed.tokens, captions.tokens)
    found = []
    for told in (captions, changed):
        model.zero_grad()
        sample = predict(model, told)
        sample.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((sample.detach(), gradients))
    (one, first), (two, second) = found
    assert torch.equal(one, two)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_silent_caption_is_one_learned_token_whatever_it_held(kind: str) -> None:
    text = TEXTS[kind]
    model = stirred(text_model(text))
    said = some_captions(text, [6, 5, 4, 3])
    quiet, other = predict(model, said.silent), predict(model, some_captions(text, [1] * 4).silent)
    assert torch.equal(quiet, other)
    assert not torch.allclose(quiet, predict(model, said), atol=1e-6)
    some = said.without(torch.tensor([True, False, True, False]))
    assert torch.equal(some.mask.any(dim=1), torch.tensor([False, True, False, True]))
    with torch.no_grad():
        model.captions.null += 1
    assert not torch.allclose(quiet, predict(model, said.silent), atol=1e-6)


@pytest.mark.parametrize("kind", TEXTS)
def test_order_counts_and_each_word_is_felt(kind: str) -> None:
    text = TEXTS[kind]
    model = stirred(text_model(text))
    said = some_captions(text, [6] * 4)
    base = predict(model, said)
    if kind == "words":  # vectors of an encoder know their places themselves
        swapped = Captions(said.tokens.flip(1), said.mask)
        assert not torch.allclose(base, predict(model, swapped), atol=1e-6)
    for place in range(6):
        tokens = said.tokens.clone()
        tokens[:, place] = tokens[:, place] + 1 if kind == "features" else 0
        assert not torch.allclose(base, predict(model, Captions(tokens, said.mask)), atol=1e-9)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("router", ["dense", "batch_pool", "expert_choice", "token_choice"])
def test_every_weight_learns_and_attention_to_captions_begins_at_zero(
    kind: str, router: str
) -> None:
    config = text_model(TEXTS[kind], router)
    assert unused_weights(config) == ()
    model = build_model(config, 0)
    assert all(not block.cross.proj.weight.any() for block in model.blocks)
    assert model.captions.null.std() > 0.3


@pytest.mark.parametrize("kind", TEXTS)
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    text = TEXTS[kind]
    model = stirred(text_model(text))
    said, (x, t) = some_captions(text, [6, 3, 1, 0]), inputs()
    together = model(x, t, said, PLAN).sample
    for image in range(4):
        own = slice(image, image + 1)
        alone = model(x[own], t[own], said.rows(own), PLAN).sample
        assert torch.allclose(alone, together[own], atol=1e-12)


def test_the_published_models_have_the_published_sizes() -> None:
    """4.60 B parameters in all and 1.24 B activated, as the paper prints; the dense twin 1.24 B."""
    model = preset("diffmoe-e16-t2i-flow").model
    assert count_parameters(model).total == 4_596_846_960
    assert round(activated_parameters(model)["eq40"] / 1e9, 2) == 1.24
    dense = preset("dit-t2i-flow").model
    assert round(count_parameters(dense).total / 1e9, 2) == 1.24
    assert replace(model, router=Dense(), pool_images=1) == dense


def test_experts_are_counted_apart_from_the_reader_of_words() -> None:
    config = text_model()
    more = replace(config, text=replace(WORDS, layers=3))
    one, other = count_parameters(config), count_parameters(more)
    assert one.dense_ffn == other.dense_ffn and one.experts == other.experts
    assert other.total > one.total


def test_operations_of_captions_are_those_of_a_hand_formula() -> None:
    plain = replace(preset("digits-diffmoe").model, width=16, depth=2, heads=2, pool_images=4)
    told = replace(plain, num_classes=0, text=FEATURES)
    tokens, words, width = plain.tokens, FEATURES.tokens, 16
    projected = 2 * words * (FEATURES.width * width + width * width)
    attention = 2 * (2 * tokens * width * width + 2 * words * width * width)
    attention += 4 * tokens * words * width
    extra = projected + plain.depth * attention
    assert count_flops(told).dense - count_flops(plain).dense == extra


def test_a_condition_of_the_other_kind_is_refused() -> None:
    reader, classes = build_model(text_model(), 0), build_model(preset("digits-diffmoe").model, 0)
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    plan = RoutingPlan(selection="train", pool_of_image=(0, 0))
    with pytest.raises(ConfigError, match="labels are no condition for this model"):
        reader(x, t, torch.zeros(2, dtype=torch.int64), plan)
    with pytest.raises(ConfigError, match="captions are no condition for this model"):
        classes(x, t, some_captions(WORDS, [1, 1]), plan)


def test_conditions_for_trials_differ_and_one_is_silent() -> None:
    for text in TEXTS.values():
        found = some_conditions(text_model(text), 9)
        assert isinstance(found, Captions)
        assert (~found.mask.any(dim=1)).sum() >= 1
        assert len({tuple(row.flatten().tolist()) for row in found.tokens}) == 9


def test_recomputation_changes_no_gradient() -> None:
    found = []
    for recomputes in (False, True):
        model = stirred(text_model())
        model.activation_checkpointing = recomputes
        predict(model, some_captions(WORDS, [6, 3, 1, 0])).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bfloat16_reads_captions_as_float32_does_nearly() -> None:
    config = replace(
        text_model(FEATURES),
        router=BatchPool(num_experts=4, capacity=1.0, predictor_weight=1.0, threshold_decay=0.95),
    )
    model = build_model(config, 0)
    said = some_captions(FEATURES, [6, 3, 1, 0])
    exact = model.conditioned(torch.rand(4), said)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.conditioned(torch.rand(4), said)
    assert low.vector.dtype == torch.float32
    assert torch.allclose(low.text.float(), exact.text, atol=0.05)
