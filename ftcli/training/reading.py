"""The last layer of a network alone: what it reads for the images of a split, and what it makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.inference.classifier import Classifier
from ftcli.inference.outputs import Outputs
from ftcli.runtime import autocast


@dataclass(frozen=True)
class Reading:
    """What the last layer reads for the images of a split, (n, d) in float32, and the outputs that it has given."""

    values: Tensor
    outputs: Outputs


def find_layer(classifier: Classifier, head: str, where: str) -> nn.Linear:
    """The last layer of a head that reads a vector, once it is certain that the network's outputs are the layer's own.

    Raises RecipeError that begins with `where` for a network that computes on what its head gives. The network is left
    in eval mode.
    """
    module, size = classifier.model.get_submodule(head), classifier.preprocessing.image_size
    layer = module if isinstance(module, nn.Linear) else list(module.children())[-1]
    assert isinstance(layer, nn.Linear)  # Plan.reads_vector
    classifier.model.eval()
    with torch.inference_mode(), watch(layer) as (_, given):
        logits = classifier.compute_logits(torch.zeros((2, 3, size, size), dtype=torch.uint8))
    if len(given) != 1 or not torch.equal(given[0], logits.cpu()):
        raise RecipeError(
            f"{where}: the network computes on what its head, {head}, gives, so the head cannot be solved; give the "
            "stage epochs and an optimizer instead of a solver"
        )
    return layer


@contextmanager
def watch(layer: nn.Linear) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What a layer reads and gives meanwhile, in float32 on the CPU."""
    read: list[Tensor] = []
    given: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read.append(inputs[0].float().cpu())
        given.append(output.float().cpu())

    handle = layer.register_forward_hook(note)
    try:
        yield read, given
    finally:
        handle.remove()


def answer(classifier: Classifier, layer: nn.Linear, reading: Reading, batch_size: int) -> Outputs:
    """The outputs that a layer gives for what it reads, in the number format of the network."""
    parts = torch.split(reading.values, batch_size)
    with torch.inference_mode(), autocast(classifier.device, classifier.precision):
        logits = [layer(part.to(classifier.device)).float().cpu() for part in parts]
    return replace(reading.outputs, logits=torch.cat(logits))
