"""Released checkpoints: nothing lost, nothing run, and the released model's outputs."""

import argparse
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoint.released_model import KINDS, BatchPool, ReleasedModel, randomized
from diffmoe.checkpoint.released import to_ours, to_released
from diffmoe.checkpoint.released_config import contradictions, infer_config
from diffmoe.checkpoint.released_file import ReleasedFile, read_released, write_released
from diffmoe.config import DDPMConfig, FlowConfig, PixelCodec, RunConfig
from diffmoe.errors import ConfigError, ExitCode, StorageError
from diffmoe.experiments import convert
from diffmoe.model import DiT, RoutingPlan
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.training import train
from texts import text_run

HEADS = 3
POOL = RoutingPlan(selection="pool", policy="ema")
Tensors = dict[str, Tensor]


def released(kind: str, seed: int = 0, **shape: int) -> ReleasedModel:
    return randomized(ReleasedModel(kind, heads=HEADS, **shape), seed)


def tensors(kind: str, seed: int = 0, **shape: int) -> Tensors:
    return dict(released(kind, seed, **shape).state_dict())


def inferred(content: Tensors, objective: str = "flow", **named: object) -> RunConfig:
    return infer_config(content, **{"base": None, "heads": HEADS, "objective": objective} | named)


def converted(model: ReleasedModel, objective: str = "flow") -> tuple[DiT, RunConfig]:
    config = inferred(model.state_dict(), objective)
    ours = DiT(config.model)
    ours.load_state_dict(to_ours(model.state_dict(), config))
    return ours, config


def released_file(path: Path, kind: str = "batch_pool", **others: object) -> Path:
    content = {"model": tensors(kind, 1), "ema": tensors(kind, 2), "opt": {"state": {}}, "args": {}}
    torch.save(content | others, path)
    return path


def identical(left: Tensors, right: Tensors) -> bool:
    def bits(content: Tensors) -> dict[str, tuple[object, ...]]:
        return {
            name: (t.dtype, t.shape, t.contiguous().view(torch.uint8).flatten().tolist())
            for name, t in content.items()
        }

    return bits(left) == bits(right)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


# ---- round trip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    source = read_released(released_file(tmp_path / "source.pt", kind))
    config = inferred(source.ema)
    raw, averaged = to_ours(source.model, config), to_ours(source.ema, config)
    back = tmp_path / "back.pt"
    write_released(back, to_released(raw, config), to_released(averaged, config))
    again = read_released(back)
    assert identical(again.model, tensors(kind, 1))
    assert identical(again.ema, tensors(kind, 2))
    assert not identical(again.model, again.ema)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    source = {name: tensor.to(dtype) for name, tensor in tensors("batch_pool").items()}
    config = inferred(source)
    ours = to_ours(source, config)
    assert {
        t.dtype for name, t in ours.items() if not name.endswith(("updates", "gate_threshold"))
    } == {dtype}
    assert identical(to_released(ours, config), source)


def test_negative_zero_and_nan_keep_their_bits() -> None:
    source = tensors("batch_pool")
    source["blocks.1.mlp.experts.0.fc1.weight"][0, 0] = -0.0
    source["blocks.1.mlp.experts.1.fc2.weight"][0, 1] = torch.nan
    config = inferred(source)
    assert identical(to_released(to_ours(source, config), config), source)


@pytest.mark.parametrize("kind", KINDS)
def test_ours_are_the_tensors_of_the_model(kind: str) -> None:
    source = tensors(kind)
    config = inferred(source)
    wanted, found = DiT(config.model).state_dict(), to_ours(source, config)
    assert {n: (t.shape, t.dtype) for n, t in wanted.items()} == {
        n: (t.shape, t.dtype) for n, t in found.items()
    }


