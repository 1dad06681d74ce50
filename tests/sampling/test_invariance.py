"""Strict sampling: an image has the same bits in any batch, and no mate can change it.

MKL reads its mode before any test begins, so what is strict is drawn in children.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import trained
from diffmoe.config import RunConfig, SamplingConfig, to_yaml
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, Prediction, RoutingPlan
from diffmoe.randomness import permutation
from diffmoe.sampling import Moment, Prepared, generate, refuse_strict
from diffmoe.training import train
from long_record import hold
from runs import run_config

STRICT = {"DIFFMOE_STRICT": "1", "MKL_CBWR": "AVX2,STRICT"}
HERE = Path(__file__)


def in_child(what: str, *, threads: int = 1, seconds: int = 900, **environment: str) -> Any:
    """What a function of this file returns in a process whose MKL has its mode."""
    code = (
        "import json, sys\n"
        f"sys.path[:0] = {[str(HERE.parent), str(HERE.parents[1])]!r}\n"
        f"import torch\ntorch.set_num_threads({threads})\n"
        f"import {HERE.stem} as tests\nprint('found', json.dumps(tests.{what}))"
    )
    own = {name: value for name, value in os.environ.items() if name not in STRICT}
    own["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=own | environment,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1].removeprefix("found "))


# --- what is drawn, and how it is packed --------------------------------------------------------


def run_of(width: int, **settings: Any) -> RunConfig:
    """A run of the demo, or one of real width."""
    run = trained.config(**{"steps": 2, **settings})
    return replace(run, model=replace(run.model, width=width, heads=width // 64 or 1))


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@dataclass
class Masks:
    """The routing of each image, evaluation after evaluation, as one hash."""

    asked: Sequence[int]  # the number of each image drawn
    tokens: int
    found: dict[int, str]

    def __call__(self, moment: Moment) -> None:
        for record in moment.evaluation.output.routing:
            rows = record.chosen.view(-1, len(moment.images), self.tokens, record.count.shape[0])
            for place, image in enumerate(moment.images):
                own = self.found.get(self.asked[image], "") + digest(rows[:, place])
                self.found[self.asked[image]] = hashlib.sha256(own.encode()).hexdigest()


class Repacked:
    """A network that evaluates a batch in parts of some sizes, in turn."""

    def __init__(self, model: DiT, sizes: Sequence[int]) -> None:
        self.model, self.sizes = model, sizes
        self.moe_layers = model.moe_layers

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, plan: RoutingPlan) -> Prediction:
        own, found, start, turn = replace(plan, pool_of_image=None), [], 0, 0
        while start < len(x):
            part = slice(start, start + self.sizes[turn % len(self.sizes)])
            found.append(self.model(x[part], t[part], labels[part], own).sample)
            start, turn = part.stop, turn + 1
        return Prediction(torch.cat(found), ())


Drawn = dict[int, tuple[str, str]]  # an image's bits and those of its routing


def drawn(
    model: DiT,
    run: RunConfig,
    images: Sequence[int],
    batch: int,
    sizes: Sequence[int] = (),
) -> Drawn:
    """Images by their number, drawn in this order in batches of a size."""
    prepared = Prepared.of(model, replace(run, sampling=replace(run.sampling, batch=batch)))
    masks = Masks(images, run.model.tokens, {})
    if sizes:
        prepared = replace(prepared, network=Repacked(model, sizes))
    labels = [image * 7 % run.model.num_classes for image in images]
    found = prepared.batches(labels, list(images), range(len(images)), None if sizes else masks)
    bits = (digest(image) for part in found for image in part)
    pairs = zip(images, bits, strict=True)
    return {image: (own, masks.found.get(image, "")) for image, own in pairs}


def different(found: Drawn, wanted: Drawn) -> list[int]:
    """How many images have other bits, and how many another routing where that was seen."""
    bits = sum(own[0] != wanted[image][0] for image, own in found.items())
    masks = sum(own[1] not in ("", wanted[image][1]) for image, own in found.items())
    return [bits, masks]


def shuffled(count: int, seed: int) -> list[int]:
    return permutation(seed, "order", count).tolist()


WAYS: list[dict[str, Any]] = [
    {"guidance": 2.0},
    {"selection": "gate", "max_capacity": 1.0},
    {"selection": "image", "guidance": 1.5, "guidance_start": 0.8, "guidance_end": 0.3},
]


def packed_otherwise(width: int, count: int, ways: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By packing the images that differ from those drawn in one batch; and these images."""
    found, whole = {}, []
    for way in ways:
        run = run_of(width, **way)
        model = trained.network(run)
        wanted = drawn(model, run, range(count), 64)
        assert len({bits for bits, _ in wanted.values()}) == count
        whole.append(sorted(bits for bits, _ in wanted.values()))
        for batch in (1, 2, 3, 7, 16, 64):
            order = shuffled(count, batch)
            name = f"{way}, batch {batch}"
            found[name] = different(drawn(model, run, order, batch), wanted)
        mates = [*range(1000, 1000 + count // 2), *range(0, count, 3)]  # others, and less of them
        own = {image: bits for image, bits in drawn(model, run, mates, 11).items() if image < count}
        found[f"{way}, mates"] = different(own, wanted)
        for sizes in ([count], [5], [1, 4, 2]):  # branches each by itself, and torn apart
            parts = drawn(model, run, range(count), count, sizes)
            found[f"{way}, parts of {sizes}"] = different(parts, wanted)
    return {"different": found, "bits": whole}


# --- quick --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count", "ways"), [(64, 40, WAYS), (384, 8, WAYS[:1])])
def test_strict_images_have_the_same_bits_however_they_are_packed(width, count, ways) -> None:
    """Batch size, order, mates, branches of guidance together or apart, one thread or three.

    Three would divide a tensor where vectors do not end.
    """
    one = in_child(f"packed_otherwise({width}, {count}, {ways!r})", **STRICT)
    assert {name for name, found in one["different"].items() if found != [0, 0]} == set()
    three = in_child(f"packed_otherwise({width}, {count}, {ways[:1]!r})", threads=3, **STRICT)
    assert {name for name, found in three["different"].items() if found != [0, 0]} == set()
    assert three["bits"] == one["bits"][:1]


def test_default_images_are_the_same_up_to_rounding() -> None:
    """With the same routing, as no score lies within rounding of its threshold here."""
    run = run_of(64, guidance=2.0)
    model, labels, seeds = trained.network(run), [image % 10 for image in range(40)], range(40)
    threads = torch.get_num_threads()

    def samples(batch: int) -> tuple[Tensor, dict[int, str]]:
        masks, settings = Masks(seeds, 16, {}), replace(run.sampling, batch=batch)
        found = generate(model, run, labels, seeds, settings=settings, callback=masks)
        return found, masks.found

    try:
        whole, masks = samples(40)
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for batch in (1, 7, 16):
                again, others = samples(batch)
                assert ((again - whole).abs().max() / whole.abs().max()).item() <= 1e-5
                assert others == masks
    finally:
        torch.set_num_threads(threads)


# --- hostile mates ------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda noise: noise * torch.nan,
    "one nan": lambda noise: noise.flatten().index_fill(0, torch.tensor([5]), torch.nan),
    "inf": lambda noise: noise.sign() * torch.inf,
    "+inf": lambda noise: torch.full_like(noise, torch.inf),
    "-inf": lambda noise: torch.full_like(noise, -torch.inf),
    "1e30": lambda noise: noise.sign() * 1e30,
    "+1e30": lambda noise: torch.full_like(noise, 1e30),
    "-1e30": lambda noise: torch.full_like(noise, -1e30),
    "zeros": torch.zeros_like,
    "loud": lambda noise: noise * 100,  # finite scores, as sure as scores can be
}
FINITE = ("zeros", "loud")  # in what routers see: the square of 1e30 is infinite
ALONE: list[dict[str, Any]] = [
    {"selection": "token"},
    {"selection": "gate"},
    {"selection": "image"},
    {"selection": "token", "max_capacity": 1.0},
    {"selection": "gate", "max_capacity": 0.5, "guidance": 2.0},
    {"router": "expert_choice"},
    {"router": "token_choice", "guidance": 2.0},
    {"router": "dense"},
]
MATE = 10**6  # the seed of hostile noise


def with_noise(hostile: Callable[[Tensor], Tensor] | None) -> None:
    """Let the mate start, and go on, with hostile noise; an image that is no number may pass."""
    module: Any = sys.modules["diffmoe.sampling.generate"]
    honest = sys.modules["diffmoe.randomness"].normals  # type: ignore[attr-defined]

    def normals(seed: int, *others: Any) -> Tensor:
        noise = honest(seed, *others)
        return hostile(noise).view_as(noise) if hostile and seed == MATE else noise

    module.normals = normals
    module._refuse_non_finite = lambda *_: None


def images_beside(
    run: RunConfig, model: DiT, places: Sequence[int | None], way: Any
) -> Iterator[list[str]]:
    """The bits of five images, with a mate at each place among them, or none."""
    for place in places:
        seeds, labels = list(range(5)), [3, 1, 4, 1, 5]
        if place is not None:
            seeds.insert(place, MATE)
            labels.insert(place, 1)
        with_noise(way)
        found = generate(model, run, labels, seeds, settings=replace(run.sampling, batch=6))
        yield [digest(image) for image, seed in zip(found, seeds, strict=True) if seed != MATE]


def changed_by_mates(ways: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """By setting and hostility, images changed and tried."""
    found = {}
    for way in ways:
        options = {"steps": 3, **way}
        router = options.pop("router", None)
        run = trained.config(router and tiny.ROUTERS[router], **options)
        model = trained.network(run)
        (wanted,) = images_beside(run, model, [None], None)
        for name, hostile in HOSTILE.items():
            beside = list(images_beside(run, model, [0, 3, 5], hostile))
            pairs = [pair for own in beside for pair in zip(own, wanted, strict=True)]
            found[f"{way} {name}"] = [sum(a != b for a, b in pairs), len(pairs)]
    return found


def test_no_mate_changes_another_image() -> None:
    """Whatever it starts from: not a number, infinite, huge, nothing, or very sure of itself."""
    found = in_child(f"changed_by_mates({ALONE!r})", **STRICT)
    assert {name: changed for name, (changed, _) in found.items() if changed} == {}
    assert sum(tried for _, tried in found.values()) == len(ALONE) * len(HOSTILE) * 15


def test_in_a_pool_a_mate_competes_if_its_scores_are_numbers_and_takes_nothing_else() -> None:
    found = in_child("changed_by_mates([{'selection': 'pool'}])", **STRICT)
    changed = {name.split("} ")[1]: number for name, (number, _) in found.items()}
    finite = {name: changed.pop(name) for name in FINITE}
    assert all(finite.values()), finite
    assert set(changed.values()) == {0}, changed


# --- the switch ---------------------------------------------------------------------------------


def refusals(*precisions: str) -> list[str]:
    """What sampling says in each precision, then in float32 without the switch."""
    found = []
    for precision in (*precisions, ""):
        if not precision:
            os.environ["DIFFMOE_STRICT"] = "0"
        run = run_of(64, precision=precision or "float32")
        try:
            generate(trained.network(run), run, [1, 2, 3], [0, 1, 2])
            found.append("")
        except ConfigError as error:
            found.append(str(error))
    return found


def test_a_model_in_float64_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(64)
    network = trained.network(run).double()
    monkeypatch.setenv("DIFFMOE_STRICT", "1")
    with pytest.raises(ConfigError, match="float32 or bfloat16, not in float64 — cast"):
        generate(network, run, [1], [0])


@pytest.mark.skipif(
    not torch.backends.mkl.is_available(),
    reason="the mode that breaks it is one of MKL, and this torch has another BLAS",
)
def test_what_does_not_hold_is_refused_before_an_image_is_drawn() -> None:
    """This mode of MKL has other sums for other numbers of rows."""
    call = "refusals('float32')"
    told, default = in_child(call, DIFFMOE_STRICT="1", MKL_CBWR="COMPATIBLE")
    assert "strict sampling does not hold here" in told and "with MKL_CBWR COMPATIBLE" in told
    assert told.endswith("MKL_CBWR=AVX2,STRICT before Python starts, or leave strict out")
    assert default == ""


def test_both_precisions_hold() -> None:
    assert in_child("refusals('float32', 'bfloat16')", **STRICT) == ["", "", ""]


@pytest.mark.parametrize(
    ("device", "settings", "told"),
    [
        ("cuda", SamplingConfig(), "strict sampling is for CPUs, not for cuda.*--device cpu"),
        ("mps", SamplingConfig(), "not for mps"),
        ("cpu", SamplingConfig(selection="pool"), "images compete .* use selection token"),
        (
            "cpu",
            SamplingConfig(sampler="dopri5", shared_step=True),
            "shared_step makes an image depend on its mates",
        ),
    ],
)
def test_what_cannot_be_strict_is_refused(
    device: str, settings: SamplingConfig, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_strict(settings, torch.device(device))
    monkeypatch.setenv("DIFFMOE_STRICT", "1")
    with pytest.raises(ConfigError, match=told):
        refuse_strict(settings, torch.device(device))


def verbs(*commands: Sequence[str]) -> list[dict[str, Any]]:
    """Verbs one after the other: the exit code of each, and what it leaves of the mode."""
    from diffmoe.cli import main

    found = []
    for words in commands:
        code = main([*words, "--quiet"])
        left = [os.environ.get(name) for name in STRICT]
        found.append({"code": code, "left": left, "threads": torch.get_num_threads()})
    return found


def pictures(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    return {name: content for name, content in found.items() if "sheet" not in name}


def test_the_switch_of_the_verbs(tmp_path: Path) -> None:
    """Same pictures from other batches; the record names the mode; nothing of it stays behind."""
    run = tmp_path / "run"
    train(run_config(loop__steps=2), run, progress=False)  # of a width that fills no vector
    out = [tmp_path / f"out-{number}" for number in range(3)]
    commands = [
        ["sample", str(run), "--count", "9", "--batch", batch, "--out", str(place), flag]
        for place, batch, flag in zip(
            (*out, out[2]),
            ("1", "5", "9", "9"),
            (*["--strict"] * 3, "--no-strict"),
            strict=True,
        )
    ]
    done = in_child(f"verbs(*{commands[:3]!r})", threads=2)
    assert done == [{"code": 0, "left": [None, None], "threads": 2}] * 3
    seen = [pictures(place) for place in out]
    assert len(seen[0]) == 9 and seen[0] == seen[1] == seen[2]
    records = [json.loads((place / "samples.json").read_text()) for place in out]
    assert all(record["strict"] == "one thread, MKL_CBWR AVX2,STRICT" for record in records)
    assert len({record["request"] for record in records}) == 1
    verbs(commands[3])  # the same images, not strict: drawn anew
    record = json.loads((out[2] / "samples.json").read_text())
    assert "strict" not in record and record["request"] != records[0]["request"]


DRAWING = ("sample", "report", "analyze", "sweep", "evaluate")


def test_the_mode_is_set_before_torch_loads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(run_config()))
    watch = (
        "import os, sys\nclass Watch:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'torch':\n"
        "            sys.exit(print(*(os.environ.get(name) for name in "
        f"{list(STRICT)!r})))\n"
        "sys.meta_path.insert(0, Watch())\nfrom diffmoe.cli import main\n"
    )
    own = {name: value for name, value in os.environ.items() if name not in STRICT}
    asked = [(name, "--strict", "1 AVX2,STRICT") for name in DRAWING]
    for name, flag, told in (*asked, ("sample", "--no-strict", "None None")):
        code = f"{watch}main({[name, str(run), flag]!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own)
        assert done.stdout.strip() == told, (name, done.stderr)


# --- the whole promise --------------------------------------------------------------------------


def every_batch(width: int, count: int, sizes: Sequence[int], way: dict[str, Any]) -> list[int]:
    """Images ever different, routings ever different, comparisons."""
    run = run_of(width, **way)
    model = trained.network(run)
    wanted, total = drawn(model, run, range(count), 64), [0, 0]
    compared = 0
    for size in sizes:
        found = drawn(model, run, shuffled(count, size), size)
        total = [a + b for a, b in zip(total, different(found, wanted), strict=True)]
        compared += len(found)
    for parts in ([count], [1, 3, 5, 7, 11]):
        found = drawn(model, run, range(count), count, parts)
        total = [a + b for a, b in zip(total, different(found, wanted), strict=True)]
        compared += len(found)
    return [*total, compared]


def rounding(count: int, sizes: Sequence[int]) -> dict[str, float]:
    """In the default mode: images of another routing, and the largest relative differences."""
    run = run_of(64, guidance=2.0)
    model, labels = trained.network(run), [image % 10 for image in range(count)]

    def samples(batch: int) -> tuple[Tensor, dict[int, str]]:
        masks, settings = Masks(range(count), 16, {}), replace(run.sampling, batch=batch)
        found = generate(model, run, labels, range(count), settings=settings, callback=masks)
        return found, masks.found

    whole, masks = samples(64)
    flipped: set[int] = set()
    worst, worst_flipped, other = 0.0, 0.0, 0
    for size in sizes:
        again, own = samples(size)
        apart = (again - whole).abs().flatten(1).amax(dim=1) / whole.abs().max()
        now = {image for image in range(count) if own[image] != masks[image]}
        kept = [image for image in range(count) if image not in now]
        flipped, other = flipped | now, max(other, int((apart > 0).sum()))
        worst = max(worst, float(apart[kept].max()))
        worst_flipped = max([worst_flipped, *apart[list(now)].tolist()])
    return {
        "images_of_another_routing": len(flipped),
        "most_images_with_other_bits": other,
        "largest_difference": worst,
        "largest_difference_of_another_routing": worst_flipped,
    }


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_500_of_500_images_have_the_same_bits_in_batches_of_1_to_64() -> None:
    def measure() -> dict[str, Any]:
        found: dict[str, Any] = {}
        every, some = list(range(1, 65)), [1, 5, 17, 64]
        for width, sizes, way in ((64, every, {"guidance": 2.0}), (384, some, {})):
            for threads in (1, 2, 3):  # one draws, however many there are: a few sizes show it
                tried = sizes if threads == 1 else some
                call = f"every_batch({width}, 500, {tried!r}, {way!r})"
                told = in_child(call, threads=threads, seconds=3600, **STRICT)
                name = f"strict, width {width}, {threads} threads"
                found[name] = dict(zip(("images", "routings", "compared"), told, strict=True))
                assert told[:2] == [0, 0], (name, told)
        for threads in (1, 2, 3):
            told = in_child(f"rounding(500, {[1, 7, 16, 33]!r})", threads=threads, seconds=3600)
            found[f"default, width 64, {threads} threads"] = told
            assert told["largest_difference"] <= 1e-5
        return found

    promise = "500 of 500 strict images bitwise equal over batches of 1-64, mates, order, packing"
    hold("batch_invariance", promise, 500, measure)
