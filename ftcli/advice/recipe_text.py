"""Text of a drafted recipe, with comments that give the reasons of its settings."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.advice.dataset_stats import DatasetStats
from ftcli.errors import quote_names
from ftcli.recipe.drafting import SMALL_DATASET, format_setting, quote_yaml, write_stages
from ftcli.results import WeightsEntry, format_count, format_percent


@dataclass(frozen=True)
class ModelChoice:
    """The backbone of a drafted recipe.

    `weights` is None if none are published. `image_size` and `pretrained_image_size` are sides in pixels in the recipe
    and of the pretrained weights.
    """

    name: str
    weights: WeightsEntry | None
    image_size: int
    pretrained_image_size: int
    has_batch_norm: bool
    has_gpu: bool


def build_recipe_text(stats: DatasetStats, model_choice: ModelChoice, name: str, command: str) -> str:
    """Return a recipe as YAML with comments; the first line is the command that runs it.

    Names of folders, classes and the run may contain any characters.
    """
    lines = [
        *_describe_images(stats, command),
        f"name: {quote_yaml(name)}",
        "data:",
        *_write_data(stats, model_choice),
    ]
    stages = write_stages(stats.num_train, model_choice.weights is not None, model_choice.has_batch_norm)
    lines += ["backbone:", *_write_backbone(model_choice), "stages:", *stages]
    return "\n".join(lines) + "\n"


def _describe_images(stats: DatasetStats, command: str) -> list[str]:
    counts = stats.splits["train"]
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    color = "grayscale" if stats.grey_fraction == 1 else "partly grayscale" if stats.grey_fraction else "in color"
    lines = [
        f"# {command}",
        "#",
        f"# {stats.num_images:,} images of {len(stats.classes)} classes: {quote_names(stats.classes)}. "
        f"The median size of {stats.num_headers_read:,} is",
        f"# {stats.median_width} x {stats.median_height} pixels, {color}. Always predicting {largest!r} has an "
        f"accuracy of {format_percent(counts[largest] / stats.num_train)} on train.",
    ]
    if counts[largest] >= 3 * counts[smallest]:
        lines.append(
            f"# {smallest!r} has {counts[smallest]:,} of these images and {largest!r} {counts[largest]:,}: compare the "
            "metrics per class, not the accuracy alone."
        )
    return lines


def _write_data(stats: DatasetStats, model_choice: ModelChoice) -> list[str]:
    counts = ", ".join(f"{split} {sum(counts.values()):,}" for split, counts in stats.splits.items())
    if stats.test_fraction is not None:
        lines = [
            format_setting("root", quote_yaml(stats.root), f"has no splits; split into {counts}"),
            format_setting("test", f"{stats.test_fraction:g}", "fraction of the images in test"),
        ]
    else:
        missing_test = (
            "" if "test" in stats.existing_splits else "; without test images accuracy on new ones is unknown"
        )
        lines = [format_setting("root", quote_yaml(stats.root), f"{counts}{missing_test}")]
    if stats.val_fraction is not None:
        lines.append(format_setting("val", f"{stats.val_fraction:g}", "fraction of the training images in val"))
    lines += [_write_size(stats, model_choice), *_write_resize_and_augment(stats, model_choice)]
    batch_size = _choose_batch_size(stats.num_train, model_choice.has_gpu)
    num_steps = -(-(stats.num_train - 1) // batch_size)  # a last batch of one image is merged with the previous one
    reason = f"{format_count(num_steps, 'step')} per epoch; decrease if memory runs out"
    lines.append(format_setting("batch_size", str(batch_size), reason))
    if stats.corrupt:
        count = f"{len(stats.corrupt)} of {stats.num_headers_read:,} checked images are corrupt"
        lines.append(format_setting("on_corrupt_image", "skip", f"{count}; replace them, then set error"))
    return lines


def _choose_batch_size(num_train: int, has_gpu: bool) -> int:
    if num_train < 160:
        return 8
    if num_train < 640:
        return 16
    return 64 if has_gpu and num_train >= SMALL_DATASET else 32


def _write_size(stats: DatasetStats, model_choice: ModelChoice) -> str:
    reason = "that of the pretrained weights" if model_choice.weights else "the usual one of this backbone"
    if stats.median_side < model_choice.image_size:
        side_name = "longer" if stats.is_elongated else "shorter"
        reason = f"the smallest for this backbone; the {side_name} side of the images is {stats.median_side}"
    elif model_choice.image_size < model_choice.pretrained_image_size:
        reason = f"that of the images; the weights were trained with {model_choice.pretrained_image_size}"
    return format_setting("image_size", str(model_choice.image_size), reason)


def _write_resize_and_augment(stats: DatasetStats, model_choice: ModelChoice) -> list[str]:
    """Choose how images become square, and the augmentation."""
    if stats.fraction_longer_than(1.1) <= 0.1:
        resize = ("squash", "images are nearly square, so nothing is cropped")
    elif stats.is_elongated:
        resize = ("pad", "images are elongated; cropping or squashing loses too much")
    else:
        resize = ("crop", "center crop; use squash or pad if the border matters")
    if resize[0] != "crop" or model_choice.image_size < 128:
        augment = ("light", "crops of 80 to 100% and horizontal flips; use flips if images have no upright orientation")
    else:
        augment = ("standard", "crops of 8 to 100% and horizontal flips; use light if small details matter")
    return [format_setting("resize", *resize), format_setting("augment", *augment)]


def _write_backbone(model_choice: ModelChoice) -> list[str]:
    entry, facts = model_choice.weights, []
    if entry is not None and entry.accuracy is not None:
        facts.append(f"{entry.accuracy:.1f}% on ImageNet")
    if entry is not None and entry.parameters is not None:
        facts.append(f"{entry.parameters / 1e6:.1f} M parameters")
    inspect_hint = "`ftcli inspect` lists others"
    weights = ("default", "downloaded once, then read from the cache")
    if entry is None:
        weights = ("none", "none are published, so training starts from random weights; better give a file")
    return [
        format_setting(
            "name", quote_yaml(model_choice.name), "; ".join((*([", ".join(facts)] if facts else []), inspect_hint))
        ),
        format_setting("weights", *weights),
    ]
