"""A figure of samples, each above its prompt."""

from pathlib import Path

from torch import Tensor

from diffmoe.analysis.figures.canvas import bare, fitted, save, sheet, spread_evenly

__all__ = ["prompt_samples_figure"]

_MOST, _COLUMNS = 24, 6  # samples
_LETTERS = 60  # of a prompt


def prompt_samples_figure(images: Tensor, prompts: list[str], path: Path) -> Path:
    """uint8 samples (N, C, H, W) above their prompts, a few of many, evenly spread."""
    chosen = spread_evenly(len(images), _MOST)
    columns = min(_COLUMNS, len(chosen))
    rows, each = -(-len(chosen) // columns), 1.45  # inches
    panels = sheet(
        "Samples of prompts, not chosen",
        rows=rows,
        columns=columns,
        width=max(4.0, each * columns + 0.3),
        height=(each + 0.5) * rows + 0.5,
    )
    for place, axes in enumerate(panels.flat):
        bare(axes)
        axes.set(xticks=[], yticks=[])
        if place >= len(chosen):
            axes.set_visible(False)
            continue
        pixels = images[chosen[place]].permute(1, 2, 0).numpy()
        axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray")
        axes.set_xlabel(_told(prompts[chosen[place]], each), fontsize=8, parse_math=False)
    return save(panels[0, 0].figure, path)


def _told(prompt: str, inches: float) -> str:
    """The prompt in a few lines."""
    words = prompt if len(prompt) <= _LETTERS else f"{prompt[: _LETTERS - 1]}…"
    return fitted(words or "no prompt", inches, 8)
