"""Figures of findings hold what the records hold, for models and data of any size."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text
from PIL import Image

from diffmoe.analysis import figures
from diffmoe.analysis.figures import canvas
from diffmoe.analysis.figures.sweep import pareto_front
from diffmoe.analysis.findings import (
    BatchOfOne,
    ClassCapacity,
    ExpertUse,
    PredictorCheck,
    StepCapacity,
    SweepPoint,
    TokenMaps,
    Variant,
)

SMALL = {"steps": 50, "classes": 10, "layers": 2, "experts": 4, "images": 4, "side": 8, "grid": 4}
LARGE = {
    "steps": 250,
    "classes": 1000,
    "layers": 12,
    "experts": 16,
    "images": 12,
    "side": 160,
    "grid": 16,
}
LEAST = {"steps": 1, "classes": 1, "layers": 1, "experts": 1, "images": 1, "side": 8, "grid": 2}
SIZES = {"small": SMALL, "large": LARGE, "least": LEAST}
COMMAND = "diffmoe analyze runs/demo --count 1000 --out 'my $figures$' --steps 50 " * 2


def names_of(classes: int) -> list[str]:
    if classes <= 10:
        return [str(label) for label in range(classes)]
    return [f"class {n}, $with$ a name of quite a few letters" for n in range(classes)]


def step_capacity(*, steps: int, layers: int, experts: int, **_: int) -> StepCapacity:
    rng = np.random.default_rng(0)
    level = np.linspace(1, 1 / steps, steps)
    mean = 0.9 + 0.3 * np.sin(3 * level)
    experts_ = mean[:, None, None] * rng.dirichlet(np.full(experts, 4.0), (steps, layers)) * experts
    return StepCapacity(
        level=level,
        mean=mean,
        deviation=0.05 + 0.1 * level,
        experts=experts_,
        images=np.full(steps, 10),
    )


def class_capacity(*, classes: int, **_: int) -> ClassCapacity:
    rng = np.random.default_rng(1)
    selected = 1 + 0.15 * rng.standard_normal(classes)
    error, images = np.full(classes, 0.02), np.full(classes, 10)
    if classes > 1:
        selected[1] = error[1] = np.nan
        images[1] = 0
    return ClassCapacity(
        names=names_of(classes),
        images=images,
        selected=selected,
        above=selected + 0.03 * rng.standard_normal(classes),
        error=error,
        stability=0.83,
        stability_above=0.79,
        agreement=0.97,
    )


def token_maps(
    *, steps: int, classes: int, layers: int, experts: int, images: int, side: int, grid: int
) -> TokenMaps:
    rng = np.random.default_rng(2)
    frames, tokens = min(steps, 12), grid**2
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    disc = 255 * np.exp(-4 * (x**2 + y**2))
    channels = 1 if side <= 8 else 3
    picture = np.broadcast_to(disc, (images, channels, side, side))
    part = np.linspace(0, 1, frames)[:, None, None, None]
    noise = rng.uniform(0, 255, (images, frames, channels, side, side))
    noisy = part * picture[:, None] + (1 - part) * noise
    number = rng.gamma(4, 0.3, (images, frames, tokens))
    return TokenMaps(
        labels=list(range(images)),
        names=names_of(max(images, classes))[:images],
        images=picture.astype(np.uint8),
        noisy=noisy.astype(np.uint8),
        steps=np.linspace(0, steps - 1, frames).astype(int),
        level=np.linspace(1, 0.02, frames),
        number=number,
        share=rng.beta(1, 3, (images, layers, experts, tokens)),
    )


def expert_use(*, layers: int, experts: int, **_: int) -> ExpertUse:
    rng = np.random.default_rng(3)
    share = rng.dirichlet(np.full(experts, 3.0), layers)
    dead = np.zeros((layers, experts), dtype=bool)
    if experts > 1:
        dead[0, 1], share[0, 1] = True, 0.0005
    overlap = rng.uniform(0, 0.4, (layers, experts, experts))
    return ExpertUse(
        share=share,
        dead=dead,
        overlap=overlap,
        class_information=rng.uniform(0, 0.1, layers),
        class_chance=np.full(layers, 0.01),
        level_information=rng.uniform(0, 0.4, layers),
    )


def predictor_check(*, layers: int, experts: int, **_: int) -> PredictorCheck:
    rng = np.random.default_rng(4)
    levels, bins = (10, 10) if layers > 1 else (1, 1)
    precision = rng.uniform(0.6, 0.95, (layers, levels))
    if levels > 1:
        precision[0, 3] = np.nan
    predicted = np.linspace(0.05, 0.95, bins) + rng.normal(0, 0.01, (layers, bins))
    observed = predicted**1.2
    if bins > 1:
        observed[0, -1] = np.nan
    tracked = rng.uniform(0.3, 0.5, (layers, experts))
    return PredictorCheck(
        level=np.linspace(0, 1, levels + 1),
        precision=precision,
        recall=rng.uniform(0.5, 0.9, (layers, levels)),
        calibration_error=rng.uniform(0, 0.1, (layers, levels)),
        predicted=predicted,
        observed=observed,
        weight=rng.dirichlet(np.ones(bins), layers),
        nominal=1.0,
        realised=rng.uniform(0.8, 1.3, (layers, levels)),
        tracked=tracked,
        training=tracked + 0.02,
        sampling=tracked - 0.03,
        images=512,
    )


def batch_of_one(*, images: int, side: int, **_: int) -> BatchOfOne:
    rng = np.random.default_rng(5)
    channels = 1 if side <= 8 else 3
    pictures = rng.integers(0, 255, (images, channels, side, side), dtype=np.uint8)
    variants = [
        Variant(
            name=name,
            batch=batch,
            capacity=1.0 if name == "static" else 0.934,
            change=0.213 if name == "static" else 0.0,
            agreement=0.981,
            frechet=None if images == 1 else 12.345,
            images=pictures,
        )
        for name in ("static", "dynamic")
        for batch in (1, 64)
    ]
    return BatchOfOne(variants=variants, drawn=1000)


def sweep_points(*, layers: int, **_: int) -> list[SweepPoint]:
    if layers == 1:
        return [point("ema", None, 1.0, frechet=None)]
    far = 2 if layers == 2 else 8
    dial = [0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, far]
    targets = [point("target", c, c, seconds=0.01 + 0.01 * c) for c in dial]
    constants = [
        point("constant", round(0.7 - 0.4 * c, 2), 1.01 * c, seconds=0.0101 + 0.01 * c)
        for c in dial[1:-1]
    ]
    return [*targets, *constants, point("ema", None, 1.04), point("search", 0.31, 0.99)]


def point(
    kind: str,
    setting: float | None,
    capacity: float,
    seconds: float = 0.02,
    frechet: float | None = 0.0,
) -> SweepPoint:
    value = 4 + 3 / capacity if frechet is not None else None
    return SweepPoint(
        name=kind if setting is None else f"{kind} {setting}",
        kind=kind,
        setting=setting,
        capacity=capacity,
        seconds=seconds,
        spread=0.0004,
        loss=0.4 + 0.05 / capacity,
        frechet=value,
        agreement=0.9,
    )


Figure = Callable[..., list[Path]]
RECORDS: dict[str, tuple[Callable[..., Any], list[Figure]]] = {
    "steps": (step_capacity, [figures.step_capacity_figure, figures.expert_steps_figure]),
    "classes": (class_capacity, [figures.class_capacity_figure, figures.class_curve_figure]),
    "tokens": (
        token_maps,
        [
            figures.token_overview_figure,
            figures.token_strip_figure,
            lambda found, path, **more: figures.token_experts_figure(found, 0, path, **more),
        ],
    ),
    "experts": (
        expert_use,
        [
            figures.expert_share_figure,
            figures.expert_overlap_figure,
            figures.expert_information_figure,
        ],
    ),
    "predictor": (
        predictor_check,
        [
            figures.predictor_quality_figure,
            figures.realised_capacity_figure,
            figures.calibration_figure,
            figures.reliability_figure,
            figures.thresholds_figure,
        ],
    ),
    "batch": (batch_of_one, [figures.batch_figure]),
    "sweep": (sweep_points, [figures.sweep_figure]),
}
FIGURES = [(made, figure) for made, figures_ in RECORDS.values() for figure in figures_]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures made, in the place of files."""
    made: list[Any] = []
    monkeypatch.setattr(canvas, "write_file", lambda path, write: write(path))
    monkeypatch.setattr(
        canvas, "_print", lambda figure, path: made.append(figure) if path.suffix == ".png" else 0
    )
    return made


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def places(points: Any, column: int) -> Any:
    """Coordinates of points, along the x axis or the y axis."""
    return np.asarray(points.get_offsets())[:, column]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS)