def test_what_a_file_cannot_hold_is_named() -> None:
    """Buffers of ours whose value would not come back; of a converted model there are none."""
    config = inferred(tensors("batch_pool"))
    raw, averaged = (to_ours(tensors("batch_pool", seed), config) for seed in (1, 2))
    assert ReleasedFile.of(raw, averaged, config).dropped == ()
    router = "blocks.3.feed_forward.router."
    averaged[router + "gate_threshold"] = averaged[router + "gate_threshold"] + 0.1
    assert ReleasedFile.of(raw, averaged, config).dropped == ("gate_threshold",)
    raw[router + "threshold_updates"] = torch.tensor(40)
    file = ReleasedFile.of(raw, averaged, config)
    assert file.dropped == ("gate_threshold", "threshold_updates")
    assert identical(file.model, tensors("batch_pool", 1))
    del raw[router + "threshold_updates"]
    with pytest.raises(ConfigError, match="threshold_updates"):
        ReleasedFile.of(raw, averaged, config)


def test_raw_and_averaged_thresholds_are_both_kept_and_count_as_calibrated() -> None:
    raw, averaged = tensors("batch_pool", 1), tensors("batch_pool", 2)
    config = inferred(raw)
    router = "blocks.3.feed_forward.router."
    found = []
    for source in (raw, averaged):
        ours = to_ours(source, config)
        assert torch.equal(ours[router + "threshold"], source["blocks.3.mlp.expert_threshold"])
        assert ours[router + "threshold_updates"].item() == 1
        assert not ours[router + "gate_threshold"].any()
        found.append(ours[router + "threshold"])
    assert not torch.equal(*found)


def test_a_file_of_ours_holds_the_four_entries_and_no_more_than_its_tensors(tmp_path: Path) -> None:
    source = tensors("batch_pool")
    config = inferred(source)
    exported = to_released(to_ours(source, config), config)
    write_released(tmp_path / "file.pt", exported, exported)
    content = torch.load(tmp_path / "file.pt", weights_only=True)
    assert list(content) == ["model", "ema", "opt", "args"]
    for name, tensor in content["model"].items():
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_a_distributed_prefix_is_stripped(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in tensors("dense", 1).items()}
    file = read_released(released_file(tmp_path / "ddp.pt", "dense", model=wrapped))
    assert identical(file.model, tensors("dense", 1))
    assert identical(file.ema, tensors("dense", 2))


def test_the_old_file_format_is_read_too(tmp_path: Path) -> None:
    content = {"model": tensors("dense", 1), "ema": tensors("dense", 2)}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    file = read_released(tmp_path / "old.pt")
    assert identical(file.ema, content["ema"]) and file.dropped == ()


# ---- the same function


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_converted_model_gives_the_released_outputs(
    kind: str, objective: str, dtype: torch.dtype, within: float
) -> None:
    model = released(kind, seed=3)
    ours = converted(model, objective)[0].to(dtype)
    x, t, labels = batch(objective)
    wanted = model.double()(x, t, labels)
    found = ours(x.to(dtype), t.to(dtype), labels, POOL).sample
    assert wanted.shape == (3, 8, 8, 8) and wanted.std() > 0.1
    assert relative(found, wanted) < within


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_converted_flow_gives_the_released_velocity_in_the_papers_time_and_sign(
    kind: str, dtype: torch.dtype, within: float
) -> None:
    model = released(kind, seed=4)
    ours, config = converted(model, "flow")
    x, t, labels = batch("flow")
    found = build_objective(config.objective).field(ours.to(dtype), labels, POOL)(
        x.to(dtype), t.to(dtype)
    )
    assert relative(found.value, -model.double().velocity(x, 1 - t, labels)) < within


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_converted_ddpm_gives_the_released_noise(
    kind: str, dtype: torch.dtype, within: float
) -> None:
    model = released(kind, seed=5)
    ours, config = converted(model, "ddpm")
    x, t, labels = batch("ddpm")
    found = build_objective(config.objective).field(ours.to(dtype), labels, POOL)(x.to(dtype), t)
    assert relative(found.value, model.double().epsilon(x, t, labels)) < within


@torch.no_grad()
def test_the_thresholds_of_the_test_models_cut_some_rows_and_leave_some() -> None:
    model = released("batch_pool", seed=3).double()
    model(*batch("flow"))
    counts = [layer.counts for layer in model.modules() if isinstance(layer, BatchPool)]
    assert len(counts) == 2
    for layer in counts:
        assert any(0 < count < 48 for count in layer) and layer != [16, 16, 16]


