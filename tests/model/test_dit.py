"""The backbone: shapes, embeddings, recomputation, compilation, independence and memory."""

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from diffmoe.config import BatchPool
from diffmoe.errors import ConfigError
from diffmoe.model import ROUTERS, BatchPoolRouter, DiT, Prediction, RoutingPlan, build_model
from diffmoe.model.condition import LabelEmbedder
from diffmoe.model.embed import TimeEmbedder, position_table, unpatchify
from long_record import hold

TOKEN = RoutingPlan(selection="token", policy="ema")
POOL = RoutingPlan(selection="pool", policy="ema")
every_router = pytest.mark.parametrize("router", tiny.ROUTERS.values(), ids=tiny.ROUTERS.keys())


def total_loss(model: DiT, prediction: Prediction) -> Tensor:
    """A loss that every trained parameter has a part in."""
    loss = (prediction.sample * tiny.normals(*prediction.sample.shape, seed=4)).sum()
    for layer, routing in zip(model.moe_layers, prediction.routing, strict=True):
        loss = loss + sum(layer.router.losses(routing).values())
    return loss


def gradients(model: DiT) -> dict[str, Tensor | None]:
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return grads


# --- shapes and beginnings ----------------------------------------------------------------------


@every_router
@pytest.mark.parametrize("channels", [2, 4])
def test_shapes(router, channels: int) -> None:
    changes = {"channels": channels, "out_channels": 2 * channels, "depth": 3}
    model = tiny.model(router, **changes)
    prediction = model(*tiny.batch(5, **changes), tiny.TRAIN)
    assert prediction.sample.shape == (5, 2 * channels, 4, 4)
    assert len(prediction.routing) == len(model.moe_layers) == (router.num_experts > 0)
    for routing in prediction.routing:
        assert routing.affinity.shape == (20, router.num_experts)


@every_router
def test_a_fresh_model_predicts_zero(router) -> None:
    model = build_model(tiny.config(router), seed=0)
    x, t, labels = tiny.batch(4, dtype=torch.float32)
    assert not model(x, t, labels, tiny.TRAIN).sample.any()
    assert all(bool(p.isfinite().all()) for p in [*model.parameters(), *model.buffers()])


