"""Classify images with a network, and load networks from a checkpoint, a recipe or a model name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ftcli.data.dataset import ImageDataset
from ftcli.data.images import convert_rgb, read_image
from ftcli.data.loader import measure_preprocessing
from ftcli.data.transforms import ImageTransform, Normalizer, build_eval_transform
from ftcli.errors import CheckpointError, format_list
from ftcli.models.factory import build_model, check_model
from ftcli.models.heads import reset_classifier
from ftcli.models.pretrained.loading import adapt_preprocessing, load_pretrained, load_weights, read_preprocessing
from ftcli.models.state_dict import copy_state_dict
from ftcli.planning import plan_recipe
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.recipe.schema import Backbone, Recipe
from ftcli.recipe.schema.network import is_url
from ftcli.results import DEFAULT_TOP_K, ClassScore, Prediction, Preprocessing, Reporter
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.run_dir import find_checkpoint
from ftcli.runtime import autocast, raise_on_oom, resolve_precision


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing and its classes in the order of its outputs, on one device in one precision.

    `predict` returns the most probable classes of images. Its steps are public: `preprocess` turns an image into a
    uint8 tensor, `normalize` a batch of these on `device` into the input of `model`, which returns logits.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    transform: ImageTransform
    normalize: Normalizer

    @classmethod
    def create(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        device: torch.device,
        precision: str,
    ) -> Classifier:
        """Return a classifier with the network moved to a device, in channels-last memory format."""
        model_on_device = model.to(device).to(memory_format=torch.channels_last)
        transform, normalize = build_eval_transform(preprocessing), Normalizer(preprocessing, device)
        return cls(model_on_device, classes, preprocessing, device, precision, transform, normalize)

    def preprocess(self, image: Image.Image | Path) -> Tensor:
        """Return an image or image file as uint8 RGB (3, image_size, image_size), preprocessed as in evaluation.

        Raises CorruptImageError for an unreadable image, TypeError for another type.
        """
        if isinstance(image, Path):
            return self.transform(read_image(image, self.transform.min_decode_size))
        if not isinstance(image, Image.Image):
            raise TypeError(f"images must be pathlib.Path or PIL.Image.Image, not {type(image).__name__}; convert them")
        return self.transform(convert_rgb(image, _image_filename(image) or "image"))

    def predict(
        self, images: Iterable[Image.Image | Path], top: int = DEFAULT_TOP_K, batch_size: int = 32
    ) -> list[Prediction]:
        """Return the `top` most probable classes of each image, in the order of the images.

        Skips no image: raises CorruptImageError for the first unreadable one. Raises ValueError unless `top` and
        `batch_size` are positive.
        """
        if min(top, batch_size) < 1:
            raise ValueError(f"top and batch_size must be at least 1, not {top} and {batch_size}")
        image_iter = iter(images)
        predictions: list[Prediction] = []
        for batch in iter(lambda: tuple(islice(image_iter, batch_size)), ()):
            class_scores = self.predict_top_k(torch.stack([self.preprocess(image) for image in batch]), top)
            paths = (str(image) if isinstance(image, Path) else _image_filename(image) for image in batch)
            predictions += map(Prediction, paths, class_scores)
        return predictions

    def predict_top_k(self, images: Tensor, k: int) -> Iterator[tuple[ClassScore, ...]]:
        """Yield the `k` most probable classes of each of uint8 images (n, 3, size, size), the most probable first.

        Equally probable classes are in the order of `classes`.
        """
        with raise_on_oom(), torch.inference_mode():
            probabilities, class_indices = (
                self.compute_logits(images).cpu().softmax(1).sort(dim=1, descending=True, stable=True)
            )
        for row_probabilities, row_indices in zip(
            probabilities[:, :k].tolist(), class_indices[:, :k].tolist(), strict=True
        ):
            yield tuple(
                ClassScore(self.classes[index], probability)
                for index, probability in zip(row_indices, row_probabilities, strict=True)
            )

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return float32 logits (n, classes) of uint8 images (n, 3, size, size)."""
        images_on_device = images.to(self.device, non_blocking=True)
        inputs = self.normalize(images_on_device).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


@dataclass(frozen=True)
class LoadedClassifier:
    """The classifier of a checkpoint, the checkpoint and its recipe."""

    classifier: Classifier
    checkpoint: Checkpoint
    recipe_file: RecipeFile


def load_classifier(path: Path, device: torch.device) -> LoadedClassifier:
    """Load the classifier of a checkpoint, with its network in eval mode. Needs no other file."""
    checkpoint = read_checkpoint(path)
    recipe_file = recipe_from_dict(checkpoint.recipe, str(path))
    recipe, preprocessing = recipe_file.recipe, checkpoint.preprocessing
    check_model(recipe.backbone.name, recipe_file.locate("backbone", "name"))
    model = model_from_checkpoint(checkpoint, recipe, checkpoint.head_path, preprocessing.image_size, str(path))
    precision = resolve_precision(recipe.precision, device, checkpoint.precisions)
    classifier = Classifier.create(model.eval(), preprocessing, checkpoint.classes, device, precision)
    return LoadedClassifier(classifier, checkpoint, recipe_file)


