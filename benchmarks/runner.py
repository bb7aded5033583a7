"""Benchmarks: candidates that run in turn for several rounds, with results saved on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.candidates import Candidate, Environment, Measurement, measure
from benchmarks.data import make_data

Results = Mapping[str, Sequence[Measurement]]
"""The measurements of each candidate by name, one for each round."""


@dataclass(frozen=True)
class Benchmark:
    """Candidates with unique names, and the number of rounds."""

    name: str
    candidates: tuple[Candidate, ...]
    num_rounds: int

    def group_by_cache(self, wanted: Collection[str]) -> list[list[Candidate]]:
        """Return groups of candidates that share a cache, in the order in which they run."""
        groups = []
        for first in (one for one in self.candidates if not one.cache_from):
            followers = [one for one in self.candidates if one.cache_from == first.name and one.name in wanted]
            if followers or first.name in wanted:
                groups.append([first, *followers])
        return groups


@dataclass
class ResultsFile:
    """The file of a benchmark's measurements. `code` is the digest of the measured code."""

    path: Path
    code: str
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, code: str) -> ResultsFile:
        """Open a results file; a missing file is empty."""
        return cls(path, code, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def has_result(self, candidate: Candidate, round_index: int) -> bool:
        """Return whether this round of the candidate was measured with this code."""
        return (
            self._has_entry(candidate)
            and not self.is_outdated([candidate])
            and len(self.entries[candidate.name]["rounds"]) > round_index
        )

    def add(self, candidate: Candidate, round_index: int, measurement: Measurement) -> None:
        """Save a measurement; replace those of another candidate or code and of later rounds."""
        previous = (
            self.entries[candidate.name]["rounds"][:round_index]
            if round_index and self.has_result(candidate, round_index - 1)
            else []
        )
        rounds = [*previous, dataclasses.asdict(measurement)]
        self.entries[candidate.name] = {"candidate": _to_json(candidate), "code": self.code, "rounds": rounds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")
        temporary.replace(self.path)

    def remove(self, names: Collection[str]) -> None:
        """Remove the measurements of these candidates."""
        self.entries = {name: entry for name, entry in self.entries.items() if name not in names}

    def read(self, candidates: Sequence[Candidate]) -> Results:
        """Return the measurements of these candidates with any version of the code."""
        return {
            one.name: [Measurement.from_dict(measurement) for measurement in self.entries[one.name]["rounds"]]
            for one in candidates
            if self._has_entry(one)
        }

    def is_outdated(self, candidates: Sequence[Candidate]) -> bool:
        """Return whether a measurement of these candidates is of another version of the code."""
        return any(self.entries[one.name]["code"] != self.code for one in candidates if self._has_entry(one))

    def _has_entry(self, candidate: Candidate) -> bool:
        is_same: bool = self.entries.get(candidate.name, {}).get("candidate") == _to_json(candidate)
        return is_same


def _to_json(candidate: Candidate) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(candidate)))


def order_round(groups: Sequence[Sequence[Candidate]], round_index: int) -> Iterator[list[Candidate]]:
    """Return the groups in the order of a round; each round starts with another group."""
    for group in (*groups[round_index % len(groups) :], *groups[: round_index % len(groups)]):
        first, *rest = group
        turn = round_index % len(rest) if rest else 0
        yield [first, *rest[turn:], *rest[:turn]]


def run_benchmark(benchmark: Benchmark, wanted: Collection[str], results_file: ResultsFile, peer_python: Path) -> None:
    """Run the missing rounds of the candidates and save each measurement.

    Each group starts with an empty cache in each round.
    """
    groups = benchmark.group_by_cache(wanted)
    with tempfile.TemporaryDirectory(prefix="ftcli-benchmark-") as folder:
        for round_index in range(benchmark.num_rounds):
            for group in order_round(groups, round_index):
                if all(results_file.has_result(one, round_index) for one in group):
                    continue
                cache = Path(folder) / "cache"
                for candidate in group:
                    make_data(candidate.job.data)
                    measurement = measure(candidate, Environment(peer_python, Path(folder), cache))
                    results_file.add(candidate, round_index, measurement)
                    _print_progress(benchmark, round_index, candidate, measurement)
                shutil.rmtree(cache, ignore_errors=True)


def _print_progress(benchmark: Benchmark, round_index: int, candidate: Candidate, measurement: Measurement) -> None:
    label = f"{benchmark.name}, round {round_index + 1} of {benchmark.num_rounds}"
    print(f"{label}: {candidate.name}: {measurement.seconds:.2f} s of {measurement.process_seconds:.2f} s", flush=True)
