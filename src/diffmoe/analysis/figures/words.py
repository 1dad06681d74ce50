"""Figure of capacity by the words of prompts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffmoe.analysis.figures.canvas import (
    CAPACITY_LABEL,
    COLOURS,
    GREY,
    MARKERS,
    Axes,
    publish,
    sheet,
    shortened,
    varies,
)
from diffmoe.analysis.figures.ticks import name_ticks
from diffmoe.analysis.findings import WordCapacity

__all__ = ["word_capacity_figure"]

_MOST_OTHERS = 24  # words of no kind of interest with a point, where others have one
_ROW = 0.225  # inches of a word


@dataclass(frozen=True)
class _Block:
    """Words of one kind, the costliest first."""

    kind: str
    words: list[int]
    look: int  # colour and marker

    @property
    def rows(self) -> int:
        """Rows that it takes, its heading and the gap below it included."""
        return len(self.words) + 2 * bool(self.kind)


def word_capacity_figure(found: WordCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacity of the images whose prompt has a word; empty where words do not differ."""
    if not varies(found.words.capacity):
        return []
    columns = _columns(_blocks(found))
    rows = max(sum(block.rows for block in column) for column in columns)
    panels = sheet(
        "Compute by word of the prompt",
        "mean over the images whose prompt has the word; bars: one standard error, prompts taken"
        " for independent; hollow: one prompt alone; dashed: the mean of all images",
        columns=len(columns),
        width=3.7 * len(columns) + 0.4,
        height=_ROW * rows + 1.7,
        sharex=True,
    )[0]
    for axes, column in zip(panels, columns, strict=True):
        axes.axvline(found.average, color=GREY, linewidth=1, linestyle="--")
        _draw(axes, found, column)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlabel(CAPACITY_LABEL)
    return publish(panels[0].figure, path, command)


def _blocks(found: WordCapacity) -> list[_Block]:
    """Kinds with their words; of other words those in the most prompts."""
    if not found.kinds:
        return [_Block("", list(range(len(found.words.names))), 0)]
    blocks = []
    for look, kind in enumerate(dict.fromkeys(found.kinds)):
        words = [i for i, own in enumerate(found.kinds) if own == kind]
        if kind == "other" and len(words) > _MOST_OTHERS:
            often = sorted(words, key=lambda i: -found.words.prompts[i])[:_MOST_OTHERS]
            words = sorted(often)
        blocks.append(_Block(kind, words, look))
    return blocks


def _columns(blocks: list[_Block]) -> list[list[_Block]]:
    """Two columns, as nearly as they can be of one length without a kind in both."""
    if len(blocks) == 1:
        block, half = blocks[0], -(-len(blocks[0].words) // 2)
        parts = [block.words[:half], block.words[half:]]
        return [[_Block(block.kind, words, block.look)] for words in parts if words]
    rows = [block.rows for block in blocks]
    cut = min(range(1, len(blocks)), key=lambda i: max(sum(rows[:i]), sum(rows[i:])))
    return [blocks[:cut], blocks[cut:]]


def _draw(axes: Axes, found: WordCapacity, column: list[_Block]) -> None:
    """Points with bars, under the names of their kinds."""
    top, places, names, headings = 0, list[int](), list[str](), list[int]()
    for block in column:
        if block.kind:
            headings.append(len(places))
            places, names, top = [*places, top], [*names, block.kind], top + 1
        own = np.arange(top, top + len(block.words))
        _draw_points(axes, found, block, own)
        places += own.tolist()
        names += [shortened(found.words.names[i], 20) for i in block.words]
        top += len(block.words) + 1
    name_ticks(axes.yaxis, places, names)
    labels = axes.get_yticklabels()
    for heading in headings:
        labels[heading].set(fontweight="bold", color=GREY)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _draw_points(axes: Axes, found: WordCapacity, block: _Block, places: np.ndarray) -> None:
    colour, marker = COLOURS[block.look % len(COLOURS)], MARKERS[block.look % len(MARKERS)]
    capacity, error = found.words.capacity[block.words], found.words.error[block.words]
    axes.hlines(places, found.average, capacity, colors=colour, linewidth=1, alpha=0.5)
    bars = {"fmt": "none", "ecolor": "black", "elinewidth": 0.9, "capsize": 2.5}
    axes.errorbar(capacity, places, xerr=np.nan_to_num(error), **bars)
    faces = [colour if known else "white" for known in np.isfinite(error)]
    axes.scatter(capacity, places, c=faces, edgecolors=colour, marker=marker, s=30, zorder=3)
