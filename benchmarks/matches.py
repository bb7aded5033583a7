"""Matches: contestants that have one go each in turn, round after round, and what they cost, kept on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant, Measurement, Place, measure
from benchmarks.data import make_data

Results = Mapping[str, Sequence[Measurement]]
"""What each contestant's goes cost, by its name, a measurement a round."""


@dataclass(frozen=True)
class Match:
    """Contestants with names that differ, and how many rounds they play."""

    name: str
    contestants: tuple[Contestant, ...]
    rounds: int

    def group(self, wanted: Collection[str]) -> list[list[Contestant]]:
        """The contestants that are wanted, each after the one whose cache it finds, which then plays too."""
        groups = []
        for base in (one for one in self.contestants if not one.after):
            followers = [one for one in self.contestants if one.after == base.name and one.name in wanted]
            if followers or base.name in wanted:
                groups.append([base, *followers])
        return groups


@dataclass
class Book:
    """Where a match's measurements are written down. `code` is the state of the code that they are of."""

    path: Path
    code: str
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, code: str) -> Book:
        """The book at a path, empty where there is none."""
        return cls(path, code, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def find(self, contestant: Contestant, number: int) -> bool:
        """Whether the go of a round is written down, of this very contestant and state of the code."""
        return (
            self._holds(contestant)
            and not self.is_older([contestant])
            and len(self.entries[contestant.name]["rounds"]) > number
        )

    def add(self, contestant: Contestant, number: int, measurement: Measurement) -> None:
        """Write down a go; what is there of another contestant, state of the code, or from this round on, goes."""
        kept = self.entries[contestant.name]["rounds"][:number] if number and self.find(contestant, number - 1) else []
        rounds = [*kept, dataclasses.asdict(measurement)]
        self.entries[contestant.name] = {"contestant": _plain(contestant), "code": self.code, "rounds": rounds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")
        fresh.replace(self.path)

    def forget(self, names: Collection[str]) -> None:
        """Let these contestants be measured anew."""
        self.entries = {name: entry for name, entry in self.entries.items() if name not in names}

    def read(self, contestants: Sequence[Contestant]) -> Results:
        """What is written down of these very contestants, of whatever state of the code; those without are left out."""
        return {
            one.name: [Measurement.revive(go) for go in self.entries[one.name]["rounds"]]
            for one in contestants
            if self._holds(one)
        }

    def is_older(self, contestants: Sequence[Contestant]) -> bool:
        """Whether what is written down of one of these very contestants is of another state of the code."""
        return any(self.entries[one.name]["code"] != self.code for one in contestants if self._holds(one))

    def _holds(self, contestant: Contestant) -> bool:
        same: bool = self.entries.get(contestant.name, {}).get("contestant") == _plain(contestant)
        return same


def _plain(contestant: Contestant) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(contestant)))


def order_round(groups: Sequence[Sequence[Contestant]], number: int) -> Iterator[list[Contestant]]:
    """The groups in the order of a round: another begins each time, and another of those that follow it."""
    for group in (*groups[number % len(groups) :], *groups[: number % len(groups)]):
        first, *rest = group
        turn = number % len(rest) if rest else 0
        yield [first, *rest[turn:], *rest[:turn]]


def play(match: Match, wanted: Collection[str], book: Book, peers: Path) -> None:
    """Let the wanted contestants have the goes that the book lacks, and write them down, each as it ends.

    Each group has an empty cache of its own in each round.
    """
    groups = match.group(wanted)
    with tempfile.TemporaryDirectory(prefix="ftcli-benchmark-") as folder:
        for number in range(match.rounds):
            for group in order_round(groups, number):
                if all(book.find(one, number) for one in group):
                    continue
                cache = Path(folder) / "cache"
                for contestant in group:
                    make_data(contestant.job.data)
                    measurement = measure(contestant, Place(peers, Path(folder), cache))
                    book.add(contestant, number, measurement)
                    _tell(match, number, contestant, measurement)
                shutil.rmtree(cache, ignore_errors=True)


def _tell(match: Match, number: int, contestant: Contestant, measurement: Measurement) -> None:
    place = f"{match.name}, round {number + 1} of {match.rounds}"
    print(f"{place}: {contestant.name}: {measurement.seconds:.2f} s of {measurement.wall:.2f} s", flush=True)
