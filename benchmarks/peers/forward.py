"""A plain forward pass over the images of train: eager, NCHW, with a DataLoader."""

from __future__ import annotations

from benchmarks.peers.training import Clock, create_model, evaluate, open_loader, read_job


def main() -> None:
    job = read_job()
    model, _ = create_model(job)
    loader = [open_loader(job, "train", training=False)]
    clock = Clock()
    clock.start_epoch()
    clock.end_epoch(evaluate(model, loader[0])[1])
    clock.print_result()


if __name__ == "__main__":
    main()
