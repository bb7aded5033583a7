"""The Trainer of Hugging Face's transformers, over a module that returns loss and logits."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.training import Clock, create_model, freeze, open_split, read_job


class LossModel(nn.Module):
    """A network with the interface of the Trainer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Collate a batch with the names of the module's arguments."""
    return {
        "pixel_values": torch.stack([image for image, _ in examples]),
        "labels": torch.tensor([label for _, label in examples]),
    }


def timing_callback(clock: Clock) -> Any:
    """A callback that times each epoch."""
    callback = TrainerCallback()
    latest = {"accuracy": 0.0}

    def record(*_: Any, metrics: dict[str, float], **__: Any) -> None:
        latest["accuracy"] = metrics["eval_accuracy"]

    callback.on_evaluate = record
    callback.on_save = lambda *_, **__: clock.end_epoch(latest["accuracy"])
    callback.on_epoch_begin = lambda *_, **__: clock.start_epoch()
    return callback


def main() -> None:
    job = read_job()
    network, head = create_model(job)
    freeze(network, head, job.stage)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            num_train_epochs=job.stage.epochs,
            learning_rate=job.stage.lr,
            optim="sgd" if job.stage.optimizer == "sgd" else "adamw_torch",
            optim_args="momentum=0.9" if job.stage.optimizer == "sgd" else None,
            lr_scheduler_type="constant",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            save_total_limit=1,
            dataloader_num_workers=job.num_workers,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=job.seed,
        )
        clock = Clock()
        trainer = Trainer(
            model=LossModel(network),
            args=arguments,
            data_collator=collate,
            train_dataset=open_split(job, "train", training=True),
            eval_dataset=open_split(job, "val", training=False),
            compute_metrics=lambda output: {
                "accuracy": float(np.mean(output.predictions.argmax(1) == output.label_ids))
            },
            callbacks=[timing_callback(clock)],
        )
        trainer.train()
        clock.print_result()


if __name__ == "__main__":
    main()
