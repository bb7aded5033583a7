"""`python -m benchmarks` measures what is not measured yet and writes docs/benchmarks.md; --rows measures anew."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template

from benchmarks.growth import check_scaling, draw_growth, list_match
from benchmarks.machine import describe_machine, digest_code, find_peers
from benchmarks.matches import Book, Match, Results, play
from benchmarks.page import render_rows, render_table
from benchmarks.processes import ROOT
from benchmarks.rows import FULL, QUICK, Row, list_rows
from benchmarks.startup import Answer, measure_pairs

RESULTS, TEMPLATE = ROOT / "benchmarks/results", ROOT / "benchmarks/template.md"
PAGE = ROOT / "docs/benchmarks.md"
APART, GROWTH, STARTUP = 8, 11, 12
"""The row that is measured only where it is asked for, and the numbers of what is no row of the table."""


def main() -> None:
    options = _parse()
    size, folder = (QUICK, RESULTS / "quick") if options.quick else (FULL, RESULTS)
    rows, peers, code = list_rows(size), find_peers(options.peers), digest_code()
    every = {row.number for row in rows} - {APART} | {STARTUP} | (set() if options.quick else {GROWTH})
    numbers = options.rows or every
    matches = _collect(rows, numbers)
    for match, wanted in matches:
        book = Book.open(folder / f"{match.name}.json", code)
        if options.rows and not options.resume:
            book.forget({one.name for group in match.group(wanted) for one in group})
        play(match, wanted, book, peers)
    if STARTUP in numbers:
        _note_startup(folder, 0.2 if options.quick else 0.5)
    _write_page(rows, folder, peers, options.quick)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds and epochs; the page is only printed")
    parser.add_argument("--rows", type=_read_numbers, help="measure these rows anew, such as 1,3")
    parser.add_argument("--resume", action="store_true", help="of these rows too, only what is not measured yet")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench", help="the other loops' environment")
    return parser.parse_args()


def _read_numbers(text: str) -> set[int]:
    return {int(number) for number in text.split(",")}


def _collect(rows: Sequence[Row], numbers: set[int]) -> list[tuple[Match, set[str]]]:
    """The matches that these rows need, each once, with the contestants that they need of it."""
    found = {row.match.name: row.match for row in rows}
    wanted: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.number in numbers:
            wanted[row.match.name] |= row.wanted
    if GROWTH in numbers:
        growth = list_match()
        found[growth.name], wanted[growth.name] = growth, {one.name for one in growth.contestants}
    return [(found[name], names) for name, names in wanted.items()]


def _note_startup(folder: Path, share: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    answers = [dataclasses.asdict(answer) for answer in measure_pairs(share)]
    (folder / "startup.json").write_text(json.dumps(answers), encoding="utf-8")


def _write_page(rows: Sequence[Row], folder: Path, peers: Path, quick: bool) -> None:
    """Write the page of all that is measured; what a quick look found is only printed."""
    code = digest_code()
    books = [Book.open(path, code) for path in sorted(folder.glob("*.json")) if path.stem != "startup"]
    results = {book.path.stem: book.read() for book in books}
    older = sorted({book.path.stem for book in books for entry in book.entries.values() if entry["code"] != code})
    machine = "\n".join(f"- {sentence}" for sentence in describe_machine(peers))
    if older:
        machine += f"\n- Measured with an earlier state of the code, in part at least: {', '.join(older)}."
    table, startup = render_rows(rows, results), _render_startup(folder)
    if quick:
        print(f"\n{machine}\n\n{table}\n\n{startup}")
        return
    growth = _render_growth(results["growth"]) if "growth" in results else "Not measured yet."
    startup = startup or "Not measured yet."
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    PAGE.write_text(template.substitute(machine=machine, rows=table, growth=growth, startup=startup), encoding="utf-8")
    print(f"wrote {PAGE}")


def _render_growth(results: Results) -> str:
    picture = PAGE.with_suffix(".png")
    picture.write_bytes(draw_growth(results))
    checks = ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in check_scaling(results).items())
    return (
        f"![seconds against images and epochs]({picture.name})\n\nFilled points are measured, hollow ones scaled from "
        f"them. As a check, twice the images took, over what was scaled: {checks}."
    )


def _render_startup(folder: Path) -> str:
    path = folder / "startup.json"
    if not path.exists():
        return ""
    answers = [Answer(**answer) for answer in json.loads(path.read_text(encoding="utf-8"))]
    lines = [
        (f"`{one.name}`", f"{one.ours:.2f}", f"`{one.base}`", f"{one.theirs:.2f}", f"{one.ratios[0]:.2f}")
        for one in answers
    ]
    return render_table(("command", "seconds", "beside", "seconds", "ratio"), lines)


if __name__ == "__main__":
    main()
