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
from ftcli.data.images import EXTENSIONS, BrokenImage, convert_rgb, is_image, read_image, read_rgb, read_shape
from ftcli.errors import RunError

REMEDY = "; replace it, remove it, or set data.on_corrupt_image: skip"
SAVE_ANEW = "; save it with 8 or 16 bits, remove it, or set data.on_corrupt_image: skip"
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
    share = pixels(alpha)[..., None] / 255
    mixed = pixels(colour.convert("RGB")) * share + 255 * (1 - share)
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def ramp(size: tuple[int, int]) -> Image.Image:
    """Alpha from 0 at the left to 255 at the right."""
    return Image.fromarray(np.tile(np.linspace(0, 255, size[0]).round().astype(np.uint8), (size[1], 1)))


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp", "jp2"])
def test_rgb_is_kept_as_it_is(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path, **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(path), photo) == 0


@pytest.mark.parametrize("ending", ["jpg", "avif", "gif"])
def test_lossy_files_are_near(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}")
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) < 8


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, photo: Image.Image, orientation: int, ending: str) -> None:
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
def test_senseless_metadata_turns_nothing(tmp_path: Path, photo: Image.Image, exif: bytes, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}", exif=exif, **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) <= (5 if ending == "jpg" else 0)


def test_alpha_is_put_on_white(tmp_path: Path, photo: Image.Image) -> None:
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


def test_grey_with_alpha_is_put_on_white(tmp_path: Path, photo: Image.Image) -> None:
    alpha = ramp(photo.size)
    grey = photo.convert("L")
    Image.merge("LA", (grey, alpha)).save(tmp_path / "la.png")
    assert np.abs(pixels(read_rgb(tmp_path / "la.png")) - pixels(on_white(grey, alpha))).max() <= 1


@pytest.mark.parametrize(("name", "transparency"), [("a.png", 7), ("a.gif", 7), ("b.png", bytes([128] * 8))])
def test_transparent_palette_is_put_on_white(
    tmp_path: Path, photo: Image.Image, name: str, transparency: int | bytes
) -> None:
    indexed = photo.quantize(8)
    indexed.save(tmp_path / name, transparency=transparency)
    places = np.asarray(indexed)
    alpha = np.where(places == 7, 0, 255) if isinstance(transparency, int) else np.full(places.shape, 128)
    expected = on_white(indexed, Image.fromarray(alpha.astype(np.uint8)))
    assert np.abs(pixels(read_rgb(tmp_path / name)) - pixels(expected)).max() <= 1


def test_opaque_palette_keeps_its_colours(tmp_path: Path, photo: Image.Image) -> None:
    indexed = photo.quantize(64)
    indexed.save(tmp_path / "a.png")
    assert distance(read_rgb(tmp_path / "a.png"), indexed.convert("RGB")) == 0


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (10, 200, 30)), ("L", 90), ("I;16", 40_000), ("1", 0)])
def test_a_transparent_colour_is_white(tmp_path: Path, mode: str, colour: Any) -> None:
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
def test_cmyk_is_not_inverted(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.convert("CMYK").save(tmp_path / f"a.{ending}")
    assert distance(read_rgb(tmp_path / f"a.{ending}"), photo) < 6


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_come_back(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    photo.convert(mode).save(tmp_path / "a.tif")
    assert distance(read_rgb(tmp_path / "a.tif"), photo) < 3


def test_one_bit_is_black_and_white(tmp_path: Path, photo: Image.Image) -> None:
    bits = photo.convert("1")
    bits.save(tmp_path / "a.png")
    assert (pixels(read_rgb(tmp_path / "a.png")) == pixels(bits.convert("L"))[..., None]).all()


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "pgm", "32-bit tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, kind: str) -> None:
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


def test_values_without_agreed_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[-5, 70_000]], dtype=np.int32)).save(path)
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: has 32-bit pixels from -5 to 70000, which have no agreed range{SAVE_ANEW}"
    Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)).save(path)
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: has floating-point pixels, which have no agreed range{SAVE_ANEW}"


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_frame_is_taken(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path, save_all=True, append_images=[Image.new("RGB", photo.size, "red")], **LOSSLESS.get(ending, {}))
    assert distance(read_rgb(path), photo) < 8


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "bmp", "ppm", "jp2", "avif"])
def test_no_part_of_a_file_passes_for_the_whole(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BrokenImage, match=r"^[^\n]+: is [^\n]+; replace it, remove it, or set [^\n]+: skip$"):
            read_rgb(path)


