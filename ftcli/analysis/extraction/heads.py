"""A probe as the head of a network: a checkpoint to evaluate, to predict with, or to go on training from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftcli.analysis.extraction import sources
from ftcli.analysis.subjects import Subject
from ftcli.data.loading import share_cores
from ftcli.data.sources import ImageSet
from ftcli.errors import RecipeError, RunError
from ftcli.features.cache import Source
from ftcli.features.probing import Probe
from ftcli.inference.calibration import find_last_layer
from ftcli.inference.classifier import Classifier, revive_model
from ftcli.inference.inputs import HeadInputs, Reading, open_feed, open_inputs
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import Look, Outputs, compute_outputs
from ftcli.planning import Plan, build_skeleton, plan_recipe
from ftcli.recipe.loading import Document, revive_recipe
from ftcli.recipe.schema import Data
from ftcli.results import Reporter
from ftcli.runs.checkpoint import Checkpoint, write_checkpoint
from ftcli.runtime import explain_memory

_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Where two scores differ by less than this share of the terms that they are sums of, rounding decides between them."""


@dataclass(frozen=True)
class LinearHead:
    """A probe, and the linear layer that it was folded into: weight (classes, features) and bias (classes), float32."""

    probe: Probe
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Revisit:
    """How images are seen again: in batches of `batch_size` by `workers` processes, None is as the recipe has; or, with
    `cache`, by what is kept of the same network, which is known by its tensors."""

    batch_size: int | None = None
    num_workers: int | None = None
    cache: bool = True


def save_head(
    source: sources.Source,
    images: ImageSet,
    head: LinearHead,
    target: Path,
    reporter: Reporter,
    revisit: Revisit = Revisit(),
) -> None:
    """Write a checkpoint: the network of a source with the linear layer that a probe was folded into as its head.

    Its recipe is the source's without hidden layers, it stands at the end of the first stage, and its figures are
    those on val. They are measured with the network as it will be read from the file, which has to answer as the probe
    does for every image of val and test, and as often right as the probe was; images on the border of two classes,
    where rounding decides, are told.

    Raises RecipeError for a network or a recipe that cannot have such a head, RunError where an answer differs or the
    file cannot be written.
    """
    subject, probe = source.subject, head.probe
    plan = plan_linear(source.document, subject, f"--save-head {target}")
    checkpoint = Checkpoint(
        kind="best",
        recipe=plan.recipe.model_dump(mode="json"),
        classes=images.classes,
        preprocessing=subject.preprocessing,
        stage=plan.recipe.stages[0].name,
        epoch=0,
        metrics={},
        origin=_tell_origin(subject, probe),
        held={split: tuple(sample.path for sample in samples) for split, samples in images.splits.items()},
        state=_join(subject, plan, head),
    )
    model = revive_model(plan, checkpoint, str(target))
    own = {"batch_size": revisit.batch_size, "num_workers": revisit.num_workers}
    data = plan.recipe.data.model_copy(update={key: value for key, value in own.items() if value is not None})
    device = next(subject.model.parameters()).device
    classifier = Classifier.place(model, plan.preprocessing, images.classes, device, plan.recipe.precision)
    expected, precision = plan.preprocessing, classifier.precision
    inputs = open_inputs(classifier.model, plan.head.path, expected, device, precision) if revisit.cache else None
    metrics = {}
    for split, known in (("val", probe.score.val_accuracy), ("test", probe.score.test_accuracy)):
        if split in images.splits:
            answers = _ask(classifier, plan.head.path, inputs, data, images, split, reporter)
            _compare(answers, head, known, f"{target}: {split}", reporter)
            if split == "val":
                metrics = {"val_loss": measure_loss(answers.outputs), "val_accuracy": measure_accuracy(answers.outputs)}
    write_checkpoint(replace(checkpoint, metrics=metrics), target)


def plan_linear(document: Document, subject: Subject, where: str) -> Plan:
    """The plan of a recipe whose head is a single linear layer on the network of a subject.

    Raises RecipeError that begins with `where` if the network's own head is none on a vector; and the faults of a
    recipe whose patterns name hidden layers that are no longer there.
    """
    plain = document.recipe.model_dump(mode="json")
    plain["head"]["hidden"] = []
    linear = replace(document, recipe=revive_recipe(plain, document.source).recipe)
    try:
        plan = plan_recipe(linear, subject.preprocessing)
    except RecipeError as error:
        if not document.recipe.head.hidden:
            raise
        faults = (f"{where}: puts one linear layer in the place of the hidden ones: {fault}" for fault in error.faults)
        raise RecipeError(*faults) from error
    if not plan.reads_vector:
        raise RecipeError(
            f"{where}: the head of {subject.name}, {plan.head.path}, is no linear layer that reads a vector "
            f"({plan.head.type}), so no probe can take its place; choose another model"
        )
    return plan


