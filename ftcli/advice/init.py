"""Draft a recipe for a dataset, with comments that give the reasons of its settings."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from ftcli.advice.dataset_stats import DatasetStats, compute_dataset_stats
from ftcli.errors import RecipeError, quote_names
from ftcli.files import atomic_write
from ftcli.models.factory import check_model, create_model, has_fixed_image_size
from ftcli.models.freezing import has_batch_norm
from ftcli.models.pretrained.loading import default_preprocessing
from ftcli.models.pretrained_cfg import list_downloadable_weights
from ftcli.models.summary import UnsupportedImageSizeError, summarize
from ftcli.planning import plan_recipe
from ftcli.recipe.drafting import SMALL_DATASET, format_setting, quote_yaml, to_recipe_name, write_stages
from ftcli.recipe.loading import recipe_from_dict
from ftcli.recipe.parsing import parse_yaml
from ftcli.results import InitResult, WeightsEntry, format_count, format_percent
from ftcli.runtime import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InitArgs:
    """Arguments of `ftcli init`; None means the name of the folder and a backbone chosen for the images."""

    data: Path
    name: str | None = None
    backbone: str | None = None
    device: str
    out: Path | None = None


def draft_recipe(args: InitArgs) -> InitResult:
    """Draft a recipe that trains on the images without changes.

    Nothing is downloaded, and only headers of images are read; a warning is logged for each corrupt image. Raises
    DataError for images that cannot be trained on, RecipeError for an unknown model, an invalid name or device, and an
    existing file.
    """
    if args.out is not None and (args.out.exists() or args.out.is_symlink()):
        raise RecipeError(f"--out: {args.out} already exists; give another path, or remove it")
    has_gpu = choose_device(args.device).type != "cpu"
    if args.backbone is not None:
        check_model(args.backbone, "--backbone")
    stats = compute_dataset_stats(args.data, "init")
    for message in stats.corrupt:
        logger.warning(message)
    model_choice = _choose_model(stats, args.backbone, has_gpu)
    command = f"ftcli train {_shell_quote(str(args.out or 'recipe.yaml'))}"
    text = build_recipe_text(stats, model_choice, args.name or _default_recipe_name(args.data), command)
    _validate_draft(text, stats, "init" if args.name is None else "--name")
    if args.out is not None:
        atomic_write(args.out, text)
    return InitResult(
        recipe=text,
        images=stats.num_images,
        classes=stats.classes,
        splits=stats.splits,
        looked_at=stats.num_headers_read,
        width=stats.median_width,
        height=stats.median_height,
        grey=stats.grey_fraction,
        broken=stats.corrupt,
        backbone=model_choice.name,
        out=args.out,
        next_command=command,
    )


def _choose_model(stats: DatasetStats, requested: str | None, has_gpu: bool) -> ModelChoice:
    """Choose the backbone and its image size: that of its weights, or smaller for small images."""
    name = requested or ("resnet50" if has_gpu and stats.num_train >= 2000 else "resnet18")
    weights = next((entry for entry in list_downloadable_weights(name) if entry.default), None)
    pretrained_size = default_preprocessing(name, "default" if weights else "none").image_size
    model = create_model(name, True, pretrained_size)
    image_size = pretrained_size
    if stats.median_side < pretrained_size and not has_fixed_image_size(name):
        smaller_size = max(32, stats.median_side // 32 * 32)
        try:
            summarize(model, smaller_size)
            image_size = smaller_size
        except UnsupportedImageSizeError:
            pass
    return ModelChoice(name, weights, image_size, pretrained_size, has_batch_norm(model), has_gpu)


def _validate_draft(text: str, stats: DatasetStats, location: str) -> None:
    """Raise RecipeError for an invalid recipe, such as an invalid name or a network that cannot be fine-tuned."""
    recipe_file = recipe_from_dict(parse_yaml(text, location).data, location)
    assert recipe_file.recipe.data.root == stats.root
    plan_recipe(recipe_file)


def _default_recipe_name(data: Path) -> str:
    """Return a valid recipe name made from that of the folder or manifest."""
    path = data.absolute()
    return to_recipe_name(path.stem if path.is_file() else path.name)


def _shell_quote(text: str) -> str:
    """Quote a text as one word of the shell, on one line."""
    return shlex.quote(text) if text.isprintable() else repr(text)


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
