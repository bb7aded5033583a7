"""The page of the benchmarks, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from benchmarks.contestants import Contestant, Measurement
from benchmarks.figures import Spread, compare_rounds, reach, standard_error
from benchmarks.matches import Results
from benchmarks.rows import Comparison, Row

_SUMMARY = ("row", "ours", "theirs", "rounds", "epochs", "theirs over ours", "asked", "holds")
_HEADER = ("contestant", "rounds", "epochs", "seconds", "whole process", "memory", "val accuracy")
MISSING = "not measured yet"


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text, the others are figures."""
    marks = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *lines))


def render_rows(rows: Sequence[Row], results: Mapping[str, Results]) -> str:
    """A summary of all comparisons, and a section for each row; what is not measured is marked as that, and rows of
    which nothing is have no section."""
    found = [(row, results.get(row.match.name, {})) for row in rows]
    summary = render_table(_SUMMARY, [line for row, measured in found for line in _summarize(row, measured)])
    sections = (_render_row(row, measured) for row, measured in found if row.wanted & measured.keys())
    return "\n\n".join((summary, *sections))


def _summarize(row: Row, results: Results) -> Iterator[tuple[str, ...]]:
    found = {one.name: one for one in row.match.contestants}
    for one in row.comparisons:
        rounds, told, holds = "-", MISSING, "-"
        if {one.ours, one.theirs} <= results.keys():
            rounds = str(min(len(results[one.ours]), len(results[one.theirs])))
            told, holds = judge(one, row, results)
        epochs = dict.fromkeys(_tell_epochs(found[name]) for name in (one.ours, one.theirs))
        asked = "-" if one.figure == "accuracy" or one.bar is None else f"{one.bar:.3g}"
        yield f"{row.number}. {row.title}", one.ours, one.theirs, rounds, " : ".join(epochs), told, asked, holds


def _tell_epochs(contestant: Contestant) -> str:
    return str(contestant.trained or "-")


def _render_row(row: Row, results: Results) -> str:
    contestants = [one for one in row.match.contestants if one.name in row.wanted]
    lines = [_tell(one, results.get(one.name, ())) for one in contestants]
    scaled = any(one.is_scaled and one.name in results for one in contestants)
    mark = "\\* Fewer epochs were measured and scaled; the accuracy is that after those." if scaled else ""
    parts = [f"### {row.number}. {row.title}", render_table(_HEADER, lines), mark, row.note]
    return "\n\n".join(part for part in parts if part)


def _tell(contestant: Contestant, goes: Sequence[Measurement]) -> tuple[str, ...]:
    """A contestant's line: its name, rounds and epochs, the median of its seconds and their range, and medians of the
    rest."""
    if not goes:
        return contestant.name, "-", _tell_epochs(contestant), MISSING, "-", "-", "-"
    seconds = Spread.of([go.scale(contestant.epochs) for go in goes])
    between = f" ({seconds.low:.2f} to {seconds.high:.2f})" if len(goes) > 1 else ""
    mark = "\\*" if contestant.is_scaled else ""
    last = [go.accuracies[-1] for go in goes if go.accuracies and not math.isnan(go.accuracies[-1])]
    return (
        contestant.name,
        str(len(goes)),
        _tell_epochs(contestant),
        f"{seconds.median:.2f}{between}{mark}",
        f"{median(go.wall for go in goes):.1f}",
        f"{median(go.peak for go in goes) / 1e6:,.0f} MB",
        f"{median(last):.3f}" if last else "-",
    )


def judge(comparison: Comparison, row: Row, results: Results) -> tuple[str, str]:
    """A comparison in figures, and whether what is asked of it holds: yes, no, or - where nothing is."""
    found = {one.name: one for one in row.match.contestants}
    ours, theirs = results[comparison.ours], results[comparison.theirs]
    if comparison.figure == "accuracy":
        mine, other = (median(go.accuracies[-1] for go in goes) for goes in (ours, theirs))
        error = standard_error(other, found[comparison.theirs].job.data.val)
        return f"accuracy {mine - other:+.3f}, one standard error {error:.3f}", _answer(mine >= other - error)
    if comparison.figure == "reach":
        at = reach(ours[0].course, ours[0].accuracies, theirs[0].accuracies[-1])
        if at is None:
            return f"never reached {theirs[0].accuracies[-1]:.3f}", "no"
        ratio = Spread.of([theirs[0].seconds / at])
    elif comparison.figure == "peak":
        ratio = compare_rounds([float(go.peak) for go in theirs], [float(go.peak) for go in ours])
    else:
        spans = (
            [go.scale(found[name].epochs) for go in goes]
            for name, goes in ((comparison.theirs, theirs), (comparison.ours, ours))
        )
        ratio = compare_rounds(*spans)
    between = f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.low != ratio.high else ""
    holds = "-" if comparison.bar is None else _answer(ratio.median >= comparison.bar)
    return f"{ratio.median:.2f}{between}", holds


def _answer(holds: bool) -> str:
    return "yes" if holds else "no"
