"""Draft a recipe for a dataset."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from ftcli.advice.dataset_stats import DatasetStats, compute_dataset_stats
from ftcli.advice.recipe_text import ModelChoice, build_recipe_text
from ftcli.errors import RecipeError
from ftcli.files import atomic_write
from ftcli.models.factory import check_model, create_model, has_fixed_image_size
from ftcli.models.freezing import has_batch_norm
from ftcli.models.pretrained.preprocessing import default_preprocessing
from ftcli.models.pretrained_cfg import list_downloadable_weights
from ftcli.models.summary import UnsupportedImageSizeError, summarize
from ftcli.planning import plan_recipe
from ftcli.recipe.drafting import to_recipe_name
from ftcli.recipe.loading import recipe_from_dict
from ftcli.recipe.parsing import parse_yaml
from ftcli.results import InitResult
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
