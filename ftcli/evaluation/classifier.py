"""A network with what it needs to look at images: classes, preprocessing, device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ftcli.data.images import convert_rgb, read_image
from ftcli.data.transforms import ImageTransform, Normalizer, build_eval_transform
from ftcli.errors import CheckpointError
from ftcli.models.state_dict import copy_state_dict
from ftcli.planning import Plan, build_model, plan_recipe, reset_classifier
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.results import DEFAULT_TOP_K, ClassScore, Prediction, Preprocessing
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runtime import autocast, raise_on_oom, resolve_precision


@dataclass(frozen=True)
class Classifier:
    """A network on one device, in one number format, with its classes in the order of its outputs.

    From files to probabilities goes `predict`. Its steps are there too: `prepare` makes an image a uint8 tensor,
    `normalize` a batch of those on `device` what `model` takes, and `model` gives logits.
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
        """Move a network to its device, in the memory format that convolutions are fastest with."""
        model_on_device = model.to(device).to(memory_format=torch.channels_last)
        transform, normalize = build_eval_transform(preprocessing), Normalizer(preprocessing, device)
        return cls(model_on_device, classes, preprocessing, device, precision, transform, normalize)

    def preprocess(self, image: Image.Image | Path) -> Tensor:
        """An image, or an image file, as uint8 (3, image_size, image_size), red green blue, as the network was
        evaluated with. Raises CorruptImageError for what cannot be read, TypeError for what is neither."""
        if isinstance(image, Path):
            return self.transform(read_image(image, self.transform.min_decode_size))
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"an image is a pathlib.Path or a PIL image, not {type(image).__name__}; make it one of them"
            )
        return self.transform(convert_rgb(image, _image_filename(image) or "image"))

    def predict(
        self, images: Iterable[Image.Image | Path], top: int = DEFAULT_TOP_K, batch_size: int = 32
    ) -> list[Prediction]:
        """The `top` most probable classes of each image, in the order of the images, which are taken `batch_size` at
        a time. Nothing is left out: raises CorruptImageError for the first that cannot be read, ValueError for a number
        below 1."""
        if min(top, batch_size) < 1:
            raise ValueError(f"top and batch_size are at least 1, not {top} and {batch_size}")
        image_iter = iter(images)
        predictions: list[Prediction] = []
        for batch in iter(lambda: tuple(islice(image_iter, batch_size)), ()):
            class_scores = self.predict_top_k(torch.stack([self.preprocess(image) for image in batch]), top)
            paths = (str(image) if isinstance(image, Path) else _image_filename(image) for image in batch)
            predictions += map(Prediction, paths, class_scores)
        return predictions

    def predict_top_k(self, images: Tensor, k: int) -> Iterator[tuple[ClassScore, ...]]:
        """The `top` most probable classes of each of some uint8 images (n, 3, size, size), the most probable first.
        Where two are equal, the first of `classes` comes first."""
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
        """Float32 logits (n, classes) of uint8 images (n, 3, size, size). Gradients flow if they are enabled."""
        images_on_device = images.to(self.device, non_blocking=True)
        inputs = self.normalize(images_on_device).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


def load_classifier(path: Path, device: torch.device) -> tuple[Classifier, Checkpoint, RecipeFile, Plan]:
    """The network of a checkpoint in eval mode, with the checkpoint, its recipe and what that comes to. Needs no other
    file."""
    checkpoint = read_checkpoint(path)
    recipe_file = recipe_from_dict(checkpoint.recipe, str(path))
    plan = plan_recipe(recipe_file, checkpoint.preprocessing)
    model = model_from_checkpoint(plan, checkpoint, str(path))
    precision = resolve_precision(recipe_file.recipe.precision, device, checkpoint.precisions)
    return (
        Classifier.create(model.eval(), checkpoint.preprocessing, checkpoint.classes, device, precision),
        checkpoint,
        recipe_file,
        plan,
    )


def model_from_checkpoint(plan: Plan, checkpoint: Checkpoint, location: str) -> nn.Module:
    """The plan's network with a checkpoint's weights, on the CPU.

    Raises CheckpointError that names the tensors if those of the checkpoint are not exactly the network's.
    """
    model = build_model(plan)
    reset_classifier(model, plan, len(checkpoint.classes))
    model_shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint_shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    if model_shapes != checkpoint_shapes:
        raise CheckpointError(
            f"{location}: does not fit {plan.recipe.backbone.name} with this head: {_describe_shape_mismatch(model_shapes, checkpoint_shapes)}"
        )
    copy_state_dict(model, checkpoint.state)
    return model


def _describe_shape_mismatch(
    model_shapes: dict[str, tuple[int, ...]], checkpoint_shapes: dict[str, tuple[int, ...]]
) -> str:
    parts = []
    if missing := [name for name in model_shapes if name not in checkpoint_shapes]:
        parts.append(f"{len(missing)} tensors are missing from it ({_format_first_names(missing)})")
    if unexpected := [name for name in checkpoint_shapes if name not in model_shapes]:
        parts.append(f"{len(unexpected)} have no place in the network ({_format_first_names(unexpected)})")
    mismatched = [
        f"{name} is {checkpoint_shapes[name]}, not {model_shapes[name]}"
        for name in model_shapes
        if name in checkpoint_shapes and model_shapes[name] != checkpoint_shapes[name]
    ]
    if mismatched:
        parts.append(f"{len(mismatched)} have another shape ({_format_first_names(mismatched)})")
    return ", ".join(parts) + "; give the recipe that it was trained with, or leave the recipe out"


def _image_filename(image: Image.Image) -> str:
    """The file that Pillow has opened an image from; empty where there is none."""
    return str(getattr(image, "filename", ""))


def _format_first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
