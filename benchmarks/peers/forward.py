"""A forward pass over the images of train as everyone writes it: eager, NCHW, with a DataLoader."""

from __future__ import annotations

from benchmarks.peers.parts import Clock, build_network, measure_accuracy, open_loader, read_job


def main() -> None:
    job = read_job()
    model, _ = build_network(job)
    loader = [open_loader(job, "train", training=False)]
    clock = Clock()
    clock.start_epoch()
    clock.end_epoch(measure_accuracy(model, loader[0])[1])
    clock.tell()


if __name__ == "__main__":
    main()
