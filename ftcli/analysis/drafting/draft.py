"""A recipe for images that nobody has written one for: what is seen of them, the network that fits, and the text."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ftcli.analysis.drafting.proposal import Choice, propose_recipe
from ftcli.analysis.drafting.survey import Survey, survey_images
from ftcli.errors import RecipeError
from ftcli.models.anatomy import SizeRefused, examine
from ftcli.models.zoo import build_network, check_model, default_preprocessing, is_made_for_one_size, list_weights
from ftcli.planning import plan_recipe
from ftcli.recipe.loading import revive_recipe
from ftcli.recipe.parsing import parse_yaml
from ftcli.results import Draft, Reporter
from ftcli.runtime import choose_device
from ftcli.storage import replace_file


@dataclass(frozen=True, kw_only=True)
class Brief:
    """What the user asked of `ftcli init`. Without `name` the folder's is taken, without `backbone` one that fits."""

    data: Path
    name: str | None = None
    backbone: str | None = None
    device: str
    out: Path | None = None


def draft_recipe(brief: Brief, reporter: Reporter) -> Draft:
    """Look at the images and write a recipe that trains on them as it stands.

    Nothing is downloaded, and only the headers of images are read; the reporter is warned of those that are broken.
    Raises DataError for images that could not be trained on, RecipeError for a model, name or device that does not
    exist and for a file that is there already.
    """
    if brief.out is not None and (brief.out.exists() or brief.out.is_symlink()):
        raise RecipeError(f"--out: {brief.out} is there already; give another file, or remove it")
    gpu = choose_device(brief.device).type != "cpu"
    if brief.backbone is not None:
        check_model(brief.backbone, "--backbone")
    survey = survey_images(brief.data, "init")
    for sentence in survey.broken:
        reporter.warn(sentence)
    choice = _choose_network(survey, brief.backbone, gpu)
    command = f"ftcli train {_quote(str(brief.out or 'recipe.yaml'))}"
    text = propose_recipe(survey, choice, brief.name or _make_name(brief.data), command)
    _check(text, survey, "init" if brief.name is None else "--name")
    if brief.out is not None:
        replace_file(brief.out, text)
    return Draft(
        recipe=text,
        images=survey.images,
        classes=survey.classes,
        splits=survey.splits,
        looked_at=survey.looked_at,
        width=survey.width,
        height=survey.height,
        grey=survey.grey,
        broken=survey.broken,
        backbone=choice.name,
        out=brief.out,
        next_command=command,
    )


def _choose_network(survey: Survey, wanted: str | None, gpu: bool) -> Choice:
    """The network and its size: that of its weights, or less where the images are smaller and it takes less."""
    name = wanted or ("resnet50" if gpu and survey.train >= 2000 else "resnet18")
    weights = next((entry for entry in list_weights(name) if entry.default), None)
    native = default_preprocessing(name, "default" if weights else "none").image_size
    network = build_network(name, True, native)
    size = native
    if survey.side < native and not is_made_for_one_size(name):
        smaller = max(32, survey.side // 32 * 32)
        try:
            examine(network, smaller)
            size = smaller
        except SizeRefused:
            pass
    return Choice(name, weights, size, native, has_batch_norm(network), gpu)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has BatchNorm of any kind."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _check(text: str, survey: Survey, where: str) -> None:
    """Raise RecipeError where the text is no recipe: for a name that none may have, or a network that none can tune."""
    document = revive_recipe(parse_yaml(text, where).data, where)
    assert document.recipe.data.root == survey.root
    plan_recipe(document)


def _make_name(data: Path) -> str:
    """A name that a recipe may have, made from that of the folder or manifest."""
    place = data.absolute()
    return fit_name(place.stem if place.is_file() else place.name)


def fit_name(text: str) -> str:
    """A name that a recipe may have, made from a text."""
    kept = "".join(sign if sign.isalpha() or sign.isdecimal() or sign in "_.-" else "-" for sign in text)
    short = kept.strip("-.")[:100].encode()[:200].decode(errors="ignore")  # a letter that was cut is dropped
    return short or "images"


def _quote(text: str) -> str:
    """The text as a word of the shell, on one line."""
    return shlex.quote(text) if text.isprintable() else repr(text)
