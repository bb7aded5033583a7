"""How what is told about networks looks."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from ftcli.console.tables import print_table
from ftcli.results import Inspection


def print_inspection(console: Console, result: Inspection) -> None:
    console.print(
        f"{result.name}: {result.parameters:,} parameters, {result.trainable:,} trainable, "
        f"{result.multiply_adds / 1e9:.2f} G multiply-adds an image",
        soft_wrap=True,
    )
    head, pre = result.head, result.preprocessing
    console.print(f"head: {head.path} ({head.type}), {head.in_features} -> {head.out_features}", soft_wrap=True)
    console.print(
        f"input: {pre.image_size} px, {pre.resize} to {pre.resize_size} px, {pre.interpolation}, "
        f"mean {list_numbers(pre.mean)}, std {list_numbers(pre.std)}",
        soft_wrap=True,
    )
    if result.classes is not None:
        console.print(f"classes: {', '.join(result.classes)}", soft_wrap=True)
    for key, value in (result.checkpoint or {}).items():
        console.print(f"{key}: {value}", soft_wrap=True)
    layers = [
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
    print_table(console, ("layer", "type", "output", ">parameters", ">trainable"), layers)
    for stage in result.stages or ():
        console.print(f"\nstage {stage.name}: {stage.trainable:,} trainable, {stage.frozen:,} frozen", soft_wrap=True)
        console.print(f"  trains: {', '.join(stage.trained_layers) or '-'}", soft_wrap=True)
        console.print(f"  frozen: {', '.join(stage.frozen_layers) or '-'}", soft_wrap=True)
        if stage.cut:
            crossing = ", ".join(f"{value.name} ({'x'.join(map(str, value.shape))})" for value in stage.cut)
            console.print(f"  cut at: {crossing}", soft_wrap=True)
    if result.weights:
        console.print()
        rows = [
            (
                entry.name + (" (default)" if entry.default else ""),
                "-" if entry.accuracy is None else f"{entry.accuracy:.2f}",
                entry.url or "-",
            )
            for entry in result.weights
        ]
        print_table(console, ("weights", ">ImageNet top-1 %", "from"), rows)


def list_numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
