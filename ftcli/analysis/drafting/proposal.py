"""The text of a recipe that is proposed for images, with the reasons for its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from ftcli.analysis.drafting.survey import Survey
from ftcli.data.folders import name_all
from ftcli.results import WeightsEntry, tell_count

_FEW = 5_000
"""Training images below which BatchNorm's statistics of them are worse than those of the weights."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_WORDS = ("true", "false", "null")


@dataclass(frozen=True)
class Choice:
    """The network of a proposal: its weights (None where none are published), the side in pixels of what it is to see
    and of what its weights were trained with, whether it has BatchNorm, and whether it trains on a GPU."""

    name: str
    weights: WeightsEntry | None
    size: int
    native: int
    batch_norm: bool
    gpu: bool


def propose_recipe(survey: Survey, choice: Choice, name: str, command: str) -> str:
    """The recipe as YAML with comments; the first line is the command that runs it.

    Whatever the names of folders, classes and the run hold, the YAML has them as they are.
    """
    lines = [*_tell_images(survey, command), f"name: {_quote(name)}", "data:", *_write_data(survey, choice)]
    stages = write_stages(survey.train, choice.weights is not None, choice.batch_norm)
    lines += ["backbone:", *_write_backbone(choice), "stages:", *stages]
    return "\n".join(lines) + "\n"


def _tell_images(survey: Survey, command: str) -> list[str]:
    counts = survey.splits["train"]
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    colour = "grey" if survey.grey == 1 else "some of them grey" if survey.grey else "in colour"
    told = [
        f"# {command}",
        "#",
        f"# {survey.images:,} images of {len(survey.classes)} classes: {name_all(survey.classes)}. The median of "
        f"{survey.looked_at:,} is {survey.width} x {survey.height}",
        f"# pixels, {colour}. Whoever always answers {most!r} is right for {counts[most] / survey.train:.1%} of the "
        "training images.",
    ]
    if counts[most] >= 3 * counts[least]:
        told.append(
            f"# {least!r} has {counts[least]:,} of those and {most!r} {counts[most]:,}: look at the figures of each "
            "class, not at the accuracy alone."
        )
    return told


def _write_data(survey: Survey, choice: Choice) -> list[str]:
    counts = ", ".join(f"{split} {sum(counts.values()):,}" for split, counts in survey.splits.items())
    if survey.test is not None:
        lines = [
            _line("root", _quote(survey.root), f"has no splits of its own; drawn from it: {counts}"),
            _line("test", f"{survey.test:g}", "the share of the images that is kept for the test"),
        ]
    else:
        lacking = "" if "test" in survey.fixed else "; without test images nobody knows how good the result is"
        lines = [_line("root", _quote(survey.root), f"{counts}{lacking}")]
    if survey.val is not None:
        lines.append(_line("val", f"{survey.val:g}", "the share of the training images that is drawn for validation"))
    lines += [_write_size(survey, choice), *_write_shape(survey, choice)]
    batch = 8 if survey.train < 160 else 16 if survey.train < 640 else 64 if choice.gpu and survey.train >= _FEW else 32
    steps = -(-(survey.train - 1) // batch)  # a last image that is alone joins the batch before it
    told = f"{tell_count(steps, 'step')} an epoch; lower it if memory runs out"
    lines.append(_line("batch_size", str(batch), told))
    if survey.broken:
        count = f"{len(survey.broken)} of the {survey.looked_at:,} images looked at cannot be read"
        lines.append(_line("on_corrupt_image", "skip", f"{count}; replace what can be, then set error"))
    return lines


def _write_size(survey: Survey, choice: Choice) -> str:
    why = "what the weights were trained with" if choice.weights else "what this network is mostly trained with"
    if survey.side < choice.size:
        which = "longer" if survey.long else "crop"
        why = f"the images' {which} side is {survey.side}; this is the least that suits the network"
    elif choice.size < choice.native:
        why = f"the images have no more; the weights were trained with {choice.native}"
    return _line("image_size", str(choice.size), why)


def _write_shape(survey: Survey, choice: Choice) -> list[str]:
    """How images become square, and what happens to them at random."""
    if survey.share_longer(1.1) <= 0.1:
        resize = ("squash", "they are nearly square: the whole image is seen, its border too")
    elif survey.long:
        resize = ("pad", "they are long: cut or squashed they would lose too much")
    else:
        resize = ("crop", "the centre is cut out; squash or pad where what counts may lie at the border")
    if resize[0] != "crop" or choice.size < 128:
        augment = ("light", "crops of 80 to 100 % and mirror images; flips where there is no right way up")
    else:
        augment = ("standard", "crops of 8 to 100 % and mirror images; light where details count")
    return [_line("resize", *resize), _line("augment", *augment)]


def _write_backbone(choice: Choice) -> list[str]:
    entry, facts = choice.weights, []
    if entry is not None and entry.accuracy is not None:
        facts.append(f"{entry.accuracy:.1f} % on ImageNet")
    if entry is not None and entry.parameters is not None:
        facts.append(f"{entry.parameters / 1e6:.1f} M parameters")
    others = "`ftcli inspect` lists others"
    weights = ("default", "downloaded once; from then on the internet is not needed")
    if entry is None:
        weights = ("none", "none are published for it, so it begins from nothing; better give a file")
    return [
        _line("name", _quote(choice.name), "; ".join((*([", ".join(facts)] if facts else []), others))),
        _line("weights", *weights),
    ]


def write_stages(train: int, pretrained: bool, batch_norm: bool) -> list[str]:
    """The lines of the stages for so many training images: the head alone and then everything, or everything at once
    where the network begins from nothing. `batch_norm` tells that the network has BatchNorm."""
    if not pretrained:
        return _write_stage("all", "none", "what begins from nothing takes long", 30, "1.0e-3")
    # The fewer images an epoch has, the more epochs make the same number of steps.
    first, then = (10, 15) if train < 500 else (4, 8) if train < _FEW else (2, 5)
    rate = "3.0e-4" if batch_norm else "1.0e-4"
    whole = _write_stage("all", "none", "then everything, gently", then, rate)
    if batch_norm and train < _FEW:
        why = "the statistics of so few images are worse than those of the weights"
        whole.insert(2, _line("batch_norm", "frozen", why, depth=2))
    why = "first the new head alone, for it begins at random"
    return [*_write_stage("head", "backbone", why, first, "3.0e-3"), *whole]


def _write_stage(name: str, freeze: str, why: str, epochs: int, rate: str) -> list[str]:
    return [
        f"  - name: {name}",
        _line("freeze", freeze, why, depth=2),
        _line("epochs", str(epochs), "more, where the validation loss still falls at the end", depth=2),
        f"    optimizer: {{name: adamw, lr: {rate}, weight_decay: 1.0e-2}}",
        _line("schedule", "one_cycle", "the learning rate rises and then falls to nearly 0", depth=2),
    ]


def _line(key: str, value: str, why: str, depth: int = 1) -> str:
    return f"{'  ' * depth}{key}: {value}".ljust(30) + f"  # {why}"


def _quote(text: str) -> str:
    """The text as a value of YAML, in quotes where it could be read as anything else."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))).rstrip("\n")
