"""The text of a recipe that is proposed for images, with the reasons for its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ftcli.advice.dataset_stats import DatasetStats
from ftcli.errors import quote_names
from ftcli.recipe.parsing import quote_text
from ftcli.results import WeightsEntry, format_count

_SMALL_DATASET = 5_000
"""Training images below which BatchNorm's statistics of them are worse than those of the weights."""

_PLAIN_SCALAR = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_RESERVED_WORDS = ("true", "false", "null")


@dataclass(frozen=True)
class ModelChoice:
    """The network of a proposal: its weights (None where none are published), the side in pixels of what it is to see
    and of what its weights were trained with, whether it has BatchNorm, and whether it trains on a GPU."""

    name: str
    weights: WeightsEntry | None
    image_size: int
    pretrained_image_size: int
    has_batch_norm: bool
    has_gpu: bool


def build_recipe_text(stats: DatasetStats, model_choice: ModelChoice, name: str, command: str) -> str:
    """The recipe as YAML with comments; the first line is the command that runs it.

    Whatever the names of folders, classes and the run hold, the YAML has them as they are.
    """
    lines = [
        *_describe_images(stats, command),
        f"name: {_yaml_quote(name)}",
        "data:",
        *_write_data(stats, model_choice),
    ]
    stages = write_stages(stats.num_train, model_choice.weights is not None, model_choice.has_batch_norm)
    lines += ["backbone:", *_write_backbone(model_choice), "stages:", *stages]
    return "\n".join(lines) + "\n"


def _describe_images(stats: DatasetStats, command: str) -> list[str]:
    counts = stats.splits["train"]
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    colour = "grey" if stats.grey_fraction == 1 else "some of them grey" if stats.grey_fraction else "in colour"
    lines = [
        f"# {command}",
        "#",
        f"# {stats.num_images:,} images of {len(stats.classes)} classes: {quote_names(stats.classes)}. The median of "
        f"{stats.num_headers_read:,} is {stats.median_width} x {stats.median_height}",
        f"# pixels, {colour}. Whoever always answers {largest!r} is right for {counts[largest] / stats.num_train:.1%} of the "
        "training images.",
    ]
    if counts[largest] >= 3 * counts[smallest]:
        lines.append(
            f"# {smallest!r} has {counts[smallest]:,} of those and {largest!r} {counts[largest]:,}: look at the figures of each "
            "class, not at the accuracy alone."
        )
    return lines


