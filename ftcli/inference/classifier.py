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
from ftcli.models.states import put_tensors
from ftcli.planning import Plan, build_model, plan_recipe, put_head
from ftcli.recipe.loading import Document, revive_recipe
from ftcli.results import TOP, Guess, Prediction, Preprocessing
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runtime import autocast, explain_memory, settle_precision


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
    def place(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        device: torch.device,
        precision: str,
    ) -> Classifier:
        """Move a network to its device, in the memory format that convolutions are fastest with."""
        placed = model.to(device).to(memory_format=torch.channels_last)
        transform, normalize = build_eval_transform(preprocessing), Normalizer(preprocessing, device)
        return cls(placed, classes, preprocessing, device, precision, transform, normalize)

    def prepare(self, image: Image.Image | Path) -> Tensor:
        """An image, or an image file, as uint8 (3, image_size, image_size), red green blue, as the network was
        evaluated with. Raises BrokenImage for what cannot be read, TypeError for what is neither."""
        if isinstance(image, Path):
            return self.transform(read_image(image, self.transform.needed))
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"an image is a pathlib.Path or a PIL image, not {type(image).__name__}; make it one of them"
            )
        return self.transform(convert_rgb(image, _name(image) or "image"))

    def predict(self, images: Iterable[Image.Image | Path], top: int = TOP, batch_size: int = 32) -> list[Prediction]:
        """The `top` most probable classes of each image, in the order of the images, which are taken `batch_size` at
        a time. Nothing is left out: raises BrokenImage for the first that cannot be read, ValueError for a number
        below 1."""
        if min(top, batch_size) < 1:
            raise ValueError(f"top and batch_size are at least 1, not {top} and {batch_size}")
        coming = iter(images)
        predictions: list[Prediction] = []
        for taken in iter(lambda: tuple(islice(coming, batch_size)), ()):
            ranked = self.rank(torch.stack([self.prepare(image) for image in taken]), top)
            names = (str(image) if isinstance(image, Path) else _name(image) for image in taken)
            predictions += map(Prediction, names, ranked)
        return predictions

    def rank(self, images: Tensor, top: int) -> Iterator[tuple[Guess, ...]]:
        """The `top` most probable classes of each of some uint8 images (n, 3, size, size), the most probable first.
        Where two are equal, the first of `classes` comes first."""
        with explain_memory(), torch.inference_mode():
            shares, places = self.compute_logits(images).cpu().softmax(1).sort(dim=1, descending=True, stable=True)
        for own, where in zip(shares[:, :top].tolist(), places[:, :top].tolist(), strict=True):
            yield tuple(Guess(self.classes[place], share) for place, share in zip(where, own, strict=True))

    def compute_logits(self, images: Tensor) -> Tensor:
        """Float32 logits (n, classes) of uint8 images (n, 3, size, size). Gradients flow if they are enabled."""
        moved = images.to(self.device, non_blocking=True)
        inputs = self.normalize(moved).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


def load_classifier(path: Path, device: torch.device) -> tuple[Classifier, Checkpoint, Document, Plan]:
    """The network of a checkpoint in eval mode, with the checkpoint, its recipe and what that comes to. Needs no other
    file."""
    checkpoint = read_checkpoint(path)
    document = revive_recipe(checkpoint.recipe, str(path))
    plan = plan_recipe(document, checkpoint.preprocessing)
    model = revive_model(plan, checkpoint, str(path))
    precision = settle_precision(document.recipe.precision, device, checkpoint.precisions)
    return (
        Classifier.place(model.eval(), checkpoint.preprocessing, checkpoint.classes, device, precision),
        checkpoint,
        document,
        plan,
    )


def revive_model(plan: Plan, checkpoint: Checkpoint, where: str) -> nn.Module:
    """The plan's network with a checkpoint's weights, on the CPU.

    Raises CheckpointError that names the tensors if those of the checkpoint are not exactly the network's.
    """
    model = build_model(plan)
    put_head(model, plan, len(checkpoint.classes))
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    if own != theirs:
        raise CheckpointError(
            f"{where}: does not fit {plan.recipe.backbone.name} with this head: {_differ(own, theirs)}"
        )
    put_tensors(model, checkpoint.state)
    return model


def _differ(own: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> str:
    parts = []
    if missing := [name for name in own if name not in theirs]:
        parts.append(f"{len(missing)} tensors are missing from it ({_first(missing)})")
    if extra := [name for name in theirs if name not in own]:
        parts.append(f"{len(extra)} have no place in the network ({_first(extra)})")
    other = [
        f"{name} is {theirs[name]}, not {own[name]}" for name in own if name in theirs and own[name] != theirs[name]
    ]
    if other:
        parts.append(f"{len(other)} have another shape ({_first(other)})")
    return ", ".join(parts) + "; give the recipe that it was trained with, or leave the recipe out"


def _name(image: Image.Image) -> str:
    """The file that Pillow has opened an image from; empty where there is none."""
    return str(getattr(image, "filename", ""))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
