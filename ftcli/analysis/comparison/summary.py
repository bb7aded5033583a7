"""Runs beside one another: what differs in their recipes, their curves, and their answers to the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.analysis.comparison.answers import Trial, try_all
from ftcli.analysis.comparison.contenders import Contender, gather_contenders
from ftcli.analysis.comparison.differences import tell_differences
from ftcli.analysis.comparison.settings import find_settings
from ftcli.analysis.pictures import check_target
from ftcli.drawing import fit_text, tell_missing
from ftcli.errors import RecipeError
from ftcli.results import ComparedRun, Comparison, Reporter, tell_count
from ftcli.runs.overlay import draw_overlay
from ftcli.statistics import wilson
from ftcli.storage import replace_file

PICTURE = Path("comparison.png")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked: folders of runs or checkpoints; images and a split as `ftcli evaluate` takes them; and the
    file for the picture of the curves, None for PICTURE."""

    runs: tuple[Path, ...]
    data: Path | None = None
    split: str | None = None
    out: Path | None = None
    device: str


def compare(wish: Wish, reporter: Reporter) -> Comparison:
    """Set runs beside one another.

    Where they cannot be measured on the same images, the result says why. Raises RecipeError or CheckpointError for
    runs that cannot be compared at all, and, for images or a split that were asked for, what `measure` raises.
    """
    contenders = gather_contenders(wish.runs, reporter)
    picture = _choose_picture(wish, contenders)
    trials, why = try_all(contenders, wish.data, wish.split, wish.device, reporter)
    warnings = (
        *_find_partial(contenders),
        *_find_other_validation(contenders),
        *_find_seen(contenders, trials, wish),
    )
    for warning in warnings:
        reporter.warn(warning)
    if picture is not None:
        _draw(contenders, picture, reporter)
    return Comparison(
        runs=tuple(_sum_up(each, trials[place] if trials else None) for place, each in enumerate(contenders)),
        settings=find_settings(contenders),
        split=trials[0].split if trials else None,
        images=len(trials[0].keys) if trials else 0,
        differences=tell_differences([trial.answers for trial in trials]),
        why=why,
        picture=picture,
        warnings=warnings,
    )


def _choose_picture(wish: Wish, contenders: Sequence[Contender]) -> Path | None:
    """The file for the curves; None where no checkpoint lies in the folder of its run. Raises RecipeError where it
    cannot be written."""
    if any(each.rows for each in contenders):
        check_target(target := wish.out or PICTURE, "--out")
        return target
    if wish.out is not None:
        raise RecipeError(
            f"--out: {wish.out} would be empty, for none of the checkpoints lies in the folder of its run; leave it out"
        )
    return None


def _draw(contenders: Sequence[Contender], target: Path, reporter: Reporter) -> None:
    drawn = [each for each in contenders if each.rows]
    replace_file(target, draw_overlay([each.name for each in drawn], [each.rows for each in drawn]))
    stages = {row.stage for each in drawn for row in each.rows}
    if missing := tell_missing(map(fit_text, [*(each.name for each in drawn), *sorted(stages)])):
        reporter.warn(f"{target}: {missing}")


def _find_partial(contenders: Sequence[Contender]) -> list[str]:
    """A warning for each run whose figures are not those of a whole training."""
    warnings = []
    for each in contenders:
        if each.manifest is not None and each.manifest.get("ended") is None:
            warnings.append(f"{each.name}: has not ended its training; its figures are those that it has reached")
        before = each.checkpoint.origin.get("checkpoint")
        if each.rows and before is not None:
            known = {other.checkpoint.digest: other.name for other in contenders}
            warnings.append(
                f"{each.name}: carries on from {known.get(before, 'another checkpoint')}; its epochs and seconds are "
                "those since then"
            )
    return warnings


def _find_other_validation(contenders: Sequence[Contender]) -> list[str]:
    first, own = contenders[0].name, contenders[0].list_images("val")
    others = [each.name for each in contenders[1:] if each.list_images("val") != own]
    if not others:
        return []
    return [
        f"{', '.join(others)}: validated on other images than {first}, so that their validation losses cannot be "
        "compared"
    ]


def _find_seen(contenders: Sequence[Contender], trials: Sequence[Trial], wish: Wish) -> list[str]:
    """A warning for each run that was trained on images that it, or another, is tested on."""
    tested = {path for trial in trials for path, _ in trial.keys}
    if wish.data is None:  # what each was to be tested on, if it came to no trial
        tested |= {path for each in contenders for path in each.list_images(wish.split or "test")}
    return [
        f"{each.name}: was trained on {len(seen):,} of {tell_count(len(tested), 'image')} that runs are tested on, "
        f"such as {seen[0]}; such a comparison is unfair"
        for each in contenders
        if (seen := sorted(each.list_images("train") & tested))
    ]


def _sum_up(contender: Contender, trial: Trial | None) -> ComparedRun:
    val_loss, val_accuracy = contender.val_figures
    accuracy = low = high = None
    if trial is not None:
        right, images = int(trial.answers.right.sum()), len(trial.keys)
        accuracy, (low, high) = right / images, wilson(right, images)
    return ComparedRun(
        name=contender.name,
        run=contender.run,
        checkpoint=contender.path,
        epochs=sum(row.epoch > 0 for row in contender.rows) if contender.rows else None,
        seconds=round(sum(row.seconds for row in contender.rows), 3) if contender.rows else None,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        accuracy=accuracy,
        low=low,
        high=high,
        loss=trial.loss if trial else None,
    )
