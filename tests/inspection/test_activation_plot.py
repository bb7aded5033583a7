"""Tests of the plot of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ftcli.data.images import read_rgb
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError
from ftcli.evaluation.classifier import load_classifier
from ftcli.inspection.activation_plot import filters_to_rgb, find_most_varied_channels, min_max_scale, plot_activations
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Canvas
from ftcli.recipe.loading import read_recipe
from ftcli.results import NullReporter
from tests.inspection.conftest import read_png


def test_activation_colors() -> None:
    maps = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 8.0], [0.0, 0.0]], [[2.0, 4.0], [2.0, 2.0]]])
    assert find_most_varied_channels(maps) == (1, 2, 0)
    assert min_max_scale(maps[2]).tolist() == [[0, 1], [0, 0]]
    assert min_max_scale(maps[0]).tolist() == [[0, 0], [0, 0]]
    (kernel,) = filters_to_rgb(torch.tensor([[[[0.5]], [[-0.5]], [[0.0]]]]))
    assert kernel.tolist() == [[[255, 0, 128]]]
    (grey,) = filters_to_rgb(torch.tensor([[[[1.0, -1.0]], [[3.0, -3.0]]]]))
    assert grey.tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_plot_activations_of_checkpoint_shows_predicted_class(
    work_dir_with_run: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo_folder / "test/flower/20.jpg"
    written: list[str] = []
    write = Canvas.write

    def record(self: Canvas, text: str, *position: Any, **kwargs: Any) -> Any:
        written.append(text)
        return write(self, text, *position, **kwargs)

    monkeypatch.setattr(Canvas, "write", record)
    plot_activations("runs/photos/best_loss.pt", image, Path("out.png"), ["stage2"], NullReporter())
    loaded = load_classifier(work_dir_with_run / "runs/photos/best_loss.pt", torch.device("cpu"))
    classifier, checkpoint = loaded.classifier, loaded.checkpoint
    pixels = build_eval_transform(checkpoint.preprocessing)(read_rgb(image))
    with torch.inference_mode():
        confidence, predicted = classifier.compute_logits(pixels[None]).softmax(1)[0].max(0)
    assert written[1] == f"{classifier.classes[int(predicted)]} ({float(confidence):.1%}): {image}"
    assert written[4].startswith("stage2: 48 x 4 x 4; mean over 48 channels, on the input and alone; channels ")
    picture = read_png(Path("out.png"))
    expected = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((248, 248), Image.Resampling.BICUBIC)
    top = MARGIN + 3 * LINE_HEIGHT + 8 + LINE_HEIGHT
    assert np.array_equal(picture[top : top + 248, MARGIN : MARGIN + 248], np.asarray(expected))


def test_plot_activations_rejects_a_corrupt_image(work_dir: Path) -> None:
    Path("corrupt.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_activations(read_recipe(Path("r.yaml")), Path("corrupt.jpg"), Path("out.png"), (), NullReporter())
    assert str(error.value) == "--plot-activations: corrupt.jpg is empty (0 bytes); give another image"
    assert not Path("out.png").exists()