def test_figures_are_files_of_both_kinds(record: str, tmp_path: Path) -> None:
    make, draw = RECORDS[record]
    for number, figure in enumerate(draw):
        paths = figure(make(**SMALL), tmp_path / f"0.7 {number}", command=COMMAND)
        if figure is figures.class_curve_figure:
            assert paths == []
            continue
        assert [path.name for path in paths] == [f"0.7 {number}.png", f"0.7 {number}.svg"]
        with Image.open(paths[0]) as picture:
            assert min(picture.size) > 250 and np.asarray(picture.convert("L")).std() > 5
        assert paths[1].read_text().startswith("<?xml")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("record", RECORDS)
def test_text_is_whole_and_apart(record: str, size: str, drawn: list[Any]) -> None:
    """No text leaves the figure and no two labels of an axis cover each other."""
    make, draw = RECORDS[record]
    for figure in draw:
        paths = figure(make(**SIZES[size]), Path("a"), command=COMMAND)
        assert paths in ([], [Path("a.png"), Path("a.svg")])
    for made in drawn:
        made.draw_without_rendering()
        page = made.bbox.padded(2)
        for text in written(made):
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1, text
            assert page.y0 <= box.y0 and box.y1 <= page.y1, text
        for axis in made.findobj(Axis):
            assert_apart([label.get_window_extent() for label in labels_of(axis)])


