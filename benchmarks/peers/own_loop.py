"""A hand-written loop with ftcli's settings.

Channels-last format, the same images in the same order, as many processes or threads for reading, frozen layers in eval
mode, and a validation before the first step. It runs in ftcli's environment and uses ftcli's order and worker count."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.jobs import Job
from benchmarks.peers.training import MEAN, STD, Clock, create_model, evaluate, freeze, list_transforms, read_job
from ftcli.data.dataset import split_images
from ftcli.data.loader import choose_num_workers as choose_ftcli_num_workers
from ftcli.data.loader import epoch_permutation
from ftcli.recipe import schema
from ftcli.runtime import count_cores, disable_malloc_trim

STAGE = "main"
Batches = Iterable[tuple[Tensor, Tensor]]


def iterate_batches(
    job: Job, split: str, order: Sequence[int] | None, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over batches of normalized images in channels-last format; an order of None is for evaluation."""
    images = ImageFolder(str(job.data.folder / split), v2.Compose([*list_transforms(job, order is not None), np.array]))
    indices = range(len(images)) if order is None else order
    loaded: Batches = DataLoader(images, job.batch_size, sampler=indices, num_workers=num_workers)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    for batch, labels in loaded if num_workers else read_batches(images, indices, job.batch_size):
        yield batch.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std), labels


def read_batches(images: ImageFolder, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over batches of pixels and labels, read by one thread for each core."""
    with ThreadPoolExecutor(count_cores()) as pool:
        for begin in range(0, len(indices), size):
            pixels, labels = zip(*pool.map(images.__getitem__, indices[begin : begin + size]), strict=True)
            yield torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def choose_num_workers(job: Job) -> int:
    """Return the number of worker processes that ftcli would use."""
    images = split_images(schema.Data(root=str(job.data.folder)), job.seed, "own_loop")
    return choose_ftcli_num_workers(None, torch.device("cpu"), images)


def main() -> None:
    disable_malloc_trim()
    job = read_job()
    model, head = create_model(job)
    model = model.to(memory_format=torch.channels_last)
    freeze(model, head, job.stage)
    optimizer = torch.optim.SGD(head.parameters(), lr=job.stage.lr, momentum=0.9, fused=True)
    criterion, lowest, num_workers = nn.CrossEntropyLoss(), float("inf"), choose_num_workers(job)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        evaluate(model, iterate_batches(job, "val", None, num_workers))
        for epoch in range(1, job.stage.epochs + 1):
            clock.start_epoch()
            model.eval()
            head.train()
            order = epoch_permutation(job.seed, STAGE, epoch, job.data.train)
            for images, labels in iterate_batches(job, "train", order, num_workers):
                loss = criterion(model(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            val_loss, accuracy = evaluate(model, iterate_batches(job, "val", None, num_workers))
            if val_loss < lowest:
                lowest = val_loss
                torch.save(model.state_dict(), Path(folder) / "best.pt")
            torch.save(model.state_dict(), Path(folder) / "last.pt")
            clock.end_epoch(accuracy)
        clock.print_result()


if __name__ == "__main__":
    main()
