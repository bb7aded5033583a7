"""`python -m benchmarks` measures what is not measured yet and writes docs/benchmarks.md; --rows measures anew."""

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

from benchmarks.growth import BACKBONE, FEW, MORE, check_scaling, draw_growth, list_match
from benchmarks.machine import describe_machine, digest_code, find_peers
from benchmarks.matches import Book, Match, Results, play
from benchmarks.page import MISSING, render_rows, render_table
from benchmarks.processes import ROOT
from benchmarks.rows import FULL, QUICK, Row, list_rows
from benchmarks.startup import Answer, measure_pairs

RESULTS, TEMPLATE = ROOT / "benchmarks/results", ROOT / "benchmarks/template.md"
PAGE = ROOT / "docs/benchmarks.md"
APART, GROWTH, STARTUP = 8, 11, 12
"""The row that is measured only where it is asked for, and the numbers of what is no row of the table."""
_TELL_MISSING = f"{MISSING.capitalize()}."


def main() -> None:
    options = _parse()
    size, folder = (QUICK, RESULTS / "quick") if options.quick else (FULL, RESULTS)
    rows, peers, code = list_rows(size), find_peers(options.peers), digest_code()
    known = {row.number for row in rows} | {STARTUP} | (set() if options.quick else {GROWTH})
    numbers = options.rows or known - {APART}
    if not numbers <= known:
        sys.exit(f"--rows: there is no {_list(numbers - known)} here; there are {_list(known)}")
    matches = _collect(rows, numbers)
    for match, wanted in matches:
        book = Book.open(folder / f"{match.name}.json", code)
        if options.rows and not options.resume:
            book.forget({one.name for group in match.group(wanted) for one in group})
        play(match, wanted, book, peers)
    if STARTUP in numbers:
        _note_startup(folder, code, 0.2 if options.quick else 0.5)
    if options.quick:
        rows = [row for row in rows if row.number in numbers]
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


def _list(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _note_startup(folder: Path, code: str, share: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    answers = [dataclasses.asdict(answer) for answer in measure_pairs(share)]
    (folder / "startup.json").write_text(json.dumps({"code": code, "answers": answers}), encoding="utf-8")


def _write_page(rows: Sequence[Row], folder: Path, peers: Path, quick: bool) -> None:
    """Write the page of all that is measured; what a quick look found is only printed."""
    code, growth = digest_code(), list_match()
    played = {match.name: match for match in (*(row.match for row in rows), growth)}
    books = {name: Book.open(folder / f"{name}.json", code) for name in played}
    results = {name: book.read(played[name].contestants) for name, book in books.items()}
    startup = _read_startup(folder)
    older = [name for name, book in books.items() if book.is_older(played[name].contestants)]
    older += ["start-up"] if startup and startup["code"] != code else []
    machine = "\n".join(f"- {sentence}" for sentence in describe_machine(peers))
    if older:
        machine += f"\n- Measured with an earlier state of the code, in part at least: {', '.join(sorted(older))}."
    parts = {"machine": machine, "rows": render_rows(rows, results), "startup": _render_startup(startup)}
    if quick:
        print("\n{machine}\n\n{rows}\n\n{startup}".format(**parts))
        return
    whole = len(results[growth.name]) == len(growth.contestants)
    parts["growth"] = _render_growth(results[growth.name]) if whole else _TELL_MISSING
    PAGE.write_text(Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts), encoding="utf-8")
    print(f"wrote {PAGE}")


def _render_growth(results: Results) -> str:
    picture = PAGE.with_suffix(".png")
    picture.write_bytes(draw_growth(results))
    checks = ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in check_scaling(results).items())
    return (
        f"![seconds against images and epochs]({picture.name})\n\nA head stage of {BACKBONE} with a cold cache; of the "
        "images, PNGs of 300 pixels, a fifth validates. Filled points are measured, in one round, hollow ones scaled "
        f"from them. As a check, {MORE:,} images took, over what was scaled from {FEW:,}: {checks}."
    )


def _read_startup(folder: Path) -> dict[str, Any] | None:
    path = folder / "startup.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _render_startup(told: dict[str, Any] | None) -> str:
    if told is None:
        return _TELL_MISSING
    lines = [
        (f"`{one.name}`", str(one.pairs), f"{one.ours:.2f}", f"`{one.base}`", f"{one.theirs:.2f}", one.tell_ratio())
        for one in (Answer(**answer) for answer in told["answers"])
    ]
    return render_table(("command", "pairs", "seconds", "beside", "seconds", "ratio"), lines)


if __name__ == "__main__":
    main()
