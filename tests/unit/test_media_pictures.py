"""Picture files: turned, over white, of any depth of grey, cut to a size, and refused by name where they are none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framegrove.media.frames import Frames, MediaError, nearest_size
from framegrove.media.pictures import NotAPicture, check_picture, read_picture, reduced

CASES = Path(__file__).parents[1] / "cases"
RED, BLUE = (220, 20, 20), (20, 20, 220)

# What the eight values of EXIF's orientation ask for, from the stored picture to the one that is shown.
ORIENTATIONS: dict[int, Callable[[Frames], Frames]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: lambda stored: np.rot90(stored, 1),
}


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def corners(height: int = 32, width: int = 48) -> Frames:
    """A picture whose four quarters differ."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[height // 2 :, width // 2 :] = BLUE
    picture[: height // 2, width // 2 :] = 240
    return picture


def near(shown: Frames, expected: object, most: float = 6) -> bool:
    return float(np.abs(shown.astype(int) - np.asarray(expected, dtype=int)).mean()) < most


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_orientations(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(Image.fromarray(corners()), kind, exif=exif)
    expected = ORIENTATIONS[orientation](corners())
    shown = read_picture(encoded, expected.shape[:2])
    assert near(shown, expected)


def test_exif6() -> None:
    shown = read_picture((CASES / "exif6.jpg").read_bytes(), (96, 64))
    assert near(shown[2:18, 2:18], np.full((16, 16, 3), RED))
    assert near(shown[-18:-2, -18:-2], np.full((16, 16, 3), BLUE))


def test_alpha() -> None:
    shown = read_picture((CASES / "alpha.png").read_bytes(), (64, 64))
    assert shown[34:].mean() > 250
    assert shown[:30].mean() < 200


def half_transparent(mode: str) -> bytes:
    """Black above and a hidden red below, in a form of transparency."""
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:8, :, 3] = 255
    picture[8:, :, 0] = 200
    rgba = Image.fromarray(picture)
    if mode == "LA":
        return saved(rgba.convert("LA"))
    if mode == "palette":
        indices = Image.fromarray((picture[..., 3] == 0).astype(np.uint8))
        indices.putpalette([0, 0, 0, 200, 0, 0])
        return saved(indices, transparency=1)
    if mode == "palette of alphas":
        indices = Image.fromarray((picture[..., 3] == 0).astype(np.uint8))
        indices.putpalette([0, 0, 0, 200, 0, 0])
        return saved(indices, transparency=b"\xff\x00")
    if mode == "colour key":
        return saved(Image.fromarray(picture[..., :3]), transparency=(200, 0, 0))
    if mode == "grey key":
        return saved(Image.fromarray(picture[..., 0]), transparency=200)
    if mode == "grey key of 16 bits":
        return png(16, 16, picture[..., 0].astype(">u2") * 257, depth=16, kind=0, extra=(b"tRNS", b"\xc8\xc8"))
    return saved(rgba, mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    height: int, width: int, pixels: np.ndarray, *, depth: int, kind: int, extra: tuple[bytes, bytes] | None = None
) -> bytes:
    """A PNG file put together by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    more = chunk(*extra) if extra else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "mode",
    ["PNG", "WEBP", "TIFF", "LA", "palette", "palette of alphas", "colour key", "grey key", "grey key of 16 bits"],
)
def test_what_is_transparent_is_white(mode: str) -> None:
    shown = read_picture(half_transparent(mode), (16, 16))
    assert near(shown[:8], 0, 2)
    assert near(shown[8:], 255, 2)


def test_half_transparent_edges_do_not_show_hidden_colours() -> None:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, :33] = (255, 255, 255, 255)  # white beside a hidden red: shown, all of it is white
    picture[:, 33:] = (255, 0, 0, 0)
    assert read_picture(saved(Image.fromarray(picture)), (24, 24)).min() == 255


def test_premultiplied_colours_are_divided_first() -> None:
    """A TIFF with associated alpha stores half-transparent black and white as 0 and 128."""
    stored = np.zeros((8, 8, 4), np.uint8)
    stored[..., 3] = 128
    stored[:4, :, :3] = 128
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    encoded = saved(Image.fromarray(stored), "TIFF")
    assert encoded.count(unassociated) == 1
    shown = read_picture(encoded.replace(unassociated, associated), (8, 8))
    assert near(shown[:4], 255, 2)  # white, half transparent, over white
    assert near(shown[4:], 127, 2)


def test_grey16() -> None:
    assert abs(read_picture((CASES / "grey16.png").read_bytes(), (64, 64)).mean() - 127) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_keeps_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    encoded = saved(Image.fromarray(np.tile(ramp, (64, 1))), kind)
    assert np.abs(read_picture(encoded, (64, 64))[0, :, 0].astype(int) - ramp / 257).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_keeps_its_range(depth: int) -> None:
    encoded = png(8, 8, np.full((8, depth), 0xFF, np.uint8), depth=depth, kind=0)
    assert read_picture(encoded, (8, 8)).min() == 255


def test_palettes_and_cmyk() -> None:
    picture = Image.fromarray(corners())
    assert near(read_picture(saved(picture.quantize(16)), (32, 48)), corners())
    assert near(read_picture(saved(picture.quantize(16), "GIF"), (32, 48)), corners())
    assert near(read_picture(saved(picture.convert("CMYK"), "JPEG", quality=95), (32, 48)), corners())
    assert near(read_picture(saved(picture.convert("CMYK"), "TIFF"), (32, 48)), corners())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE))
    encoded = saved(first, kind, save_all=True, append_images=[second], duration=100)
    assert near(read_picture(encoded, (16, 16)), RED)


def test_a_picture_is_cut_to_the_aspect_ratio() -> None:
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = 200  # the middle third is what a square shows
    shown = read_picture(saved(Image.fromarray(picture)), (64, 64))
    assert shown.shape == (64, 64, 3)
    assert shown[:, 8:56].min() == 200


def test_the_nearest_size_is_that_of_the_closest_aspect_ratio() -> None:
    sizes = ((64, 64), (32, 96))
    assert nearest_size(480, 640, sizes) == (64, 64)
    assert nearest_size(720, 1280, sizes) == (32, 96)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"# Framegrove\n", r"^README\.md is not a picture that can be read: give a PNG, JPEG"),
        (b"", "is not a picture"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC picture, which cannot be read here: save it as JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (saved(Image.fromarray(corners()))[:80], "cannot be read as a picture"),
        (saved(Image.new("F", (8, 8)), "TIFF"), r"stores grey values without an agreed white \(F\)"),
        (saved(Image.new("I", (8, 8)), "TIFF"), "stores grey values"),
        (saved(Image.new("LAB", (8, 8)), "TIFF"), "stores Lab colours"),
    ],
)
def test_what_cannot_be_read_is_named(encoded: bytes, message: str) -> None:
    for read in (check_picture, lambda given, name: read_picture(given, (64, 64), name)):
        with pytest.raises(MediaError, match=message) as caught:
            read(encoded, "README.md")
        assert "README.md" in str(caught.value)
        assert "BytesIO" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_picture_that_can_be_read_passes_the_check() -> None:
    check_picture(saved(Image.fromarray(corners())), "corners.png")
    with pytest.raises(NotAPicture, match=r"^the image is not a picture"):
        check_picture(b"text")


def test_a_decompression_bomb_is_a_sentence() -> None:
    bomb = png(20000, 20000, np.zeros((9, 2500), np.uint8), depth=1, kind=0)
    with pytest.raises(MediaError, match=r"bomb\.png has more than 178,956,970 pixels: make the picture smaller"):
        check_picture(bomb, "bomb.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM", "JPEG2000"])
def test_damaged_files_end_in_a_picture_or_a_sentence(kind: str) -> None:
    whole = saved(Image.fromarray(corners()).convert("P" if kind == "GIF" else "RGB"), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        torn = bytearray(whole[: rng.integers(len(whole) // 4, len(whole) + 1)])
        for place in rng.integers(0, len(torn), 5):
            torn[place] = rng.integers(256)
        try:
            outcome: object = read_picture(bytes(torn), (32, 32), "torn").shape
        except MediaError as error:
            outcome = str(error)
        assert outcome == (32, 32, 3) or str(outcome).startswith("torn ")


def test_frames_are_scaled_down_to_a_longer_side() -> None:
    frames = np.zeros((2, 100, 200, 3), np.uint8)
    frames[:, :, 100:] = 200
    small = reduced(frames, 50)
    assert (small.shape, small.dtype) == ((2, 25, 50, 3), np.uint8)
    assert small[0, 0, 0].tolist() == [0, 0, 0]
    assert small[0, 0, -1].tolist() == [200, 200, 200]
    assert reduced(frames, 200) is frames
