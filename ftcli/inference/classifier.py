"""A network with what it needs to look at images: classes, preprocessing, device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ftcli.data.transforms import Normalizer
from ftcli.errors import CheckpointError
from ftcli.planning import Plan, build_model, plan_recipe, put_head
from ftcli.recipe.loading import Document, revive_recipe
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runtime import autocast


@dataclass(frozen=True)
class Classifier:
    """Logits from uint8 images, on one device, in one number format."""

    model: nn.Module
    classes: tuple[str, ...]
    device: torch.device
    precision: str
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
        return cls(placed, classes, device, precision, Normalizer(preprocessing, device))

    def compute_logits(self, images: Tensor) -> Tensor:
        """Float32 logits (n, classes) of uint8 images (n, 3, size, size). Gradients flow if they are enabled."""
        moved = images.to(self.device, non_blocking=True)
        inputs = self.normalize(moved).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


def load_classifier(path: Path, device: torch.device) -> tuple[Classifier, Checkpoint, Document]:
    """The network of a checkpoint in eval mode, with the checkpoint and its recipe. Needs no other file."""
    checkpoint = read_checkpoint(path)
    document = revive_recipe(checkpoint.recipe, str(path))
    plan = plan_recipe(document, checkpoint.preprocessing)
    model = revive_model(plan, checkpoint, str(path))
    precision = document.recipe.precision
    return (
        Classifier.place(model.eval(), checkpoint.preprocessing, checkpoint.classes, device, precision),
        checkpoint,
        document,
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
    model.load_state_dict(dict(checkpoint.state))
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


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