def written(figure: Any) -> list[Any]:
    """The texts that are drawn; of axes those at ticks within their limits."""
    axes = [one for one in figure.findobj(Axes) if one.get_visible() and one.axison]
    texts = [one.title for one in axes] + [one._left_title for one in axes]
    texts += [text for one in axes for text in one.texts] + list(figure.texts)
    for axis in (axis for one in axes for axis in (one.xaxis, one.yaxis)):
        texts += [*labels_of(axis), axis.label]
    return [text for text in texts if text.get_text() and text.get_visible()]


def labels_of(axis: Any) -> list[Any]:
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [label for label in labels if label.get_visible() and label.get_text()]


def assert_apart(boxes: list[Any]) -> None:
    for one, other in pairwise(boxes):
        assert not one.padded(-1).overlaps(other.padded(-1))


@pytest.mark.parametrize("record", RECORDS)
def test_the_same_figure_is_the_same_file(record: str, tmp_path: Path) -> None:
    make, draw = RECORDS[record]
    for number, figure in enumerate(draw):
        found = make(**(LARGE if figure is figures.class_curve_figure else SMALL))
        once = figure(found, tmp_path / f"{number} once", command=COMMAND)
        again = figure(found, tmp_path / f"{number} again", command=COMMAND)
        assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
        assert len(once) == 2


def test_the_command_stands_below(drawn: list[Any]) -> None:
    figures.batch_figure(batch_of_one(**SMALL), Path("a"), command="diffmoe $x$ y")
    assert "made by diffmoe $x$ y" in texts(drawn[0])


# --- what does not apply ------------------------------------------------------------------------


def test_what_never_varies_has_no_figure(tmp_path: Path) -> None:
    steps, classes = step_capacity(**SMALL), class_capacity(**SMALL)
    maps, use = token_maps(**SMALL), expert_use(**SMALL)
    flat = replace(steps, mean=np.ones(50), deviation=np.zeros(50), experts=np.ones((50, 2, 4)))
    assert figures.step_capacity_figure(flat, tmp_path / "a") == []
    assert figures.expert_steps_figure(flat, tmp_path / "a") == []
    even = replace(classes, selected=np.ones(10), above=None)
    assert figures.class_capacity_figure(even, tmp_path / "a") == []
    alike = replace(maps, number=0 * maps.number + 1, share=0 * maps.share + 0.25)
    assert figures.token_overview_figure(alike, tmp_path / "a") == []
    assert figures.token_strip_figure(alike, tmp_path / "a") == []
    assert figures.token_animation(alike, tmp_path / "a") == []
    assert figures.token_experts_figure(alike, 0, tmp_path / "a") == []
    none = {"class_information": np.full(2, 9e-7), "level_information": np.full(2, np.nan)}
    assert figures.expert_information_figure(replace(use, **none), tmp_path / "a") == []
    apart = replace(use, overlap=np.full((2, 4, 4), 9e-7) + np.eye(4))
    assert figures.expert_overlap_figure(apart, tmp_path / "a") == []
    assert figures.batch_figure(BatchOfOne(variants=[], drawn=0), tmp_path / "a") == []
    assert figures.class_samples_figure([], [], tmp_path / "a") == []
    unscored = [replace(one, loss=None, frechet=None) for one in sweep_points(**SMALL)]
    assert figures.sweep_figure(unscored, tmp_path / "a") == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("figure", RECORDS["predictor"][1])