def test_a_fresh_model_depends_on_its_seed_only() -> None:
    torch.manual_seed(1)
    one = build_model(tiny.config(), seed=3).state_dict()
    torch.manual_seed(2)
    two, other = (build_model(tiny.config(), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["patches.weight"], other["patches.weight"])


def test_initialisation_is_that_of_the_paper() -> None:
    model = build_model(tiny.config(tiny.batch_pool(8), width=64, num_classes=1000), seed=0)
    parameters = dict(model.named_parameters())
    for name in ("times.fc1.weight", "times.fc2.weight", "labels.table.weight"):
        assert parameters[name].std().item() == pytest.approx(0.02, rel=0.05), name
    experts = model.moe_layers[0].experts
    assert model.moe_layers[0].router.weight.std().item() == pytest.approx(0.006, rel=0.1)
    for weight, fan in (
        (model.blocks[0].attention.qkv.weight, 64 + 192),
        (model.blocks[0].feed_forward.fc1.weight, 64 + 128),
        (model.moe_layers[0].router.predictor.hidden.weight, 64 + 64),
        (model.patches.weight, 64 + 8),
        *((weight, 64 + 128) for weight in (experts.weight1[3], experts.weight2[5])),
    ):
        bound = math.sqrt(6 / fan)
        assert 0.97 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    zero = [p for name, p in parameters.items() if "modulate" in name or name.startswith("final")]
    biases = [p for name, p in parameters.items() if "bias" in name]
    assert len(zero) == 8 and not any(p.any() for p in [*zero, *biases])


def test_blocks_that_are_mixtures() -> None:
    model = DiT(tiny.config(depth=5))
    kinds = [type(block.feed_forward).__name__ for block in model.blocks]
    assert kinds == ["FeedForward", "MixtureOfExperts"] * 2 + ["FeedForward"]
    assert [layer.router.layer for layer in model.moe_layers] == [0, 1]
    assert len(DiT(tiny.config(depth=6, moe_period=3)).moe_layers) == 2


# --- embeddings ---------------------------------------------------------------------------------


def test_times_become_256_sinusoids() -> None:
    embed = TimeEmbedder(8).double()
    t = torch.tensor([0.0, 0.37, 999.0], dtype=torch.float64)
    rows = []
    for time in t.tolist():
        angles = [time * 10_000 ** (-index / 128) for index in range(128)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    waves = torch.tensor(rows, dtype=torch.float64)
    hidden = waves @ embed.fc1.weight.T + embed.fc1.bias
    wanted = (hidden * hidden.sigmoid()) @ embed.fc2.weight.T + embed.fc2.bias
    torch.testing.assert_close(embed(t), wanted, rtol=1e-10, atol=1e-10)


def test_times_near_each_other_stay_apart_in_bfloat16() -> None:
    """The sinusoids are float32: 998 and 999 are one number in bfloat16."""
    embed = TimeEmbedder(8).bfloat16()
    one, two = embed(torch.tensor([998.0, 999.0]))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("time", [998.7, 999.3, 0.001])
def test_sinusoids_of_late_times_are_exact_in_float32(time: float) -> None:
    """float32 angles would be 3e-5 off there, and so would be what the network sees."""
    embed = TimeEmbedder(8)
    low, high = embed, copy.deepcopy(embed).double()
    t = torch.tensor([time])
    torch.testing.assert_close(low(t).double(), high(t.double()), rtol=2e-6, atol=1e-6)


def test_a_model_in_bfloat16_takes_float32_images_and_keeps_its_times_apart() -> None:
    model = tiny.model(tiny.batch_pool(4), dtype=torch.bfloat16)
    x, _, labels = tiny.batch(2, dtype=torch.float32)
    plan = RoutingPlan(selection="image")
    one, two = (
        model(x, torch.full((2,), t), labels, plan).sample
        for t in (0.5, torch.tensor(0.501).item())
    )
    assert one.dtype == torch.bfloat16 and not torch.equal(one, two)


def test_a_router_sets_what_is_inside_of_it() -> None:
    """Linear maps within a router are its own: nothing runs over them before or after."""

    class Odd(BatchPoolRouter):
        def __init__(self, config, layer: int) -> None:
            super().__init__(config, layer)
            self.plain = torch.nn.Linear(2, 3, bias=False)
            self.register_buffer("left_alone", torch.full((3,), 7.0))

        def initialize(self, generator: torch.Generator) -> None:
            super().initialize(generator)
            self.plain.weight.fill_(0.25)
            self.predictor.output.bias.fill_(-1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROUTERS, BatchPool, Odd)
        router = build_model(tiny.config(tiny.batch_pool(3)), seed=0).moe_layers[0].router
    assert (router.plain.weight == 0.25).all() and (router.predictor.output.bias == -1).all()
    assert not router.left_alone.any()  # zero, never what the memory held before


def test_the_null_class_is_the_last_row() -> None:
    embed = LabelEmbedder(5, 8)
    assert embed.table.weight.shape == (6, 8)
    assert torch.equal(embed(torch.tensor([5, 0])).vector, embed.table.weight[[5, 0]])
    assert tiny.config().null_class == 5


@pytest.mark.parametrize(("width", "side"), [(8, 2), (12, 3), (16, 4)])
def test_positions_are_sines_and_cosines_of_column_then_row(width: int, side: int) -> None:
    table, quarter = position_table(width, side), width // 4
    assert table.shape == (1, side * side, width) and table.dtype == torch.float32
    for row in range(side):
        for column in range(side):
            wanted = []
            for place in (column, row):
                angles = [place / 10_000 ** (index / quarter) for index in range(quarter)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            found = table[0, row * side + column]
            torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-6, atol=1e-7)


def test_unpatchify_inverts_the_order_row_column_channel() -> None:
    image = tiny.normals(2, 3, 8, 8)
    tokens = torch.empty(2, 16, 12, dtype=image.dtype)
    for i in range(4):
        for j in range(4):
            patch = [
                image[:, c, 2 * i + p, 2 * j + q]
                for p in range(2)
                for q in range(2)
                for c in range(3)
            ]
            tokens[:, 4 * i + j] = torch.stack(patch, dim=1)
    assert torch.equal(unpatchify(tokens, 2, 3), image)


def test_a_token_comes_from_the_patch_it_goes_back_to() -> None:
    """Without attention, the prediction of a patch depends on that patch alone."""
    model = tiny.model(tiny.ROUTERS["dense"], input_size=8)
    for block in model.blocks:
        block.attention.proj.weight.data.zero_()
    x, t, labels = tiny.batch(1, input_size=8)
    other = x.clone()
    other[:, :, 2:4, 6:8] += 1
    one, two = (model(images, t, labels, tiny.TRAIN).sample for images in (x, other))
    changed = (one - two).abs().amax(dim=(0, 1)) > 0
    assert changed[2:4, 6:8].all() and changed.sum() == 4


@pytest.mark.parametrize("kind", ["dense", "expert_choice"])
def test_the_backbone_is_that_of_dit(kind: str) -> None:
    """One block, written out with einsum and an explicit softmax."""
    model = tiny.model(tiny.ROUTERS[kind], depth=1, moe_period=1)
    x_t, t, labels = tiny.batch(3)
    block, heads, width = model.blocks[0], 2, 8

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    patches = x_t.reshape(3, 2, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(3, 4, 8)
    x = patches @ model.patches.weight.flatten(1).T + model.patches.bias + model.positions
    vector = F.silu(model.times(t) + model.labels(labels).vector)
    parts = (vector @ block.modulate.proj.weight.T + block.modulate.proj.bias)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = parts.split(width, dim=-1)
    rows = norm(x) * (1 + scale1) + shift1
    qkv = rows @ block.attention.qkv.weight.T + block.attention.qkv.bias
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.split(width, dim=-1))
    scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(width / heads)
    mixed = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).flatten(2)
    x = x + gate1 * (mixed @ block.attention.proj.weight.T + block.attention.proj.bias)
    rows = norm(x) * (1 + scale2) + shift2
    feed_forward = block.feed_forward
    output = feed_forward(rows) if kind == "dense" else feed_forward(rows, tiny.TRAIN)[0]
    x = x + gate2 * output
    last = (vector @ model.final_modulate.proj.weight.T + model.final_modulate.proj.bias)[:, None]
    shift, scale = last.split(width, dim=-1)
    tokens = (norm(x) * (1 + scale) + shift) @ model.final.weight.T + model.final.bias
    found = model(x_t, t, labels, tiny.TRAIN).sample
    torch.testing.assert_close(found, unpatchify(tokens, 2, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (2, 2, 4, 6), (2, 3, 4, 4)])
def test_an_image_of_another_size_is_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    model, labels = tiny.model(tiny.ROUTERS["dense"]), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ConfigError) as caught:
        model(tiny.normals(*shape), torch.zeros(2, dtype=torch.float64), labels, tiny.TRAIN)
    message = str(caught.value)
    assert "(2, 4, 4)" in message and str(shape[1:]) in message and "\n" not in message


