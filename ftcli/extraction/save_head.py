"""A probe as the head of a network: a checkpoint to evaluate, to predict with, or to go on training from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import LoaderConfig, default_num_workers
from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.calibration import find_last_layer
from ftcli.evaluation.classifier import Classifier, model_from_checkpoint
from ftcli.evaluation.head_features import capture_io, cut_at_head, open_eval_loader
from ftcli.evaluation.loaded_model import LoadedModel
from ftcli.evaluation.logits import EvalOutputs, predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.extraction import sources
from ftcli.extraction.args import ExtractArgs
from ftcli.features.pipeline import FeaturePipeline, ForwardFn
from ftcli.features.probes import Probe
from ftcli.models.factory import create_model
from ftcli.models.heads import reset_classifier
from ftcli.planning import Plan, plan_recipe
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.recipe.schema import Data
from ftcli.results import ProgressTask, Reporter
from ftcli.runs.checkpoint import Checkpoint, write_checkpoint
from ftcli.runtime import raise_on_oom

_ROUNDING_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Where two scores differ by less than this share of the terms that they are sums of, rounding decides between them."""


@dataclass(frozen=True)
class ProbeHead:
    """A probe, and the linear layer that it was folded into: weight (classes, features) and bias (classes), float32."""

    probe: Probe
    weight: Tensor
    bias: Tensor


def save_head(
    source: sources.ExtractionSource,
    dataset: ImageDataset,
    head: ProbeHead,
    args: ExtractArgs,
    reporter: Reporter,
) -> None:
    """Write a checkpoint to `args.save_head`: the network of a source with the linear layer that a probe was folded into as its head.

    Its recipe is the source's without hidden layers, it stands at the end of the first stage, and its figures are
    those on val. They are measured with the network as it will be read from the file, which has to answer as the probe
    does for every image of val and test, and as often right as the probe was; images on the border of two classes,
    where rounding decides, are told.

    Raises RecipeError for a network or a recipe that cannot have such a head, RunError where an answer differs or the
    file cannot be written.
    """
    assert args.save_head is not None
    loaded, probe, path = source.loaded, head.probe, args.save_head
    plan = plan_linear_head(source.recipe_file, loaded, f"--save-head {path}")
    checkpoint = Checkpoint(
        kind="best",
        recipe=plan.recipe.model_dump(mode="json"),
        classes=dataset.classes,
        preprocessing=loaded.preprocessing,
        head_path=plan.head.path,
        stage=plan.recipe.stages[0].name,
        epoch=0,
        metrics={},
        origin=_describe_origin(loaded, probe),
        held={split: tuple(sample.path for sample in samples) for split, samples in dataset.splits.items()},
        state=_join_state_dict(loaded, plan, head),
    )
    image_size = plan.preprocessing.image_size
    model = model_from_checkpoint(checkpoint, plan.recipe, plan.head.path, image_size, str(path))
    overrides = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    data = plan.recipe.data.model_copy(update={key: value for key, value in overrides.items() if value is not None})
    device = next(loaded.model.parameters()).device
    classifier = Classifier.create(model, plan.preprocessing, dataset.classes, device, plan.recipe.precision)
    preprocessing, precision = plan.preprocessing, classifier.precision
    pipeline = (
        cut_at_head(classifier.model, plan.head.path, preprocessing, device, precision) if args.use_cache else None
    )
    metrics = {}
    for split, known_accuracy in (("val", probe.score.val_accuracy), ("test", probe.score.test_accuracy)):
        if split in dataset.splits:
            head_outputs = _predict_split(classifier, plan.head.path, pipeline, data, dataset, split, reporter)
            _check_same_predictions(head_outputs, head, known_accuracy, f"{path}: {split}", reporter)
            if split == "val":
                metrics = {
                    "val_loss": compute_loss(head_outputs.outputs),
                    "val_accuracy": compute_accuracy(head_outputs.outputs),
                }
    write_checkpoint(replace(checkpoint, metrics=metrics), path)


def plan_linear_head(recipe_file: RecipeFile, loaded: LoadedModel, location: str) -> Plan:
    """The plan of a recipe whose head is a single linear layer on the network of a subject.

    Raises RecipeError that begins with `where` if the network's own head is none on a vector; and the faults of a
    recipe whose patterns name hidden layers that are no longer there.
    """
    recipe_dict = recipe_file.recipe.model_dump(mode="json")
    recipe_dict["head"]["hidden"] = []
    linear_recipe = replace(recipe_file, recipe=recipe_from_dict(recipe_dict, recipe_file.source.name).recipe)
    try:
        plan = plan_recipe(linear_recipe, loaded.preprocessing)
    except RecipeError as error:
        if not recipe_file.recipe.head.hidden:
            raise
        messages = (
            f"{location}: puts one linear layer in the place of the hidden ones: {message}"
            for message in error.messages
        )
        raise RecipeError(*messages) from error
    if not plan.head_is_linear:
        raise RecipeError(
            f"{location}: the head of {loaded.name}, {plan.head.path}, is no linear layer that reads a vector "
            f"({plan.head.type}), so no probe can take its place; choose another model"
        )
    return plan