def test_a_check_of_nothing_has_no_figure(figure: Figure, tmp_path: Path) -> None:
    found = predictor_check(**SMALL)
    empty = {
        name: np.full_like(values, np.nan)
        for name, values in vars(found).items()
        if isinstance(values, np.ndarray) and name != "level"
    }
    assert figure(replace(found, **empty), tmp_path / "a") == []


# --- what they show -----------------------------------------------------------------------------


def test_the_line_and_the_band_are_the_record(drawn: list[Any]) -> None:
    found = step_capacity(**SMALL)
    figures.step_capacity_figure(found, Path("a"))
    axes = drawn[0].axes[0]
    assert axes.lines[-1].get_ydata() == pytest.approx(found.mean)
    edge = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edge.min() == pytest.approx((found.mean - found.deviation).min())
    assert edge.max() == pytest.approx((found.mean + found.deviation).max())
    (top,) = axes.child_axes
    assert ticks(top.xaxis)[0] == "1.00" and ticks(top.xaxis)[-1] == "0.02"
    assert top.get_xticks().tolist() == axes.get_xticks().tolist() == [0, 10, 20, 30, 40, 49]
    assert ticks(top.xaxis) == [f"{found.level[step]:.2f}" for step in axes.get_xticks()]


def test_layers_of_experts_share_a_scale_around_even(drawn: list[Any]) -> None:
    found = step_capacity(**LARGE)
    figures.expert_steps_figure(found, Path("a"))
    panels = drawn[0].axes[:3]
    for axes, layer in zip(panels, (0, 6, 11), strict=True):
        assert np.array_equal(axes.images[0].get_array(), found.experts[:, layer].T)
        assert axes.images[0].norm is panels[0].images[0].norm
        assert axes.get_ylabel() == f"expert, layer {layer}"
    assert panels[0].images[0].norm(1.0) == 0.5
    figures.expert_steps_figure(found, Path("a"), layers=[3])
    assert np.array_equal(drawn[1].axes[0].images[0].get_array(), found.experts[:, 3].T)


def test_points_bars_and_both_definitions_of_a_class(drawn: list[Any]) -> None:
    found = class_capacity(**SMALL)
    figures.class_capacity_figure(found, Path("a"))
    axes = drawn[0].axes[0]
    order = [n for n in np.argsort(-found.selected) if n != 1]  # class 1 has no samples
    assert ticks(axes.yaxis) == [str(n) for n in order]
    bars, _, filled, hollow = axes.collections[:4]
    assert places(filled, 0) == pytest.approx(found.selected[order])
    assert found.above is not None
    assert places(hollow, 0) == pytest.approx(found.above[order])
    ends = np.array(bars.get_segments())[:, :, 0]
    assert np.diff(ends).ravel() == pytest.approx(2 * found.error[order])
    assert any(
        "0.83 (above the threshold 0.79)" in text.replace("\n", " ") for text in texts(drawn[0])
    )


def test_one_definition_needs_no_legend(drawn: list[Any]) -> None:
    found = class_capacity(**SMALL)
    figures.class_capacity_figure(replace(found, above=found.selected), Path("a"))
    figures.class_capacity_figure(replace(found, above=None, stability_above=None), Path("a"))
    assert not drawn[0].legends and not drawn[1].legends


def test_classes_far_from_dense_hang_on_their_mean(drawn: list[Any]) -> None:
    found = class_capacity(**SMALL)
    low = replace(found, selected=0.5 + 0.1 * (found.selected - 1), above=None)
    figures.class_capacity_figure(low, Path("a"))
    figures.class_capacity_figure(found, Path("a"))
    far, near = (figure.axes[0] for figure in drawn)
    assert ticks(far.child_axes[0].xaxis) == [f"mean {np.nanmean(low.selected):.2f}"]
    assert far.get_xlim()[1] < 0.8
    assert not near.child_axes and near.lines[-1].get_xdata() == [1.0, 1.0]


