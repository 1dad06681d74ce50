"""Figures of capacity by what patches show."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffmoe.analysis.figures.canvas import (
    CAPACITY_LABEL,
    COLOURS,
    GREY,
    LEVEL_LABEL,
    Axes,
    bare,
    colour_bar,
    fitted,
    legend_below,
    marker,
    publish,
    series,
    sheet,
    varies,
)
from diffmoe.analysis.findings import RegionCapacity, RegionPictures
from diffmoe.analysis.regions import MOST_OBJECTS, REGIONS

__all__ = ["region_capacity_figure", "region_level_figure", "region_pictures_figure"]

_OBJECTS = ("#20242c", *COLOURS)  # background, then object by object
_REGIONS = ("#20242c", "#E69F00", "#56B4E9")
_TILES = ("picture", "objects found", "region of each patch", "capacity of each patch")
_BARS = {"ecolor": "black", "elinewidth": 0.9, "capsize": 3}


def region_level_figure(found: RegionCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacity of each region along sampling; empty where it never varies."""
    if not varies(found.by_level):
        return []
    title = "Compute along sampling by what patches show"
    about = "regions of the picture as it is in the end; bands: one standard error over images"
    axes = sheet(title, about, width=6.8, height=4.2)[0, 0]
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle=":")
    for index, name in enumerate(found.names):
        if not found.images[index]:
            continue
        mean, error = found.by_level[index], np.nan_to_num(found.by_level_error[index])
        look = series(index) | {"markersize": 3.5}
        axes.plot(found.level, mean, label=name, **marker(len(mean)) | look)
        band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(found.level, mean - error, mean + error, **band)
    axes.invert_xaxis()
    axes.set(xlabel=LEVEL_LABEL, ylabel=CAPACITY_LABEL)
    axes.margins(y=0.1)
    handles, names = axes.get_legend_handles_labels()
    legend_below(axes.figure, handles, names, len(names))
    return publish(axes.figure, path, command)


def region_capacity_figure(found: RegionCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacity of each region, and by the number of objects; empty where none differs."""
    if not varies(found.capacity) and not varies(found.by_objects):
        return []
    regions, objects = sheet(
        "Compute by what a picture shows",
        "mean over steps and MoE layers; bars: one standard error over images",
        columns=2,
        width=8.4,
        height=4.4,
        width_ratios=[1, 1.35],
    )[0]
    _draw_regions(regions, found)
    _draw_objects(objects, found)
    handles, names = objects.get_legend_handles_labels()
    legend_below(objects.figure, handles, names, len(names))
    return publish(regions.figure, path, command)


def _draw_regions(axes: Axes, found: RegionCapacity) -> None:
    places = np.arange(len(found.names))
    colours = [series(index)["color"] for index in range(len(places))]
    axes.bar(
        places,
        np.nan_to_num(found.capacity),
        yerr=np.nan_to_num(found.error),
        color=colours,
        width=0.62,
        error_kw=_BARS,
    )
    for place, value, error in zip(places, found.capacity, found.error, strict=True):
        if np.isfinite(value):
            high = float(value + np.nan_to_num(error))
            text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": "small"}
            text["bbox"] = {"color": "white", "pad": 0.8}
            axes.annotate(f"{value:.3f}", (place, high), (0, 3), textcoords="offset points", **text)
    share = found.patches / max(1, found.patches.sum())
    names = [
        f"{fitted(name, 1.1, 10)}\n{part:.0%} of patches"
        for name, part in zip(found.names, share, strict=True)
    ]
    axes.set_xticks(places, names, fontsize="small")
    axes.set_ylabel(CAPACITY_LABEL)
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle=":")
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")
    axes.set_title("by region", loc="left", fontsize="medium", color=GREY)


def _draw_objects(axes: Axes, found: RegionCapacity) -> None:
    axes.set_title("by objects in the picture", loc="left", fontsize="medium", color=GREY)
    for index, name in enumerate(found.names):
        values = found.region_by_objects[:, index]
        if np.isfinite(values).any():
            axes.plot(found.objects, values, label=name, markersize=4, **series(index))
    axes.errorbar(
        found.objects,
        found.by_objects,
        yerr=np.nan_to_num(found.by_objects_error),
        color="black",
        marker="x",
        linewidth=1.4,
        capsize=3,
        label="the whole picture",
    )
    counts = [f"{n}{' or more' * int(n == MOST_OBJECTS)}" for n in found.objects]
    names = [f"{n}\n{i:,}" for n, i in zip(counts, found.objects_images, strict=True)]
    axes.set_xticks(found.objects, names)
    axes.set_xlabel("objects found in the picture / pictures", fontsize="small")
    axes.margins(x=0.08, y=0.1)


def region_pictures_figure(found: RegionPictures, path: Path, *, command: str = "") -> list[Path]:
    """A few pictures with their objects, regions and capacity; empty without pictures."""
    if not len(found.images):
        return []
    each, count = 1.75, len(found.images)
    panels = sheet(
        "What patches show, and what they took",
        "capacity: experts of a patch, mean over steps and MoE layers; 1 = dense",
        rows=count,
        columns=len(_TILES),
        width=each * len(_TILES) + 1.2,
        height=(each + 0.32) * count + 1.3,
    )
    scale = {"vmin": 0.0, "vmax": float(np.nanmax(found.capacity)), "cmap": "viridis"}
    for index, row in enumerate(panels):
        _draw_row(row, found, index)
        side = round(found.capacity.shape[1] ** 0.5)
        picture = _tile(row[3], found.capacity[index].reshape(side, side), **scale)
        row[0].set_title(fitted(found.names[index], 2 * each, 9), loc="left", fontsize=9)
        row[0].title.set_parse_math(False)
    for axes, name in zip(panels[-1], _TILES, strict=True):
        axes.set_xlabel(name, fontsize="small", color=GREY)
    figure = panels[0, 0].figure
    colour_bar(figure, picture, CAPACITY_LABEL, ax=panels.ravel().tolist(), shrink=0.8)
    _legend(figure)
    return publish(figure, path, command)


def _draw_row(row: Any, found: RegionPictures, index: int) -> None:
    """Picture, its objects in colours, and the regions of its patches."""
    pixels = found.images[index].transpose(1, 2, 0)
    _tile(row[0], pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray")
    objects = found.objects[index]
    numbers = np.unique(objects[objects > 0])
    shown = np.searchsorted(numbers, objects) % (len(_OBJECTS) - 1) + 1
    _painted(row[1], np.where(objects > 0, shown, 0), _OBJECTS)
    side = round(found.regions.shape[1] ** 0.5)
    _painted(row[2], found.regions[index].reshape(side, side), _REGIONS)


def _painted(axes: Axes, values: Any, colours: tuple[str, ...]) -> None:
    from matplotlib.colors import ListedColormap

    _tile(axes, values, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5)


def _tile(axes: Axes, values: Float[np.ndarray, "..."], **look: Any) -> Any:
    bare(axes)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, interpolation="nearest", **look)


def _legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour) for colour in _REGIONS]
    legend_below(figure, handles, list(REGIONS), len(handles))
