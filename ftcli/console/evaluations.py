"""How evaluations look."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import print_skipped, print_table
from ftcli.results import Evaluation


def print_evaluation(console: Console, result: Evaluation) -> None:
    console.print(f"{result.checkpoint} on {result.split}:", soft_wrap=True)
    console.print(
        f"accuracy {result.accuracy:.1%}, loss {result.loss:.4f}, {result.images} images, "
        f"calibration error {result.calibration['expected_calibration_error']:.3f}"
    )
    rows = [(r.name, str(r.images), f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}") for r in result.per_class]
    print_table(console, ("class", ">images", ">precision", ">recall", ">F1"), rows)
    console.print("\nconfusion (rows are the true class, columns the one given):")
    header = ("", *(f">{name}" for name in result.classes))
    counts = zip(result.classes, result.confusion, strict=True)
    print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.worst:
        console.print("\nmost confident mistakes:")
        worst = [(m.path, m.label, m.predicted, f"{m.probability:.3f}") for m in result.worst]
        print_table(console, ("image", "true class", "given", ">probability"), worst)
    print_skipped(console, result.skipped)
