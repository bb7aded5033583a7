from __future__ import annotations

import pickle
import resource
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ftcli.data import images
from ftcli.data.images import EXTENSIONS, CorruptImageError, convert_rgb, is_image, read_image, read_rgb, read_shape
from ftcli.errors import RunError

REMEDY = "; replace it, remove it, or set data.on_corrupt_image: skip"
REENCODE = "; save it with 8 or 16 bits, remove it, or set data.on_corrupt_image: skip"
LOSSLESS: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpg": {"quality": 95}}
UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def distance(image: Image.Image, expected: Image.Image) -> float:
    assert image.mode == "RGB"
    assert image.size == expected.size
    return float(np.abs(pixels(image) - pixels(expected)).mean())


def on_white(colour: Image.Image, alpha: Image.Image) -> Image.Image:
    opacity = pixels(alpha)[..., None] / 255
    mixed = pixels(colour.convert("RGB")) * opacity + 255 * (1 - opacity)
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def ramp(size: tuple[int, int]) -> Image.Image:
    """Return alpha from 0 at the left to 255 at the right."""
    return Image.fromarray(np.tile(np.linspace(0, 255, size[0]).round().astype(np.uint8), (size[1], 1)))


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp", "jp2"])
def test_read_rgb_lossless(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path, **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(path), photo) == 0


@pytest.mark.parametrize("ending", ["jpg", "avif", "gif"])
def test_read_rgb_lossy(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}")
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) < 8


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_rgb_applies_orientation(tmp_path: Path, photo: Image.Image, orientation: int, ending: str) -> None:
    undo = UNDO[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo if undo is None else photo.transpose(undo)
    stored.save(tmp_path / f"a.{ending}", exif=exif, **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) <= (5 if ending == "jpg" else 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
        b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\xff" * 60_000,
    ],
    ids=["garbage", "cut-short", "orientation-99", "orientation-text", "huge"],
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_read_rgb_ignores_invalid_exif(tmp_path: Path, photo: Image.Image, exif: bytes, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}", exif=exif, **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) <= (5 if ending == "jpg" else 0)


def test_read_rgb_alpha_on_white(tmp_path: Path, photo: Image.Image) -> None:
    alpha = ramp(photo.size)
    layered = photo.copy()
    layered.putalpha(alpha)
    layered.save(tmp_path / "rgba.png")
    layered.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    layered.save(tmp_path / "rgba.tif")
    for name in ("rgba.png", "rgba.webp", "rgba.tif"):
        read = read_rgb(tmp_path / name)
        assert np.abs(pixels(read) - pixels(on_white(photo, alpha))).max() <= 1
        assert read.getpixel((0, 50)) == (255, 255, 255)


def test_read_rgb_grey_alpha_on_white(tmp_path: Path, photo: Image.Image) -> None:
    alpha = ramp(photo.size)
    grey = photo.convert("L")
    Image.merge("LA", (grey, alpha)).save(tmp_path / "la.png")
    assert np.abs(pixels(read_rgb(tmp_path / "la.png")) - pixels(on_white(grey, alpha))).max() <= 1


@pytest.mark.parametrize(("name", "transparency"), [("a.png", 7), ("a.gif", 7), ("b.png", bytes([128] * 8))])
def test_read_rgb_transparent_palette_on_white(
    tmp_path: Path, photo: Image.Image, name: str, transparency: int | bytes
) -> None:
    indexed = photo.quantize(8)
    indexed.save(tmp_path / name, transparency=transparency)
    palette_indices = np.asarray(indexed)
    alpha = (
        np.where(palette_indices == 7, 0, 255) if isinstance(transparency, int) else np.full(palette_indices.shape, 128)
    )
    expected = on_white(indexed, Image.fromarray(alpha.astype(np.uint8)))
    assert np.abs(pixels(read_rgb(tmp_path / name)) - pixels(expected)).max() <= 1


def test_read_rgb_opaque_palette(tmp_path: Path, photo: Image.Image) -> None:
    indexed = photo.quantize(64)
    indexed.save(tmp_path / "a.png")
    assert distance(read_rgb(tmp_path / "a.png"), indexed.convert("RGB")) == 0


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (10, 200, 30)), ("L", 90), ("I;16", 40_000), ("1", 0)])
def test_read_rgb_transparent_colour_is_white(tmp_path: Path, mode: str, colour: Any) -> None:
    """PNG can declare one colour to be transparent (its tRNS chunk)."""
    image = Image.new(mode, (2, 1), colour)
    near: dict[str, Any] = {"RGB": (10, 200, 31), "L": 91, "I;16": 40_001, "1": 1}
    image.putpixel((1, 0), near[mode])
    image.save(tmp_path / "a.png", transparency=colour)
    read = read_rgb(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == (255, 255, 255)
    other = {"RGB": (10, 200, 31), "L": (91,) * 3, "I;16": (156,) * 3, "1": (255,) * 3}[mode]
    assert read.getpixel((1, 0)) == other


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_read_rgb_cmyk(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.convert("CMYK").save(tmp_path / f"a.{ending}")
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) < 6


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_read_rgb_other_colour_spaces(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    photo.convert(mode).save(tmp_path / "a.tif")
    assert distance(read_rgb(tmp_path / "a.tif"), photo) < 3


def test_read_rgb_one_bit(tmp_path: Path, photo: Image.Image) -> None:
    bits = photo.convert("1")
    bits.save(tmp_path / "a.png")
    assert (pixels(read_rgb(tmp_path / "a.png")) == pixels(bits.convert("L"))[..., None]).all()


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "pgm", "32-bit tif"])
def test_read_rgb_sixteen_bit(tmp_path: Path, kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "pgm":
        path.write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    elif kind == "big-endian tif":
        tags = [(256, 256), (257, 256), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 256), (279, 131072)]
        entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
        path.write_bytes(
            b"MM\0*\0\0\0\x08" + struct.pack(">H", 9) + entries + b"\0" * 4 + values.astype(">u2").tobytes()
        )
        with Image.open(path) as image:
            assert image.mode == "I;16B"
    else:
        Image.fromarray(values.astype(np.int32) if kind == "32-bit tif" else values).save(path)
    expected = np.round(values.astype(np.float64) / 257)
    assert (pixels(read_rgb(path)) == expected[..., None]).all()