def test_a_cap_leaves_the_order_to_rows_above_the_threshold(drawn: list[Any]) -> None:
    found = class_capacity(**SMALL)
    above = np.linspace(0.9, 1.2, 10)
    figures.class_capacity_figure(replace(found, selected=np.full(10, 0.5), above=above), Path("a"))
    axes = drawn[0].axes[0]
    assert ticks(axes.yaxis) == [str(n) for n in reversed(range(10))]
    assert places(axes.collections[-1], 0) == pytest.approx(above[::-1])
    said = " ".join(texts(drawn[0])).replace("\n", " ")
    assert "a cap levels what experts took" in said and "draws 0.79" in said
    assert "rows above the threshold, 1 = dense" in said and "standard error" not in said
    assert not drawn[0].legends


def test_what_is_not_known_of_classes_is_not_said(drawn: list[Any]) -> None:
    found = class_capacity(**SMALL)
    unknown = {"error": np.full(10, np.nan), "stability": np.nan, "above": None}
    figures.class_capacity_figure(replace(found, **unknown), Path("a"))
    said = " ".join(texts(drawn[0]))
    assert "standard error" not in said and "unknown" not in said and "rank" not in said


def test_the_curve_of_all_classes_falls(drawn: list[Any]) -> None:
    found = class_capacity(**LARGE)
    figures.class_curve_figure(found, Path("a"))
    curve = drawn[0].axes[0].lines[-1].get_ydata()
    assert len(curve) == 999 and (np.diff(curve) <= 0).all()
    assert sorted(curve) == pytest.approx(sorted(found.selected[np.isfinite(found.selected)]))


def test_samples_stand_beside_class_and_capacity(drawn: list[Any]) -> None:
    images = np.full((3, 1, 8, 8), 90, dtype=np.uint8)
    hard, easy = [("cat", 1.25, images), ("dog", 1.2, images[:2])], [("sky", 0.75, images)]
    figures.class_samples_figure(hard, easy, Path("a"))
    first, second = drawn[0].axes
    assert ticks(first.yaxis) == ["cat\n1.250", "dog\n1.200"]
    assert ticks(second.yaxis) == ["sky\n0.750"]
    assert (first.images[0].get_array() == 90).sum() == 5 * 64


def test_maps_stand_on_their_patches(drawn: list[Any]) -> None:
    found = token_maps(**SMALL)
    share = np.zeros_like(found.share)
    share[0, :, 2, 5] = 0.5  # the second patch of the second row
    figures.token_overview_figure(replace(found, share=share), Path("a"))
    figures.token_experts_figure(replace(found, share=share), 0, Path("a"))
    axes = drawn[0].axes[0]
    alone = axes.images[0].get_array()[:, 2 * 68 :]
    brightest = np.argwhere(alone.sum(axis=2) == alone.sum(axis=2).max())
    assert brightest.min(axis=0).tolist() == [16, 16] and len(brightest) == 16 * 16
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(numbers) == 16 and numbers[2 * 68 + 23.5, 23.5] == "0.50"
    assert axes.get_title(loc="left") == "class 0"
    sheet = drawn[1].axes[1].images[0].get_array()[..., 0]
    dark = np.argwhere(sheet < 200)
    assert dark.min(axis=0).tolist() == [16, 2 * 70 + 16]
    assert len(dark) == 2 * 16 * 16


def test_frames_stand_under_their_step_and_level(drawn: list[Any]) -> None:
    found = token_maps(**SMALL)
    figures.token_strip_figure(found, Path("a"))
    shown = ticks(drawn[0].axes[0].xaxis)
    assert len(shown) == 10 and shown[0] == "0\n1.00" and shown[-1] == "49\n0.02"


def test_maps_have_the_colours_of_one_scale_from_none_on(drawn: list[Any]) -> None:
    found = token_maps(**SMALL)
    figures.token_overview_figure(found, Path("a"))
    figures.token_strip_figure(found, Path("a"))
    bars = [figure.axes[-1] for figure in drawn]
    assert bars[0].get_ylim() == bars[1].get_ylim()
    assert bars[0].get_ylim() == pytest.approx((0, found.number.max()))
    scale = bars[0]._colorbar.mappable
    colours = scale.to_rgba(found.share.sum(axis=2).mean(axis=1)[0], bytes=True)[:, :3]
    alone = drawn[0].axes[0].images[0].get_array()[8::16, 2 * 68 + 8 :: 16][:, :4]
    assert np.array_equal(alone.reshape(-1, 3), colours)


