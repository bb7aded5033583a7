"""The plot of `ftcli inspect --plot-activations`: filters, and the activations of layers for an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ftcli.data.images import CorruptImageError, read_rgb
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError
from ftcli.evaluation.classifier import LoadedModel, load_model
from ftcli.inspection.activations import Activations, LayerActivation, compute_activations
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Canvas, Pixels, resize_to_fit
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter

CELL_SIZE = 120
"""The side of a feature map on the plot, in pixels."""
NUM_CHANNELS = 6
"""The number of channels shown per layer."""
MAX_FILTERS = 64
"""The number of filters shown at most."""

_CELL_STEP = CELL_SIZE + 8
_CANVAS_WIDTH = 2 * MARGIN + (NUM_CHANNELS + 2) * _CELL_STEP - 8
_INPUT_SIZE = 2 * _CELL_STEP - 8
_MIN_FILTER_SIZE = 40


def plot_activations(
    source: str | RecipeFile | Backbone, image_path: Path, path: Path, layers: Sequence[str], reporter: Reporter
) -> None:
    """Draw the network's input, the filters of its first convolution, and the activations of layers.

    Each layer has a row: the mean of the absolute values over its channels, on the input and alone, and the channels
    that vary most. The plot of a checkpoint names the predicted class. Raises RecipeError, DataError, CheckpointError,
    and RunError if the plot cannot be written.
    """
    loaded = load_model(source, reporter)
    try:
        image_rgb = read_rgb(image_path, build_eval_transform(loaded.preprocessing).min_decode_size)
    except CorruptImageError as error:
        raise DataError(f"--plot-activations: {image_path} {error.reason}; give another image") from error
    activations = compute_activations(loaded, image_rgb, layers)
    _build_canvas(loaded, image_path, activations).save(path)


def _build_canvas(loaded: LoadedModel, image_path: Path, activations: Activations) -> Canvas:
    top = MARGIN + 3 * LINE_HEIGHT + 8
    layers_top = top + LINE_HEIGHT + _INPUT_SIZE + 14
    row_height = CELL_SIZE + LINE_HEIGHT + 14
    canvas = Canvas(_CANVAS_WIDTH, layers_top + len(activations.layers) * row_height + MARGIN)
    text_width = _CANVAS_WIDTH - 2 * MARGIN
    canvas.write(f"{loaded.name}, weights: {loaded.weights}", MARGIN, MARGIN, text_width, size=14)
    caption = str(image_path)
    if loaded.classes is not None:
        best_class = int(activations.probabilities.argmax())
        caption = f"{loaded.classes[best_class]} ({float(activations.probabilities[best_class]):.1%}): {image_path}"
    canvas.write(caption, MARGIN, MARGIN + LINE_HEIGHT + 4, text_width)
    pixels = activations.pixels.permute(1, 2, 0).numpy()
    canvas.write(f"input: {pixels.shape[1]} x {pixels.shape[0]} pixels", MARGIN, top, _INPUT_SIZE, colour="0.35")
    canvas.paste(_resize(pixels, _INPUT_SIZE), MARGIN, top + LINE_HEIGHT)
    _paste_filters(canvas, activations, MARGIN + 2 * _CELL_STEP, top)
    for index, layer in enumerate(activations.layers):
        _paste_layer(canvas, layer, pixels, layers_top + index * row_height)
    return canvas


def _paste_filters(canvas: Canvas, activations: Activations, left: int, top: int) -> None:
    width = _CANVAS_WIDTH - MARGIN - left
    if activations.filters is None:
        canvas.write("no convolution", left, top, width, colour="0.35")
        return
    count, channels, kernel_height, kernel_width = activations.filters.shape
    shown = f", the first {MAX_FILTERS}" if count > MAX_FILTERS else ""
    kernel_size = f"{kernel_width} x {kernel_height}"
    caption = f"{activations.filter_layer}: {count} filters of {kernel_size}, {channels} channels{shown}"
    canvas.write(caption, left, top, width, colour="0.35")
    side = _choose_filter_size(min(count, MAX_FILTERS), max(kernel_height, kernel_width), width)
    filters_per_row = width // (side + 4)
    for index, kernel in enumerate(filters_to_rgb(activations.filters[:MAX_FILTERS])):
        position = (
            left + index % filters_per_row * (side + 4),
            top + LINE_HEIGHT + index // filters_per_row * (side + 4),
        )
        has_whole_blocks = kernel_height == kernel_width and side % kernel_height == 0
        canvas.paste(resize_to_fit(kernel, side, side) if has_whole_blocks else _resize(kernel, side), *position)


def _choose_filter_size(count: int, kernel_size: int, width: int) -> int:
    """Return the largest side with which all filters fit next to the input and each weight is a whole block."""
    sides = [side for side in range(_MIN_FILTER_SIZE, 2 * _MIN_FILTER_SIZE + 1) if side % kernel_size == 0]
    fitting = [side for side in sides if -(-count // (width // (side + 4))) * (side + 4) <= _INPUT_SIZE]
    return max(fitting, default=_MIN_FILTER_SIZE)


def _paste_layer(canvas: Canvas, layer: LayerActivation, pixels: Pixels, top: int) -> None:
    channels, height, width = layer.maps.shape
    most_varied = find_most_varied_channels(layer.maps)
    token_note = f", drawn as {height} x {width}" if len(layer.shape) == 2 else ""
    caption = (
        f"{layer.name}: {' x '.join(map(str, layer.shape))}{token_note}; mean over {channels} channels, on the input "
        f"and alone; channels {', '.join(map(str, most_varied))}"
    )
    canvas.write(caption, MARGIN, top, _CANVAS_WIDTH - 2 * MARGIN, colour="0.35")
    mean = min_max_scale(layer.maps.abs().mean(0))
    cells = [
        overlay_heatmap(pixels, mean),
        *(colorize(each) for each in (mean, *(min_max_scale(layer.maps[c]) for c in most_varied))),
    ]
    for index, cell in enumerate(cells):
        canvas.paste(cell, MARGIN + index * _CELL_STEP, top + LINE_HEIGHT)


def find_most_varied_channels(maps: Tensor) -> tuple[int, ...]:
    """Return the channels with the largest standard deviation over the image, the largest first."""
    order = maps.flatten(1).std(1).argsort(descending=True, stable=True)
    return tuple(int(channel) for channel in order[:NUM_CHANNELS])


def min_max_scale(values: Tensor) -> NDArray[np.float32]:
    """Scale values to [0, 1]; all are 0 if they are equal."""
    low, high = values.min(), values.max()
    scaled: NDArray[np.float32] = ((values - low) / (high - low).clamp(min=1e-12)).numpy()
    return scaled


def colorize(values: NDArray[np.float32]) -> Pixels:
    """Return values in [0, 1] in the colors of viridis, as a cell in which each is a block."""
    return _resize(_apply_colormap(values, "viridis"), CELL_SIZE, Image.Resampling.NEAREST)


def overlay_heatmap(pixels: Pixels, values: NDArray[np.float32]) -> Pixels:
    """Return the input in grey with values in [0, 1] on it as a heat map."""
    grey = np.asarray(Image.fromarray(_resize(pixels, CELL_SIZE)).convert("L"), dtype=np.float32)[..., None]
    heat = _resize(_apply_colormap(values, "inferno"), CELL_SIZE, Image.Resampling.BILINEAR).astype(np.float32)
    mixed: Pixels = (0.45 * grey + 0.55 * heat).round().astype(np.uint8)
    return mixed


def filters_to_rgb(filters: Tensor) -> list[Pixels]:
    """Return filters (n, channels, h, w) as images: 0 is grey, the largest absolute weight of each black or white.

    Filters of three channels are in color; of others the mean over channels is shown.
    """
    kernels = filters.float() if filters.shape[1] == 3 else filters.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    largest = kernels.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pixels = ((kernels / largest + 1) * 127.5).round().to(torch.uint8)
    return [kernel.permute(1, 2, 0).numpy() for kernel in pixels]


def _apply_colormap(values: NDArray[np.float32], name: str) -> Pixels:
    from matplotlib import colormaps  # slow to import

    return np.asarray(colormaps[name](values, bytes=True))[..., :3]


def _resize(pixels: Pixels, side: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), resample))
