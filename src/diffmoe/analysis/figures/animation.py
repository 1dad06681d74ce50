"""Where the compute goes along sampling, as a moving picture."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffmoe.analysis.figures.canvas import fitted, headed, legible, varies
from diffmoe.analysis.figures.patches import TokenColours, mixed, most_experts
from diffmoe.analysis.findings import TokenMaps
from diffmoe.checkpoint import write_file

__all__ = ["token_animation"]

_MOST_IMAGES, _WIDEST = 12, 990  # images; pixels across
_TILE = 96  # pixels of the longer side of a large image
_CELL = 20  # pixels of a patch that holds its number
_TILES = "noisy state | overlay on the image, colours mixed | map, colours of the scale"
_PAD, _LINE = 8, 15  # pixels around pictures, of a line of text
_LONG, _LEAST, _MOST, _HELD = 6000, 60, 500, 2500  # milliseconds: all, one frame, the last
_RAMP, _COLOURS = 64, 72  # colours of the scale and of the pictures in the GIF, beside greys


def token_animation(found: TokenMaps, path: Path, *, command: str = "") -> list[Path]:
    """GIF and WebP at `path`, which has no suffix: noisy states beside what experts take.

    Empty where all patches had as many experts. They loop, the last frame held.
    """
    if not varies(found.number):
        return []
    tile = max(_TILE, _CELL * round(math.sqrt(found.number.shape[-1])))
    colours = TokenColours(found, most_experts(found), least=_TILE, most=_TILE)
    if colours.numbered:
        colours = TokenColours(found, most_experts(found), least=tile, most=tile)
    page = _Page(found, colours, command)
    frames = [page.frame(frame) for frame in range(len(found.steps))]
    gif, webp = (path.with_name(path.name + suffix) for suffix in (".gif", ".webp"))
    palette = _palette(frames, colours)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    _write(few, gif, optimize=False, disposal=1)
    _write(frames, webp, quality=80, method=4)
    return [gif, webp]


def _palette(frames: list[Image.Image], colours: TokenColours) -> Image.Image:
    """Colours that all frames share: greys, those of the scale over greys, the commonest others.

    What stands still then need not be written again, and no colour of the scale is lost.
    """
    low, high = colours.scale.get_clim()
    ramp = colours.scale.to_rgba(np.linspace(low, high, _RAMP), bytes=True)[:, :3]
    few = colours.scale.to_rgba(np.linspace(low, high, 24), bytes=True)[:, :3]
    over = [mixed(np.full((24, 1), grey), few) for grey in (0.0, 85.0, 170.0, 255.0)]
    greys = np.linspace(0, 255, 24).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    shown = [frames[0], frames[len(frames) // 2], frames[-1]]
    pixels = np.concatenate([np.asarray(frame) for frame in shown])
    others = Image.fromarray(pixels).quantize(_COLOURS).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.concatenate([greys, ramp, *over]).ravel().tolist(), *others])
    return palette


def _write(frames: list[Image.Image], path: Path, **options: Any) -> None:
    each = min(_MOST, max(_LEAST, _LONG // len(frames)))
    duration = [each] * (len(frames) - 1) + [_HELD]
    first, *rest = frames
    timing: dict[str, Any] = {
        "duration": duration,
        "loop": 0,
        "save_all": True,
        "append_images": rest,
    }
    write_file(path, lambda aside: first.save(aside, **timing, **options))


class _Page:
    """The frames of an animation: triples of tiles in a grid between a head and a foot."""

    def __init__(self, found: TokenMaps, colours: TokenColours, command: str) -> None:
        self.found, self.colours = found, colours
        self.font, self.small = ImageFont.load_default(12), ImageFont.load_default(10)
        width, height = colours.size
        self.wide = 3 * width + 4
        self.cell = (self.wide + _PAD, height + _LINE + _PAD)
        most = _MOST_IMAGES if width <= _TILE else _MOST_IMAGES // 2
        self.count = min(len(found.images), most)
        square = round(math.sqrt(self.count * self.cell[1] / self.cell[0] * 1.4))
        self.columns = max(1, min(self.count, square, _WIDEST // self.cell[0]))
        rows = -(-self.count // self.columns)
        self.top = 3 * _LINE + 2 * _PAD
        wide = max(400, self.columns * self.cell[0] + _PAD)
        self.foot = fitted(f"made by {command}", wide / 72, 8) if command else ""
        below = (_LINE - 3) * len(self.foot.splitlines())
        self.size = (wide, self.top + rows * self.cell[1] + below + _PAD // 2)

    def frame(self, frame: int) -> Image.Image:
        """The picture of one frame."""
        page = Image.new("RGB", self.size, "white")
        pen = ImageDraw.Draw(page)
        step, level = self.found.steps[frame], self.found.level[frame]
        head = f"step {step}, noise level {level:.2f}"
        if self.count < len(self.found.images):
            head += f"; {self.count} of {len(self.found.images)} images"
        pen.text((_PAD, _PAD // 2), head, fill="black", font=self.font)
        self._scale(page, pen)
        pen.text((_PAD, 2 * _LINE + _PAD), _TILES, fill="#666666", font=self.small)
        for index in range(self.count):
            self._triple(page, pen, index, frame)
        place = (_PAD, self.size[1] - (_LINE - 3) * len(self.foot.splitlines()) - _PAD // 2)
        pen.multiline_text(place, self.foot, fill="#666666", font=self.small, spacing=1)
        return page

    def _scale(self, page: Image.Image, pen: ImageDraw.ImageDraw) -> None:
        """The colours of the maps between their ends, in figures."""
        low, high = self.colours.scale.get_clim()
        ramp = self.colours.scale.to_rgba(np.linspace(low, high, 80)[None], bytes=True)
        strip = np.ascontiguousarray(ramp[..., :3].repeat(9, axis=0))
        left, top = _PAD, _LINE + _PAD
        text = f"experts per patch {low:.2g}"
        pen.text((left, top), text, fill="black", font=self.small)
        left += int(self.small.getlength(text)) + 5
        page.paste(Image.fromarray(strip), (left, top + 2))
        pen.text((left + 85, top), f"{high:.2g}", fill="black", font=self.small)

    def _triple(self, page: Image.Image, pen: ImageDraw.ImageDraw, index: int, frame: int) -> None:
        """Noisy state, the map over the finished image and the map, above the class's name."""
        found = self.found
        values = found.number[index, frame]
        tiles = self.colours.triple(found.noisy[index, frame], found.images[index], values, 2)
        left = _PAD + index % self.columns * self.cell[0]
        top = self.top + index // self.columns * self.cell[1]
        page.paste(Image.fromarray(tiles), (left, top))
        for x, y, value in self.colours.cells(values):
            place = (left + self.wide - self.colours.size[0] + x, top + y)
            look: Any = {"font": self.small, "fill": legible(self.colours.scale, value)}
            pen.text(place, f"{value:.1f}", anchor="mm", **look)
        name = headed(found.names[index])
        while self.small.getlength(name) > self.wide:
            name = name.rstrip("…")[:-1] + "…"
        place = (left, top + self.colours.size[1] + 1)
        pen.text(place, name, fill="black", font=self.small)
