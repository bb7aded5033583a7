"""The loop of torchvision's tutorials: ImageFolder, DataLoader, train and eval mode, best weights saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers.training import (
    Clock,
    create_model,
    create_optimizer,
    evaluate,
    freeze,
    open_loader,
    read_job,
)


def main() -> None:
    job = read_job()
    model, head = create_model(job)
    train, val = open_loader(job, "train", training=True), open_loader(job, "val", training=False)
    criterion = nn.CrossEntropyLoss()
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder) / "best.pt"
        clock = Clock()
        for stage in job.stages:
            freeze(model, head, stage)
            optimizer, lowest = create_optimizer(model, stage), float("inf")
            for _ in range(stage.epochs):
                clock.start_epoch()
                model.train()
                for images, labels in train:
                    optimizer.zero_grad()
                    loss = criterion(model(images), labels)
                    loss.backward()
                    optimizer.step()
                val_loss, accuracy = evaluate(model, val)
                if val_loss < lowest:
                    lowest = val_loss
                    torch.save(model.state_dict(), best)
                clock.end_epoch(accuracy)
            model.load_state_dict(torch.load(best, weights_only=True))
        clock.print_result()


if __name__ == "__main__":
    main()