def test_a_file_that_is_cut_short(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    reason = str(error.value.__cause__)
    assert reason.startswith("image file is truncated")
    assert str(error.value) == f"{path}: is cut short ({reason}){REMEDY}"


def test_a_file_that_is_damaged(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.png"
    photo.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: is damaged ({error.value.__cause__}){REMEDY}"


def test_a_file_whose_reader_raises_as_a_program_does(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.avif"
    photo.save(path)
    path.write_bytes(path.read_bytes().replace(b"iloc", b"xxxx"))
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert str(error.value) == f"{path}: is damaged ({error.value.__cause__}){REMEDY}"


@pytest.mark.parametrize("content", [b"a text, not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert str(error.value) == f"{path}: is no image that can be read{REMEDY}"


def test_files_that_cannot_be_opened(
    tmp_path: Path, photo: Image.Image, forbidden: Callable[[Path], AbstractContextManager[None]]
) -> None:
    faults = []
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("empty.png", "folder.png", "link.png", "missing.png"):
        with pytest.raises(BrokenImage) as error:
            read_rgb(tmp_path / name)
        faults.append(str(error.value))
    photo.save(tmp_path / "secret.png")
    with forbidden(tmp_path / "secret.png"), pytest.raises(BrokenImage) as error:
        read_rgb(tmp_path / "secret.png")
    assert [*faults, str(error.value)] == [
        f"{tmp_path}/empty.png: is empty (0 bytes){REMEDY}",
        f"{tmp_path}/folder.png: cannot be opened (Is a directory){REMEDY}",
        f"{tmp_path}/link.png: cannot be opened (No such file or directory){REMEDY}",
        f"{tmp_path}/missing.png: cannot be opened (No such file or directory){REMEDY}",
        f"{tmp_path}/secret.png: cannot be opened (Permission denied){REMEDY}",
    ]


def test_too_few_handles_are_not_the_images_fault(tmp_path: Path, photo: Image.Image) -> None:
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
def test_a_decompression_bomb(tmp_path: Path, photo: Image.Image, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    photo.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BrokenImage) as error:
        read_rgb(path)
    assert str(error.value) == (
        f"{path}: has more than {limit} pixels, too many to be read safely; "
        "make it smaller, remove it, or set data.on_corrupt_image: skip"
    )


def test_warnings_stay_inside_and_filters_outside(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0\0\0\x01\0\x01")
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.getexif()
        assert told, "Pillow has something to warn of"
        told.clear()
        read_rgb(path)
        assert not told
    assert list(warnings.filters) == filters


def test_files_are_closed(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.gif", save_all=True, append_images=[photo.rotate(90)])
    (tmp_path / "b.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:500])
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [read_rgb(tmp_path / "a.gif") for _ in range(5)]
    for _ in range(5):
        with pytest.raises(BrokenImage):
            read_rgb(tmp_path / "b.gif")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(kept) == 5


def test_what_counts_as_an_image() -> None:
    assert all(is_image(f"a{ending}") and is_image(f"a{ending.upper()}") for ending in EXTENSIONS)
    assert is_image("IMG.0001.JpEg")
    assert not any(is_image(name) for name in (".DS_Store", "._a.jpg", ".jpg", "a.txt", "jpg", "a.jpg.part", "a.psd"))


def test_an_image_that_is_open_already(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.png"
    photo.convert("RGBA").save(path)
    with Image.open(path) as image:
        assert convert_rgb(image, "a").tobytes() == read_rgb(path).tobytes()
    path.write_bytes(path.read_bytes()[:3000])
    with Image.open(path) as image, pytest.raises(BrokenImage) as error:
        convert_rgb(image, "mine")
    assert error.value.why.startswith("is cut short (")
    assert str(error.value) == f"mine: {error.value.why}; replace it, remove it, or set data.on_corrupt_image: skip"
    assert pickle.loads(pickle.dumps(error.value)).why == error.value.why


def test_the_shape_without_the_pixels(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    photo.convert("L").save(tmp_path / "b.png")
    assert read_shape(tmp_path / "a.jpg") == (106, 160, False)
    assert read_rgb(tmp_path / "a.jpg").size == (106, 160)
    assert read_shape(tmp_path / "b.png") == (160, 106, True)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(BrokenImage) as error:
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
    "several pictures": {"format": "MPO", "save_all": True},
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, photos: tuple[Image.Image, Image.Image], kind: str, turned: bool
) -> None:
    options: dict[str, Any] = dict(LARGE[kind])
    large = photos[0].resize((1601, 1203), Image.Resampling.BICUBIC).convert(options.pop("mode", "RGB"))
    if options.get("save_all"):
        options["append_images"] = [large.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    large.save(tmp_path / "a.jpg", exif=exif, quality=95, **options)
    whole = read_rgb(tmp_path / "a.jpg")
    whole = whole.transpose(Image.Transpose.ROTATE_90) if turned else whole
    for needed, scale in ((None, 1), (602, 1), (601, 2), (301, 2), (300, 4), (151, 4), (150, 8), (1, 8)):
        made = read_image(tmp_path / "a.jpg", needed)
        assert made.mode == ("L" if kind == "grey" else "RGB")
        size = -(-1601 // scale), -(-1203 // scale)
        assert made.size == (size[::-1] if turned else size)
        assert read_shape(tmp_path / "a.jpg", needed)[:2] == made.size
        reduced = whole.reduce(scale)  # the mean of each block of pixels
        reduced = reduced.transpose(Image.Transpose.ROTATE_270) if turned else reduced
        assert distance(made.convert("RGB"), reduced) < (0.1 if scale == 1 else 3)
        assert read_rgb(tmp_path / "a.jpg", needed).tobytes() == made.convert("RGB").tobytes()


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_other_files_are_decoded_whole(tmp_path: Path, photo: Image.Image, ending: str) -> None:
    photo.save(tmp_path / f"a.{ending}")
    assert read_image(tmp_path / f"a.{ending}", 10).size == photo.size


def test_a_large_jpeg_that_is_cut_short_is_broken_at_any_size(
    tmp_path: Path, photos: tuple[Image.Image, Image.Image]
) -> None:
    photos[0].resize((1600, 1200)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenImage, match=r"a\.jpg: is cut short \("):
        read_image(tmp_path / "a.jpg", 100)


@pytest.mark.parametrize("name", ["1.png", "L.png", "16.png", "L.jpg"])
def test_grey_stays_grey_until_it_is_asked_for_as_rgb(tmp_path: Path, photo: Image.Image, name: str) -> None:
    mode = name.split(".")[0]
    grey = photo.convert("L")
    made = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "16" else grey.convert(mode)
    made.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.mode == "L"
    assert read.convert("RGB").tobytes() == read_rgb(tmp_path / name).tobytes()


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "first.png")
    photo.save(tmp_path / "second.png")
    both, gone = threading.Barrier(2), threading.Event()

    def load(path: Path, image: Image.Image) -> Image.Image:
        both.wait(20)
        if path.name == "second.png":  # it begins while the first is read, and ends after it
            gone.wait(20)
            warnings.warn("of Pillow", UserWarning, stacklevel=1)
        return image

    def read_first() -> None:
        read_image(tmp_path / "first.png")
        gone.set()

    monkeypatch.setattr(images, "_make_upright", load)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for _ in range(2):
            gone.clear()
            first = threading.Thread(target=read_first)
            first.start()
            read_image(tmp_path / "second.png")
            first.join()
            assert warnings.filters == before
    assert told == []
