"""What figures share: axes apart from pyplot, text that fits, colours, tiles, files."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from diffmoe.checkpoint import write_file
from diffmoe.errors import ConfigError
from diffmoe.sampling import contact_sheet

# Colours of Okabe and Ito; shapes and dashes say the same without colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))

LETTER = 0.095  # inches that a letter of a name or a title takes at most
STEP_LABEL = "sampling step, 0 = pure noise"
CAPACITY_LABEL = "average capacity, 1 = dense"
LEVEL_LABEL = "noise level, 1 = pure noise, 0 = data"

_MOST_LETTERS = 32  # of a class's name
_MOST_CELLS = 480  # cells of a heat map with their number in figures
_MARKED = 60  # points of a line that are marked one by one
_VARIES = 1e-6  # numbers that differ by less differ by rounding
_SUFFIXES = (".png", ".svg")

Axes = Any  # matplotlib is an extra: imported when a figure is made


def _blank(width: float, height: float) -> Any:
    """A new figure, apart from pyplot: no window system, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "figures need the package matplotlib", remedy='pip install "diffmoe[plots]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(title: str, x: str, y: str, width: float = 6.4, height: float = 3.6) -> Axes:
    """Axes of a new figure, under their title."""
    axes = _blank(width, height).add_subplot()
    axes.set_title(title, loc="left", fontsize="medium")
    return dressed(axes, x, y)


def dressed(axes: Axes, x: str = "", y: str = "") -> Axes:
    """The axes with labels, a light grid and no frame."""
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def sheet(
    title: str,
    subtitle: str = "",
    *,
    rows: int = 1,
    columns: int = 1,
    width: float = 6.4,
    height: float = 4.0,
    **grid: Any,
) -> Any:
    """Dressed axes (rows, columns) of a new figure under one title that spans its width."""
    figure = _blank(width, height)
    lines = [title, *subtitle.split("\n")]
    text = "\n".join(fitted(line, width, 10) for line in lines if line)
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium", parse_math=False)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(rows, columns, squeeze=False, **grid)
    for axes in panels.flat:
        dressed(axes)
    return panels


def fitted(text: str, inches: float, points: float) -> str:
    """The text in lines no longer than so many inches in a font of so many points.

    It takes as few lines as it can and lines of about one length: no word is left alone.
    """
    letters = max(12, int(72 * (inches - 0.2) / (0.56 * points)))
    lines = textwrap.wrap(text, letters)
    while letters > 12 and len(fewer := textwrap.wrap(text, letters - 1)) == len(lines):
        letters, lines = letters - 1, fewer
    return "\n".join(lines)


def shortened(name: str, letters: int = _MOST_LETTERS) -> str:
    """The name, its end left out where it is too long to stand beside a picture."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def headed(name: str) -> str:
    """The name of a class as it can stand alone: of a number, that it is a class."""
    return f"class {name}" if name.strip().isdecimal() else name


def save(figure: Any, path: Path) -> Path:
    """Write the figure in the format that the path's suffix names."""
    write_file(path, lambda aside: _print(figure, aside))
    return path


def _print(figure: Any, path: Path) -> None:
    """Write a file that is the same whenever the figure is."""
    from matplotlib import rc_context

    _settle(figure)
    facts = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "diffmoe"}):
        figure.savefig(path, dpi=150, metadata=facts)


def _settle(figure: Any) -> None:
    """End the layout and round what it found.

    Its solver differs in the last bit from call to call, and SVG names clip paths by a hash of all.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))


def publish(figure: Any, path: Path, command: str) -> list[Path]:
    """Write PNG and SVG at `path`, which has no suffix, with the command in a footer."""
    add_foot(figure, command)
    return save_both(figure, path)


def save_both(figure: Any, path: Path) -> list[Path]:
    """Write PNG and SVG at `path`, which has no suffix."""
    return [save(figure, path.with_name(path.name + suffix)) for suffix in _SUFFIXES]


def add_foot(figure: Any, command: str) -> None:
    """The command in small grey lines below all axes and the figure's legend, if it has one."""
    text = fitted(f"made by {command}", figure.get_figwidth(), 7) if command else ""
    high = figure.get_figheight()
    look = {"va": "bottom", "fontsize": 7, "color": GREY, "parse_math": False}
    figure.text(0.01, 0.04 / high, text, **look)
    foot = (0.06 + 0.125 * len(text.splitlines())) / high
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0.5, foot), figure.transFigure)
        foot += 0.23 * -(-len(legend.texts) // legend._ncols) / high
    figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))