# --- recomputation and compilation --------------------------------------------------------------


@every_router
@pytest.mark.parametrize("plan", [tiny.TRAIN, TOKEN], ids=["train", "token"])
def test_recomputation_changes_nothing(router, plan: RoutingPlan) -> None:
    model, results = tiny.model(router, depth=4), []
    for layer in model.moe_layers:
        if hasattr(layer.router, "threshold"):
            layer.router.threshold.fill_(0.5)
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        prediction = model(*tiny.batch(4), plan)
        loss = total_loss(model, prediction)
        loss.backward()
        records = zip(model.moe_layers, prediction.routing, strict=True)
        told = [layer.router.statistics(r) for layer, r in records] if plan is tiny.TRAIN else []
        results.append((prediction.sample, loss, gradients(model), told))
    (sample, loss, grads, told), (sample2, loss2, grads2, told2) = results
    assert torch.equal(sample, sample2) and torch.equal(loss, loss2)
    assert grads.keys() == grads2.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads2[name], grad, rtol=1e-12, atol=1e-12, msg=name)
    for one, two in zip(told, told2, strict=True):
        assert all(torch.equal(value, two[name]) for name, value in one.items())


def assert_compiled_equals_eager(router, backend: str) -> None:
    torch.compiler.reset()
    model = tiny.model(router)
    plan = replace(tiny.TRAIN, pool_of_image=(0, 0, 1, 1))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for seed in range(2):
        eager, fast = model(*tiny.batch(4, seed), plan), compiled(*tiny.batch(4, seed), plan)
        torch.testing.assert_close(fast.sample, eager.sample, rtol=1e-10, atol=1e-10)
        for one, two in zip(eager.routing, fast.routing, strict=True):
            assert torch.equal(one.token, two.token) and torch.equal(one.count, two.count)
        total_loss(model, eager).backward()
        wanted = gradients(model)
        total_loss(model, fast).backward()
        for name, grad in gradients(model).items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_plan_never_seen_before_compiles() -> None:
    """Nothing of a plan is worked out in eager mode first, as training makes one each step."""
    torch.compiler.reset()
    model = tiny.model(tiny.batch_pool(4))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first = compiled(*tiny.batch(4), replace(tiny.TRAIN, pool_of_image=(0, 0, 1, 1)))
    again = model(*tiny.batch(4), replace(tiny.TRAIN, pool_of_image=(0, 0, 1, 1)))
    torch.testing.assert_close(first.sample, again.sample, rtol=1e-10, atol=1e-10)