def _write_data(stats: DatasetStats, model_choice: ModelChoice) -> list[str]:
    counts = ", ".join(f"{split} {sum(counts.values()):,}" for split, counts in stats.splits.items())
    if stats.test_fraction is not None:
        lines = [
            _line("root", _yaml_quote(stats.root), f"has no splits of its own; drawn from it: {counts}"),
            _line("test", f"{stats.test_fraction:g}", "the share of the images that is kept for the test"),
        ]
    else:
        missing_test = (
            "" if "test" in stats.existing_splits else "; without test images nobody knows how good the result is"
        )
        lines = [_line("root", _yaml_quote(stats.root), f"{counts}{missing_test}")]
    if stats.val_fraction is not None:
        lines.append(
            _line("val", f"{stats.val_fraction:g}", "the share of the training images that is drawn for validation")
        )
    lines += [_write_size(stats, model_choice), *_write_resize_and_augment(stats, model_choice)]
    batch_size = (
        8
        if stats.num_train < 160
        else 16
        if stats.num_train < 640
        else 64
        if model_choice.has_gpu and stats.num_train >= _SMALL_DATASET
        else 32
    )
    num_steps = -(-(stats.num_train - 1) // batch_size)  # a last image that is alone joins the batch before it
    reason = f"{format_count(num_steps, 'step')} an epoch; lower it if memory runs out"
    lines.append(_line("batch_size", str(batch_size), reason))
    if stats.corrupt:
        count = f"{len(stats.corrupt)} of the {stats.num_headers_read:,} images looked at cannot be read"
        lines.append(_line("on_corrupt_image", "skip", f"{count}; replace what can be, then set error"))
    return lines


def _write_size(stats: DatasetStats, model_choice: ModelChoice) -> str:
    reason = (
        "what the weights were trained with" if model_choice.weights else "what this network is mostly trained with"
    )
    if stats.median_side < model_choice.image_size:
        side_name = "longer" if stats.is_elongated else "crop"
        reason = f"the images' {side_name} side is {stats.median_side}; this is the least that suits the network"
    elif model_choice.image_size < model_choice.pretrained_image_size:
        reason = f"the images have no more; the weights were trained with {model_choice.pretrained_image_size}"
    return _line("image_size", str(model_choice.image_size), reason)


def _write_resize_and_augment(stats: DatasetStats, model_choice: ModelChoice) -> list[str]:
    """How images become square, and what happens to them at random."""
    if stats.fraction_longer_than(1.1) <= 0.1:
        resize = ("squash", "they are nearly square: the whole image is seen, its border too")
    elif stats.is_elongated:
        resize = ("pad", "they are long: cut or squashed they would lose too much")
    else:
        resize = ("crop", "the centre is cut out; squash or pad where what counts may lie at the border")
    if resize[0] != "crop" or model_choice.image_size < 128:
        augment = ("light", "crops of 80 to 100 % and mirror images; flips where there is no right way up")
    else:
        augment = ("standard", "crops of 8 to 100 % and mirror images; light where details count")
    return [_line("resize", *resize), _line("augment", *augment)]


def _write_backbone(model_choice: ModelChoice) -> list[str]:
    entry, facts = model_choice.weights, []
    if entry is not None and entry.accuracy is not None:
        facts.append(f"{entry.accuracy:.1f} % on ImageNet")
    if entry is not None and entry.parameters is not None:
        facts.append(f"{entry.parameters / 1e6:.1f} M parameters")
    inspect_hint = "`ftcli inspect` lists others"
    weights = ("default", "downloaded once; from then on the internet is not needed")
    if entry is None:
        weights = ("none", "none are published for it, so it begins from nothing; better give a file")
    return [
        _line(
            "name", _yaml_quote(model_choice.name), "; ".join((*([", ".join(facts)] if facts else []), inspect_hint))
        ),
        _line("weights", *weights),
    ]


def write_stages(num_train: int, is_pretrained: bool, has_batch_norm: bool) -> list[str]:
    """The lines of the stages for so many training images: the head alone and then everything, or everything at once
    where the network begins from nothing. `batch_norm` tells that the network has BatchNorm."""
    if not is_pretrained:
        return _write_stage("all", "none", "what begins from nothing takes long", 30, "1.0e-3")
    # The fewer images an epoch has, the more epochs make the same number of steps.
    head_epochs, all_epochs = (10, 15) if num_train < 500 else (4, 8) if num_train < _SMALL_DATASET else (2, 5)
    lr = "3.0e-4" if has_batch_norm else "1.0e-4"
    all_stage = _write_stage("all", "none", "then everything, gently", all_epochs, lr)
    if has_batch_norm and num_train < _SMALL_DATASET:
        reason = "the statistics of so few images are worse than those of the weights"
        all_stage.insert(2, _line("batch_norm", "frozen", reason, depth=2))
    reason = "first the new head alone, for it begins at random"
    return [*_write_stage("head", "backbone", reason, head_epochs, "3.0e-3"), *all_stage]


def _write_stage(name: str, freeze: str, reason: str, epochs: int, lr: str) -> list[str]:
    return [
        f"  - name: {name}",
        _line("freeze", freeze, reason, depth=2),
        _line("epochs", str(epochs), "more, where the validation loss still falls at the end", depth=2),
        f"    optimizer: {{name: adamw, lr: {lr}, weight_decay: 1.0e-2}}",
        _line("schedule", "one_cycle", "the learning rate rises and then falls to nearly 0", depth=2),
    ]


def _line(key: str, value: str, reason: str, depth: int = 1) -> str:
    return f"{'  ' * depth}{key}: {value}".ljust(30) + f"  # {reason}"


def _yaml_quote(text: str) -> str:
    """The text as a value of YAML, in quotes where it could be read as anything else."""
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() not in _RESERVED_WORDS:
        return text
    return quote_text(text)
