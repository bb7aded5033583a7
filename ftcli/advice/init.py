"""A recipe for images that nobody has written one for: what is seen of them, the network that fits, and the text."""

from __future__ import annotations

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
from ftcli.results import InitResult, Reporter
from ftcli.runtime import choose_device


@dataclass(frozen=True, kw_only=True)
class InitArgs:
    """What the user asked of `ftcli init`. Without `name` the folder's is taken, without `backbone` one that fits."""

    data: Path
    name: str | None = None
    backbone: str | None = None
    device: str
    out: Path | None = None


def draft_recipe(args: InitArgs, reporter: Reporter) -> InitResult:
    """Look at the images and write a recipe that trains on them as it stands.

    Nothing is downloaded, and only the headers of images are read; the reporter is warned of those that are broken.
    Raises DataError for images that could not be trained on, RecipeError for a model, name or device that does not
    exist and for a file that is there already.
    """
    if args.out is not None and (args.out.exists() or args.out.is_symlink()):
        raise RecipeError(f"--out: {args.out} is there already; give another file, or remove it")
    has_gpu = choose_device(args.device).type != "cpu"
    if args.backbone is not None:
        check_model(args.backbone, "--backbone")
    stats = compute_dataset_stats(args.data, "init")
    for message in stats.corrupt:
        reporter.warn(message)
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
    """The network and its size: that of its weights, or less where the images are smaller and it takes less."""
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
    """Raise RecipeError where the text is no recipe: for a name that none may have, or a network that none can tune."""
    recipe_file = recipe_from_dict(parse_yaml(text, location).data, location)
    assert recipe_file.recipe.data.root == stats.root
    plan_recipe(recipe_file)


def _default_recipe_name(data: Path) -> str:
    """A name that a recipe may have, made from that of the folder or manifest."""
    path = data.absolute()
    return to_recipe_name(path.stem if path.is_file() else path.name)


def _shell_quote(text: str) -> str:
    """The text as a word of the shell, on one line."""
    return shlex.quote(text) if text.isprintable() else repr(text)