@every_router
def test_training_compiles_into_one_graph(router) -> None:
    assert_compiled_equals_eager(router, "aot_eager")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own imports
@every_router
def test_training_compiles_with_inductor(router) -> None:
    def measure() -> dict[str, bool]:
        assert_compiled_equals_eager(router, "inductor")
        return {"equal": True}

    promise = "a compiled step gives the eager one's outputs and gradients to 1e-9 in float64"
    hold(f"compiled_model_{router.kind}", promise, 2, measure)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own imports
def test_the_batch_pool_compiles_with_inductor() -> None:
    assert_compiled_equals_eager(tiny.ROUTERS["batch_pool"], "inductor")


# --- who depends on whom ------------------------------------------------------------------------


def spread(model: DiT, gamma: float = 0.5) -> DiT:
    """Thresholds in the middle, so that rows fall on both sides."""
    for layer in model.moe_layers:
        layer.router.threshold.fill_(gamma)
        layer.router.gate_threshold.fill_(1 / layer.router.options.num_experts)
    return model


@every_router
@pytest.mark.parametrize("pools", [(0, 0, 0, 1, 1, 1), (0, 1, 0, 1, 0, 1)])
def test_permuting_a_pool_permutes_its_outputs(router, pools: tuple[int, ...]) -> None:
    model = tiny.model(router, depth=4)
    x, t, labels = tiny.batch(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    plan = replace(tiny.TRAIN, pool_of_image=pools)
    moved = replace(tiny.TRAIN, pool_of_image=tuple(pools[i] for i in order.tolist()))
    one = model(x, t, labels, plan).sample
    two = model(x[order], t[order], labels[order], moved).sample
    torch.testing.assert_close(two, one[order], rtol=1e-12, atol=1e-12)


def test_moving_an_image_to_another_pool_is_seen() -> None:
    """The permutation test above can fail: pools matter."""
    model, inputs = tiny.model(tiny.batch_pool(4), depth=4), tiny.batch(6)
    plans = [replace(tiny.TRAIN, pool_of_image=p) for p in ((0, 0, 0, 1, 1, 1), (0, 0, 1, 1, 0, 1))]
    one, two = (model(*inputs, plan).sample for plan in plans)
    assert (one - two).abs().max() > 1e-6


def sample(model: DiT, images: tuple[Tensor, ...], plan: RoutingPlan) -> Tensor:
    with torch.no_grad():
        return model(*images, plan).sample


def alone_and_together(plan: RoutingPlan, dtype: torch.dtype, width: int) -> float:
    """The largest difference that batch mates make to an image, relative to the largest value."""
    changes = {"width": width, "depth": 4, "heads": 4, "input_size": 8}
    model = spread(tiny.model(tiny.batch_pool(4), dtype=dtype, **changes))
    inputs = tiny.batch(8, dtype=dtype, **changes)
    together = sample(model, inputs, plan)
    worst = 0.0
    for size in range(1, 8):
        part = sample(model, tuple(tensor[:size] for tensor in inputs), plan)
        worst = max(worst, (part - together[:size]).abs().max().item())
    return worst / together.abs().max().item()


def kernels_are_steady(dtype: torch.dtype) -> bool:
    """Whether this machine's products give a row the same bits among 16 rows and among more."""
    rows, weight = (tiny.normals(300, 64, seed=seed).to(dtype) for seed in (0, 1))
    whole = rows @ weight.T
    return all(torch.equal(rows[:n] @ weight.T, whole[:n]) for n in range(16, 300))


@pytest.mark.parametrize("selection", ["token", "gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_has_the_same_bits_alone_and_in_a_batch(selection: str, dtype) -> None:
    """Bit for bit, from width 64 on, where the machine's matrix products allow it; else 1e-5.

    They do on x86 with MKL and oneDNN, whatever the threads: a row's sum has one order from four
    rows on, and `steady` never asks for fewer than sixteen.
    """
    if dtype == torch.bfloat16 and not kernels_are_steady(dtype):
        pytest.skip("bfloat16 products depend on the batch here")
    worst = alone_and_together(RoutingPlan(selection=selection, policy="ema"), dtype, 64)
    assert worst == 0 if kernels_are_steady(dtype) else worst < 1e-5


@pytest.mark.parametrize("selection", ["token", "gate", "image"])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_very_small_model_is_independent_up_to_rounding(selection, width, dtype) -> None:
    """Below 64 the ends of vectors fall elsewhere in a batch: 1e-5, not bit for bit."""
    plan = RoutingPlan(selection=selection, policy=None if selection == "image" else "ema")
    assert alone_and_together(plan, dtype, width) < (1e-5 if dtype == torch.float32 else 1e-13)


def test_in_pool_selection_it_does() -> None:
    """The test above can fail."""
    assert alone_and_together(POOL, torch.float32, 16) > 1e-3


@pytest.mark.parametrize("selection", ["token", "gate", "image"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30, 0.0])
def test_a_hostile_neighbour_changes_nothing(selection: str, value: float) -> None:
    """Bit for bit where the machine's products allow it: only the number of pairs differs."""
    changes = {"width": 64, "depth": 4, "input_size": 8}
    model = spread(tiny.model(tiny.batch_pool(4), dtype=torch.float32, **changes))
    plan = RoutingPlan(selection=selection, policy=None if selection == "image" else "ema")
    x, t, labels = tiny.batch(4, dtype=torch.float32, **changes)
    wanted = sample(model, (x, t, labels), plan)
    x[1] = value
    found = sample(model, (x, t, labels), plan)
    others = [0, 2, 3]
    if selection == "image" or kernels_are_steady(torch.float32):
        assert torch.equal(found[others], wanted[others])
    torch.testing.assert_close(found[others], wanted[others], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_in_pool_selection_a_hostile_neighbour_changes_all(value: float) -> None:
    model = spread(tiny.model(tiny.batch_pool(4), dtype=torch.float32, depth=4))
    x, t, labels = tiny.batch(4, dtype=torch.float32)
    wanted = sample(model, (x, t, labels), POOL)
    x[1] = value
    assert not torch.equal(sample(model, (x, t, labels), POOL)[[0, 2, 3]], wanted[[0, 2, 3]])


def test_joint_and_separate_branches_agree_in_token_selection() -> None:
    model = spread(tiny.model(tiny.batch_pool(4), dtype=torch.float32, depth=4))
    inputs = tiny.batch(6, dtype=torch.float32)
    plans = [
        replace(TOKEN, pool_of_image=pools) for pools in (None, (0, 1) * 3, (0, 0, 0, 1, 1, 1))
    ]
    joint, *others = (sample(model, inputs, plan) for plan in plans)
    assert all(torch.equal(joint, other) for other in others)


# --- no work at all, and memory -----------------------------------------------------------------


def test_gradients_exist_when_no_row_is_taken() -> None:
    model = tiny.model(tiny.batch_pool(4))
    nothing = torch.full((1, 4), 1 - 1e-7)
    plan = RoutingPlan(selection="token", policy="constant", thresholds=nothing)
    prediction = model(*tiny.batch(3), plan)
    assert prediction.routing[0].token.shape == (0,)
    prediction.sample.sum().backward()
    experts = model.moe_layers[0].experts
    assert all(not parameter.grad.any() for parameter in experts.parameters())
    assert bool(model.patches.weight.grad.isfinite().all())


def test_gradcheck_of_a_layer_that_takes_no_row() -> None:
    layer = tiny.layer(tiny.batch_pool(3))
    nothing = torch.full((1, 3), 1 - 1e-7)
    plan = RoutingPlan(selection="token", policy="constant", thresholds=nothing)
    x = tiny.normals(1, 4, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: layer(rows, plan)[0] + rows, (x,))


class Largest(TorchDispatchMode):
    """Watches the outputs of every operator for the tensor with the most elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):  # an expanded view counts what it occupies
                occupied = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, min(leaf.numel(), occupied))
        return result


IMAGES, SIDE = 16, 16
ROWS = IMAGES * (SIDE // 2) ** 2


def largest_tensor(router, plan: RoutingPlan) -> int:
    """Elements of the largest tensor that a forward and backward pass of 1024 rows makes."""
    changes = {"input_size": SIDE, "pool_images": IMAGES, "mlp_ratio": 4}
    model = tiny.model(router, dtype=torch.float32, **changes)
    inputs = tiny.batch(IMAGES, dtype=torch.float32, **changes)
    largest = max(parameter.numel() for parameter in model.parameters())
    assert largest < ROWS * 32, "weights would hide the activations"
    with Largest() as watch:
        prediction = model(*inputs, plan)
        if plan is not tiny.TRAIN:
            prediction.sample.sum().backward()
        else:
            total_loss(model, prediction).backward()
            model.moe_layers[0].router.statistics(prediction.routing[0])
    return watch.elements


@pytest.mark.parametrize(
    "build", [tiny.batch_pool, tiny.expert_choice, tiny.token_choice], ids=lambda f: f.__name__
)
def test_memory_of_training_is_that_of_one_dense_layer(build) -> None:
    """N = S pairs need N * 4D, whatever E: never S * E * D."""
    sizes = {experts: largest_tensor(build(experts), tiny.TRAIN) for experts in (2, 8, 16)}
    assert set(sizes.values()) == {ROWS * 4 * 8}


@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
def test_memory_of_inference_is_that_of_the_pairs(selection: str) -> None:
    for experts in (2, 8, 16):
        for gamma, pairs in ((0.0, ROWS * experts), (1 - 1e-7, 0)):
            thresholds = torch.full((1, experts), gamma)
            plan = RoutingPlan(selection=selection, policy="constant", thresholds=thresholds)
            found = largest_tensor(tiny.batch_pool(experts), plan)
            assert found <= max(pairs * 4 * 8, ROWS * 4 * 8)


def test_a_planted_dense_dispatch_is_seen() -> None:
    with Largest() as watch:
        torch.ones(ROWS, 1, 8).expand(ROWS, 16, 8).contiguous()
    assert watch.elements == ROWS * 16 * 8 > ROWS * 4 * 8
