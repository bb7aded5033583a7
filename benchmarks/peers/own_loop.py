"""A loop written by hand with the settings of ftcli: channels last, the same images in the same order, as many workers,
the frozen part in evaluation mode, a first validation. It runs where ftcli is installed, for the order is ftcli's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.jobs import Job
from benchmarks.peers.parts import MEAN, STD, Clock, build_network, freeze, list_steps, measure_accuracy, read_job
from ftcli.data.loading import choose_workers, order_epoch
from ftcli.runtime import keep_freed_memory

STAGE = "main"


def open_batches(job: Job, split: str, order: list[int] | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of normalised images in channels last; None stands for evaluation."""
    images = ImageFolder(
        str(job.data.folder / split), v2.Compose([*list_steps(job, order is not None), v2.PILToTensor()])
    )
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    loader: DataLoader[Any] = DataLoader(images, job.batch_size, sampler=order, num_workers=choose_workers(None))
    for batch, labels in loader:
        pixels = batch.contiguous(memory_format=torch.channels_last).float()
        yield pixels.div_(255).sub_(mean).div_(std), labels


def main() -> None:
    keep_freed_memory()
    job = read_job()
    model, head = build_network(job)
    model = model.to(memory_format=torch.channels_last)
    freeze(model, head, job.stage)
    optimizer = torch.optim.SGD(head.parameters(), lr=job.stage.lr, momentum=0.9, fused=True)
    criterion, lowest = nn.CrossEntropyLoss(), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        measure_accuracy(model, open_batches(job, "val", None))
        for epoch in range(1, job.stage.epochs + 1):
            clock.start_epoch()
            model.eval()
            head.train()
            for images, labels in open_batches(job, "train", order_epoch(job.seed, STAGE, epoch, job.data.train)):
                loss = criterion(model(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            val_loss, accuracy = measure_accuracy(model, open_batches(job, "val", None))
            if val_loss < lowest:
                lowest = val_loss
                torch.save(model.state_dict(), Path(folder) / "best.pt")
            torch.save(model.state_dict(), Path(folder) / "last.pt")
            clock.end_epoch(accuracy)
        clock.tell()


if __name__ == "__main__":
    main()
