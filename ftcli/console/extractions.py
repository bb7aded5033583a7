"""Tables of `ftcli extract`."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import format_shape, print_skipped, print_table
from ftcli.results import ExtractResult, FeatureLayer, ProbeScore, format_count

_PROBE_NAMES = {"svm": "linear SVM", "rbf": "RBF SVM", "logistic": "logistic regression", "knn": "k nearest neighbors"}


def print_extraction(console: Console, result: ExtractResult) -> None:
    counts = ", ".join(f"{split} {count:,}" for split, count in result.splits.items())
    console.print(f"{result.source}: {format_count(result.images, 'image')} ({counts})", soft_wrap=True)
    console.print(f"weights: {result.weights}", soft_wrap=True)
    if len(result.layers) == 1:
        console.print(_format_layer(result.layers[0], result.pool), soft_wrap=True)
    elif not result.probes:
        _print_layers(console, result)
    print_skipped(console, result.skipped)
    if len(result.probes) > 1:
        _print_probes(console, result)
    if result.probe is not None:
        console.print(_format_probe(result.probe))
        if result.probe.test_majority is not None:
            console.print(f"always predicting the most frequent class: {result.probe.test_majority:.1%}")
    for label, path in (("features", result.output), ("plot", result.picture), ("checkpoint", result.head)):
        if path is not None:
            console.print(f"{label}: {path}", soft_wrap=True)
    if result.next_command is not None:
        console.print(f"next: {result.next_command}", soft_wrap=True)


def _format_layer(layer: FeatureLayer, pool: str | None) -> str:
    text = f"layer: {layer.name}, "
    if layer.shape != layer.output_shape:
        text += f"{format_shape(layer.output_shape)} ({pool or 'avg'}) -> "
    return f"{text}{format_shape(layer.shape)} features per image"


def _print_layers(console: Console, result: ExtractResult) -> None:
    rows = [
        (layer.name, f"{layer.depth:.0%}", format_shape(layer.output_shape), f"{layer.dimensions:,}")
        for layer in result.layers
    ]
    print_table(console, ("layer", ">depth", ">output", ">dimensions"), rows)


def _print_probes(console: Console, result: ExtractResult) -> None:
    """Print one row per layer, accuracies in percent."""
    console.print(
        f"\naccuracy of {_PROBE_NAMES[result.probes[0].name]} in %, by layer; * has the best cross-validation:"
    )
    rows = [
        (
            layer.name,
            f"{layer.depth:.0%}",
            f"{layer.dimensions:,}",
            f"{100 * score.cv_accuracy:.1f}",
            _format_percent(score.val_accuracy),
            _format_percent(score.test_accuracy),
            _format_interval(score),
            "*" if layer.name == result.layer else "",
        )
        for layer, score in zip(result.layers, result.probes, strict=True)
    ]
    print_table(console, ("layer", ">depth", ">dimensions", ">cv", ">val", ">test", "95% interval", ""), rows)
    console.print()


def _format_probe(score: ProbeScore) -> str:
    text = f"{_PROBE_NAMES[score.name]} on {score.layer}: "
    if score.test_accuracy is not None:
        text += f"test accuracy {score.test_accuracy:.1%} (95% interval {_format_interval(score)}%) "
        text += f"on {format_count(score.test_images, 'image')}; "
    if score.val_accuracy is not None:
        text += f"val accuracy {score.val_accuracy:.1%}; "
    text += f"cross-validation accuracy {score.cv_accuracy:.1%}"
    parameters = ", ".join(f"{name} = {_format_value(value)}" for name, value in score.parameters.items())
    return f"{text}, {parameters}" if parameters else text


def _format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_interval(score: ProbeScore) -> str:
    if score.test_low is None or score.test_high is None:
        return "-"
    return f"{100 * score.test_low:.1f} to {100 * score.test_high:.1f}"


def _format_percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
