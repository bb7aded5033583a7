"""Who takes part in a comparison, and what one go of it costs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.data import make_data
from benchmarks.jobs import DataSet, Job, Stage
from benchmarks.processes import Outcome, run_program
from benchmarks.recipes import write_recipe

_COMMANDS = ("train", "extract", "evaluate")
_PASSES = ("extract", "evaluate", "forward", "fastest_forward")
"""Programs that train nothing."""
_OWN = ("own_loop", "memory_loop", "fastest_forward")
"""Loops that are not as people write them but as fast as can be: they run with ftcli's Python, and as ftcli does."""


@dataclass(frozen=True)
class Contestant:
    """A program and its job. `program` is a command of ftcli, or a module of benchmarks.peers.

    `cache` is what a recipe's stages keep: off, or a number of views, or all; `after` names the contestant whose cache
    this one finds, otherwise it finds an empty one. `epochs` is what the measured seconds are scaled to; 0 leaves them.
    """

    name: str
    program: str
    job: Job
    cache: str = "off"
    settings: tuple[str, ...] = ()
    after: str = ""
    epochs: int = 0

    @property
    def trained(self) -> int:
        """The epochs that are measured, of all stages; 0 where nothing is trained."""
        return 0 if self.program in _PASSES else sum(stage.epochs for stage in self.job.stages)

    @property
    def is_scaled(self) -> bool:
        """Whether fewer epochs were measured than are told."""
        return self.epochs not in (0, self.job.stages[0].epochs)


@dataclass(frozen=True)
class Measurement:
    """What one go cost: `seconds` of the stage, or of the command once its network is built, `wall` of the whole
    process, and its `peak` of memory in bytes. `epochs` are the seconds of each, `accuracies` those on val after each,
    `course` the seconds from the beginning to the end of each, `frozen` the seconds in which what is kept was
    computed."""

    seconds: float
    wall: float
    peak: int
    epochs: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    course: tuple[float, ...] = ()
    frozen: float = 0.0

    @classmethod
    def revive(cls, plain: dict[str, Any]) -> Measurement:
        """The measurement that was written as JSON."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**fields)

    def scale(self, epochs: int) -> float:
        """The seconds of so many epochs, had each taken the mean of those that were measured; 0 leaves them."""
        if not epochs:
            return self.seconds
        return self.seconds - sum(self.epochs) + epochs * fmean(self.epochs)


@dataclass(frozen=True)
class Place:
    """Where contestants run: the Python of the other loops, a folder for what they write, and the cache they find."""

    peers: Path
    work: Path
    cache: Path


def measure(contestant: Contestant, place: Place) -> Measurement:
    """Let a contestant have one go."""
    if contestant.program == "train":
        return _train(contestant, place)
    if contestant.program in _COMMANDS:
        told = _run_command(contestant, place)
        return Measurement(told.document["seconds"], told.seconds, told.peak)
    return _read_loop(_run_loop(contestant, place))


def _environment(place: Place) -> dict[str, str]:
    return {"FTCLI_CACHE": str(place.cache), "FTCLI_CACHE_LIMIT": "20GB"}


def _write_recipe(contestant: Contestant, place: Place) -> Path:
    views = int(contestant.cache) if contestant.cache.isdigit() else contestant.cache
    path = place.work / "recipe.yaml"
    path.write_text(write_recipe(contestant.job, "off" if views == "off" else {"views": views}), encoding="utf-8")
    return path


def _train(contestant: Contestant, place: Place) -> Measurement:
    settings = [f"--set={setting}" for setting in contestant.settings]
    out = place.work / "run"
    recipe = _write_recipe(contestant, place)
    command: list[str | Path] = ["train", recipe, *settings, "--out", out, "--device", "cpu", "--json"]
    told = _read_training(run_program([sys.executable, "-m", "ftcli", *command], _environment(place)))
    shutil.rmtree(out)
    return told


def _run_command(contestant: Contestant, place: Place) -> Outcome:
    """Extract the features of train, or evaluate a checkpoint on it."""
    images = contestant.job.data.folder / "train"
    if contestant.program == "extract":
        source: list[str | Path] = [_write_recipe(contestant, place), "--out", place.work / "features.npz"]
    else:
        source = [_make_checkpoint(contestant.job, place)]
    command: list[str | Path] = [contestant.program, *source, "--data", images, "--device", "cpu", "--json"]
    return run_program([sys.executable, "-m", "benchmarks.clocked", *command], _environment(place))


def _make_checkpoint(job: Job, place: Place) -> Path:
    """A checkpoint of the job's network, as the shortest of trainings leaves it; made once."""
    run = place.work / f"checkpoint-{job.backbone.replace('/', '-')}"
    if not run.is_dir():
        data = DataSet("png", 16, 8)
        make_data(data)
        small = Job(data, job.backbone, (Stage("backbone", 1),), job.pretrained, job.image_size, job.resize)
        recipe = place.work / "checkpoint.yaml"
        recipe.write_text(write_recipe(small, "off"), encoding="utf-8")
        run_program([sys.executable, "-m", "ftcli", "train", recipe, "--out", run, "--json"], _environment(place))
    return run / "best_loss.pt"


def _run_loop(contestant: Contestant, place: Place) -> Outcome:
    own = contestant.program in _OWN
    command = ["-m", f"benchmarks.peers.{contestant.program}", contestant.job.to_text()]
    return run_program(
        [sys.executable if own else place.peers, *command], {"OMP_WAIT_POLICY": "PASSIVE"} if own else {}
    )


def _read_loop(told: Outcome) -> Measurement:
    epochs = tuple(told.document["epochs"])
    course = tuple(sum(epochs[: number + 1]) for number in range(len(epochs)))
    accuracies = tuple(told.document["accuracies"])
    return Measurement(told.document["seconds"], told.seconds, told.peak, epochs, accuracies, course)


def _read_training(told: Outcome) -> Measurement:
    """What `ftcli train` told, with the epochs that its run has written down. What a stage takes beside its epochs, its
    first validation and its frozen part, lies before them in the course."""
    stages = told.document["stages"]
    lines = (Path(told.document["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["epoch"]]
    course: list[float] = []
    passed = 0.0
    for stage in stages:
        taken = [row["seconds"] for row in rows if row["stage"] == stage["name"]]
        at = passed + stage["seconds"] - sum(taken)
        for seconds in taken:
            at += seconds
            course.append(at)
        passed += stage["seconds"]
    return Measurement(
        seconds=passed,
        wall=told.seconds,
        peak=told.peak,
        epochs=tuple(row["seconds"] for row in rows),
        accuracies=tuple(row["val_accuracy"] for row in rows),
        course=tuple(course),
        frozen=sum(stage["times"]["frozen"] for stage in stages),
    )
