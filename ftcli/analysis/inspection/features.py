"""A picture of what the layers of a network see in an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ftcli.analysis.inspection.activations import LayerView, Look, look_at
from ftcli.analysis.pictures import LINE, MARGIN, Pixels, Sheet, fit_pixels
from ftcli.analysis.subjects import Subject, load_subject
from ftcli.data.images import BrokenImage, read_rgb
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter

CELL = 120
"""The side of a map, in pixels."""
CHANNELS = 6
"""Channels of a layer that are shown on their own."""
FILTERS = 64
"""Filters that are shown at most."""

_STEP = CELL + 8
_WIDTH = 2 * MARGIN + (CHANNELS + 2) * _STEP - 8
_INPUT = 2 * _STEP - 8
_FILTER = 40


def draw_features(
    source: str | Document | Backbone, image: Path, target: Path, layers: Sequence[str], reporter: Reporter
) -> None:
    """Draw an image as a network sees it, the filters of its first convolution, and what early and late layers give.

    Each layer has a row: the mean of the absolute values over channels, laid over the input and alone, and the
    channels that vary most over the image. A checkpoint's picture tells the class it gives too. Raises RecipeError,
    DataError or CheckpointError for what cannot be had, RunError where nothing can be written.
    """
    subject = load_subject(source, reporter)
    try:
        pixels = read_rgb(image, build_eval_transform(subject.preprocessing).needed)
    except BrokenImage as error:
        raise DataError(f"--plot-activations: {image} {error.why}; give another image") from error
    look = look_at(subject, pixels, layers)
    _lay_out(subject, image, look).publish(target, reporter)


def _lay_out(subject: Subject, image: Path, look: Look) -> Sheet:
    top = MARGIN + 3 * LINE + 8
    below = top + LINE + _INPUT + 14
    row = CELL + LINE + 14
    sheet = Sheet(_WIDTH, below + len(look.views) * row + MARGIN)
    wide = _WIDTH - 2 * MARGIN
    sheet.write(f"{subject.name}, weights: {subject.weights}", MARGIN, MARGIN, wide, size=14)
    told = str(image)
    if subject.classes is not None:
        best = int(look.probabilities.argmax())
        told = f"{subject.classes[best]} ({float(look.probabilities[best]):.1%}): {image}"
    sheet.write(told, MARGIN, MARGIN + LINE + 4, wide)
    pixels = look.pixels.permute(1, 2, 0).numpy()
    sheet.write(f"input: {pixels.shape[1]} x {pixels.shape[0]} pixels", MARGIN, top, _INPUT, colour="0.35")
    sheet.paste(_resize(pixels, _INPUT), MARGIN, top + LINE)
    _paste_filters(sheet, look, MARGIN + 2 * _STEP, top)
    for number, view in enumerate(look.views):
        _paste_view(sheet, view, pixels, below + number * row)
    return sheet


def _paste_filters(sheet: Sheet, look: Look, left: int, top: int) -> None:
    width = _WIDTH - MARGIN - left
    if look.filters is None:
        sheet.write("no convolution", left, top, width, colour="0.35")
        return
    count, channels, height, across = look.filters.shape
    shown = f", the first {FILTERS}" if count > FILTERS else ""
    told = f"{look.filter_layer}: {count} filters of {across} x {height}, {channels} channels{shown}"
    sheet.write(told, left, top, width, colour="0.35")
    side = _fit_filters(min(count, FILTERS), max(height, across), width)
    in_row = width // (side + 4)
    for number, kernel in enumerate(colour_filters(look.filters[:FILTERS])):
        place = left + number % in_row * (side + 4), top + LINE + number // in_row * (side + 4)
        blocks = height == across and side % height == 0
        sheet.paste(fit_pixels(kernel, side, side) if blocks else _resize(kernel, side), *place)


def _fit_filters(count: int, weights: int, width: int) -> int:
    """The side of the largest filters, each weight a block of whole pixels, of which so many fit beside the input."""
    sides = [side for side in range(_FILTER, 2 * _FILTER + 1) if side % weights == 0]
    fitting = [side for side in sides if -(-count // (width // (side + 4))) * (side + 4) <= _INPUT]
    return max(fitting, default=_FILTER)


def _paste_view(sheet: Sheet, view: LayerView, pixels: Pixels, top: int) -> None:
    channels, height, width = view.maps.shape
    strongest = find_varied(view.maps)
    laid_out = f", drawn as {height} x {width}" if len(view.shape) == 2 else ""
    told = (
        f"{view.name}: {' x '.join(map(str, view.shape))}{laid_out}; mean over {channels} channels, on the input and "
        f"alone; channels {', '.join(map(str, strongest))}"
    )
    sheet.write(told, MARGIN, top, _WIDTH - 2 * MARGIN, colour="0.35")
    mean = stretch(view.maps.abs().mean(0))
    cells = [overlay(pixels, mean), *(paint(each) for each in (mean, *(stretch(view.maps[c]) for c in strongest)))]
    for place, cell in enumerate(cells):
        sheet.paste(cell, MARGIN + place * _STEP, top + LINE)


def find_varied(maps: Tensor) -> tuple[int, ...]:
    """The channels whose values differ most over the image, by standard deviation, the most varied first."""
    order = maps.flatten(1).std(1).argsort(descending=True, stable=True)
    return tuple(int(channel) for channel in order[:CHANNELS])


def stretch(values: Tensor) -> NDArray[np.float32]:
    """The values from 0, the least, to 1, the largest; 0 where all are equal."""
    low, high = values.min(), values.max()
    stretched: NDArray[np.float32] = ((values - low) / (high - low).clamp(min=1e-12)).numpy()
    return stretched


def paint(values: NDArray[np.float32]) -> Pixels:
    """Values from 0 (dark blue) to 1 (yellow) as a cell; each stays a block of its own."""
    return _resize(_colour(values, "viridis"), CELL, Image.Resampling.NEAREST)


def overlay(pixels: Pixels, values: NDArray[np.float32]) -> Pixels:
    """The input in grey, lit where values are high."""
    grey = np.asarray(Image.fromarray(_resize(pixels, CELL)).convert("L"), dtype=np.float32)[..., None]
    heat = _resize(_colour(values, "inferno"), CELL, Image.Resampling.BILINEAR).astype(np.float32)
    mixed: Pixels = (0.45 * grey + 0.55 * heat).round().astype(np.uint8)
    return mixed


def colour_filters(filters: Tensor) -> list[Pixels]:
    """Filters (n, channels, h, w) as pictures: 0 is grey, and the largest weight of each reaches black or white.

    Filters that read three channels are coloured; others are shown by their mean over channels.
    """
    kernels = filters.float() if filters.shape[1] == 3 else filters.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    largest = kernels.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pixels = ((kernels / largest + 1) * 127.5).round().to(torch.uint8)
    return [kernel.permute(1, 2, 0).numpy() for kernel in pixels]


def _colour(values: NDArray[np.float32], name: str) -> Pixels:
    from matplotlib import colormaps  # slow to import

    return np.asarray(colormaps[name](values, bytes=True))[..., :3]


def _resize(pixels: Pixels, side: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), how))
