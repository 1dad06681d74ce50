"""One image to pixels: every colour mode, ADM's crop, and a sentence for each kind of damage."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe.data import Notes, centre_crop, decode_exact, decode_image
from diffmoe.errors import DataError, ExitCode


def read_image(path: Path, index: int, *, channels: int, side: int) -> torch.Tensor:
    return decode_image(path.read_bytes(), str(path), index, channels=channels, side=side)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(mode: str, colour, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels and whose body holds none."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def flipped_bytes(content: bytes) -> bytes:
    damaged = bytearray(content)
    middle = len(damaged) // 2
    damaged[middle : middle + 40] = bytes(255 - value for value in damaged[middle : middle + 40])
    return bytes(damaged)


def bmp_of_size(width: int, height: int) -> bytes:
    content = bytearray(encoded(plain("RGB", "red"), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"this is no image\n" * 9, "none of PNG, JPEG, WEBP, BMP, GIF"),
    "zeros": (lambda: bytes(999), "none of PNG"),
    "other_format": (lambda: encoded(noise(), "TIFF"), "none of PNG"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG"),
    "signature_only": (lambda: encoded(noise())[:8], ""),
    "truncated_png": (lambda: encoded(noise())[:-900], "truncated"),
    "truncated_jpeg": (lambda: encoded(noise(), "JPEG")[:-500], "truncated"),
    "truncated_webp": (lambda: encoded(noise(), "WEBP")[:-300], ""),
    "truncated_bmp": (lambda: encoded(noise(), "BMP")[:-300], "truncated"),
    "truncated_gif": (lambda: encoded(noise(), "GIF")[:-300], "truncated"),
    "bits_flipped_png": (lambda: flipped_bytes(encoded(noise())), ""),
    "huge_png": (lambda: png_of_size(50_000, 50_000), "too many"),
    "large_png": (lambda: png_of_size(9_000, 9_000), "9000 x 9000 pixels are too many"),
    "huge_bmp": (lambda: bmp_of_size(100_000, 100_000), "too many"),
    "endless_png": (lambda: png_of_size(60_000_000, 1), "60000000 x 1 pixels are too many"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_image_is_named(content, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content())
    with pytest.raises(DataError) as caught:
        read_image(path, 17, channels=3, side=8)
    message = str(caught.value)
    assert message.startswith("image 17 cannot be read (")
    assert reason in message and str(path) in message and "replace or remove" in message
    assert "\n" not in message
    assert caught.value.exit_code == ExitCode.BAD_DATA == 3


@pytest.mark.parametrize("content", [png_of_size(50_000, 50_000), bmp_of_size(40_000, 40_000)])
def test_a_bomb_is_refused_by_its_header(content: bytes, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("pixels were decoded"))
    with pytest.raises(DataError, match="too many"):
        read_image(path, 0, channels=3, side=8)


def rgb16(values: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow reads but does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = b""
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    for name, part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        body += struct.pack(">I", len(part)) + name + part
        body += struct.pack(">I", zlib.crc32(name + part))
    return b"\x89PNG\r\n\x1a\n" + body


def palette_with_alpha() -> bytes:
    image = plain("P", 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, transparency=bytes([0, 255]))


def grey16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), value, dtype=np.uint16)))


def animation(format: str) -> bytes:
    frames = [plain("RGB", "red"), plain("RGB", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


RED, WHITE = (255, 0, 0), (255, 255, 255)
COLOURS: dict[str, tuple[Callable[[], bytes], tuple[int, int, int], int]] = {
    "rgb": (lambda: encoded(plain("RGB", (10, 20, 30))), (10, 20, 30), 0),
    "grey": (lambda: encoded(plain("L", 77)), (77, 77, 77), 0),
    "bilevel": (lambda: encoded(plain("1", 1)), WHITE, 0),
    "palette": (lambda: encoded(plain("RGB", "red").quantize(4)), RED, 0),
    "grey16_low": (lambda: grey16(300), (1, 1, 1), 0),
    "grey16_middle": (lambda: grey16(128 * 257), (128, 128, 128), 0),
    "grey16_high": (lambda: grey16(65535), WHITE, 0),
    "rgb16": (lambda: rgb16(np.full((8, 8, 3), 200 * 257)), (200, 200, 200), 1),
    "cmyk_jpeg": (lambda: encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), RED, 3),
    "grey_jpeg": (lambda: encoded(plain("L", 50), "JPEG"), (50, 50, 50), 2),
    "webp": (lambda: encoded(plain("RGB", "red"), "WEBP", lossless=True), RED, 0),
    "bmp": (lambda: encoded(plain("RGB", "red"), "BMP"), RED, 0),
    "clear": (lambda: encoded(plain("RGBA", (10, 20, 30, 0))), WHITE, 0),
    "half_clear": (lambda: encoded(plain("RGBA", (255, 0, 0, 128))), (255, 127, 127), 1),
    "grey_alpha": (lambda: encoded(plain("LA", (0, 0))), WHITE, 0),
    "palette_alpha": (palette_with_alpha, WHITE, 0),
    "colour_key": (lambda: encoded(plain("RGB", "red"), transparency=RED), WHITE, 0),
    "animated_gif": (lambda: animation("GIF"), RED, 0),
    "animated_webp": (lambda: animation("WEBP"), RED, 3),
    "animated_png": (lambda: animation("PNG"), RED, 0),
}


@pytest.mark.parametrize(("content", "colour", "slack"), COLOURS.values(), ids=COLOURS)
def test_every_colour_mode_is_read(content, colour, slack: int, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content())
    read = read_image(path, 0, channels=3, side=8)
    assert read.shape == (3, 8, 8) and read.dtype == torch.float32 and read.is_contiguous()
    shades = (read + 1) * 127.5
    expected = torch.tensor(colour).float()[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(shades, expected, rtol=0, atol=slack + 1e-4)
    assert read_image(path, 0, channels=1, side=8).shape == (1, 8, 8)


def test_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    plain("RGB", (100, 50, 200)).save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png", 0, channels=1, side=8)
    assert ((read + 1) * 127.5).round().unique().tolist() == [round(29.9 + 29.35 + 22.8)]


def test_the_whole_range_is_reached(tmp_path: Path) -> None:
    image = plain("L", 0, (2, 2))
    image.putpixel((1, 1), 255)
    image.save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png", 0, channels=1, side=2)
    assert (read.min(), read.max()) == (-1, 1)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image, exif = noise(8, 8), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "plain.png")
    turned, upright = (
        read_image(tmp_path / f"{name}.png", 0, channels=3, side=8) for name in ("turned", "plain")
    )
    assert torch.equal(turned, upright.rot90(-1, (1, 2)))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0" + b"\xff" * 60])
def test_damaged_metadata_harms_no_pixel(exif: bytes, tmp_path: Path) -> None:
    image = noise(8, 8)
    image.save(tmp_path / "odd.webp", lossless=True, exif=exif)
    image.save(tmp_path / "plain.png")
    odd = read_image(tmp_path / "odd.webp", 0, channels=3, side=8)
    assert torch.equal(odd, read_image(tmp_path / "plain.png", 0, channels=3, side=8))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (13, 30), (200, 37), (16, 16), (3, 5), (1, 1)])
def test_the_crop_is_adms(size: tuple[int, int]) -> None:
    """Halve by boxes while twice too large, bicubic to the short side, cut out the centre."""
    image, side = noise(*size), 8
    expected = image
    while min(expected.size) >= 2 * side:
        expected = expected.resize(tuple(n // 2 for n in expected.size), Image.Resampling.BOX)
    scale = side / min(expected.size)
    expected = expected.resize(
        tuple(round(n * scale) for n in expected.size), Image.Resampling.BICUBIC
    )
    rows = np.array(expected)
    top, left = (rows.shape[0] - side) // 2, (rows.shape[1] - side) // 2
    assert np.array_equal(
        np.array(centre_crop(image, side)), rows[top : top + side, left : left + side]
    )


def test_a_fitting_image_is_left_alone() -> None:
    image = noise(16, 16)
    assert np.array_equal(np.array(centre_crop(image, 16)), np.array(image))


# ---- as it is, for evaluation


NOTES: dict[str, Notes] = {
    "rgb": Notes(grey=False, alpha=False, converted=False),
    "grey": Notes(grey=True, alpha=False, converted=False),
    "grey_jpeg": Notes(grey=True, alpha=False, converted=False),
    "bilevel": Notes(grey=True, alpha=False, converted=True),
    "grey16_middle": Notes(grey=True, alpha=False, converted=True),
    "grey_alpha": Notes(grey=True, alpha=True, converted=False),
    "rgb16": Notes(grey=False, alpha=False, converted=True),
    "palette": Notes(grey=False, alpha=False, converted=True),
    "palette_alpha": Notes(grey=False, alpha=True, converted=True),
    "cmyk_jpeg": Notes(grey=False, alpha=False, converted=True),
    "half_clear": Notes(grey=False, alpha=True, converted=False),
    "colour_key": Notes(grey=False, alpha=True, converted=False),
    "webp": Notes(grey=False, alpha=False, converted=False),
    "bmp": Notes(grey=False, alpha=False, converted=False),
}


@pytest.mark.parametrize("kind", NOTES)
def test_an_exact_image_is_rgb_with_notes(kind: str) -> None:
    content, colour, slack = COLOURS[kind]
    image, notes = decode_exact(content(), "image", 0)
    assert notes == NOTES[kind]
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8 and image.is_contiguous()
    expected = torch.tensor(colour)[:, None, None].expand(3, 8, 8)
    assert (image.int() - expected).abs().max() <= slack


def test_an_exact_image_is_neither_cropped_nor_scaled() -> None:
    image = noise(13, 30)
    read, _ = decode_exact(encoded(image), "image", 0)
    assert np.array_equal(read.permute(1, 2, 0).numpy(), np.array(image))


def test_an_exact_image_is_turned_as_its_exif_asks() -> None:
    image, exif = noise(13, 30), Image.Exif()
    exif[0x0112] = 6
    read, _ = decode_exact(encoded(image, exif=exif), "image", 0)
    assert np.array_equal(read.permute(1, 2, 0).numpy(), np.rot90(np.array(image), -1))


@pytest.mark.parametrize("kind", [kind for kind in DAMAGED if kind != "endless_png"])
def test_a_damaged_exact_image_is_named(kind: str) -> None:
    content, reason = DAMAGED[kind]
    with pytest.raises(DataError, match=r"^image 17 cannot be read \(") as caught:
        decode_exact(content(), "a.zip:bad.png", 17)
    message = str(caught.value)
    assert reason in message and "a.zip:bad.png — replace" in message and "\n" not in message
