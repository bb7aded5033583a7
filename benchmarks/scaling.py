"""The cost of a head stage against the number of images and epochs, scaled from a few measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.candidates import Candidate, Measurement
from benchmarks.comparison_stats import interpolate_linearly
from benchmarks.jobs import BenchmarkData, Job, JobStage
from benchmarks.runner import Benchmark, Results
from ftcli.plotting import BLUE, ORANGE, create_figure, render_png

BACKBONE = "mobilenet_v3_small"
FEW, MORE, SHORT, LONG, VIEWS = 500, 1_000, 1, 5, 4
"""Measured images and epochs: few images with a short and a long training, more with a short one."""
IMAGES = (500, 1_000, 2_000, 5_000, 10_000, 20_000)
EPOCHS = (1, 2, 5, 10, 20, 40)
PLOTTED_EPOCHS = 10
LOOPS = {
    "ftcli, four views": ("train", "4", BLUE),
    "ftcli, cache: off": ("train", "off", "#56B4E9"),
    "tutorial loop": ("tutorial", "off", ORANGE),
}


@dataclass(frozen=True)
class ScalingModel:
    """The measured cost of a loop and its scaling to other sizes."""

    short: Measurement
    long: Measurement

    def scale(self, images: int, epochs: int) -> float:
        """Return the scaled seconds of a training, in proportion to the images.

        Feature extraction is linear in the number of views (at most four), the rest in the mean epoch of the long
        training. The total is not linear: a cached epoch is shorter than the noise of both trainings.
        """
        feature_seconds = interpolate_linearly(
            (self.short.feature_seconds, self.long.feature_seconds), (SHORT, VIEWS), min(epochs, VIEWS)
        )
        return images / FEW * (feature_seconds + self.long.scale(epochs) - self.long.feature_seconds)


def run_name(loop: str, images: int, epochs: int) -> str:
    """Return the name of the candidate that measures it."""
    return f"{loop}, {images} images, {epochs} epochs"


def scaling_benchmark() -> Benchmark:
    """Return the benchmark of the measured trainings."""
    candidates = []
    for images, epochs in ((FEW, SHORT), (FEW, LONG), (MORE, SHORT)):
        job = Job(BenchmarkData("png", images * 4 // 5, images // 5), BACKBONE, (JobStage("backbone", epochs),))
        for loop, (program, cache, _) in LOOPS.items():
            candidates.append(Candidate(run_name(loop, images, epochs), program, job, cache))
    return Benchmark("growth", tuple(candidates), 1)


def fit_scaling(results: Results) -> dict[str, ScalingModel]:
    """Return the cost of each loop."""
    return {
        loop: ScalingModel(results[run_name(loop, FEW, SHORT)][0], results[run_name(loop, FEW, LONG)][0])
        for loop in LOOPS
    }


def check_scaling(results: Results) -> dict[str, float]:
    """Return, for each loop, the measured seconds for more images divided by the scaled seconds."""
    return {
        loop: results[run_name(loop, MORE, SHORT)][0].seconds / model.scale(MORE, SHORT)
        for loop, model in fit_scaling(results).items()
    }


def plot_scaling(results: Results) -> bytes:
    """Plot seconds against images for PLOTTED_EPOCHS epochs, and against epochs for FEW images, as a PNG.

    Filled points were measured, hollow points are scaled.
    """
    figure = create_figure(10, 4.5, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for loop, model in fit_scaling(results).items():
        colour = LOOPS[loop][2]
        _plot(left, IMAGES, [model.scale(images, PLOTTED_EPOCHS) for images in IMAGES], colour, loop)
        _plot(right, EPOCHS, [model.scale(FEW, epochs) for epochs in EPOCHS], colour, loop)
        right.plot([SHORT, LONG], [model.short.seconds, model.long.seconds], "o", color=colour)
    _style_axis(left, IMAGES, "images", f"{PLOTTED_EPOCHS} epochs")
    _style_axis(right, EPOCHS, "epochs", f"{FEW:,} images")
    left.set_ylabel("seconds of the stage")
    left.yaxis.set_major_formatter("{x:,g}")
    left.legend()
    return render_png(figure)


def _plot(axis: Any, x: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    axis.plot(x, values, "o--", color=colour, markerfacecolor="white", linewidth=1, label=label)


def _style_axis(axis: Any, ticks: Sequence[int], label: str, title: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=label, title=title)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
