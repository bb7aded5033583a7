"""The Markdown page of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from benchmarks.candidates import Candidate, Measurement
from benchmarks.comparison_stats import Spread, compare_rounds, standard_error, time_to_accuracy
from benchmarks.rows import BenchmarkRow, Comparison
from benchmarks.runner import Results

_SUMMARY = ("row", "ours", "theirs", "rounds", "epochs", "theirs over ours", "target", "met")
_HEADER = ("candidate", "rounds", "epochs", "seconds", "whole process", "memory", "val accuracy")
MISSING = "not measured yet"


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table; the first column is text, the others are numbers."""
    marks = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *lines))


def render_rows(rows: Sequence[BenchmarkRow], results: Mapping[str, Results]) -> str:
    """Render a summary of all comparisons and a section for each measured row; missing results are marked."""
    measured_rows = [(row, results.get(row.benchmark.name, {})) for row in rows]
    summary = render_table(_SUMMARY, [line for row, measured in measured_rows for line in _summarize(row, measured)])
    sections = (_render_row(row, measured) for row, measured in measured_rows if row.candidate_names & measured.keys())
    return "\n\n".join((summary, *sections))


def _summarize(row: BenchmarkRow, results: Results) -> Iterator[tuple[str, ...]]:
    candidates = {one.name: one for one in row.benchmark.candidates}
    for one in row.comparisons:
        rounds, ratio, holds = "-", MISSING, "-"
        if {one.ours, one.theirs} <= results.keys():
            rounds = str(min(len(results[one.ours]), len(results[one.theirs])))
            ratio, holds = evaluate_comparison(one, row, results)
        epochs = dict.fromkeys(_format_epochs(candidates[name]) for name in (one.ours, one.theirs))
        target = "-" if one.metric == "accuracy" or one.target_ratio is None else f"{one.target_ratio:.3g}"
        yield f"{row.number}. {row.title}", one.ours, one.theirs, rounds, " : ".join(epochs), ratio, target, holds


def _format_epochs(candidate: Candidate) -> str:
    return str(candidate.num_epochs or "-")


def _render_row(row: BenchmarkRow, results: Results) -> str:
    candidates = [one for one in row.benchmark.candidates if one.name in row.candidate_names]
    lines = [_format_candidate(one, results.get(one.name, ())) for one in candidates]
    scaled = any(one.is_scaled and one.name in results for one in candidates)
    footnote = "\\* Scaled from fewer epochs; the accuracy is measured after those." if scaled else ""
    parts = [f"### {row.number}. {row.title}", render_table(_HEADER, lines), footnote, row.note]
    return "\n\n".join(part for part in parts if part)


def _format_candidate(candidate: Candidate, measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Return the table line of a candidate, with the median and range of its seconds."""
    if not measurements:
        return candidate.name, "-", _format_epochs(candidate), MISSING, "-", "-", "-"
    seconds = Spread.of([go.scale(candidate.scaled_epochs) for go in measurements])
    range_text = f" ({seconds.low:.2f} to {seconds.high:.2f})" if len(measurements) > 1 else ""
    mark = "\\*" if candidate.is_scaled else ""
    final_accuracies = [go.accuracies[-1] for go in measurements if go.accuracies and not math.isnan(go.accuracies[-1])]
    return (
        candidate.name,
        str(len(measurements)),
        _format_epochs(candidate),
        f"{seconds.median:.2f}{range_text}{mark}",
        f"{median(go.process_seconds for go in measurements):.1f}",
        f"{median(go.peak_memory for go in measurements) / 1e6:,.0f} MB",
        f"{median(final_accuracies):.3f}" if final_accuracies else "-",
    )


def evaluate_comparison(comparison: Comparison, row: BenchmarkRow, results: Results) -> tuple[str, str]:
    """Return a comparison as text, and whether its target is met: yes, no, or - without a target."""
    candidates = {one.name: one for one in row.benchmark.candidates}
    ours, theirs = results[comparison.ours], results[comparison.theirs]
    if comparison.metric == "accuracy":
        our_accuracy, their_accuracy = (median(one.accuracies[-1] for one in runs) for runs in (ours, theirs))
        error = standard_error(their_accuracy, candidates[comparison.theirs].job.data.val)
        return f"accuracy {our_accuracy - their_accuracy:+.3f}, one standard error {error:.3f}", _yes_or_no(
            our_accuracy >= their_accuracy - error
        )
    if comparison.metric == "reach":
        seconds = time_to_accuracy(ours[0].elapsed, ours[0].accuracies, theirs[0].accuracies[-1])
        if seconds is None:
            return f"never reached {theirs[0].accuracies[-1]:.3f}", "no"
        ratio = Spread.of([theirs[0].seconds / seconds])
    elif comparison.metric == "peak":
        ratio = compare_rounds([float(go.peak_memory) for go in theirs], [float(go.peak_memory) for go in ours])
    else:
        seconds_of_both = (
            [one.scale(candidates[name].scaled_epochs) for one in runs]
            for name, runs in ((comparison.theirs, theirs), (comparison.ours, ours))
        )
        ratio = compare_rounds(*seconds_of_both)
    range_text = f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.low != ratio.high else ""
    holds = "-" if comparison.target_ratio is None else _yes_or_no(ratio.median >= comparison.target_ratio)
    return f"{ratio.median:.2f}{range_text}", holds


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"
