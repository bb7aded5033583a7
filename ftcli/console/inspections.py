"""Tables of `ftcli inspect`: a network, a list of models, a training estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from ftcli.console.tables import format_shape, print_table
from ftcli.results import InspectResult, ModelListResult, StageEstimate, format_count, format_duration, format_size

_TIMM_PREFIX = "timm/"


def print_inspection(console: Console, result: InspectResult) -> None:
    console.print(
        f"{result.name}: {result.parameters:,} parameters, {result.trainable:,} trainable, "
        f"{result.multiply_adds / 1e9:.2f} G multiply-adds per image"
    )
    head, preprocessing = result.head, result.preprocessing
    console.print(f"head: {head.path} ({head.type}), {head.in_features} -> {head.out_features}")
    console.print(
        f"input: {preprocessing.image_size} px, {preprocessing.resize} to {preprocessing.resize_size} px, "
        f"{preprocessing.interpolation}, mean {_format_numbers(preprocessing.mean)}, "
        f"std {_format_numbers(preprocessing.std)}"
    )
    if result.classes is not None:
        console.print(f"classes: {', '.join(result.classes)}")
    if result.loaded is not None:
        loaded = result.loaded
        console.print(f"weights: {format_count(loaded.tensors, 'tensor')} from {loaded.source}", soft_wrap=True)
        console.print(f"  sha256: {loaded.sha256 or '-'}", soft_wrap=True)
        console.print(f"  skipped: {', '.join(loaded.left_out) or '-'}", soft_wrap=True)
    for key, value in (result.checkpoint or {}).items():
        console.print(f"{key}: {value}", soft_wrap=True)
    _print_layers(console, result)
    _print_stages(console, result)
    _print_weights(console, result)
    if result.estimate is not None:
        _print_estimates(console, result.estimate)
    for path in result.pictures:
        console.print(f"plot: {path}", soft_wrap=True)


def _print_layers(console: Console, result: InspectResult) -> None:
    rows = [
        (
            "  " * layer.depth + layer.name,
            layer.type,
            format_shape(layer.output_shape) if layer.output_shape else "-",
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
        console.print(f"  trained: {', '.join(stage.trained_layers) or '-'}")
        console.print(f"  frozen: {', '.join(stage.frozen_layers) or '-'}")
        if stage.cut:
            boundary = ", ".join(f"{tensor.name} ({format_shape(tensor.shape)})" for tensor in stage.cut)
            console.print(f"  cut at: {boundary}")


def _print_weights(console: Console, result: InspectResult) -> None:
    """Print one line per entry instead of a table, so that URLs are not wrapped and can be copied."""
    if result.weights:
        console.print("\nweights, with their ImageNet top-1 accuracy:")
    for entry in result.weights:
        default = " (default)" if entry.default else ""
        accuracy = "-" if entry.accuracy is None else f"{entry.accuracy:.2f}%"
        console.print(f"{entry.name}{default}: {accuracy}, {entry.url or '-'}", soft_wrap=True)


def _format_numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def print_models(console: Console, result: ModelListResult) -> None:
    """Print one line per model. Without a glob, the models of timm are only counted."""
    shown = [row for row in result.models if result.glob is not None or not row.name.startswith(_TIMM_PREFIX)]
    rows = [
        (
            row.name,
            "-" if row.parameters is None else f"{row.parameters:,}",
            "-" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.2f}",
            str(row.image_size),
            "-" if row.accuracy is None else f"{row.accuracy:.2f}",
        )
        for row in shown
    ]
    print_table(console, ("model", ">parameters", ">G multiply-adds", ">pixels", ">ImageNet top-1 %"), rows)
    if num_hidden := len(result.models) - len(shown):
        console.print(
            f"\n{num_hidden:,} more from timm: ftcli inspect 'timm/*' lists their names; a narrower glob such as "
            "'timm/*lite*' lists their sizes too",
            soft_wrap=True,
        )


def _print_estimates(console: Console, estimates: Sequence[StageEstimate]) -> None:
    """Print one row per stage, then the number of images that the estimate is for."""
    rows = [
        (
            estimate.stage,
            str(estimate.epochs),
            "head fit" if estimate.seconds_per_step is None else f"{estimate.seconds_per_step:.3f}",
            format_duration(estimate.seconds),
            format_duration(estimate.seconds_frozen) if estimate.seconds_frozen else "-",
            format_size(estimate.kept_bytes) if estimate.kept_bytes else "-",
            f"{estimate.memory_bytes / 1e9:.2f}",
            f"{estimate.memory.activations / 1e9:.2f}",
        )
        for estimate in estimates
    ]
    console.print("\nestimate for this machine:")
    columns = ("stage", ">epochs", ">seconds per step", ">time", ">feature extraction", ">feature cache")
    print_table(console, (*columns, ">memory GB", ">activations GB"), rows)
    first = estimates[0]
    if first.from_data:
        counts = f"{first.images:,} training and {first.validation_images:,} validation images"
        console.print(f"for {counts} in batches of {first.batch_size}")
    else:
        console.print(
            f"for each {first.images:,} training images in batches of {first.batch_size}, without data loading and "
            "validation, since there is no data"
        )
    for estimate in estimates:
        if estimate.measured_batch != estimate.batch_size:
            console.print(
                f"stage {estimate.stage}: measured with {format_count(estimate.measured_batch, 'image')} per step "
                f"and scaled to {estimate.batch_size}"
            )
