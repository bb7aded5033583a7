"""The text of a recipe that is proposed for images, with the reasons for its settings."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.advice.dataset_stats import DatasetStats
from ftcli.errors import quote_names
from ftcli.recipe.drafting import SMALL_DATASET, format_setting, quote_yaml, write_stages
from ftcli.results import WeightsEntry, format_count


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
            format_setting("root", quote_yaml(stats.root), f"has no splits of its own; drawn from it: {counts}"),
            format_setting("test", f"{stats.test_fraction:g}", "the share of the images that is kept for the test"),
        ]
    else:
        missing_test = (
            "" if "test" in stats.existing_splits else "; without test images nobody knows how good the result is"
        )
        lines = [format_setting("root", quote_yaml(stats.root), f"{counts}{missing_test}")]
    if stats.val_fraction is not None:
        lines.append(
            format_setting(
                "val", f"{stats.val_fraction:g}", "the share of the training images that is drawn for validation"
            )
        )
    lines += [_write_size(stats, model_choice), *_write_resize_and_augment(stats, model_choice)]
    batch_size = (
        8
        if stats.num_train < 160
        else 16
        if stats.num_train < 640
        else 64
        if model_choice.has_gpu and stats.num_train >= SMALL_DATASET
        else 32
    )
    num_steps = -(-(stats.num_train - 1) // batch_size)  # a last image that is alone joins the batch before it
    reason = f"{format_count(num_steps, 'step')} an epoch; lower it if memory runs out"
    lines.append(format_setting("batch_size", str(batch_size), reason))
    if stats.corrupt:
        count = f"{len(stats.corrupt)} of the {stats.num_headers_read:,} images looked at cannot be read"
        lines.append(format_setting("on_corrupt_image", "skip", f"{count}; replace what can be, then set error"))
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
    return format_setting("image_size", str(model_choice.image_size), reason)


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
    return [format_setting("resize", *resize), format_setting("augment", *augment)]


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
        format_setting(
            "name", quote_yaml(model_choice.name), "; ".join((*([", ".join(facts)] if facts else []), inspect_hint))
        ),
        format_setting("weights", *weights),
    ]
