"""The limit of a training: the same network in channels-last format on random tensors in memory."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.training import NUM_CLASSES, Clock, create_model, freeze, read_job


def main() -> None:
    job = read_job()
    model, head = create_model(job)
    freeze(model, head, job.stage)
    model = model.to(memory_format=torch.channels_last)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=job.stage.lr, momentum=0.9, fused=True)
    shape = (job.batch_size, 3, job.image_size, job.image_size)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (job.batch_size,))
    clock = Clock()
    for _ in range(job.stage.epochs):
        clock.start_epoch()
        model.train()
        for begin in range(0, job.data.train, job.batch_size):
            count = min(job.batch_size, job.data.train - begin)
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(images[:count]), labels[:count])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            for begin in range(0, job.data.val, job.batch_size):
                model(images[: min(job.batch_size, job.data.val - begin)])
        clock.end_epoch(float("nan"))
    clock.print_result()


if __name__ == "__main__":
    main()