def test_many_patches_have_no_numbers(drawn: list[Any]) -> None:
    figures.token_overview_figure(token_maps(**LARGE), Path("a"))
    assert not drawn[0].axes[0].texts


def test_classes_that_are_numbers_are_named_as_classes(drawn: list[Any]) -> None:
    found = token_maps(**SMALL)
    figures.token_strip_figure(replace(found, names=["0", "1", "cat", "7 b"]), Path("a"))
    figures.token_experts_figure(found, 2, Path("a"))
    axes = drawn[0].axes[0]
    assert ticks(axes.yaxis) == ["class 0", "class 1", "cat", "7 b"]
    block = 2 * 64 + 2  # a noisy state, its map and the line between them
    assert axes.get_yticks() == pytest.approx([(block - 1) / 2 + n * (block + 8) for n in range(4)])
    assert any("took which patch: class 2" in text for text in texts(drawn[1]))
    assert any("10 of 12 frames" in text for text in texts(drawn[0]))


@pytest.mark.parametrize("size", SIZES)
def test_the_animation_has_a_frame_for_each_and_holds_the_last(size: str, tmp_path: Path) -> None:
    found = token_maps(**SIZES[size])
    paths = figures.token_animation(found, tmp_path / "a", command=COMMAND)
    assert [path.name for path in paths] == ["a.gif", "a.webp"]
    for path in paths:
        with Image.open(path) as moving:
            assert moving.n_frames == len(found.steps)
            assert path.stat().st_size < 3e6 and max(moving.size) < 1000
            durations = []
            for frame in range(moving.n_frames):
                moving.seek(frame)
                moving.load()
                durations.append(moving.info["duration"])
            if len(durations) > 1:  # one frame alone is a picture
                assert durations[-1] == 2500 and set(durations[:-1]) == {500}
                assert moving.info["loop"] == 0


def test_dead_experts_are_crossed_out(drawn: list[Any]) -> None:
    found = expert_use(**SMALL)
    figures.expert_share_figure(found, Path("a"))
    axes = drawn[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[1, 0] == "×" and cells[0, 0] == f"{100 * found.share[0, 0]:.1f}"
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(100 * found.share)


def test_overlap_leaves_out_an_expert_with_itself(drawn: list[Any]) -> None:
    found = expert_use(**LARGE)
    figures.expert_overlap_figure(found, Path("a"))
    for axes, layer in zip(drawn[0].axes, (0, 6, 11), strict=False):
        values = axes.images[0].get_array()
        assert values.mask.sum() == 16 and values.mask.diagonal().all()
        assert values[0, 1] == found.overlap[layer, 0, 1]


def test_bars_are_bits_and_marks_are_chance(drawn: list[Any]) -> None:
    found = expert_use(**SMALL)
    figures.expert_information_figure(found, Path("a"))
    classes, levels = drawn[0].axes
    assert [bar.get_height() for bar in classes.patches] == pytest.approx(found.class_information)
    assert [bar.get_height() for bar in levels.patches] == pytest.approx(found.level_information)
    marks = classes.collections[0].get_segments()
    assert [mark[0][1] for mark in marks] == pytest.approx(found.class_chance)
    assert classes.get_ylim() == levels.get_ylim()
    assert "chance" in classes.get_title(loc="left") and not levels.collections


def test_information_of_rounding_alone_has_no_panel(drawn: list[Any]) -> None:
    found = replace(expert_use(**SMALL), class_information=np.full(2, 9e-7))
    figures.expert_information_figure(found, Path("a"))
    (axes,) = drawn[0].axes
    assert axes.get_title(loc="left") == "of expert and noise level"
    assert not any("chance" in text for text in texts(drawn[0]))


def test_few_layers_are_lines_and_many_a_heat_map(drawn: list[Any]) -> None:
    few, many = predictor_check(**SMALL), predictor_check(**LARGE)
    for found in (few, many):
        figures.predictor_quality_figure(found, Path("a"))
        figures.realised_capacity_figure(found, Path("a"))
    lines = drawn[0].axes[1].lines
    assert np.stack([line.get_ydata() for line in lines]) == pytest.approx(few.recall)
    assert (
        len({line.get_marker() for line in lines})
        == len({line.get_linestyle() for line in lines})
        == 2
    )
    assert drawn[1].axes[0].lines[-1].get_ydata()[0] == few.nominal
    assert np.array_equal(drawn[2].axes[1].images[0].get_array(), many.recall)
    assert drawn[2].axes[0].images[0].get_array().mask[0, 3]  # no rows, no precision
    assert drawn[3].axes[0].images[0].norm(many.nominal) == 0.5


def test_shares_near_one_fill_the_axis_whose_lower_end_is_said(drawn: list[Any]) -> None:
    found = predictor_check(**SMALL)
    near = {"precision": 0.97 + 0.03 * found.precision, "recall": 0.97 + 0.03 * found.recall}
    figures.predictor_quality_figure(replace(found, **near), Path("a"))
    axes = drawn[0].axes[0]
    assert axes.get_ylabel() == "share of rows, from 0.95"
    assert 0.94 < axes.get_ylim()[0] < 0.95 and 1 < axes.get_ylim()[1] < 1.01


@pytest.mark.parametrize("size", ["small", "large"])
def test_noise_levels_run_as_sampling_does(size: str, drawn: list[Any]) -> None:
    found = predictor_check(**SIZES[size])
    figures.predictor_quality_figure(found, Path("a"))
    figures.realised_capacity_figure(found, Path("a"))
    figures.calibration_figure(found, Path("a"))
    for axes in (*drawn[0].axes[:2], drawn[1].axes[0], drawn[2].axes[0]):
        assert axes.xaxis_inverted()
        assert axes.get_xlabel() == "noise level, 1 = pure noise, 0 = data"


def test_reliability_shows_what_is_known(drawn: list[Any]) -> None:
    found = predictor_check(**LARGE)
    figures.reliability_figure(found, Path("a"))
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        f"MoE layer {layer}" for layer in (0, 2, 4, 7, 9, 11)
    ]
    points = drawn[0].axes[0].collections[0]
    assert len(places(points, 0)) == 9  # the tenth bin of layer 0 is empty
    assert places(points, 1) == pytest.approx(found.observed[0, :9])


