"""What the user asks of an evaluation, and what of it cannot be."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ftcli.analysis.evaluation.measurement import Case
from ftcli.analysis.evaluation.predictions import ENDINGS
from ftcli.analysis.report import check_report
from ftcli.errors import RecipeError, suggest
from ftcli.inference.outputs import VIEWS
from ftcli.runs.records import is_of_run
from ftcli.storage import check_writable, is_same_file


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What `ftcli evaluate` does beside measuring: thresholds for this `recall`, a calibrated checkpoint at `out`, or
    beside the old one, files of all predictions and of the report."""

    recall: float | None = None
    calibrate: bool = False
    out: Path | None = None
    predictions: Path | None = None
    report: Path | None = None


def check_wish(wish: Wish, views: str | None) -> None:
    """Raise RecipeError with every fault that shows without the checkpoint; `views` is what --tta names."""
    faults: list[str] = []
    if wish.recall is not None and not 0 < wish.recall <= 1:
        faults.append(f"--min-recall: {wish.recall:g} is no share above 0 and up to 1; give one such as 0.95")
    if views is not None and views not in VIEWS:
        faults.append(f"--tta: {views!r} names no views; {suggest(views, VIEWS)}")
    if wish.out is not None and not wish.calibrate:
        faults.append(f"--out: {wish.out} is where --calibrate puts its checkpoint; add --calibrate, or leave it out")
    if wish.out is not None and wish.out.suffix != ".pt":
        faults.append(f"--out: {wish.out} does not end in .pt, as checkpoints do; give such a name")
    if wish.out is not None and is_of_run(wish.out):
        faults.append(f"--out: {wish.out} is a checkpoint that its run goes on from; give another name")
    if wish.predictions is not None and (fault := _find_fault(wish.predictions)):
        faults.append(fault)
    for option, place in _list_places(wish):
        try:
            if option == "--report":
                check_report(place)
            check_writable(place, option)
        except RecipeError as error:
            faults += error.faults
    places = _list_places(wish)
    for number, (option, place) in enumerate(places):
        for other, before in places[:number]:
            if is_same_file(place, before):
                faults.append(f"{option}: {place} is also where {other} writes; give each a name of its own")
    if faults:
        raise RecipeError(*faults)


def check_case(wish: Wish, case: Case) -> None:
    """Raise RecipeError with every fault that shows once the checkpoint is known."""
    faults: list[str] = []
    count = len(case.checkpoint.classes)
    if wish.recall is not None and count != 2:
        faults.append(
            f"--min-recall: {wish.recall:g} asks for a threshold between two classes, and {case.path} has {count}; leave "
            "it out"
        )
    if wish.calibrate and wish.out is None:
        try:
            check_writable(name_calibrated(case.path), "--calibrate")
        except RecipeError as error:
            faults += error.faults
    for option, place in _list_places(wish):
        if is_same_file(place, case.path):
            faults.append(f"{option}: {place} is the checkpoint itself, which stays as it is; give another name")
    if faults:
        raise RecipeError(*faults)


def name_calibrated(path: Path) -> Path:
    """Where a calibrated checkpoint goes without --out: beside the old one."""
    return path.with_name(f"{path.stem}-calibrated.pt")


def _find_fault(path: Path) -> str | None:
    """Why no predictions can be written to a file of this name; None where they can."""
    if path.suffix.lower() not in ENDINGS:
        return f"--predictions: {path} does not end in {' or '.join(ENDINGS)}; give such a name"
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        return f"--predictions: {path} needs the package pyarrow; pip install 'ftcli[parquet]'"
    return None


def _list_places(wish: Wish) -> list[tuple[str, Path]]:
    """The files that the user names, each with its option."""
    named = (("--out", wish.out), ("--predictions", wish.predictions), ("--report", wish.report))
    return [(option, place) for option, place in named if place is not None]
