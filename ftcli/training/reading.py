"""The last layer of a network alone: what it reads for the images of a split, and what it makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.logits import EvalOutputs
from ftcli.runtime import autocast


@dataclass(frozen=True)
class HeadActivations:
    """What the last layer reads for the images of a split, (n, d) in float32, and the outputs that it has given."""

    inputs: Tensor
    outputs: EvalOutputs


def find_head_layer(classifier: Classifier, head_path: str, location: str) -> nn.Linear:
    """The last layer of a head that reads a vector, once it is certain that the network's outputs are the layer's own.

    Raises RecipeError that begins with `where` for a network that computes on what its head gives. The network is left
    in eval mode.
    """
    module, image_size = classifier.model.get_submodule(head_path), classifier.preprocessing.image_size
    layer = module if isinstance(module, nn.Linear) else list(module.children())[-1]
    assert isinstance(layer, nn.Linear)  # Plan.head_is_linear
    classifier.model.eval()
    with torch.inference_mode(), capture_io(layer) as (_, layer_outputs):
        logits = classifier.compute_logits(torch.zeros((2, 3, image_size, image_size), dtype=torch.uint8))
    if len(layer_outputs) != 1 or not torch.equal(layer_outputs[0], logits.cpu()):
        raise RecipeError(
            f"{location}: the network computes on what its head, {head_path}, gives, so the head cannot be solved; give the "
            "stage epochs and an optimizer instead of a solver"
        )
    return layer


@contextmanager
def capture_io(layer: nn.Linear) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What a layer reads and gives meanwhile, in float32 on the CPU."""
    layer_inputs: list[Tensor] = []
    layer_outputs: list[Tensor] = []

    def record_io(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layer_inputs.append(inputs[0].float().cpu())
        layer_outputs.append(output.float().cpu())

    handle = layer.register_forward_hook(record_io)
    try:
        yield layer_inputs, layer_outputs
    finally:
        handle.remove()


def apply_head(classifier: Classifier, layer: nn.Linear, activations: HeadActivations, batch_size: int) -> EvalOutputs:
    """The outputs that a layer gives for what it reads, in the number format of the network."""
    batches = torch.split(activations.inputs, batch_size)
    with torch.inference_mode(), autocast(classifier.device, classifier.precision):
        logits = [layer(batch.to(classifier.device)).float().cpu() for batch in batches]
    return replace(activations.outputs, logits=torch.cat(logits))