def test_thresholds_are_points_of_two_shapes(drawn: list[Any]) -> None:
    found = predictor_check(**SMALL)
    figures.thresholds_figure(found, Path("a"))
    circles, triangles = drawn[0].axes[0].collections
    for points, values in ((circles, found.training), (triangles, found.sampling)):
        assert places(points, 0) == pytest.approx(found.tracked.ravel())
        assert places(points, 1) == pytest.approx(values.ravel())
    assert len(circles.get_paths()[0]) != len(triangles.get_paths()[0])


def test_variants_stand_beside_their_numbers(drawn: list[Any]) -> None:
    figures.batch_figure(batch_of_one(**SMALL), Path("a"))
    axes = drawn[0].axes[0]
    rows = ["pool of 1 image", "pool of 64 images", "difference"]
    assert ticks(axes.yaxis) == [f"{name}\n{row}" for name in ("static", "dynamic") for row in rows]
    beside = ticks(axes.child_axes[0].yaxis)
    assert beside[3] == "capacity 0.934\nagreement 98.1%\nFrechet distance 12.345"
    assert beside[2::3] == ["change 0.213 (rms)", "change 0.000 (rms)"]
    said = " ".join(texts(drawn[0])).replace("\n", " ")
    assert "static = pool selection, fixed top-K; dynamic = pool selection" in said
    assert "none shown" in said  # the images are the same


def test_differences_are_on_one_scale_and_one_pool_stands_alone(drawn: list[Any]) -> None:
    one, many, other, more = batch_of_one(**SMALL).variants
    dark = np.zeros_like(one.images)
    variants = [replace(one, images=dark), replace(many, images=dark + 50)]
    variants += [replace(other, images=dark), replace(more, images=dark + 10)]
    variants += [replace(other, name="dynamic, token", batch=64, change=0.001)]
    figures.batch_figure(BatchOfOne(variants=variants, drawn=9), Path("a"))
    axes = drawn[0].axes[0]
    assert ticks(axes.yaxis)[-1] == "dynamic, token\nalone or in a batch"
    assert ticks(axes.child_axes[0].yaxis)[-1].endswith("change 0.001 (rms)")
    sheet = axes.images[0].get_array()
    static, dynamic = (sheet[round(axes.get_yticks()[row]), 4] for row in (2, 5))
    assert (static, dynamic) == (255, 51)
    said = " ".join(texts(drawn[0])).replace("\n", " ")
    assert "white = 0.39, the largest shown" in said
    assert "dynamic, token = token selection, tracked thresholds" in said


