"""What runs answer to the same images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ftcli.analysis.comparison.contenders import Contender
from ftcli.analysis.comparison.differences import Answers
from ftcli.analysis.evaluation.measurement import Measurement, Question, gather_own, measure
from ftcli.data.sources import ImageSet
from ftcli.errors import CheckpointError, DataError
from ftcli.inference.metrics import measure_loss
from ftcli.recipe.loading import revive_recipe
from ftcli.results import Reporter, tell_count

_SHOWN = 5
"""How many classes are named."""

Key = tuple[str, str]
"""The real, absolute path of an image, and the name of its class."""


@dataclass(frozen=True)
class Trial:
    """The answers of a run to the images of a split, in the order of `keys`, and their mean cross-entropy."""

    answers: Answers
    keys: tuple[Key, ...]
    split: str
    loss: float


def try_all(
    contenders: Sequence[Contender], data: Path | None, split: str | None, device: str, reporter: Reporter
) -> tuple[tuple[Trial, ...], str | None]:
    """What the runs answer to the same images, those of `data` or of their own recipes; or nothing, and why.

    Raises what `measure` raises where a `data` or `split` was asked for.
    """
    first = contenders[0]
    for other in contenders[1:]:
        if set(other.checkpoint.classes) != set(first.checkpoint.classes):
            return (), _tell_other_classes(first, other)
    try:
        # Before any image is read.
        if data is None and (why := _tell_other_images([_list_own(each, split, reporter) for each in contenders])):
            return (), why
        questions = [Question(checkpoint=each.path, data=data, split=split, device=device) for each in contenders]
        trials = [_arrange(each, measure(q, reporter)) for each, q in zip(contenders, questions, strict=True)]
    except (CheckpointError, DataError) as error:
        if data is not None or split is not None:
            raise
        return (), f"not all can be measured: {error.faults[0]}; or give images for all with --data"
    # A recipe may leave out broken images.
    why = _tell_other_images([_Listed(trial.answers.name, trial.split, trial.keys) for trial in trials])
    return ((), why) if why else (tuple(trials), None)


@dataclass(frozen=True)
class _Listed:
    """The images of a split, sorted."""

    name: str
    split: str
    keys: tuple[Key, ...]


def _list_own(contender: Contender, split: str | None, reporter: Reporter) -> _Listed:
    """The images that a run would be measured on; none where its recipe has no such split, which `measure` tells."""
    document = revive_recipe(contender.checkpoint.recipe, str(contender.path))
    images = gather_own(document, contender.checkpoint, contender.path, reporter)
    chosen = split or ("test" if "test" in images.splits else "val")
    samples = images.splits.get(chosen, ())
    keys = _make_keys(images, (sample.path for sample in samples), (sample.label for sample in samples))
    return _Listed(contender.name, chosen, tuple(sorted(keys)))


def _make_keys(images: ImageSet, paths: Iterable[str], labels: Iterable[int]) -> list[Key]:
    return [
        (os.path.realpath(images.root / path), images.classes[label]) for path, label in zip(paths, labels, strict=True)
    ]


def _arrange(contender: Contender, found: Measurement) -> Trial:
    """The answers in an order of images and classes that does not depend on the run."""
    outputs, classes = found.outputs, found.classifier.classes
    keys = _make_keys(found.images, outputs.paths, outputs.labels.tolist())
    order = sorted(range(len(keys)), key=lambda place: keys[place])
    places = {name: place for place, name in enumerate(sorted(classes))}
    table = np.array([places[name] for name in classes], dtype=np.int64)
    given, labels = outputs.logits.argmax(1).numpy(), outputs.labels.numpy()
    answers = Answers(contender.name, table[given[order]], table[labels[order]])
    return Trial(answers, tuple(keys[place] for place in order), found.split, measure_loss(outputs))


def _tell_other_classes(first: Contender, other: Contender) -> str:
    """Which classes one of two runs knows and the other does not, the first few of each."""
    own, its = (set(each.checkpoint.classes) for each in (first, other))
    parts = []
    for classes, place in ((sorted(own - its), "first"), (sorted(its - own), "second")):
        if classes:
            more = f" and {len(classes) - _SHOWN:,} more" if len(classes) > _SHOWN else ""
            parts.append(f"{', '.join(classes[:_SHOWN])}{more} of the {place} alone")
    return f"{first.name} and {other.name} know other classes: {'; '.join(parts)}"


def _tell_other_images(listed: Sequence[_Listed]) -> str | None:
    """How the images of the first run that has others than the first differ from those; None where there is none."""
    first = listed[0]
    other = next((each for each in listed if each.keys != first.keys), None)
    if other is None:
        return None
    names = f"{first.name} and {other.name}"
    own, its = ({path for path, _ in each.keys} for each in (first, other))
    if alone := sorted(own ^ its):
        kinds = first.split if first.split == other.split else f"{first.split} and {other.split}"
        return (
            f"{names} have other images in {kinds}: {tell_count(len(own - its), 'image')} of the first alone, "
            f"{len(its - own):,} of the second alone, such as {alone[0]}; give images for all with --data"
        )
    (path, label), (_, another) = next(pair for pair in zip(first.keys, other.keys, strict=True) if pair[0] != pair[1])
    return f"{names} have other classes for {path}: {label} and {another}; give images for all with --data"
