"""Candidates of a comparison and the measurement of one run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.data import make_data
from benchmarks.jobs import BenchmarkData, Job, JobStage
from benchmarks.processes import ProgramResult, run_program
from benchmarks.recipes import write_recipe

_COMMANDS = ("train", "extract", "evaluate")
_FORWARD_PROGRAMS = ("extract", "evaluate", "forward", "fastest_forward")
"""Programs that do not train."""
_FTCLI_LOOPS = ("own_loop", "memory_loop", "fastest_forward")
"""Loops that are optimized for speed; they run with ftcli's Python environment."""


@dataclass(frozen=True)
class Candidate:
    """A program and its job. `program` is a command of ftcli or a module of benchmarks.peers.

    `cache` is off, a number of views, or all. `cache_from` names the candidate whose cache this one uses; without it
    the cache is empty. The seconds are scaled to `scaled_epochs`; 0 does not scale.
    """

    name: str
    program: str
    job: Job
    cache: str = "off"
    settings: tuple[str, ...] = ()
    cache_from: str = ""
    scaled_epochs: int = 0

    @property
    def num_epochs(self) -> int:
        """The number of measured epochs of all stages; 0 without training."""
        return 0 if self.program in _FORWARD_PROGRAMS else sum(stage.epochs for stage in self.job.stages)

    @property
    def is_scaled(self) -> bool:
        """Whether the seconds are scaled from fewer epochs."""
        return self.scaled_epochs not in (0, self.job.stages[0].epochs)


@dataclass(frozen=True)
class Measurement:
    """The cost of one run.

    `seconds` of the stage, or of the command after the network is created; `process_seconds` of the process;
    `peak_memory` in bytes; seconds and validation accuracy of each epoch; `elapsed` seconds from the start to the end
    of each epoch; `feature_seconds` of feature extraction.
    """

    seconds: float
    process_seconds: float
    peak_memory: int
    epochs: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    elapsed: tuple[float, ...] = ()
    feature_seconds: float = 0.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measurement:
        """Load a measurement from JSON."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)

    def scale(self, epochs: int) -> float:
        """Return the seconds scaled to `epochs` with the mean epoch; 0 does not scale."""
        if not epochs:
            return self.seconds
        return self.seconds - sum(self.epochs) + epochs * fmean(self.epochs)


@dataclass(frozen=True)
class Environment:
    """The environment of a run: the Python of the other loops, a folder for output, and the cache."""

    peer_python: Path
    work_dir: Path
    cache_dir: Path


def measure(candidate: Candidate, environment: Environment) -> Measurement:
    """Run a candidate once."""
    if candidate.program == "train":
        return _train(candidate, environment)
    if candidate.program in _COMMANDS:
        result = _run_command(candidate, environment)
        return Measurement(result.document["seconds"], result.seconds, result.peak_memory)
    return _measurement_of_loop(_run_loop(candidate, environment))


def _environment_variables(environment: Environment) -> dict[str, str]:
    return {"FTCLI_CACHE": str(environment.cache_dir), "FTCLI_CACHE_LIMIT": "20GB"}


def _write_recipe(candidate: Candidate, environment: Environment) -> Path:
    views = int(candidate.cache) if candidate.cache.isdigit() else candidate.cache
    path = environment.work_dir / "recipe.yaml"
    path.write_text(write_recipe(candidate.job, "off" if views == "off" else {"views": views}), encoding="utf-8")
    return path


def _train(candidate: Candidate, environment: Environment) -> Measurement:
    settings = [f"--set={setting}" for setting in candidate.settings]
    out = environment.work_dir / "run"
    recipe = _write_recipe(candidate, environment)
    command: list[str | Path] = ["train", recipe, *settings, "--out", out, "--device", "cpu", "--json"]
    measurement = _measurement_of_training(
        run_program([sys.executable, "-m", "ftcli", *command], _environment_variables(environment))
    )
    shutil.rmtree(out)
    return measurement


def _run_command(candidate: Candidate, environment: Environment) -> ProgramResult:
    """Extract the features of train, or evaluate a checkpoint on train."""
    images = candidate.job.data.folder / "train"
    if candidate.program == "extract":
        source: list[str | Path] = [
            _write_recipe(candidate, environment),
            "--out",
            environment.work_dir / "features.npz",
        ]
    else:
        source = [_make_checkpoint(candidate.job, environment)]
    command: list[str | Path] = [candidate.program, *source, "--data", images, "--device", "cpu", "--json"]
    return run_program([sys.executable, "-m", "benchmarks.clocked", *command], _environment_variables(environment))


def _make_checkpoint(job: Job, environment: Environment) -> Path:
    """Return a checkpoint of the job's network after one epoch; created once."""
    run = environment.work_dir / f"checkpoint-{job.backbone.replace('/', '-')}"
    if not run.is_dir():
        data = BenchmarkData("png", 16, 8)
        make_data(data)
        small = Job(data, job.backbone, (JobStage("backbone", 1),), job.pretrained, job.image_size, job.resize)
        recipe = environment.work_dir / "checkpoint.yaml"
        recipe.write_text(write_recipe(small, "off"), encoding="utf-8")
        run_program(
            [sys.executable, "-m", "ftcli", "train", recipe, "--out", run, "--json"],
            _environment_variables(environment),
        )
    return run / "best_loss.pt"


def _run_loop(candidate: Candidate, environment: Environment) -> ProgramResult:
    uses_ftcli_python = candidate.program in _FTCLI_LOOPS
    command = ["-m", f"benchmarks.peers.{candidate.program}", candidate.job.to_json()]
    return run_program(
        [sys.executable if uses_ftcli_python else environment.peer_python, *command],
        {"OMP_WAIT_POLICY": "PASSIVE"} if uses_ftcli_python else {},
    )


def _measurement_of_loop(result: ProgramResult) -> Measurement:
    epochs = tuple(result.document["epochs"])
    elapsed = tuple(sum(epochs[: number + 1]) for number in range(len(epochs)))
    accuracies = tuple(result.document["accuracies"])
    return Measurement(result.document["seconds"], result.seconds, result.peak_memory, epochs, accuracies, elapsed)


def _measurement_of_training(result: ProgramResult) -> Measurement:
    """Return the measurement of `ftcli train` from its result and its metrics.jsonl.

    The time of a stage outside its epochs (first validation, feature extraction) counts before the first epoch.
    """
    stages = result.document["stages"]
    lines = (Path(result.document["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["epoch"]]
    elapsed: list[float] = []
    stage_start = 0.0
    for stage in stages:
        epoch_seconds = [row["seconds"] for row in rows if row["stage"] == stage["name"]]
        end = stage_start + stage["seconds"] - sum(epoch_seconds)
        for seconds in epoch_seconds:
            end += seconds
            elapsed.append(end)
        stage_start += stage["seconds"]
    return Measurement(
        seconds=stage_start,
        process_seconds=result.seconds,
        peak_memory=result.peak_memory,
        epochs=tuple(row["seconds"] for row in rows),
        accuracies=tuple(row["val_accuracy"] for row in rows),
        elapsed=tuple(elapsed),
        feature_seconds=sum(stage["times"]["frozen"] for stage in stages),
    )
