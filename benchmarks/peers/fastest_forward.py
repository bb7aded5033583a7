"""The limit of a forward pass: the fastest way found to run the network over random tensors that are in memory."""

from __future__ import annotations

import time
from itertools import product

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.peers.parts import Clock, build_network, read_job

SIZES = (8, 32)
TRIED = 32
"""How many images each way is tried with."""


def run(model: nn.Module, images: torch.Tensor, count: int) -> None:
    """Run the network over so many images."""
    with torch.inference_mode():
        for begin in range(0, count, len(images)):
            model(images[: min(len(images), count - begin)])


def measure(model: nn.Module, images: torch.Tensor) -> float:
    """The seconds of a short run, after one that warms up."""
    run(model, images, len(images))
    began = time.perf_counter()
    run(model, images, TRIED)
    return time.perf_counter() - began


def main() -> None:
    job = read_job()
    model = build_network(job)[0].eval()
    folded = fuse(fx.symbolic_trace(model)).eval()
    formats = (torch.contiguous_format, torch.channels_last)
    batches = [torch.randn(size, 3, job.image_size, job.image_size) for size in SIZES]
    ways = []
    for network, kind in product((model, folded), formats):
        network = network.to(memory_format=kind)
        for batch in batches:
            images = batch.to(memory_format=kind)
            ways.append((measure(network, images), network, kind, images))
    _, network, kind, images = min(ways, key=lambda way: way[0])
    network = network.to(memory_format=kind)  # a later way may have changed it
    clock = Clock()
    clock.start_epoch()
    run(network, images, job.data.train)
    clock.end_epoch(float("nan"))
    clock.tell()


if __name__ == "__main__":
    main()
