"""Text of drafted recipes: names, values and stages, with comments that give the reasons."""

from __future__ import annotations

import re

from ftcli.recipe.parsing import quote_text

SMALL_DATASET = 5_000
"""Training images below which BatchNorm uses the running statistics of the pretrained weights."""

_PLAIN_SCALAR = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_RESERVED_WORDS = ("true", "false", "null")


def to_recipe_name(text: str) -> str:
    """Return a valid recipe name made from a text."""
    cleaned = "".join(char if char.isalpha() or char.isdecimal() or char in "_.-" else "-" for char in text)
    shortened = cleaned.strip("-.")[:100].encode()[:200].decode(errors="ignore")  # drops a letter that is cut in two
    return shortened or "images"


def quote_yaml(text: str) -> str:
    """Return a text as a YAML scalar, quoted if it could be read as anything else."""
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() not in _RESERVED_WORDS:
        return text
    return quote_text(text)


def format_setting(key: str, value: str, reason: str, depth: int = 1) -> str:
    """Return a line of YAML with the reason for the value as a comment."""
    return f"{'  ' * depth}{key}: {value}".ljust(30) + f"  # {reason}"


def write_stages(num_train: int, is_pretrained: bool, has_batch_norm: bool) -> list[str]:
    """Return the lines of the stages for a number of training images.

    A pretrained network trains its head first and then all layers; one with random weights trains all at once.
    """
    if not is_pretrained:
        return _write_stage("all", "none", "random weights need many epochs", 30, "1.0e-3")
    # With fewer images an epoch has fewer steps, so there are more epochs.
    head_epochs, all_epochs = (10, 15) if num_train < 500 else (4, 8) if num_train < SMALL_DATASET else (2, 5)
    lr = "3.0e-4" if has_batch_norm else "1.0e-4"
    all_stage = _write_stage("all", "none", "then all layers, with a lower learning rate", all_epochs, lr)
    if has_batch_norm and num_train < SMALL_DATASET:
        reason = "the running statistics of so few images are worse than those of the weights"
        all_stage.insert(2, format_setting("batch_norm", "frozen", reason, depth=2))
    reason = "first the new head alone: its weights are random"
    return [*_write_stage("head", "backbone", reason, head_epochs, "3.0e-3"), *all_stage]


def _write_stage(name: str, freeze: str, reason: str, epochs: int, lr: str) -> list[str]:
    return [
        f"  - name: {name}",
        format_setting("freeze", freeze, reason, depth=2),
        format_setting("epochs", str(epochs), "more if the validation loss still falls at the end", depth=2),
        f"    optimizer: {{name: adamw, lr: {lr}, weight_decay: 1.0e-2}}",
        format_setting("schedule", "one_cycle", "the learning rate rises and then falls to nearly 0", depth=2),
    ]
