"""A plain loop with timm's data set, loader, transforms and optimizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader  # type: ignore[attr-defined]  # timm does not say what it exports
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # likewise
from torch import nn

from benchmarks.jobs import Job
from benchmarks.peers.training import MEAN, STD, Clock, create_model, evaluate, freeze, read_job


def open_loader(job: Job, split: str, training: bool) -> Any:
    """Return the loader of a split with timm's transforms for the augmentations standard and flips."""
    return create_loader(
        create_dataset("", root=str(job.data.folder / split)),
        input_size=(3, job.image_size, job.image_size),
        batch_size=job.batch_size,
        is_training=training,
        scale=(0.08, 1.0) if job.augment == "standard" else (1.0, 1.0),
        vflip=0.5 if job.augment == "flips" else 0.0,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=job.num_workers,
        crop_pct=224 / 256,
        use_prefetcher=False,
        device=torch.device("cpu"),
        persistent_workers=True,
    )


def main() -> None:
    job = read_job()
    model, head = create_model(job)
    train, val = open_loader(job, "train", True), open_loader(job, "val", False)
    freeze(model, head, job.stage)
    optimizer = create_optimizer_v2(model, opt=job.stage.optimizer, lr=job.stage.lr, weight_decay=0.0, momentum=0.9)
    criterion, lowest = nn.CrossEntropyLoss(), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        for _ in range(job.stage.epochs):
            clock.start_epoch()
            model.train()
            for images, labels in train:
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
            val_loss, accuracy = evaluate(model, val)
            if val_loss < lowest:
                lowest = val_loss
                torch.save(model.state_dict(), Path(folder) / "best.pt")
            clock.end_epoch(accuracy)
        clock.print_result()


if __name__ == "__main__":
    main()
