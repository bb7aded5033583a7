"""How estimates of a training look."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ftcli.console.tables import print_table
from ftcli.results import StageEstimate, format_duration, format_size


def print_estimates(console: Console, estimates: Sequence[StageEstimate]) -> None:
    """A line for each stage, then what the figures hold for and what was tried."""
    rows = [
        (
            each.stage,
            str(each.epochs),
            "solved" if each.seconds_per_step is None else f"{each.seconds_per_step:.3f}",
            format_duration(each.seconds),
            format_duration(each.seconds_frozen) if each.seconds_frozen else "-",
            format_size(each.kept_bytes) if each.kept_bytes else "-",
            f"{each.memory_bytes / 1e9:.2f}",
            f"{each.memory.activations / 1e9:.2f}",
        )
        for each in estimates
    ]
    console.print("\nestimated for this machine:")
    columns = ("stage", ">epochs", ">seconds a step", ">time", ">frozen part", ">kept on the disk")
    print_table(console, (*columns, ">memory GB", ">of it for the backward pass"), rows)
    first = estimates[0]
    if first.from_data:
        counts = f"{first.images:,} training and {first.validation_images:,} validation images"
        console.print(f"for {counts} in batches of {first.batch_size}")
    else:
        console.print(
            f"for each {first.images:,} training images in batches of {first.batch_size}, without reading and "
            "validation, since there are no data"
        )
    for each in estimates:
        if each.measured_batch != each.batch_size:
            console.print(f"stage {each.stage}: tried with {each.measured_batch} images a step, and scaled")
