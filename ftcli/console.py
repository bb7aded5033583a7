"""The only place that prints: results on standard output, progress and words for people on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from ftcli.results import EpochRow, Evaluation, Fetched, Inspection, ModelList, Progress, Result, TrainResult

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

UNFOLDED = 100_000
"""Columns where no terminal limits them: nothing is folded or cut."""


def open_console(stream: TextIO) -> Console:
    """A console that colours and folds on a terminal and does neither elsewhere."""
    width = None if stream.isatty() else UNFOLDED
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class Terminal:
    """The Reporter for people: sentences and epochs as lines, counted work as a bar where there is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = open_console(stream or sys.stderr)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._name = ""
        self._drawn = 0.0

    def say(self, text: str) -> None:
        self._console.print(text)

    def warn(self, text: str) -> None:
        self._console.print(Text("warning: ", style="yellow") + Text(text))

    def advance(self, progress: Progress) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None or self._task is None or self._name != progress.task:
            self._end_bar()
            self._bar = self._make_bar()
            self._bar.start()
            self._name = progress.task
            self._task = self._bar.add_task(progress.task, rate="", details="", total=progress.total)
        rate = f"{progress.rate:.0f} images/s" if progress.rate else ""
        self._bar.update(self._task, completed=progress.done, rate=rate, details=progress.details)
        now = time.monotonic()
        if now - self._drawn > 0.1 or progress.done == progress.total:
            self._bar.refresh()
            self._drawn = now
        if progress.done >= progress.total:
            self._end_bar()

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        parts = [f"{row.stage} {row.epoch}/{epochs}"]
        if row.train_loss is not None and row.train_accuracy is not None:
            parts.append(f"train {row.train_loss:.4f} ({row.train_accuracy:.1%})")
        parts.append(f"val {row.val_loss:.4f} ({row.val_accuracy:.1%})")
        if row.lr is not None:
            parts.append(f"lr {row.lr:.2g}")
        parts.append(f"{row.seconds:.1f} s")
        if row.images_per_second is not None:
            parts.append(f"{row.images_per_second:.0f} images/s")
        self._console.print("  ".join(parts) + ("  best" if best else ""))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A bar that stands half way is taken away, so that what follows begins on a line of its own."""
        self._end_bar()

    def _make_bar(self) -> Bar:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # for those who wait, not for --help
        from rich.progress import Progress as Bar

        # No refresh thread: loader processes are forked while a bar is shown, and a thread's locks do not survive it.
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total}  {task.fields[details]}  {task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        ]
        return Bar(*columns, console=self._console, transient=True, auto_refresh=False)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def print_faults(faults: Iterable[str]) -> None:
    """Tell what went wrong, a line each."""
    console = open_console(sys.stderr)
    for fault in ("\\n".join(fault.splitlines()) for fault in faults):
        console.print(Text("error: ", style="bold red") + Text(fault))


def print_result(result: Result, *, as_json: bool) -> None:
    """The result of a command: one JSON document, or tables for people."""
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return
    console = open_console(sys.stdout)
    match result:
        case Inspection():
            _print_inspection(console, result)
        case ModelList():
            for name in result.models:
                console.print(name, soft_wrap=True)
        case TrainResult():
            _print_training(console, result)
        case Evaluation():
            _print_evaluation(console, result)
        case Fetched():
            rows = [(split, name, str(n)) for split, counts in result.splits.items() for name, n in counts.items()]
            console.print(f"{result.name}: {result.images} images in {result.root}", soft_wrap=True)
            _print_table(console, ("split", "class", ">images"), rows)
        case _:
            raise TypeError(f"no way to print {type(result).__name__}")


def _print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table; a column whose name begins with > is flush right. Cells are text, never markup."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2 if console.width > 80 else 1, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(Text(column.lstrip(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _print_training(console: Console, result: TrainResult) -> None:
    rows = [
        (
            stage.name,
            str(stage.epochs),
            f"{stage.trainable_parameters:,}",
            f"{stage.start_val_loss:.4f}",
            f"{stage.val_loss:.4f}",
            f"{stage.val_accuracy:.1%}",
            f"{stage.seconds:.1f}",
        )
        for stage in result.stages
    ]
    columns = ("stage", ">epochs", ">trained", ">loss before", ">best loss", ">accuracy", ">seconds")
    _print_table(console, columns, rows)
    if result.test is not None:
        test = result.test
        console.print(
            f"test: accuracy {test.accuracy:.1%}, loss {test.loss:.4f} on {test.images} images", soft_wrap=True
        )
    _print_skipped(console, result.skipped)
    console.print(f"best checkpoint: {result.best_loss}", soft_wrap=True)
    console.print(f"next: {result.next_command}", soft_wrap=True)


def _print_evaluation(console: Console, result: Evaluation) -> None:
    console.print(
        f"{result.checkpoint} on {result.split}: accuracy {result.accuracy:.1%}, loss {result.loss:.4f}, "
        f"{result.images} images, calibration error {result.calibration['expected_calibration_error']:.3f}",
        soft_wrap=True,
    )
    rows = [(r.name, str(r.images), f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}") for r in result.per_class]
    _print_table(console, ("class", ">images", ">precision", ">recall", ">F1"), rows)
    console.print("\nconfusion (rows are the true class, columns the one given):")
    header = ("", *(f">{name}" for name in result.classes))
    counts = zip(result.classes, result.confusion, strict=True)
    _print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.worst:
        console.print("\nmost confident mistakes:")
        worst = [(m.path, m.label, m.predicted, f"{m.probability:.3f}") for m in result.worst]
        _print_table(console, ("image", "true class", "given", ">probability"), worst)
    _print_skipped(console, result.skipped)


def _print_skipped(console: Console, skipped: Sequence[str]) -> None:
    if skipped:
        console.print(f"broken images left out: {len(skipped)}; the first: {skipped[0]}", soft_wrap=True)


def _print_inspection(console: Console, result: Inspection) -> None:
    console.print(
        f"{result.name}: {result.parameters:,} parameters, {result.trainable:,} trainable, "
        f"{result.multiply_adds / 1e9:.2f} G multiply-adds an image",
        soft_wrap=True,
    )
    head, pre = result.head, result.preprocessing
    console.print(f"head: {head.path} ({head.type}), {head.in_features} -> {head.out_features}", soft_wrap=True)
    console.print(
        f"input: {pre.image_size} px, {pre.resize} to {pre.resize_size} px, {pre.interpolation}, "
        f"mean {_numbers(pre.mean)}, std {_numbers(pre.std)}",
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
    _print_table(console, ("layer", "type", "output", ">parameters", ">trainable"), layers)
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
        _print_table(console, ("weights", ">ImageNet top-1 %", "from"), rows)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
