"""How many views of an image are worth keeping: `python -m benchmarks.views` measures it and writes docs/views.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from string import Template

from benchmarks.candidates import Candidate, Measurement
from benchmarks.comparison_stats import standard_error
from benchmarks.jobs import Augment, BenchmarkData, Job, JobStage
from benchmarks.machine import hash_code
from benchmarks.page import render_table
from benchmarks.processes import ROOT
from benchmarks.runner import Benchmark, Results, ResultsFile, run_benchmark

EPOCHS, SEEDS, IMAGE_SIZE = 16, (0, 1, 2), 96
VIEWS = ("1", "2", "4", "8", "all")
TEMPLATE, PAGE = ROOT / "benchmarks/views.md", ROOT / "docs/views.md"
RESULTS = ROOT / "benchmarks/results/views"


@dataclass(frozen=True)
class ViewsCase:
    """Images and what happens to them at random in training."""

    title: str
    data: BenchmarkData
    augment: Augment

    @property
    def benchmark(self) -> Benchmark:
        """Trainings with every number of views and seed. Those of a seed share a cache, fewest views first: a view is
        the same whatever their number, so each training computes those alone that the one before it lacked."""
        candidates = []
        for seed in SEEDS:
            stage = JobStage("backbone", EPOCHS, 3e-3, "adamw")
            job = Job(
                self.data, "timm/efficientnet_lite0", (stage,), True, IMAGE_SIZE, "squash", self.augment, seed=seed
            )
            first = run_name(VIEWS[0], seed)
            candidates += [
                Candidate(run_name(views, seed), "train", job, views, cache_from="" if views == VIEWS[0] else first)
                for views in VIEWS
            ]
        return Benchmark(f"views-{self.data.source}-{self.augment}", tuple(candidates), 1)


SOLAR_CELLS, FASHION_MNIST = BenchmarkData("png", 1968, 656), BenchmarkData("fashion", 1_000, 1_000)
CASES = (
    ViewsCase("Solar cells, augment: standard", SOLAR_CELLS, "standard"),
    ViewsCase("Fashion-MNIST, augment: standard", FASHION_MNIST, "standard"),
)


def run_name(views: str, seed: int) -> str:
    """What the training with so many views is called."""
    return f"{views} views, seed {seed}"


@dataclass(frozen=True)
class ViewsResult:
    """What a number of views came to: the accuracy for each seed, and the seconds with a cold cache, means of seeds."""

    views: str
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        return fmean(self.accuracies)


def summarize_views(results: Results) -> list[ViewsResult]:
    """What each number of views came to. With a cold cache a training would have computed what those with fewer views
    had left in it, too."""
    summaries, feature_seconds = [], dict.fromkeys(SEEDS, 0.0)
    for views in VIEWS:
        measurements: dict[int, Measurement] = {seed: results[run_name(views, seed)][0] for seed in SEEDS}
        feature_seconds = {
            seed: feature_seconds[seed] + measurement.feature_seconds for seed, measurement in measurements.items()
        }
        seconds = fmean(
            measurement.seconds - measurement.feature_seconds + feature_seconds[seed]
            for seed, measurement in measurements.items()
        )
        summaries.append(
            ViewsResult(views, tuple(measurement.accuracies[-1] for measurement in measurements.values()), seconds)
        )
    return summaries


def choose_views(cases: Sequence[tuple[Sequence[ViewsResult], int]]) -> str:
    """The fewest views whose accuracy is within one standard error of that with all, in every case; each comes with the
    number of images that its accuracy was measured on."""
    good_enough = [
        {one.views for one in outcomes if one.accuracy >= outcomes[-1].accuracy - _standard_error(outcomes[-1], images)}
        for outcomes, images in cases
    ]
    return next(views for views in VIEWS if all(views in one for one in good_enough))


def _standard_error(outcome: ViewsResult, images: int) -> float:
    return standard_error(outcome.accuracy, images)


def _render_case(case: ViewsCase, outcomes: Sequence[ViewsResult]) -> str:
    lines = [
        (
            one.views,
            f"{one.accuracy:.3f} ± {_standard_error(one, case.data.val):.3f}",
            ", ".join(f"{value:.3f}" for value in one.accuracies),
            f"{one.seconds:.1f}",
        )
        for one in outcomes
    ]
    header = ("views", "accuracy", "each seed", "seconds")
    return f"## {case.title}\n\n{render_table(header, lines)}"


def main() -> None:
    """Measure what is not measured yet, print the page and write it."""
    code, results = hash_code(), []
    for case in CASES:
        match = case.benchmark
        book = ResultsFile.open(RESULTS / f"{match.name}.json", code)
        run_benchmark(match, {one.name for one in match.candidates}, book, Path(sys.executable))
        results.append((case, summarize_views(book.read(match.candidates))))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        epochs=EPOCHS,
        seeds=len(SEEDS),
        cases="\n\n".join(_render_case(case, outcomes) for case, outcomes in results),
        chosen=choose_views([(outcomes, case.data.val) for case, outcomes in results]),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
