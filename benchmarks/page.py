"""The page of the benchmarks, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from benchmarks.contestants import Contestant, Measurement
from benchmarks.figures import Spread, compare_rounds, reach, standard_error
from benchmarks.matches import Results
from benchmarks.rows import Comparison, Row

_HEADER = ("contestant", "seconds", "whole process", "memory", "val accuracy")


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text, the others are figures."""
    marks = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *lines))


def render_rows(rows: Sequence[Row], results: Mapping[str, Results]) -> str:
    """A summary of all comparisons that were measured, and a section for each row."""
    measured = [row for row in rows if row.wanted <= results.get(row.match.name, {}).keys()]
    lines = [line for row in measured for line in _summarize(row, results[row.match.name])]
    summary = render_table(("row", "ours", "theirs", "theirs over ours", "asked", "holds"), lines)
    return "\n\n".join((summary, *(_render_row(row, results[row.match.name]) for row in measured)))


def _summarize(row: Row, results: Results) -> Iterator[tuple[str, ...]]:
    for one in row.comparisons:
        told, holds = judge(one, row, results)
        asked = "-" if one.figure == "accuracy" or one.bar is None else f"{one.bar:.3g}"
        yield f"{row.number}. {row.title}", one.ours, one.theirs, told, asked, holds


def _render_row(row: Row, results: Results) -> str:
    lines = [_tell(one, results[one.name]) for one in row.match.contestants if one.name in row.wanted]
    scaled = any(one.is_scaled for one in row.match.contestants if one.name in row.wanted)
    mark = "\\* Fewer epochs were measured and scaled; the accuracy is that after those." if scaled else ""
    parts = [f"### {row.number}. {row.title}", render_table(_HEADER, lines), mark, row.note]
    return "\n\n".join(part for part in parts if part)


def _tell(contestant: Contestant, goes: Sequence[Measurement]) -> tuple[str, ...]:
    """A contestant's line: its name, the median of its seconds and their range, and medians of the rest."""
    seconds = Spread.of([go.scale(contestant.epochs) for go in goes])
    between = f" ({seconds.low:.2f} to {seconds.high:.2f})" if len(goes) > 1 else ""
    mark = "\\*" if contestant.is_scaled else ""
    last = [go.accuracies[-1] for go in goes if go.accuracies and not math.isnan(go.accuracies[-1])]
    return (
        contestant.name,
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