def _join_state_dict(loaded: LoadedModel, plan: Plan, probe_head: ProbeHead) -> dict[str, Tensor]:
    """The tensors of the subject's network, but for its head, whose place a linear layer takes."""
    head_path, state = plan.head.path, loaded.model.state_dict()
    joined: dict[str, Tensor] = {}
    model = create_model(loaded.name, meta=True, image_size=plan.preprocessing.image_size)
    reset_classifier(model, plan.recipe, head_path, len(probe_head.weight))
    for name in model.state_dict():
        if name.startswith(f"{head_path}."):
            joined[name] = probe_head.weight if name.endswith("weight") else probe_head.bias
        else:
            joined[name] = state[name]
    return joined


def _describe_origin(loaded: LoadedModel, probe: Probe) -> Mapping[str, Any]:
    is_checkpoint = loaded.classes is not None  # the weights are a checkpoint's, and sha256 is its digest
    return {
        "weights": loaded.weights,
        "weights_sha256": None if is_checkpoint else loaded.sha256,
        "checkpoint": loaded.sha256 if is_checkpoint else None,
        "probe": {
            "name": probe.score.name,
            "layer": probe.score.layer,
            "parameters": dict(probe.score.parameters),
            "cv_accuracy": probe.score.cv_accuracy,
        },
    }


@dataclass(frozen=True)
class _HeadOutputs:
    """The outputs of a network, and the features (n, d) that its head made them of, in the number format `dtype`."""

    outputs: EvalOutputs
    features: Tensor
    dtype: torch.dtype


def _predict_split(
    classifier: Classifier,
    head_path: str,
    pipeline: FeaturePipeline | None,
    data: Data,
    dataset: ImageDataset,
    split: str,
    reporter: Reporter,
) -> _HeadOutputs:
    batch_sizes: list[int] = []

    def count_images(forward: ForwardFn) -> ForwardFn:
        def counted_forward(inputs: tuple[Tensor, ...]) -> Tensor:
            batch_sizes.append(len(inputs[0]))
            return forward(inputs)

        return counted_forward

    samples, num_workers = dataset.splits[split], default_num_workers(data.num_workers, classifier.device, dataset)
    loader_config = LoaderConfig(dataset.root, data.on_corrupt_image, num_workers)
    task = ProgressTask(f"evaluating {split}", reporter)
    # A suffix calls the layers of a head that is a Sequential one by one, not the head itself.
    last_layer = classifier.model.get_submodule(find_last_layer(classifier.model, head_path))
    with (
        raise_on_oom(),
        capture_io(last_layer) as (head_inputs, head_outputs),
        open_eval_loader(classifier, pipeline, samples, loader_config, data.batch_size, task) as (loader, forward),
    ):
        outputs = predict_logits(classifier.model, count_images(forward), loader, task)
    # Without the rows of zeros that fill up a batch.
    features = [values[:size] for values, size in zip(head_inputs, batch_sizes, strict=True)]
    return _HeadOutputs(outputs, torch.cat(features).float(), head_outputs[0].dtype)


def _check_same_predictions(
    head_outputs: _HeadOutputs, head: ProbeHead, known_accuracy: float | None, location: str, reporter: Reporter
) -> None:
    """Raise RunError unless a network's answers are the probe's, and right as often as is known of that."""
    outputs, probe = head_outputs.outputs, head.probe
    expected, predicted = torch.from_numpy(probe.predict(head_outputs.features.numpy())), outputs.logits.argmax(1)
    is_borderline = _find_borderline(head_outputs, head)
    differs, num_images = expected != predicted, len(predicted)
    if len(wrong_indices := np.flatnonzero(differs & ~is_borderline)):
        first_index = int(wrong_indices[0])
        raise RunError(
            f"{location}: the head answers otherwise than the probe for {len(wrong_indices)} of {num_images} images, the first is "
            f"{outputs.paths[first_index]} ({probe.classes[predicted[first_index]]} instead of {probe.classes[expected[first_index]]}), so it "
            "is not written; set precision: float32 in the recipe, or leave --save-head out"
        )
    num_correct = int((predicted == outputs.labels).sum())
    if known_accuracy is not None and abs(num_correct - round(known_accuracy * num_images)) > int(is_borderline.sum()):
        raise RunError(
            f"{location}: the head has {num_correct} of {num_images} images right, and the probe {round(known_accuracy * num_images)}, so the "
            "network does not give the features that the probe was fitted to; the head is not written"
        )
    if num_ties := int(differs.sum()):
        verb = "is" if num_ties == 1 else "are"
        reporter.info(
            f"{location}: {num_ties} of {num_images} images {verb} on the border of two classes, where rounding decides, and "
            f"{verb} given another class than by the probe"
        )


def _find_borderline(head_outputs: _HeadOutputs, head: ProbeHead) -> Tensor:
    """Which images have two best scores that rounding may swap, bool (n)."""
    features, weights, biases = head_outputs.features.double(), head.weight.double(), head.bias.double()
    top_scores, top_classes = (features @ weights.T + biases).topk(2, dim=1)
    first, second = top_classes.T
    terms = (features.abs() * (weights[first] - weights[second]).abs()).sum(1) + (biases[first] - biases[second]).abs()
    return (top_scores[:, 0] - top_scores[:, 1]) <= _ROUNDING_TOLERANCE[head_outputs.dtype] * terms