def legend_below(figure: Any, handles: Any, names: Any, columns: int) -> None:
    """A legend that `add_foot` puts between the axes and the command."""
    look = {"loc": "lower center", "frameon": False, "fontsize": "small", "borderpad": 0.2}
    figure.legend(handles, names, ncols=min(columns, len(names)), **look)


def varies(values: Any) -> bool:
    """Whether finite values differ by more than rounding."""
    known = np.asarray(values)[np.isfinite(values)]
    return bool(known.size) and float(known.max() - known.min()) > _VARIES


def spread_evenly(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def listed(numbers: list[int]) -> str:
    """Numbers as a text: `0`, `0 and 3`, `0, 3 and 7`."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def layers_named(chosen: list[int], count: int) -> str:
    """Which of so many MoE layers a figure shows."""
    if len(chosen) == count:
        return {1: "the one MoE layer", 2: "both MoE layers"}.get(count, f"all {count} MoE layers")
    return f"MoE layers {listed(chosen)} of 0 to {count - 1}"


def marker(points: int) -> dict[str, Any]:
    """The look of a line's points, which are marked while they are few."""
    return {"marker": "o", "markersize": 3.5} if points <= _MARKED else {}


def series(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of one of a few lines."""
    look = index % len(COLOURS)
    return {"color": COLOURS[look], "marker": MARKERS[look], "linestyle": DASHES[look]}


def bare(axes: Axes) -> None:
    """Axes of a picture: no grid, no frame, no marks at its ticks."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def centred(middle: float, values: Any) -> Any:
    """A scale for `PuOr` whose white is `middle`, as far as the values go on either side."""
    from matplotlib.colors import TwoSlopeNorm

    known = np.asarray(values)[np.isfinite(values)]
    reach = max(0.1 * middle, float(np.abs(known - middle).max(initial=0)))
    return TwoSlopeNorm(middle, max(0.0, middle - reach), middle + reach)


def heat_map(axes: Axes, values: Float[np.ndarray, "R C"], *, text: str = "", **look: Any) -> Any:
    """A picture of numbers, with figures in the cells while they are few; NaN is grey."""
    bare(axes)
    axes.set_facecolor("#dddddd")
    picture = axes.imshow(np.ma.masked_invalid(values), aspect="auto", **look)
    if text and values.size <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                write_in_cell(axes, picture, (column, row), text.format(value), value)
    return picture


def write_in_cell(
    axes: Axes,
    picture: Any,
    place: tuple[float, float],
    text: str,
    value: float,
    points: float = 9,
) -> None:
    """A text over a cell, black or white, whichever can be read on the cell's colour."""
    look = {"ha": "center", "va": "center", "fontsize": points}
    axes.text(*place, text, color=legible(picture, value), **look)


def legible(picture: Any, value: float) -> str:
    """Black or white, whichever can be read on the colour of a value."""
    brightness = float(np.dot(picture.to_rgba(value)[:3], (0.299, 0.587, 0.114)))
    return "black" if brightness > 0.5 else "white"


def colour_bar(figure: Any, picture: Any, label: str = "", **place: Any) -> Any:
    """The scale of a picture beside it, as thin beside a tall figure as beside a low one."""
    thin = max(12.0, 5 * (figure.get_figheight() - 1.2) * place.get("shrink", 1.0))
    bar = figure.colorbar(picture, label=label, aspect=thin, fraction=0.05, **place)
    bar.outline.set_visible(False)
    return bar


def show_tiles(
    axes: Axes, tiles: UInt8[Tensor, "N C H W"], columns: int, gap: int
) -> tuple[list[float], list[float]]:
    """Tiles in rows on white; returns the centres of rows and of columns."""
    count, _, height, width = tiles.shape
    pixels = np.asarray(contact_sheet(tiles, columns, gap=gap))[gap:-gap, gap:-gap]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    bare(axes)
    rows = range(-(-count // columns))
    return (
        [(height - 1) / 2 + row * (height + gap) for row in rows],
        [(width - 1) / 2 + column * (width + gap) for column in range(columns)],
    )
