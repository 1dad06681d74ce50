"""Figures are real pictures, show what the trace holds and can be read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import trained
from diffmoe.analysis import CapacityTrace, capacity_figures, loss_figure, samples_figure
from diffmoe.analysis.figures import canvas
from diffmoe.errors import ConfigError

NAMES = [str(digit) for digit in range(10)]


def trace_of(
    steps: int = 20, classes: int = 10, layers: int = 2, experts: int = 4, seen: int | None = None
) -> CapacityTrace:
    """A trace whose class c got 0.8 + 0.4 c / classes and whose experts differ."""
    images = torch.ones(classes, dtype=torch.float64)
    images[seen if seen is not None else classes :] = 0
    capacity = 0.8 + 0.4 * torch.arange(classes, dtype=torch.float64) / classes
    share = torch.linspace(0.1, 0.4, layers * experts, dtype=torch.float64).view(layers, experts)
    return CapacityTrace(
        step_sum=5 * torch.linspace(0.9, 1.1, steps, dtype=torch.float64),
        step_images=torch.full((steps,), 5, dtype=torch.float64),
        class_sum=capacity * images,
        class_images=images,
        pairs=1000 * share,
        rows=torch.full((layers,), 1000, dtype=torch.float64),
        times={},
        tokens=16,
    )


def metrics(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def descent(count: int = 50) -> list[dict[str, Any]]:
    values = [2.4 * 0.96**i + 0.4 for i in range(count)]
    return [{"step": 20 * (i + 1), "loss": v, "mse": 0.9 * v} for i, v in enumerate(values)]


def assert_picture(path: Path, least: int = 200) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as picture:
        assert min(picture.size) >= least and max(picture.size) < 8000
        assert np.asarray(picture.convert("L")).std() > 5  # not blank


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of each figure made, in the place of files."""
    made: list[Any] = []
    monkeypatch.setattr(canvas, "write_file", lambda path, write: write(path))
    monkeypatch.setattr(canvas, "_print", lambda figure, path: made.append(figure.axes[0]))
    return made


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# --- files --------------------------------------------------------------------------------------


def test_capacity_figures_are_pictures_named_after_what_they_show(tmp_path: Path) -> None:
    found = capacity_figures(trace_of(), NAMES, tmp_path / "figures")
    assert set(found) == {"capacity_per_step", "capacity_per_class", "tokens_per_expert"}
    for name, path in found.items():
        assert path == tmp_path / "figures" / f"{name}.png"
        assert_picture(path)
    assert len(list((tmp_path / "figures").iterdir())) == 3