def test_read_rgb_rejects_unbounded_values(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[-5, 70_000]], dtype=np.int32)).save(path)
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: has 32-bit pixels from -5 to 70000, which have no defined range{REENCODE}"
    Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)).save(path)
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: has floating-point pixels, which have no defined range{REENCODE}"


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_read_rgb_first_frame(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path, save_all=True, append_images=[Image.new("RGB", photo.size, "red")], **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(path), photo) < 8


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "bmp", "ppm", "jp2", "avif"])
def test_read_rgb_rejects_truncated_files(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path)
    content = path.read_bytes()
    for fraction in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * fraction)])
        with pytest.raises(CorruptImageError, match=r"^[^\n]+: is [^\n]+; replace it, remove it, or set [^\n]+: skip$"):
            read_rgb(path)


def test_read_rgb_truncated_message(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    reason = str(error.value.__cause__)
    assert reason.startswith("image file is truncated")
    assert str(error.value) == f"{path}: is truncated ({reason}){REMEDY}"


def test_read_rgb_corrupt_message(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.png"
    photo.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: is corrupt ({error.value.__cause__}){REMEDY}"


def test_read_rgb_decoder_runtime_error(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.avif"
    photo.save(path)
    path.write_bytes(path.read_bytes().replace(b"iloc", b"xxxx"))
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert str(error.value) == f"{path}: is corrupt ({error.value.__cause__}){REMEDY}"


@pytest.mark.parametrize("content", [b"a text, not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_read_rgb_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: is not a readable image{REMEDY}"


def test_read_rgb_unreadable_files(
    tmp_path: Path, photo: Image.Image, unreadable: Callable[[Path], AbstractContextManager[None]]
) -> None:
    messages = []
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("empty.png", "folder.png", "link.png", "missing.png"):
        with pytest.raises(CorruptImageError) as error:
            read_rgb(tmp_path / name)
        messages.append(str(error.value))
    photo.save(tmp_path / "secret.png")
    with unreadable(tmp_path / "secret.png"), pytest.raises(CorruptImageError) as error:
        read_rgb(tmp_path / "secret.png")
    assert [*messages, str(error.value)] == [
        f"{tmp_path}/empty.png: is empty (0 bytes){REMEDY}",
        f"{tmp_path}/folder.png: cannot be opened (Is a directory){REMEDY}",
        f"{tmp_path}/link.png: cannot be opened (No such file or directory){REMEDY}",
        f"{tmp_path}/missing.png: cannot be opened (No such file or directory){REMEDY}",
        f"{tmp_path}/secret.png: cannot be opened (Permission denied){REMEDY}",
    ]


def test_read_rgb_too_many_open_files(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(RunError) as error:
            read_rgb(tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(error.value) == f"{tmp_path}/a.png: cannot be opened (Too many open files); lower data.num_workers"


@pytest.mark.parametrize("limit", [15_000, 100], ids=["warned-of", "refused"])
def test_read_rgb_decompression_bomb(
    tmp_path: Path, photo: Image.Image, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    photo.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(CorruptImageError) as error:
        read_rgb(path)
    assert str(error.value) == (
        f"{path}: has more than {limit} pixels, too many to read safely; "
        "make it smaller, remove it, or set data.on_corrupt_image: skip"
    )


def test_read_rgb_silences_warnings(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0\0\0\x01\0\x01")
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.getexif()
        assert caught, "Pillow warns of this file"
        caught.clear()
        read_rgb(path)
        assert not caught
    assert list(warnings.filters) == filters


def test_read_rgb_closes_files(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.gif", save_all=True, append_images=[photo.rotate(90)])
    (tmp_path / "b.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:500])
    before = len(list(Path("/proc/self/fd").iterdir()))
    loaded = [read_rgb(tmp_path / "a.gif") for _ in range(5)]
    for _ in range(5):
        with pytest.raises(CorruptImageError):
            read_rgb(tmp_path / "b.gif")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(loaded) == 5


def test_is_image_extensions() -> None:
    assert all(is_image(f"a{ending}") and is_image(f"a{ending.upper()}") for ending in EXTENSIONS)
    assert is_image("IMG.0001.JpEg")
    assert not any(is_image(name) for name in (".DS_Store", "._a.jpg", ".jpg", "a.txt", "jpg", "a.jpg.part", "a.psd"))


def test_convert_rgb_open_image(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.png"
    photo.convert("RGBA").save(path)
    with Image.open(path) as image:
        assert convert_rgb(image, "a").tobytes() == read_rgb(path).tobytes()
    path.write_bytes(path.read_bytes()[:3000])
    with Image.open(path) as image, pytest.raises(CorruptImageError) as error:
        convert_rgb(image, "mine")
    assert error.value.reason.startswith("is truncated (")
    assert str(error.value) == f"mine: {error.value.reason}; replace it, remove it, or set data.on_corrupt_image: skip"
    assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason


def test_read_shape(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    photo.convert("L").save(tmp_path / "b.png")
    assert read_shape(tmp_path / "a.jpg") == (106, 160, False)
    assert read_rgb(tmp_path / "a.jpg").size == (106, 160)
    assert read_shape(tmp_path / "b.png") == (160, 106, True)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(CorruptImageError) as error:
        read_shape(tmp_path / "b.png")
    assert str(error.value) == (
        f"{tmp_path}/b.png: is empty (0 bytes); replace it, remove it, or set data.on_corrupt_image: skip"
    )


LARGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "without subsampling": {"subsampling": 0},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "several images": {"format": "MPO", "save_all": True},
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("rotated", [False, True])
def test_read_image_large_jpeg_at_reduced_size(
    tmp_path: Path, photos: tuple[Image.Image, Image.Image], kind: str, rotated: bool
) -> None:
    options: dict[str, Any] = dict(LARGE[kind])
    large = photos[0].resize((1601, 1203), Image.Resampling.BICUBIC).convert(options.pop("mode", "RGB"))
    if options.get("save_all"):
        options["append_images"] = [large.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    large.save(tmp_path / "a.jpg", exif=exif, quality=95, **options)
    full_size = read_rgb(tmp_path / "a.jpg")
    full_size = full_size.transpose(Image.Transpose.ROTATE_90) if rotated else full_size
    for min_decode_size, scale in ((None, 1), (602, 1), (601, 2), (301, 2), (300, 4), (151, 4), (150, 8), (1, 8)):
        image = read_image(tmp_path / "a.jpg", min_decode_size)
        assert image.mode == ("L" if kind == "grey" else "RGB")
        size = -(-1601 // scale), -(-1203 // scale)
        assert image.size == (size[::-1] if rotated else size)
        assert read_shape(tmp_path / "a.jpg", min_decode_size)[:2] == image.size
        reduced = full_size.reduce(scale)  # the mean of each block of pixels
        reduced = reduced.transpose(Image.Transpose.ROTATE_270) if rotated else reduced
        assert distance(image.convert("RGB"), reduced) < (0.1 if scale == 1 else 3)
        assert read_rgb(tmp_path / "a.jpg", min_decode_size).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_read_image_other_formats_at_full_size(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}")
    assert read_image(tmp_path / f"a.{ending}", 10).size == photo.size


def test_read_image_truncated_large_jpeg(tmp_path: Path, photos: tuple[Image.Image, Image.Image]) -> None:
    photos[0].resize((1600, 1200)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptImageError, match=r"a\.jpg: is truncated \("):
        read_image(tmp_path / "a.jpg", 100)


@pytest.mark.parametrize("name", ["1.png", "L.png", "16.png", "L.jpg"])
def test_read_image_keeps_grey(tmp_path: Path, photo: Image.Image, name: str) -> None:
    mode = name.split(".")[0]
    grey = photo.convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "16" else grey.convert(mode)
    image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.mode == "L"
    assert read.convert("RGB").tobytes() == read_rgb(tmp_path / name).tobytes()


def test_read_image_threads_restore_warning_filters(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "first.png")
    photo.save(tmp_path / "second.png")
    both, first_done = threading.Barrier(2), threading.Event()

    def load(path: Path, image: Image.Image) -> Image.Image:
        both.wait(20)
        if path.name == "second.png":  # it starts while the first is read, and ends after it
            first_done.wait(20)
            warnings.warn("of Pillow", UserWarning, stacklevel=1)
        return image

    def read_first() -> None:
        read_image(tmp_path / "first.png")
        first_done.set()

    monkeypatch.setattr(images, "_make_upright", load)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for _ in range(2):
            first_done.clear()
            first = threading.Thread(target=read_first)
            first.start()
            read_image(tmp_path / "second.png")
            first.join()
            assert warnings.filters == before
    assert caught == []
