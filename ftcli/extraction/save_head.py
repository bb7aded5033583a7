"""A probe saved as the head of a network: a checkpoint to evaluate, predict with and train."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import LoaderConfig, choose_num_workers
from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.calibration import find_last_layer
from ftcli.evaluation.classifier import Classifier, LoadedModel, model_from_checkpoint
from ftcli.evaluation.head_features import capture_io, cut_at_head, open_eval_loader
from ftcli.evaluation.logits import EvalOutputs, predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.extraction.args import ExtractArgs
from ftcli.extraction.sources import ExtractionSource
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

logger = logging.getLogger(__name__)

_ROUNDING_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Two scores are equal but for rounding if their difference is below this fraction of the sum of their terms."""


@dataclass(frozen=True)
class ProbeHead:
    """A probe and its linear layer: weight (classes, features) and bias (classes), float32."""

    probe: Probe
    weight: Tensor
    bias: Tensor


def save_head(
    source: ExtractionSource, dataset: ImageDataset, head: ProbeHead, args: ExtractArgs, reporter: Reporter
) -> None:
    """Write a checkpoint of a source's network, with the linear layer of a probe as its head, to `args.save_head`.

    Its recipe is the source's without hidden layers; its stage is the first, its metrics are those on val. The network
    as it will be read from the file must predict what the probe predicts for every image of val and test, except for
    ties between two classes, which are reported.

    Raises RecipeError for a network or recipe that cannot have such a head, RunError if a prediction differs or the
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
        splits={split: tuple(sample.path for sample in samples) for split, samples in dataset.splits.items()},
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
            outputs = head_outputs.outputs
            _check_same_predictions(head_outputs, head, known_accuracy, f"{path}: {split}")
            if split == "val":
                metrics = {"val_loss": compute_loss(outputs), "val_accuracy": compute_accuracy(outputs)}
    write_checkpoint(replace(checkpoint, metrics=metrics), path)


def plan_linear_head(recipe_file: RecipeFile, loaded: LoadedModel, location: str) -> Plan:
    """Plan a recipe without the hidden layers of its head.

    Raises RecipeError if the network's own head is not a linear layer on a vector, or if patterns of the recipe match
    the removed layers.
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
            f"{location}: replaces the hidden layers of the head by one linear layer: {message}"
            for message in error.messages
        )
        raise RecipeError(*messages) from error
    if not plan.head_is_linear:
        raise RecipeError(
            f"{location}: the head of {loaded.name}, {plan.head.path} ({plan.head.type}), is not a linear layer on a "
            "vector, so a probe cannot replace it; choose another model"
        )
    return plan


def _join_state_dict(loaded: LoadedModel, plan: Plan, probe_head: ProbeHead) -> dict[str, Tensor]:
    """Return the state dict of the network with the linear layer as its head."""
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
    is_checkpoint = loaded.classes is not None  # then sha256 is the digest of the checkpoint
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
    """The outputs of a network, the features (n, d) that its head read, and the number format of its outputs."""

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

    samples, num_workers = dataset.splits[split], choose_num_workers(data.num_workers, classifier.device, dataset)
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
    head_outputs: _HeadOutputs, head: ProbeHead, known_accuracy: float | None, location: str
) -> None:
    """Raise RunError unless the network predicts the probe's classes and has its accuracy; report ties."""
    outputs, probe = head_outputs.outputs, head.probe
    expected, predicted = torch.from_numpy(probe.predict(head_outputs.features.numpy())), outputs.logits.argmax(1)
    is_borderline = _find_borderline(head_outputs, head)
    differs, num_images = expected != predicted, len(predicted)
    if len(wrong_indices := np.flatnonzero(differs & ~is_borderline)):
        first = int(wrong_indices[0])
        raise RunError(
            f"{location}: the head and the probe predict different classes for {len(wrong_indices)} of {num_images} "
            f"images, first for {outputs.paths[first]} ({probe.classes[predicted[first]]} instead of "
            f"{probe.classes[expected[first]]}); set precision: float32 in the recipe, or omit --save-head"
        )
    num_correct = int((predicted == outputs.labels).sum())
    if known_accuracy is not None and abs(num_correct - round(known_accuracy * num_images)) > int(is_borderline.sum()):
        raise RunError(
            f"{location}: {num_correct} of {num_images} images are correct with the head, and "
            f"{round(known_accuracy * num_images)} with the probe: the network's features are not those that the probe "
            "was fitted to; extract them again with --no-cache, or omit --save-head"
        )
    if num_ties := int(differs.sum()):
        are_ties = "is a tie" if num_ties == 1 else "are ties"
        logger.info(
            f"{location}: {num_ties} of {num_images} images {are_ties} of two classes; rounding changes the predicted "
            "class"
        )


def _find_borderline(head_outputs: _HeadOutputs, head: ProbeHead) -> Tensor:
    """Return which images have two best classes that rounding may swap, bool (n)."""
    features, weights, biases = head_outputs.features.double(), head.weight.double(), head.bias.double()
    top_scores, top_classes = (features @ weights.T + biases).topk(2, dim=1)
    first, second = top_classes.T
    terms = (features.abs() * (weights[first] - weights[second]).abs()).sum(1) + (biases[first] - biases[second]).abs()
    return (top_scores[:, 0] - top_scores[:, 1]) <= _ROUNDING_TOLERANCE[head_outputs.dtype] * terms
