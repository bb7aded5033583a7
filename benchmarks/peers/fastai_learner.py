"""fastai: a Learner with the same network, training the head or all layers."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam
from fastai.vision.augment import Flip, RandomResizedCrop, Resize, ResizeMethod
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from torch import nn

from benchmarks.jobs import Job
from benchmarks.peers.training import Clock, create_model, read_job


def create_loaders(job: Job) -> Any:
    """Return the loaders of train and val with fastai's transforms."""
    size = job.image_size
    crop = RandomResizedCrop(size, min_scale=0.08, ratio=(3 / 4, 4 / 3))
    fit = Resize(size, ResizeMethod.Squish if job.resize == "squash" else ResizeMethod.Crop)
    flips = [] if job.augment == "none" else [Flip(0.5)]
    return ImageDataLoaders.from_folder(
        job.data.folder,
        train="train",
        valid="val",
        item_tfms=crop if job.augment == "standard" else fit,
        batch_tfms=[*flips, Normalize.from_stats(*imagenet_stats)],
        bs=job.batch_size,
        num_workers=job.num_workers,
        seed=job.seed,
    )


def timing_callback(clock: Clock) -> Any:
    """A callback that times each epoch."""
    callback = Callback(
        before_epoch=lambda _: clock.start_epoch(),
        after_epoch=lambda own: clock.end_epoch(float(own.learn.recorder.values[-1][-1])),
    )
    callback.order = 100  # after the checkpoint
    return callback


def main() -> None:
    job = read_job()
    model, head = create_model(job)
    backbone = [p for p in model.parameters() if not any(p is own for own in head.parameters())]
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            create_loaders(job),
            model,
            loss_func=nn.CrossEntropyLoss(),
            opt_func=partial(SGD, mom=0.9) if job.stage.optimizer == "sgd" else Adam,
            splitter=lambda _: [backbone, list(head.parameters())],
            metrics=accuracy,
            path=folder,
        )
        if job.stage.freeze == "backbone":
            learner.freeze()  # as vision_learner does; BatchNorm layers still train, fastai's default
        with learner.no_bar(), learner.no_logging():
            clock = Clock()
            learner.fit(job.stage.epochs, job.stage.lr, cbs=[SaveModelCallback(), timing_callback(clock)])
            clock.print_result()


if __name__ == "__main__":
    main()
