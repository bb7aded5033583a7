"""The limit of a forward pass: the fastest configuration on random tensors in memory."""

from __future__ import annotations

import time
from itertools import product

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.peers.training import Clock, create_model, read_job

BATCH_SIZES = (8, 32)
NUM_TRIAL_IMAGES = 32
"""The number of images of each trial."""


def run_forward(model: nn.Module, images: torch.Tensor, count: int) -> None:
    """Run the network on `num_images` images."""
    with torch.inference_mode():
        for begin in range(0, count, len(images)):
            model(images[: min(len(images), count - begin)])


def time_forward(model: nn.Module, images: torch.Tensor) -> float:
    """Return the seconds of a short run after a warm-up run."""
    run_forward(model, images, len(images))
    start = time.perf_counter()
    run_forward(model, images, NUM_TRIAL_IMAGES)
    return time.perf_counter() - start


def main() -> None:
    job = read_job()
    model = create_model(job)[0].eval()
    folded = fuse(fx.symbolic_trace(model)).eval()
    formats = (torch.contiguous_format, torch.channels_last)
    batches = [torch.randn(size, 3, job.image_size, job.image_size) for size in BATCH_SIZES]
    timings = []
    for network, memory_format in product((model, folded), formats):
        network = network.to(memory_format=memory_format)
        for batch in batches:
            images = batch.to(memory_format=memory_format)
            timings.append((time_forward(network, images), network, memory_format, images))
    _, network, memory_format, images = min(timings, key=lambda way: way[0])
    network = network.to(memory_format=memory_format)  # a later configuration may have changed it
    clock = Clock()
    clock.start_epoch()
    run_forward(network, images, job.data.train)
    clock.end_epoch(float("nan"))
    clock.print_result()


if __name__ == "__main__":
    main()