def _join(subject: Subject, plan: Plan, own: LinearHead) -> dict[str, Tensor]:
    """The tensors of the subject's network, but for its head, whose place a linear layer takes."""
    head, state = plan.head.path, subject.model.state_dict()
    joined: dict[str, Tensor] = {}
    for name in build_skeleton(plan, len(own.weight)).state_dict():
        if name.startswith(f"{head}."):
            joined[name] = own.weight if name.endswith("weight") else own.bias
        else:
            joined[name] = state[name]
    return joined


def _tell_origin(subject: Subject, probe: Probe) -> Mapping[str, Any]:
    trained = subject.classes is not None  # the weights are a checkpoint's, and sha256 is its digest
    return {
        "weights": subject.weights,
        "weights_sha256": None if trained else subject.sha256,
        "checkpoint": subject.sha256 if trained else None,
        "probe": {
            "name": probe.score.name,
            "layer": probe.score.layer,
            "parameters": dict(probe.score.parameters),
            "cv_accuracy": probe.score.cv_accuracy,
        },
    }


@dataclass(frozen=True)
class _Answers:
    """The outputs of a network, and the features (n, d) that its head made them of, in the number format `dtype`."""

    outputs: Outputs
    features: Tensor
    dtype: torch.dtype


def _ask(
    classifier: Classifier,
    head: str,
    inputs: HeadInputs | None,
    data: Data,
    images: ImageSet,
    split: str,
    reporter: Reporter,
) -> _Answers:
    task = f"evaluating {split}"
    counts: list[int] = []
    read: list[Tensor] = []
    given: list[torch.dtype] = []

    def note(_: nn.Module, values: tuple[Tensor, ...], output: Tensor) -> None:
        read.append(values[0].float().cpu())
        given.append(output.dtype)

    def count(look: Look) -> Look:
        def counting(values: tuple[Tensor, ...]) -> Tensor:
            counts.append(len(values[0]))
            return look(values)

        return counting

    reading = Reading(
        Source(images.root, data.on_corrupt_image, share_cores(data.num_workers, classifier.device, images)),
        data.batch_size,
    )
    # A head may be a row of layers, which the part of a network behind a cut calls one by one.
    last = find_last_layer(classifier.model, head)
    handle = classifier.model.get_submodule(last).register_forward_hook(note)
    try:
        with (
            explain_memory(),
            open_feed(classifier, inputs, images.splits[split], reading, reporter, task) as opened,
        ):
            assert opened is not None  # nothing stops it
            feed, look = opened
            outputs = compute_outputs(classifier.model, count(look), feed, reporter, task)
    finally:
        handle.remove()
    assert outputs is not None
    rows = [values[:number] for values, number in zip(read, counts, strict=True)]  # without what fills a batch up
    return _Answers(outputs, torch.cat(rows), given[0])


def _compare(answers: _Answers, head: LinearHead, known: float | None, where: str, reporter: Reporter) -> None:
    """Raise RunError unless a network's answers are the probe's, and right as often as is known of that."""
    outputs, probe = answers.outputs, head.probe
    wanted, given = torch.from_numpy(probe.predict(answers.features.numpy())), outputs.logits.argmax(1)
    close = _find_close(answers, head)
    differing, images = wanted != given, len(given)
    if len(wrong := np.flatnonzero(differing & ~close)):
        first = int(wrong[0])
        raise RunError(
            f"{where}: the head answers otherwise than the probe for {len(wrong)} of {images} images, the first is "
            f"{outputs.paths[first]} ({probe.classes[given[first]]} instead of {probe.classes[wanted[first]]}), so it "
            "is not written; set precision: float32 in the recipe, or leave --save-head out"
        )
    right = int((given == outputs.labels).sum())
    if known is not None and abs(right - round(known * images)) > int(close.sum()):
        raise RunError(
            f"{where}: the head has {right} of {images} images right, and the probe {round(known * images)}, so the "
            "network does not give the features that the probe was fitted to; the head is not written"
        )
    if ties := int(differing.sum()):
        verb = "is" if ties == 1 else "are"
        reporter.say(
            f"{where}: {ties} of {images} images {verb} on the border of two classes, where rounding decides, and "
            f"{verb} given another class than by the probe"
        )


def _find_close(answers: _Answers, head: LinearHead) -> Tensor:
    """Which images have two best scores that rounding may swap, bool (n)."""
    features, weights, biases = answers.features.double(), head.weight.double(), head.bias.double()
    best, places = (features @ weights.T + biases).topk(2, dim=1)
    first, second = places.T
    terms = (features.abs() * (weights[first] - weights[second]).abs()).sum(1) + (biases[first] - biases[second]).abs()
    return (best[:, 0] - best[:, 1]) <= _CLOSE[answers.dtype] * terms
