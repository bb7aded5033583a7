"""`python -m benchmarks` measures the missing rows and writes docs/benchmarks.md; --rows measures rows again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.machine import describe_machine, find_peer_python, hash_code
from benchmarks.page import MISSING, render_rows, render_table
from benchmarks.processes import ROOT
from benchmarks.rows import FULL, QUICK, BenchmarkRow, list_rows
from benchmarks.runner import Benchmark, Results, ResultsFile, run_benchmark
from benchmarks.scaling import BACKBONE, FEW, MORE, check_scaling, plot_scaling, scaling_benchmark
from benchmarks.startup import StartupTiming, measure_pairs

RESULTS, TEMPLATE = ROOT / "benchmarks/results", ROOT / "benchmarks/template.md"
PAGE = ROOT / "docs/benchmarks.md"
OPTIONAL_ROW, GROWTH, STARTUP = 8, 11, 12
"""The row that is measured on request only, and the numbers of the two plots."""
_MISSING_TEXT = f"{MISSING.capitalize()}."


def main() -> None:
    options = _parse_arguments()
    size, folder = (QUICK, RESULTS / "quick") if options.quick else (FULL, RESULTS)
    rows, peers, code = list_rows(size), find_peer_python(options.peers), hash_code()
    known_numbers = {row.number for row in rows} | {STARTUP} | (set() if options.quick else {GROWTH})
    numbers = options.rows or known_numbers - {OPTIONAL_ROW}
    if not numbers <= known_numbers:
        sys.exit(f"--rows: unknown {_join_numbers(numbers - known_numbers)}; known: {_join_numbers(known_numbers)}")
    selected = _collect_benchmarks(rows, numbers)
    for benchmark, candidate_names in selected:
        results_file = ResultsFile.open(folder / f"{benchmark.name}.json", code)
        if options.rows and not options.resume:
            results_file.remove({one.name for group in benchmark.group_by_cache(candidate_names) for one in group})
        run_benchmark(benchmark, candidate_names, results_file, peers)
    if STARTUP in numbers:
        _measure_startup(folder, code, 0.2 if options.quick else 0.5)
    if options.quick:
        rows = [row for row in rows if row.number in numbers]
    _write_page(rows, folder, peers, options.quick)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds and epochs; print the page only")
    parser.add_argument("--rows", type=_read_numbers, help="measure these rows again, such as 1,3")
    parser.add_argument("--resume", action="store_true", help="measure only what is missing in these rows")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench", help="environment of the other loops")
    return parser.parse_args()


def _read_numbers(text: str) -> set[int]:
    return {int(number) for number in text.split(",")}


def _collect_benchmarks(rows: Sequence[BenchmarkRow], numbers: set[int]) -> list[tuple[Benchmark, set[str]]]:
    """Return the benchmarks that these rows need, each once, with the names of the candidates."""
    benchmarks = {row.benchmark.name: row.benchmark for row in rows}
    wanted: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.number in numbers:
            wanted[row.benchmark.name] |= row.candidate_names
    if GROWTH in numbers:
        growth = scaling_benchmark()
        benchmarks[growth.name], wanted[growth.name] = growth, {one.name for one in growth.candidates}
    return [(benchmarks[name], names) for name, names in wanted.items()]


def _join_numbers(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _measure_startup(folder: Path, code: str, fraction: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    timings = [dataclasses.asdict(timing) for timing in measure_pairs(fraction)]
    (folder / "startup.json").write_text(json.dumps({"code": code, "answers": timings}), encoding="utf-8")


def _write_page(rows: Sequence[BenchmarkRow], folder: Path, peers: Path, quick: bool) -> None:
    """Write the page of all results; the results of the quick version are printed only."""
    code, scaling = hash_code(), scaling_benchmark()
    benchmarks = {one.name: one for one in (*(row.benchmark for row in rows), scaling)}
    results_files = {name: ResultsFile.open(folder / f"{name}.json", code) for name in benchmarks}
    results = {name: book.read(benchmarks[name].candidates) for name, book in results_files.items()}
    startup = _read_startup(folder)
    outdated = [name for name, book in results_files.items() if book.is_outdated(benchmarks[name].candidates)]
    outdated += ["start-up"] if startup and startup["code"] != code else []
    machine = "\n".join(f"- {sentence}" for sentence in describe_machine(peers))
    if outdated:
        machine += f"\n- Measured with an earlier version of the code, at least in part: {', '.join(sorted(outdated))}."
    parts = {"machine": machine, "rows": render_rows(rows, results), "startup": _render_startup(startup)}
    if quick:
        print("\n{machine}\n\n{rows}\n\n{startup}".format(**parts))
        return
    is_complete = len(results[scaling.name]) == len(scaling.candidates)
    parts["growth"] = _render_scaling(results[scaling.name]) if is_complete else _MISSING_TEXT
    PAGE.write_text(Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts), encoding="utf-8")
    print(f"wrote {PAGE}")


def _render_scaling(results: Results) -> str:
    picture = PAGE.with_suffix(".png")
    picture.write_bytes(plot_scaling(results))
    checks = ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in check_scaling(results).items())
    return (
        f"![Seconds against images and epochs]({picture.name})\n\nA head stage of {BACKBONE} with a cold cache. "
        "The images are PNGs of 300 pixels; a fifth is for validation. Filled points were measured in one round, "
        "hollow points are scaled from them. As a check, the measured time for "
        f"{MORE:,} images divided by the time scaled from {FEW:,} images: {checks}."
    )


def _read_startup(folder: Path) -> dict[str, Any] | None:
    path = folder / "startup.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _render_startup(startup: dict[str, Any] | None) -> str:
    if startup is None:
        return _MISSING_TEXT
    lines = [
        (f"`{one.name}`", str(one.pairs), f"{one.ours:.2f}", f"`{one.base}`", f"{one.theirs:.2f}", one.format_ratio())
        for one in (StartupTiming(**answer) for answer in startup["answers"])
    ]
    return render_table(("command", "pairs", "seconds", "compared with", "seconds", "ratio"), lines)


if __name__ == "__main__":
    main()
