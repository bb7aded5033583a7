"""What a head stage costs against the number of images and of epochs: a corner is measured, the rest scaled from it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import Contestant, Measurement
from benchmarks.figures import extend
from benchmarks.jobs import DataSet, Job, Stage
from benchmarks.matches import Match, Results

BACKBONE = "mobilenet_v3_small"
FEW, MORE, BRIEF, LONG, VIEWS = 500, 1_000, 1, 5, 4
"""Images and epochs that are measured: few for a brief and a long training, more for a brief one."""
IMAGES = (500, 1_000, 2_000, 5_000, 10_000, 20_000)
EPOCHS = (1, 2, 5, 10, 20, 40)
TOLD_EPOCHS = 10
LOOPS = {
    "ftcli, four views": ("train", "4", "#0072B2"),
    "ftcli, cache: off": ("train", "off", "#56B4E9"),
    "tutorial loop": ("tutorial", "off", "#D55E00"),
}


@dataclass(frozen=True)
class Growth:
    """What a loop costs: measured for few images with brief and long training, and scaled to others."""

    brief: Measurement
    long: Measurement

    def scale(self, images: int, epochs: int) -> float:
        """The seconds of a training: in proportion to the images; the frozen part along a line in its views, which are
        at most four, the rest by the mean epoch of the long training. A line through the whole of both trainings would
        not do: an epoch that reads from the cache takes less than they vary by."""
        frozen = extend((self.brief.frozen, self.long.frozen), (BRIEF, VIEWS), min(epochs, VIEWS))
        return images / FEW * (frozen + self.long.scale(epochs) - self.long.frozen)


def name_go(loop: str, images: int, epochs: int) -> str:
    """What the contestant that measures it is called."""
    return f"{loop}, {images} images, {epochs} epochs"


def list_match() -> Match:
    """The trainings that are measured, one round of them."""
    contestants = []
    for images, epochs in ((FEW, BRIEF), (FEW, LONG), (MORE, BRIEF)):
        job = Job(DataSet("png", images * 4 // 5, images // 5), BACKBONE, (Stage("backbone", epochs),))
        for loop, (program, cache, _) in LOOPS.items():
            contestants.append(Contestant(name_go(loop, images, epochs), program, job, cache))
    return Match("growth", tuple(contestants), 1)


def read_growth(results: Results) -> dict[str, Growth]:
    """What each loop was measured to cost."""
    return {loop: Growth(results[name_go(loop, FEW, BRIEF)][0], results[name_go(loop, FEW, LONG)][0]) for loop in LOOPS}


def check_scaling(results: Results) -> dict[str, float]:
    """For each loop, the measured seconds of the training of more images over those scaled to it."""
    return {
        loop: results[name_go(loop, MORE, BRIEF)][0].seconds / growth.scale(MORE, BRIEF)
        for loop, growth in read_growth(results).items()
    }


def draw_growth(results: Results) -> bytes:
    """A PNG: seconds against images for TOLD_EPOCHS epochs, and against epochs for FEW images. What was measured is
    filled, what was scaled is hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for loop, growth in read_growth(results).items():
        colour = LOOPS[loop][2]
        _plot(left, IMAGES, [growth.scale(images, TOLD_EPOCHS) for images in IMAGES], colour, loop)
        _plot(right, EPOCHS, [growth.scale(FEW, epochs) for epochs in EPOCHS], colour, loop)
        right.plot([BRIEF, LONG], [growth.brief.seconds, growth.long.seconds], "o", color=colour)
    _dress(left, IMAGES, "images", f"{TOLD_EPOCHS} epochs")
    _dress(right, EPOCHS, "epochs", f"{FEW:,} images")
    left.set_ylabel("seconds of the stage")
    left.yaxis.set_major_formatter("{x:,g}")
    left.legend()
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _plot(axis: Any, places: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    axis.plot(places, values, "o--", color=colour, markerfacecolor="white", linewidth=1, label=label)


def _dress(axis: Any, places: Sequence[int], label: str, title: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=label, title=title)
    axis.set_xticks(places, [f"{place:,}" for place in places])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
