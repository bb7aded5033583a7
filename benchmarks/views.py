"""How many views of an image are worth keeping: `python -m benchmarks.views` measures it and writes docs/views.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from string import Template

from benchmarks.contestants import Contestant, Measurement
from benchmarks.figures import standard_error
from benchmarks.jobs import Augment, DataSet, Job, Stage
from benchmarks.machine import digest_code
from benchmarks.matches import Book, Match, Results, play
from benchmarks.page import render_table
from benchmarks.processes import ROOT

EPOCHS, SEEDS, IMAGE_SIZE = 16, (0, 1, 2), 96
VIEWS = ("1", "2", "4", "8", "all")
TEMPLATE, PAGE = ROOT / "benchmarks/views.md", ROOT / "docs/views.md"
RESULTS = ROOT / "benchmarks/results/views"


@dataclass(frozen=True)
class Case:
    """Images and what happens to them at random in training."""

    title: str
    data: DataSet
    augment: Augment

    @property
    def match(self) -> Match:
        """Trainings with every number of views and seed. Those of a seed share a cache, fewest views first: a view is
        the same whatever their number, so each training computes those alone that the one before it lacked."""
        contestants = []
        for seed in SEEDS:
            stage = Stage("backbone", EPOCHS, 3e-3, "adamw")
            job = Job(
                self.data, "timm/efficientnet_lite0", (stage,), True, IMAGE_SIZE, "squash", self.augment, seed=seed
            )
            first = name_go(VIEWS[0], seed)
            contestants += [
                Contestant(name_go(views, seed), "train", job, views, after="" if views == VIEWS[0] else first)
                for views in VIEWS
            ]
        return Match(f"views-{self.data.form}-{self.augment}", tuple(contestants), 1)


CELLS, FASHION = DataSet("png", 1968, 656), DataSet("fashion", 1_000, 1_000)
CASES = (
    Case("Solar cells, augment: standard", CELLS, "standard"),
    Case("Fashion-MNIST, augment: standard", FASHION, "standard"),
)


def name_go(views: str, seed: int) -> str:
    """What the training with so many views is called."""
    return f"{views} views, seed {seed}"


@dataclass(frozen=True)
class Outcome:
    """What a number of views came to: the accuracy for each seed, and the seconds with a cold cache, means of seeds."""

    views: str
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        return fmean(self.accuracies)


def read_outcomes(results: Results) -> list[Outcome]:
    """What each number of views came to. With a cold cache a training would have computed what those with fewer views
    had left in it, too."""
    outcomes, frozen = [], dict.fromkeys(SEEDS, 0.0)
    for views in VIEWS:
        goes: dict[int, Measurement] = {seed: results[name_go(views, seed)][0] for seed in SEEDS}
        frozen = {seed: frozen[seed] + go.frozen for seed, go in goes.items()}
        seconds = fmean(go.seconds - go.frozen + frozen[seed] for seed, go in goes.items())
        outcomes.append(Outcome(views, tuple(go.accuracies[-1] for go in goes.values()), seconds))
    return outcomes


def choose_views(cases: Sequence[tuple[Sequence[Outcome], int]]) -> str:
    """The fewest views whose accuracy is within one standard error of that with all, in every case; each comes with the
    number of images that its accuracy was measured on."""
    good = [
        {one.views for one in outcomes if one.accuracy >= outcomes[-1].accuracy - _error(outcomes[-1], images)}
        for outcomes, images in cases
    ]
    return next(views for views in VIEWS if all(views in one for one in good))


def _error(outcome: Outcome, images: int) -> float:
    return standard_error(outcome.accuracy, images)


def _render_case(case: Case, outcomes: Sequence[Outcome]) -> str:
    lines = [
        (
            one.views,
            f"{one.accuracy:.3f} ± {_error(one, case.data.val):.3f}",
            ", ".join(f"{value:.3f}" for value in one.accuracies),
            f"{one.seconds:.1f}",
        )
        for one in outcomes
    ]
    header = ("views", "accuracy", "each seed", "seconds")
    return f"## {case.title}\n\n{render_table(header, lines)}"


def main() -> None:
    """Measure what is not measured yet, print the page and write it."""
    code, found = digest_code(), []
    for case in CASES:
        match = case.match
        book = Book.open(RESULTS / f"{match.name}.json", code)
        play(match, {one.name for one in match.contestants}, book, Path(sys.executable))
        found.append((case, read_outcomes(book.read(match.contestants))))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        epochs=EPOCHS,
        seeds=len(SEEDS),
        cases="\n\n".join(_render_case(case, outcomes) for case, outcomes in found),
        chosen=choose_views([(outcomes, case.data.val) for case, outcomes in found]),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
