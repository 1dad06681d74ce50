"""Ticks of axes: round steps, noise levels above them, names, logarithmic scales."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from diffmoe.analysis.figures.canvas import GREY, Axes

# Steps of a logarithmic axis within a decade, by how many decades it spans at most.
_LOG_STEPS = {1.0: (1, 1.5, 2, 3, 4, 5, 6, 8), 2.5: (1, 2, 5), math.inf: (1,)}


def count_steps(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def number_ticks(axis: Any, count: int, most: int = 20) -> None:
    """Ticks at the places 0, 1, ... of `count` things; of many every second, third ..."""
    axis.set_ticks(range(0, count, -(-count // most)))


def level_ticks(axes: Axes, level: Float[np.ndarray, "steps"]) -> None:
    """Ticks at a few of the steps, and above each its noise level."""
    places = _step_places(len(level))
    axes.set_xticks(places)
    top = top_ticks(axes, places, [f"{level[place]:.2f}" for place in places])
    top.set_xlabel("noise level, 1 = pure noise", fontsize="small", color=GREY)


def _step_places(count: int) -> list[int]:
    """Round steps from the first, and the last where it is not crowded."""
    from matplotlib.ticker import MaxNLocator

    round_steps = MaxNLocator(6, integer=True).tick_values(0, max(1, count - 1))
    places = [int(place) for place in round_steps if 0 <= place < count]
    if len(places) > 1 and count - 1 - places[-1] > 0.6 * places[1]:
        places.append(count - 1)
    return places


def top_ticks(axes: Axes, places: Any, names: list[str]) -> Axes:
    """A grey axis on top with names at places of the axis below."""
    from matplotlib.ticker import FixedLocator

    top = axes.secondary_xaxis("top", functions=(lambda x: x, lambda x: x))
    top.set_xticks(places, names)
    top.xaxis.set_minor_locator(FixedLocator([]))
    top.tick_params(labelsize="small", colors=GREY)
    top.spines[:].set_visible(False)
    return top


def name_ticks(axis: Any, places: Any, names: list[str]) -> None:
    """Names as ticks; a $ in a name is a $."""
    axis.set_ticks(places, names, parse_math=False)


def logarithmic(axes: Axes, which: str, values: list[float]) -> None:
    """A logarithmic axis, `x` or `y`, of positive values with a few plain numbers on it."""
    low, high = min(values) / 1.1, max(values) * 1.1
    decades = math.log10(high / low)
    steps = next(steps for most, steps in _LOG_STEPS.items() if decades <= most)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set(**{f"{which}scale": "log"})
    axes.minorticks_off()
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(**{f"{which}lim": (low, high)})
