"""Image files, decoded to upright 8-bit RGB."""

from __future__ import annotations

import errno
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ftcli.errors import DataError, RunError

# The formats of Pillow that are tried, with their extensions. Others are rarely photographs, and for PostScript Pillow
# would start a program.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}

EXTENSIONS = frozenset(extension for extensions in _FORMATS.values() for extension in extensions) | {".heic", ".heif"}
"""The lower-case extensions of images. HEIC files cannot be decoded but are listed, so that they are reported and not
silently ignored."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REMEDY = "replace it, remove it, or set data.on_corrupt_image: skip"
_REENCODE_REMEDY = "save it with 8 or 16 bits, remove it, or set data.on_corrupt_image: skip"

# Raised by Pillow's readers for corrupt files. MemoryError is not listed: the machine is the cause, not the image.
_DECODE_ERRORS = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_RESOURCE_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class CorruptImageError(DataError):
    """An image that cannot be decoded, or whose pixel values have no defined range.

    `reason` is the error without path and remedy.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image, in any case. Hidden files are not images."""
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def read_rgb(path: Path, min_decode_size: int | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB; see `read_image`."""
    return _make_rgb(read_image(path, min_decode_size))


def read_image(path: Path, min_decode_size: int | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB, or as 8-bit grey (mode L) if it is grey.

    The EXIF orientation is applied, if valid. Transparent pixels are blended with white. 16-bit grey v becomes
    round(v / 257). The first frame of an animation is read. Colour profiles are not applied. A JPEG is decoded at 1/2,
    1/4 or 1/8 of its size if its shorter side then has at least `min_decode_size` pixels; None decodes the full size.
    Warnings of Pillow are suppressed.

    Raises CorruptImageError for a file that is missing, empty, truncated, corrupt or not an image, that exceeds the
    pixel limit of Pillow, or that has floating-point values or 32-bit values outside 0 to 65,535.
    """
    with _translate_errors(path), path.open("rb") as file, Image.open(file, formats=list(_FORMATS)) as image:
        _set_draft_size(image, min_decode_size)
        return _make_upright(path, image)


def convert_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an opened Pillow image as `read_rgb` does. `name` is its path in errors."""
    with _translate_errors(Path(name)):
        return _make_rgb(_make_upright(Path(name), image))


def read_shape(path: Path, min_decode_size: int | None = None) -> tuple[int, int, bool]:
    """Return width, height and whether the image is grey, as `read_image` would give it, from the file's header.

    Raises CorruptImageError for a file that is missing, empty or not an image, or exceeds the pixel limit of Pillow.
    """
    with _translate_errors(path), path.open("rb") as file, Image.open(file, formats=list(_FORMATS)) as image:
        _set_draft_size(image, min_decode_size)
        width, height = image.size
        is_rotated = _read_orientation(image) in (5, 6, 7, 8)
        return (height, width, _is_grey(image)) if is_rotated else (width, height, _is_grey(image))


def _set_draft_size(image: Image.Image, min_decode_size: int | None) -> None:
    """Set the reduced size at which a JPEG is decoded. Other formats ignore it."""
    if min_decode_size is not None:
        image.draft(None, (min_decode_size, min_decode_size))


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _make_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _make_upright(path: Path, image: Image.Image) -> Image.Image:
    image.load()
    return _apply_orientation(_flatten(path, image), _read_orientation(image))


class _WarningFilter:
    """A context that suppresses warnings of Pillow, for any number of threads.

    Warning filters are global, and a thread that restores them may restore those of another thread. Therefore the first
    thread to enter sets them, and the last one to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_active = 0
        self._saved_filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_active:
                self._saved_filters = warnings.catch_warnings()
                self._saved_filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._num_active += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_active -= 1
            if not self._num_active:
                self._saved_filters.__exit__(None, None, None)


_warning_filter = _WarningFilter()


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Raise errors of Pillow and the system as CorruptImageError, and suppress warnings of Pillow."""
    try:
        with _warning_filter:
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = f"has more than {Image.MAX_IMAGE_PIXELS} pixels, too many to read safely"
        raise _make_corrupt_error(
            path, reason, "make it smaller, remove it, or set data.on_corrupt_image: skip"
        ) from error
    except OSError as error:
        if error.errno in _RESOURCE_ERRNOS:
            raise RunError(f"{path}: cannot be opened ({error.strerror}); lower data.num_workers") from error
        raise _make_corrupt_error(path, _describe_os_error(path, error), _REMEDY) from error
    except _DECODE_ERRORS as error:
        raise _make_corrupt_error(path, f"is corrupt ({_format_error(error)})", _REMEDY) from error


def _make_corrupt_error(path: Path, reason: str, remedy: str) -> CorruptImageError:
    return CorruptImageError(f"{path}: {reason}; {remedy}", reason)


def _describe_os_error(path: Path, error: OSError) -> str:
    if error.errno is not None:
        return f"cannot be opened ({error.strerror})"
    if isinstance(error, UnidentifiedImageError):
        return "is empty (0 bytes)" if path.stat().st_size == 0 else "is not a readable image"
    # Pillow has no error type for truncated files.
    kind = "truncated" if "truncated" in str(error).lower() else "corrupt"
    return f"is {kind} ({_format_error(error)})"


def _format_error(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _flatten(path: Path, image: Image.Image) -> Image.Image:
    """Return the image as RGB or grey, without transparency."""
    if image.mode == "F":
        raise _make_corrupt_error(path, "has floating-point pixels, which have no defined range", _REENCODE_REMEDY)
    if image.mode.startswith("I"):
        return _scale_to_uint8(path, image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode == "L" else _make_rgb(image)


def _scale_to_uint8(path: Path, image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, in any mode of Pillow, to 8 bits; Image.convert would clip it."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _make_corrupt_error(
            path, f"has 32-bit pixels from {low} to {high}, which have no defined range", _REENCODE_REMEDY
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _read_orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, valid or not; None without readable metadata."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except (OSError, *_DECODE_ERRORS):
        return None


def _apply_orientation(image: Image.Image, orientation: Any) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
