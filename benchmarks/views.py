"""The effect of the number of cached views: `python -m benchmarks.views` measures it and writes docs/views.md."""

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
    """A data set and its augmentation."""

    title: str
    data: BenchmarkData
    augment: Augment

    @property
    def benchmark(self) -> Benchmark:
        """The trainings with every number of views and seed.

        Trainings of one seed share a cache, fewest views first, so each computes only the views that the one before did
        not.
        """
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
    """Return the name of a training."""
    return f"{views} views, seed {seed}"


@dataclass(frozen=True)
class ViewsResult:
    """The result of a number of views: the accuracy of each seed, and the mean seconds with a cold cache."""

    views: str
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        return fmean(self.accuracies)


def summarize_views(results: Results) -> list[ViewsResult]:
    """Return the result of each number of views.

    The time of features that earlier trainings cached is added, as with a cold cache.
    """
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
    """Return the smallest number of views within one standard error of all views in every case.

    Each case has its results and the number of validation images.
    """
    good_enough = [
        {
            one.views
            for one in view_results
            if one.accuracy >= view_results[-1].accuracy - _standard_error(view_results[-1], images)
        }
        for view_results, images in cases
    ]
    return next(views for views in VIEWS if all(views in one for one in good_enough))


def _standard_error(outcome: ViewsResult, images: int) -> float:
    return standard_error(outcome.accuracy, images)


def _render_case(case: ViewsCase, view_results: Sequence[ViewsResult]) -> str:
    lines = [
        (
            one.views,
            f"{one.accuracy:.1%} ± {_standard_error(one, case.data.val):.1%}",
            ", ".join(f"{value:.1%}" for value in one.accuracies),
            f"{one.seconds:.1f}",
        )
        for one in view_results
    ]
    header = ("views", "accuracy", "each seed", "seconds")
    return f"## {case.title}\n\n{render_table(header, lines)}"


def main() -> None:
    """Measure what is missing, print the page and write it."""
    code, results = hash_code(), []
    for case in CASES:
        benchmark = case.benchmark
        book = ResultsFile.open(RESULTS / f"{benchmark.name}.json", code)
        run_benchmark(benchmark, {one.name for one in benchmark.candidates}, book, Path(sys.executable))
        results.append((case, summarize_views(book.read(benchmark.candidates))))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        epochs=EPOCHS,
        seeds=len(SEEDS),
        cases="\n\n".join(_render_case(case, view_results) for case, view_results in results),
        chosen=choose_views([(view_results, case.data.val) for case, view_results in results]),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