def test_points_of_a_sweep_stand_at_cost_and_quality(drawn: list[Any]) -> None:
    found = sweep_points(**SMALL)
    figures.sweep_figure(found, Path("a"))
    by_capacity, by_time, loss, _ = drawn[0].axes
    points = [tuple(one.get_offsets()[0]) for one in by_capacity.collections]
    assert points == [(one.capacity, one.frechet) for one in found]
    timed = {tuple(one.get_offsets()[0]) for one in by_time.collections if len(one.get_offsets())}
    assert {(1000 * one.seconds, one.frechet) for one in found} <= timed
    assert loss.collections[0].get_offsets()[0].tolist() == [found[0].capacity, found[0].loss]
    assert by_capacity.get_xscale() == "linear"
    named = {text.get_text() for text in by_capacity.texts}
    assert {"0.3", "0.5", "0.7", "0.85", "1", "1.2", "1.5", "2", "γ 0.42"} <= named
    leaders = [text for text in by_capacity.texts if text.get_text() == "γ 0.42"]
    assert all(text.arrow_patch is not None for text in leaders)
    assert by_capacity.collections[-1].get_facecolor().size == 0  # around the star


def test_times_of_one_batch_have_no_bars(drawn: list[Any]) -> None:
    found = [replace(one, spread=float("nan")) for one in sweep_points(**SMALL)]
    figures.sweep_figure(found, Path("a"))
    said = " ".join(texts(drawn[0])).replace("\n", " ")
    assert "times of one batch each" in said and "bars" not in said
    assert not drawn[0].axes[1].containers


def test_a_point_far_worse_than_the_others_does_not_set_the_scale(drawn: list[Any]) -> None:
    found = [*sweep_points(**SMALL), point("target", 0.1, 0.01)]
    figures.sweep_figure(found, Path("a"))
    by_capacity, by_time = drawn[0].axes[:2]
    usual = max(one.frechet for one in found[:-1])
    assert usual < by_capacity.get_ylim()[1] < 2 * usual < found[-1].frechet
    assert by_time.get_ylim() == by_capacity.get_ylim()
    marks = by_capacity.collections
    assert usual < marks[-1].get_offsets()[0][1] < by_capacity.get_ylim()[1]
    assert marks[-1].get_facecolor().tolist() != marks[0].get_facecolor().tolist()
    assert "0.1 \u2191 304" in {text.get_text() for text in by_capacity.texts}


def test_costs_of_more_than_a_decade_are_on_a_logarithmic_axis(drawn: list[Any]) -> None:
    figures.sweep_figure(sweep_points(**LARGE), Path("a"))
    assert drawn[0].axes[0].get_xscale() == "log"


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    places = [(1.0, 5.0), (2.0, 6.0), (0.5, 7.0), (1.0, 4.0), (3.0, 1.0)]
    assert pareto_front(places) == [(0.5, 7.0), (1.0, 4.0), (3.0, 1.0)]
    assert pareto_front([]) == []


@pytest.mark.parametrize("record", [name for name in RECORDS if name not in ("batch", "sweep")])
def test_numbers_that_are_not_known_are_left_out(record: str, drawn: list[Any]) -> None:
    make, draw = RECORDS[record]
    found = make(**SMALL)
    holed = {}
    for name, values in vars(found).items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and name != "level":
            holed[name] = values.copy()
            holed[name].flat[::3] = np.nan
    for figure in draw:
        figure(replace(found, **holed), Path("a"), command=COMMAND)
    for made in drawn:
        made.draw_without_rendering()
    assert drawn


def test_a_point_without_every_number_stands_where_it_can(drawn: list[Any]) -> None:
    found = sweep_points(**SMALL)
    found[0] = replace(found[0], frechet=None, seconds=float("nan"))
    found[-1] = replace(found[-1], frechet=None)
    figures.sweep_figure(found, Path("a"))
    by_capacity, _, loss, _ = drawn[0].axes
    assert len(by_capacity.collections) == len(found) - 2
    assert len(loss.collections) == len(found)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert "threshold of the interval search" in names