def test_loss_and_samples_are_pictures(tmp_path: Path) -> None:
    log = metrics(tmp_path / "metrics.jsonl", descent())
    assert_picture(loss_figure(log, tmp_path / "loss.png"))
    images = (255 * torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))).byte()
    path = samples_figure(images, torch.arange(60) % 10, NAMES, tmp_path / "samples.png")
    assert_picture(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_of_any_size_and_number_of_classes_are_a_picture(
    tmp_path: Path, channels: int
) -> None:
    images = torch.full((300, channels, 64, 64), 80, dtype=torch.uint8)
    names = [f"class {label}" for label in range(300)]
    assert_picture(samples_figure(images, torch.arange(300), names, tmp_path / "samples.png"))


def test_a_large_model_and_many_classes_are_pictures(tmp_path: Path) -> None:
    trace = trace_of(steps=250, classes=1000, layers=14, experts=16)
    names = [f"class {label}" for label in range(1000)]
    for path in capacity_figures(trace, names, tmp_path).values():
        assert_picture(path)


def test_names_that_look_like_formulas_are_names(tmp_path: Path) -> None:
    names = [r"$\frac{$", "a_b$x$", *NAMES[2:]]
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    samples_figure(images, torch.arange(20) % 10, names, tmp_path / "samples.png")
    capacity_figures(trace_of(), names, tmp_path)


# --- what they show -----------------------------------------------------------------------------


def test_steps_are_whole_numbers_and_the_line_is_the_trace(drawn: list[Any]) -> None:
    trace = trace_of(steps=20)
    capacity_figures(trace, NAMES, Path())
    per_step = drawn[0]
    assert per_step.lines[-1].get_ydata() == pytest.approx(trace.per_step.tolist())
    per_step.figure.draw_without_rendering()
    assert all(tick == int(tick) for tick in per_step.get_xticks())
    assert {"0", "5", "10", "15"} <= set(labels(per_step.xaxis))
    assert per_step.get_xlabel() and "1 = dense" in per_step.get_ylabel()


def test_classes_are_points_and_the_costliest_is_on_top(drawn: list[Any]) -> None:
    capacity_figures(trace_of(seen=8), NAMES, Path())
    per_class = drawn[1]
    assert not per_class.patches  # bars on a cut axis exaggerate
    assert labels(per_class.yaxis) == ["7", "6", "5", "4", "3", "2", "1", "0"]
    bottom, top = per_class.get_ylim()
    assert top < bottom
    points = per_class.collections[-1].get_offsets()
    assert points[0].tolist() == pytest.approx([0.8 + 0.4 * 0.7, 0])


def test_of_many_classes_the_extremes_are_shown(drawn: list[Any]) -> None:
    capacity_figures(trace_of(classes=1000), [f"n{i}" for i in range(1000)], Path())
    shown = labels(drawn[1].yaxis)
    assert len(shown) == 40 and shown[0] == "n999" and shown[-1] == "n0"
    assert "1000" in drawn[1].get_title(loc="left")


def test_shares_stand_in_their_cells(drawn: list[Any]) -> None:
    trace = trace_of(layers=2, experts=4)
    capacity_figures(trace, NAMES, Path())
    texts = {text.get_position(): text.get_text() for text in drawn[2].texts}
    for layer in range(2):
        for expert in range(4):
            wanted = 100 * trace.per_expert[layer, expert].item()
            assert texts[expert, layer] == f"{wanted:.1f}"
    assert drawn[2].get_xlabel() == "expert" and drawn[2].get_ylabel() == "MoE layer"
    low, high = drawn[2].images[0].get_clim()
    assert (low, high) == (0, 50)  # an even share of four experts is in the middle


def test_shares_far_above_even_have_colours_of_their_own(drawn: list[Any]) -> None:
    trace = trace_of(layers=1, experts=4)
    trace.pairs[0] = torch.tensor([517, 790, 250, 0])
    capacity_figures(trace, NAMES, Path())
    picture = drawn[2].images[0]
    colours = [picture.norm(value) for value in (51.7, 79.0, 25.0, 0.0)]
    assert colours == pytest.approx([0.5 + 0.5 * 26.7 / 54, 1, 0.5, 0])


def test_a_capacity_that_never_varies_has_no_figure(drawn: list[Any]) -> None:
    trace = trace_of()
    trace.step_sum, trace.class_sum = 1.0 * trace.step_images, 1.0 * trace.class_images
    assert list(capacity_figures(trace, NAMES, Path())) == ["tokens_per_expert"]
    assert len(drawn) == 1


def test_a_loss_that_is_all_denoising_is_one_curve(drawn: list[Any], tmp_path: Path) -> None:
    lines = [line | {"mse": line["loss"]} for line in descent()]
    loss_figure(metrics(tmp_path / "m", lines), Path())
    assert len(drawn[0].lines) == 1
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == [
        "total, all of it mse"
    ]


def test_the_loss_has_plain_numbers_beside_it(drawn: list[Any], tmp_path: Path) -> None:
    loss_figure(metrics(tmp_path / "m", descent()), Path())
    (axes,) = drawn
    assert axes.get_yscale() == "log" and {"0.8", "1", "2"} <= set(labels(axes.yaxis))
    assert len(axes.lines) == 2 and len(axes.get_yticks()) < 12
    assert axes.get_legend().get_texts()[0].get_text() == "total"


@pytest.mark.parametrize("span", [1e-4, 0.02, 1, 30, 1e7])
def test_a_loss_of_any_range_has_a_few_ticks(drawn: list[Any], tmp_path: Path, span: float) -> None:
    lines = [{"step": 1, "loss": 0.37 * (1 + span)}, {"step": 2, "loss": 0.37}]
    loss_figure(metrics(tmp_path / "m", lines), Path())
    low, high = drawn[0].get_ylim()
    ticks = [tick for tick in drawn[0].get_yticks() if low <= tick <= high]
    assert 1 <= len(ticks) <= 12 and low < 0.37 < 0.37 * (1 + span) < high


def test_a_loss_that_is_not_positive_is_shown_all_the_same(
    drawn: list[Any], tmp_path: Path
) -> None:
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": -0.1}]
    loss_figure(metrics(tmp_path / "m", lines), Path())
    assert drawn[0].get_yscale() == "linear" and drawn[0].get_ylabel() == "loss"


@pytest.mark.parametrize(
    "lines", [[], [{"step": 5, "loss": None}], descent(1)], ids=["0", "n", "1"]
)
def test_a_run_that_has_hardly_begun_has_a_figure(tmp_path: Path, lines: list) -> None:
    path = loss_figure(metrics(tmp_path / "m", lines), tmp_path / "loss.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_line_cut_off_by_a_kill_is_left_out(drawn: list[Any], tmp_path: Path) -> None:
    log = metrics(tmp_path / "m", descent(5))
    log.write_text(log.read_text() + '{"step": 120, "lo')
    loss_figure(log, Path())
    assert len(drawn[0].lines[0].get_ydata()) == 5


DAMAGE = (
    b'\xff\x00\x80\n[1]\n17\n{"loss": 3}\n{"step": "5", "loss": 3}\n' + b'{"a":' * 100_000 + b"\n"
)


def test_damaged_lines_are_left_out(drawn: list[Any], tmp_path: Path) -> None:
    log = metrics(tmp_path / "m", descent(5))
    log.write_bytes(DAMAGE + log.read_bytes() + DAMAGE)
    loss_figure(log, Path())
    assert [len(line.get_ydata()) for line in drawn[0].lines] == [5, 5]


def test_metrics_of_damage_alone_have_a_figure(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(DAMAGE)
    assert loss_figure(tmp_path / "m", tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "null", "1e308", "5e-324", "9" * 18]
)
def test_values_that_no_axis_can_hold_are_left_out(value: str, tmp_path: Path) -> None:
    lines = "".join(f'{{"step": {n}, "loss": {v}}}\n' for n, v in enumerate((1, value, 2)))
    (tmp_path / "m").write_text(lines)
    assert_picture(loss_figure(tmp_path / "m", tmp_path / "loss.png"))


def test_samples_stand_in_rows_beside_their_class(drawn: list[Any]) -> None:
    values = torch.tensor([2, 0, 2, 1, 2], dtype=torch.uint8)
    images = (10 * values + 50).view(5, 1, 1, 1).expand(5, 1, 8, 8).contiguous()
    samples_figure(images, values.long(), ["a", "b", "c"], Path())
    (axes,) = drawn
    assert labels(axes.yaxis) == ["a", "b", "c"]
    sheet = axes.images[0].get_array()
    for row, (place, count) in enumerate(zip(axes.get_yticks(), (1, 1, 3), strict=True)):
        line = sheet[round(place)]
        assert (line == 10 * row + 50).sum() == 8 * count
        assert (line[line != 10 * row + 50] == 255).all()


@pytest.mark.parametrize("side", [8, 256])
@pytest.mark.parametrize("columns", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["7", "a name of many letters", "x" * 300])
def test_the_title_of_the_samples_is_whole_and_begins_where_they_do(
    name: str, columns: int, side: int, drawn: list[Any]
) -> None:
    images = torch.zeros(2 * columns, 1, side, side, dtype=torch.uint8)
    samples_figure(images, torch.arange(2 * columns) % 2, [name, "b"], Path())
    (axes,) = drawn
    axes.figure.draw_without_rendering()
    (title,) = [text for text in axes.figure.findobj(Text) if "not chosen" in text.get_text()]
    box, grid, page = title.get_window_extent(), axes.get_window_extent(), axes.figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1
    assert box.x0 == pytest.approx(grid.x0, abs=3)
    sheet = axes.images[0].get_array()
    assert sheet.shape[1] == columns * side + (columns - 1) * max(1, side // 6)


# --- manners ------------------------------------------------------------------------------------


def test_figures_leave_the_users_plots_alone(tmp_path: Path) -> None:
    """Importing the package loads no plotting library; drawing chooses no window system."""
    code = (
        "import sys, diffmoe.experiments, diffmoe.analysis as a\n"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "from pathlib import Path\n"
        "a.loss_figure(Path('metrics'), Path('loss.png'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    metrics(tmp_path / "metrics", descent())
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert_picture(tmp_path / "loss.png")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install "diffmoe\[plots\]"'):
        capacity_figures(trace_of(), NAMES, Path())


def test_a_real_trace_makes_the_figures(tmp_path: Path) -> None:
    from diffmoe.sampling import generate

    run = trained.config(guidance=2.0)
    trace = CapacityTrace.empty(run, run.sampling.steps)
    generate(trained.network(run), run, [1, 2, 3], [0, 1, 2], callback=trace)
    for path in capacity_figures(trace, NAMES, tmp_path).values():
        assert_picture(path)
