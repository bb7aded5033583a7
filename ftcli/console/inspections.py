"""How what is told about networks looks."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from ftcli.console.estimates import print_estimates
from ftcli.console.tables import print_table
from ftcli.results import InspectResult


def print_inspection(console: Console, result: InspectResult) -> None:
    console.print(
        f"{result.name}: {result.parameters:,} parameters, {result.trainable:,} trainable, "
        f"{result.multiply_adds / 1e9:.2f} G multiply-adds an image"
    )
    head, preprocessing = result.head, result.preprocessing
    console.print(f"head: {head.path} ({head.type}), {head.in_features} -> {head.out_features}")
    console.print(
        f"input: {preprocessing.image_size} px, {preprocessing.resize} to {preprocessing.resize_size} px, {preprocessing.interpolation}, "
        f"mean {format_numbers(preprocessing.mean)}, std {format_numbers(preprocessing.std)}"
    )
    if result.classes is not None:
        console.print(f"classes: {', '.join(result.classes)}")
    if result.loaded is not None:
        loaded = result.loaded
        console.print(f"weights: {loaded.tensors} tensors of {loaded.source}", soft_wrap=True)
        console.print(f"  sha256: {loaded.sha256 or '-'}", soft_wrap=True)
        console.print(f"  left out: {', '.join(loaded.left_out) or '-'}", soft_wrap=True)
    for key, value in (result.checkpoint or {}).items():
        console.print(f"{key}: {value}", soft_wrap=True)
    _print_layers(console, result)
    _print_stages(console, result)
    _print_weights(console, result)
    if result.estimate is not None:
        print_estimates(console, result.estimate)
    for picture in result.pictures:
        console.print(f"written: {picture}", soft_wrap=True)


def _print_layers(console: Console, result: InspectResult) -> None:
    rows = [
        (
            "  " * layer.depth + layer.name,
            layer.type,
            "x".join(map(str, layer.output_shape)) if layer.output_shape else "-",
            f"{layer.parameters:,}",
            f"{layer.trainable:,}",
        )
        for layer in result.layers
    ]
    console.print()
    print_table(console, ("layer", "type", "output", ">parameters", ">trainable"), rows)


def _print_stages(console: Console, result: InspectResult) -> None:
    for stage in result.stages or ():
        console.print(f"\nstage {stage.name}: {stage.trainable:,} trainable, {stage.frozen:,} frozen")
        console.print(f"  trains: {', '.join(stage.trained_layers) or '-'}")
        console.print(f"  frozen: {', '.join(stage.frozen_layers) or '-'}")
        if stage.cut:
            boundary = ", ".join(f"{value.name} ({'x'.join(map(str, value.shape))})" for value in stage.cut)
            console.print(f"  cut at: {boundary}")


def _print_weights(console: Console, result: InspectResult) -> None:
    """A line for each, not a table: an address stays whole, to be copied, however narrow the terminal is."""
    if result.weights:
        console.print("\nweights, with their ImageNet top-1 accuracy:")
    for entry in result.weights:
        default = " (default)" if entry.default else ""
        accuracy = "-" if entry.accuracy is None else f"{entry.accuracy:.2f} %"
        console.print(f"{entry.name}{default}: {accuracy}, {entry.url or '-'}", soft_wrap=True)


def format_numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