@torch.no_grad()
def test_raw_and_averaged_weights_are_different_models() -> None:
    x, t, labels = batch("flow")
    outputs = [released("batch_pool", seed).double()(x, t, labels) for seed in (1, 2)]
    assert relative(*outputs) > 0.1


def batch(objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Three noisy latents, their times and labels, the null class among them."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
    flow = torch.tensor([0.0, 0.375, 0.9375], dtype=torch.float64)
    times = flow if objective == "flow" else torch.tensor([0.0, 412.0, 999.0]).double()
    return x, times, torch.tensor([0, 7, 3])


# ---- what the tensors tell


SHAPES = [
    {},
    {"width": 48, "depth": 3, "experts": 5, "period": 3},
    {"depth": 2, "period": 1, "ratio": 2, "classes": 3},
    {"channels": 3, "patch": 1, "side": 6, "experts": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_is_read_from_the_tensors(kind: str, shape: dict[str, int]) -> None:
    source = tensors(kind, **shape)
    config = inferred(source, "ddpm")
    model, side = config.model, shape.get("side", 4)
    assert model.input_size == side * shape.get("patch", 2)
    assert (model.width, model.depth) == (shape.get("width", 24), shape.get("depth", 4))
    assert model.out_channels == 2 * model.channels == 2 * shape.get("channels", 4)
    assert (model.mlp_ratio, model.num_classes) == (shape.get("ratio", 4), shape.get("classes", 7))
    assert model.router.kind == kind
    assert identical(to_released(to_ours(source, config), config), source)
    if kind != "dense":
        assert model.router.num_experts == shape.get("experts", 3)
        assert model.moe_period == shape.get("period", 2)


def test_a_flow_is_of_the_released_convention_and_keeps_its_eight_channels() -> None:
    config = inferred(tensors("dense"))
    assert config.objective == FlowConfig(convention="released", time_scale=1.0)
    assert (config.model.channels, config.model.out_channels) == (4, 8)


def test_a_ddpm_samples_by_a_ddpm_sampler() -> None:
    config = inferred(tensors("dense"), "ddpm")
    assert config.objective == DDPMConfig() and config.sampling.sampler == "ancestral"


def test_the_decay_of_the_thresholds_is_read() -> None:
    source = tensors("batch_pool")
    assert inferred(source).model.router.threshold_decay == 0.95
    for block in (1, 3):
        source[f"blocks.{block}.mlp.ema_decay"].fill_(0.9)
    assert inferred(source).model.router.threshold_decay == 0.9


def test_a_preset_says_what_tensors_do_not() -> None:
    base = preset("digits-diffmoe")
    shape = {"width": 64, "experts": 4, "channels": 1, "classes": 10}
    source = dict(ReleasedModel("batch_pool", heads=4, **shape).state_dict())
    assert contradictions(source, base) == {}
    config = infer_config(source, base=base, heads=None, objective=None)
    objective = FlowConfig(convention="released", time_scale=1.0)
    model = replace(base.model, out_channels=2)
    assert config == replace(base, model=model, objective=objective)
    assert infer_config(source, base=base, heads=2, objective="ddpm").model.heads == 2


def test_pixels_and_latents_are_told_apart_by_their_channels() -> None:
    assert inferred(tensors("dense", channels=3)).codec == PixelCodec()
    assert inferred(tensors("dense", channels=4)).codec == preset("dit-s-flow").codec


PUBLISHED = ["dit-s-flow", "diffmoe-s-e16-ddpm", "tc-dit-l-e16-flow", "ec-dit-l-e16-flow"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_contradicts_every_preset_but_its_own(name: str) -> None:
    model = preset(name).model
    with torch.device("meta"):
        network = ReleasedModel(
            model.router.kind,
            heads=model.heads,
            width=model.width,
            depth=model.depth,
            experts=model.router.num_experts,
            side=16,
            classes=1000,
        )
    shapes = {n: torch.zeros(()).expand(t.shape) for n, t in network.state_dict().items()}
    assert [other for other in PUBLISHED if not contradictions(shapes, preset(other))] == [name]


# ---- bad input


class Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_a_pickled_namespace_is_read_and_dropped(tmp_path: Path) -> None:
    args = argparse.Namespace(model="DiT-L/2", lr=1e-4, epochs=80)
    file = read_released(released_file(tmp_path / "file.pt", args=args))
    assert file.dropped == ("opt", "args")
    assert identical(file.model, tensors("batch_pool", 1))


@pytest.mark.parametrize("entry", ["model", "ema", "opt", "args", "more"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(entry: str, zipped: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file.pt"
    content = {"model": {}, "ema": {}} | {entry: Hostile(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(StorageError, match=r"system; it was not run — .*file\.pt — "):
        read_released(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file.pt"
    path.write_bytes(pickle.dumps({"model": Hostile(canary)}, protocol))
    with pytest.raises(StorageError, match="not run"):
        read_released(path)
    assert not canary.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(share: float, zipped: bool, tmp_path: Path) -> None:
    content, path = {"model": tensors("dense"), "ema": tensors("dense")}, tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StorageError, match=r"damaged .*file\.pt") as caught:
        read_released(path)
    assert caught.value.exit_code == ExitCode.STORAGE


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(StorageError, match="no such checkpoint file"):
            read_released(path)


BARE = tensors("dense")
NOT_RELEASED = {
    "a list": ([1, 2], "list"),
    "bare weights": (BARE, "'pos_embed'"),
    "no ema": ({"model": BARE}, "not 'model' and 'ema'"),
    "a tensor": ({"model": BARE["pos_embed"], "ema": BARE}, "'model' of the checkpoint is no dict"),
    "nothing": ({"model": BARE, "ema": {}}, "'ema' of the checkpoint is no dict"),
    "a number": ({"model": BARE | {"x": 1.0}, "ema": BARE}, "'x', .* but a float"),
    "a number as name": ({"model": {7: BARE["pos_embed"]}, "ema": BARE}, "holds 7"),
    "integers": ({"model": BARE | {"x": torch.arange(3)}, "ema": BARE}, "'x', .*int64"),
    "sparse": ({"model": BARE | {"x": torch.eye(3).to_sparse()}, "ema": BARE}, "'x'"),
    "no storage": ({"model": BARE | {"x": torch.empty(3, device="meta")}, "ema": BARE}, "'x'"),
    "one number for many": (
        {"model": BARE | {"x": torch.zeros(1).expand(1 << 40)}, "ema": BARE},
        "'x'",
    ),
}


@pytest.mark.parametrize("what", NOT_RELEASED)
def test_a_file_of_another_content_is_refused(what: str, tmp_path: Path) -> None:
    content, message = NOT_RELEASED[what]
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(StorageError, match=message):
        read_released(tmp_path / "file.pt")


def test_a_checkpoint_of_another_model_is_refused_with_the_differences() -> None:
    with pytest.raises(ConfigError, match=r"model\.width is 24, not 384.* and \d more"):
        inferred(tensors("batch_pool"), base=preset("dit-s-flow"))
    config = inferred(tensors("batch_pool", experts=4))
    with pytest.raises(ConfigError, match=r"model\.router\.num_experts is 3, not 4"):
        inferred(tensors("batch_pool"), base=config)
    with pytest.raises(ConfigError, match=r"model\.router is expert_choice, not batch_pool"):
        inferred(tensors("expert_choice"), base=config)
    with pytest.raises(ConfigError, match=r"model\.moe_period is 1, not 2"):
        inferred(tensors("batch_pool", period=1, experts=4), base=config)


def test_tensors_of_another_model_are_refused() -> None:
    config = inferred(tensors("batch_pool"))
    with pytest.raises(ConfigError, match=r"unexpected blocks\.1\.mlp\.experts\.3\.fc1\.weight"):
        to_ours(tensors("batch_pool", experts=4), config)
    with pytest.raises(ConfigError, match=r"has shape \(1, 16, 48\), the model's is \(1, 16, 24\)"):
        to_ours(tensors("batch_pool", width=48), config)


def test_a_missing_tensor_is_named() -> None:
    source = tensors("batch_pool")
    config = inferred(source)
    del source["blocks.3.mlp.experts.2.fc2.bias"]
    with pytest.raises(ConfigError, match=r"lacks blocks\.3\.mlp\.experts\.2\.fc2\.bias"):
        to_ours(source, config)
    for name in ("pos_embed", "final_layer.linear.weight", "blocks.1.mlp.gate_weight"):
        rest = {key: tensor for key, tensor in tensors("batch_pool").items() if key != name}
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            inferred(rest)


def test_a_misspelt_tensor_is_named_with_the_one_it_may_be() -> None:
    source = tensors("batch_pool")
    config = inferred(source)
    source["blocks.2.attn.qvk.bias"] = source.pop("blocks.2.attn.qkv.bias")
    with pytest.raises(ConfigError, match=r"qvk\.bias meant to be blocks\.2\.attn\.qkv\.bias"):
        to_ours(source, config)


def test_an_unexpected_tensor_is_named() -> None:
    source = tensors("dense")
    config = inferred(source)
    with pytest.raises(ConfigError, match=r"holds the unexpected y_embedder\.extra"):
        to_ours(source | {"y_embedder.extra": torch.zeros(1)}, config)
    ours = to_ours(source, config)
    with pytest.raises(ConfigError, match=r"lacks final\.bias and holds the unexpected finale"):
        to_released({"finale" if n == "final.bias" else n: t for n, t in ours.items()}, config)


def test_a_missing_block_is_named() -> None:
    source = tensors("dense")
    with pytest.raises(ConfigError, match=r"lacks blocks\.2"):
        inferred({n: t for n, t in source.items() if not n.startswith("blocks.2.")})
    with pytest.raises(ConfigError, match=r"lacks blocks\.4"):
        inferred(source | {"blocks.999999999.attn.qkv.bias": torch.zeros(1)})


def test_irregular_experts_are_refused() -> None:
    moe, dense = tensors("batch_pool", period=1), tensors("dense")
    mixed = {n: t for n, t in moe.items() if not n.startswith(("blocks.0.", "blocks.2."))}
    mixed |= {n: t for n, t in dense.items() if n.startswith(("blocks.0.", "blocks.2."))}
    assert inferred(mixed).model.moe_period == 2
    mixed |= {n: t for n, t in moe.items() if n.startswith("blocks.2.")}
    with pytest.raises(ConfigError, match="MoE blocks 1, 2, 3 of 4 are not evenly spaced"):
        inferred(mixed)


def test_experts_of_two_kinds_are_refused() -> None:
    mixed = tensors("batch_pool")
    pooled = ("capacity_predictor", "expert_threshold", "ema_decay")
    mixed = {
        n: t
        for n, t in mixed.items()
        if not (n.startswith("blocks.3.") and any(p in n for p in pooled))
    }
    with pytest.raises(ConfigError, match="block 3 is expert_choice, block 1 is batch_pool"):
        inferred(mixed)


@pytest.mark.parametrize("name", ["heads", "objective"])
def test_heads_and_objective_must_be_said(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} cannot be read .*give {name}"):
        inferred(tensors("dense"), **{name: None})


def test_an_impossible_number_of_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not a multiple of model\.heads 5"):
        inferred(tensors("dense"), heads=5)


def test_a_flow_of_the_papers_convention_is_not_written_as_a_released_one() -> None:
    source = tensors("dense")
    config = inferred(source)
    paper = replace(config, objective=FlowConfig(convention="paper", time_scale=1000.0))
    with pytest.raises(ConfigError, match=r"objective\.convention paper .*time_scale 1000"):
        to_released(to_ours(source, config), paper)


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_text("precious")
    with pytest.raises(StorageError, match="exists already"):
        write_released(path, BARE, BARE)
    assert path.read_text() == "precious"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="cannot write"):
        write_released(tmp_path / "file.pt", BARE, BARE)
    assert not list(tmp_path.iterdir())


def test_a_model_that_reads_captions_has_no_such_layout(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(text_run(loop__steps=2), run, progress=False)
    with pytest.raises(ConfigError, match="the released layout has no model that reads captions"):
        convert(run, tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()