def model_from_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, head_path: str, image_size: int, location: str
) -> nn.Module:
    """Return a recipe's network with the recipe's head at `head_path` and a checkpoint's weights, on the CPU.

    Raises CheckpointError with the differing tensors unless names and shapes match exactly.
    """
    model = build_model(recipe, image_size)
    if not isinstance(dict(model.named_modules()).get(head_path), (nn.Linear, nn.Conv2d)):
        raise CheckpointError(
            f"{location}: does not fit {recipe.backbone.name}, whose module {head_path!r} is not a head; use another "
            "checkpoint"
        )
    reset_classifier(model, recipe, head_path, len(checkpoint.classes))
    model_shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint_shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    if model_shapes != checkpoint_shapes:
        raise CheckpointError(
            f"{location}: does not fit {recipe.backbone.name} with this head: "
            f"{_describe_shape_mismatch(model_shapes, checkpoint_shapes)}"
        )
    copy_state_dict(model, checkpoint.state)
    return model


def _describe_shape_mismatch(
    model_shapes: dict[str, tuple[int, ...]], checkpoint_shapes: dict[str, tuple[int, ...]]
) -> str:
    parts = []
    if missing := [name for name in model_shapes if name not in checkpoint_shapes]:
        parts.append(f"{len(missing)} tensors are missing ({format_list(missing, 3)})")
    if unexpected := [name for name in checkpoint_shapes if name not in model_shapes]:
        parts.append(f"{len(unexpected)} are unexpected ({format_list(unexpected, 3)})")
    mismatched = [
        f"{name} is {checkpoint_shapes[name]}, not {model_shapes[name]}"
        for name in model_shapes
        if name in checkpoint_shapes and model_shapes[name] != checkpoint_shapes[name]
    ]
    if mismatched:
        parts.append(f"{len(mismatched)} have another shape ({format_list(mismatched, 3)})")
    return ", ".join(parts) + "; give the recipe that it was trained with, or omit the recipe"


def _image_filename(image: Image.Image) -> str:
    """Return the file that Pillow opened an image from, empty if there is none."""
    return str(getattr(image, "filename", ""))


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with weights, its preprocessing and the module path of its head.

    `classes` and `epoch` are those of a checkpoint, otherwise None and 0. `weights` names the source of the weights,
    `sha256` is the hash of their file or the digest of the checkpoint.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    head: str
    classes: tuple[str, ...] | None
    weights: str
    sha256: str | None = None
    epoch: int = 0


def load_model(
    source: str | RecipeFile | Backbone, reporter: Reporter, dataset: ImageDataset | None = None
) -> LoadedModel:
    """Load the model of a recipe before training, of a checkpoint (.pt), of a model name with its default weights, or
    of a backbone.

    With `normalize: dataset`, mean and std are measured on `dataset`; without one a warning is logged and those of
    the pretrained weights are used. Raises RecipeError for unknown names, CheckpointError for weights that cannot be
    loaded.
    """
    if isinstance(source, RecipeFile):
        return _load_recipe(source, reporter, dataset)
    if isinstance(source, str) and source.endswith(".pt"):
        return _load_checkpoint(Path(source))
    location = "--plot-activations" if isinstance(source, str) else "--weights"
    backbone = Backbone(name=source) if isinstance(source, str) else source
    pretrained = load_pretrained(backbone, location, reporter)
    origin = pretrained.weights_info
    return LoadedModel(
        backbone.name, pretrained.model, pretrained.preprocessing, pretrained.head, None, origin.source, origin.sha256
    )


def _load_recipe(recipe_file: RecipeFile, reporter: Reporter, dataset: ImageDataset | None) -> LoadedModel:
    plan, backbone = plan_recipe(recipe_file), recipe_file.recipe.backbone
    location = recipe_file.locate("backbone", "weights")
    if is_url(backbone.weights):  # its preprocessing is known only after the download
        pretrained_preprocessing = read_preprocessing(backbone, location, reporter)
        plan = plan_recipe(recipe_file, adapt_preprocessing(pretrained_preprocessing, recipe_file.recipe.data))
    model = build_model(plan.recipe, plan.preprocessing.image_size)
    origin = load_weights(model, backbone, plan.head.path, location, reporter)
    preprocessing = plan.preprocessing
    if recipe_file.recipe.data.normalize == "dataset" and dataset is not None:
        preprocessing = measure_preprocessing(preprocessing, dataset, recipe_file.recipe.data)
    elif recipe_file.recipe.data.normalize == "dataset":
        logger.warning(
            f"{recipe_file.locate('data', 'normalize')}: mean and std are measured when training starts; those of the "
            "pretrained weights are used here"
        )
    return LoadedModel(backbone.name, model, preprocessing, plan.head.path, None, origin.source, origin.sha256)


def _load_checkpoint(argument: Path) -> LoadedModel:
    path, note = find_checkpoint(argument)
    if note:
        logger.info(note)
    loaded = load_classifier(path, torch.device("cpu"))
    checkpoint = loaded.checkpoint
    return LoadedModel(
        loaded.recipe_file.recipe.backbone.name,
        loaded.classifier.model,
        checkpoint.preprocessing,
        checkpoint.head_path,
        checkpoint.classes,
        f"{path} ({checkpoint.stage})",
        checkpoint.digest,
        checkpoint.epoch,
    )
