"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn

from ftcli.recipe.schema import Adam, AdamW, Constant, Cosine, OneCycle, Optimizer, Schedule, Sgd, StepDecay

FUSED_SGD_MAX_MEAN_NUMEL = 2**16
"""The mean number of elements of a parameter from which fused SGD is slower on the CPU: it saves calls, which dominate
for small parameters, but takes 1.5 to 3 times as long per element."""


def build_optimizer(
    model: nn.Module, optimizer: Optimizer, lr_mults: Mapping[str, float], no_weight_decay: Collection[str]
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters that require gradients, fused where that is faster.

    Parameters are grouped by their lr multiplier (1 if not in `lr_mults`), which the group stores as `lr_mult`, and by
    weight decay: with `decay_norm_and_bias: false` the parameters named in `no_weight_decay` have none.
    """
    grouped: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            skips_decay = not optimizer.decay_norm_and_bias and name in no_weight_decay
            weight_decay = 0.0 if skips_decay else optimizer.weight_decay
            grouped[lr_mults.get(name, 1.0), weight_decay].append(parameter)
    groups = [
        {"params": parameters, "lr": optimizer.lr * lr_mult, "lr_mult": lr_mult, "weight_decay": weight_decay}
        for (lr_mult, weight_decay), parameters in grouped.items()
    ]
    fused = choose_fused(optimizer, [parameter for parameters in grouped.values() for parameter in parameters])
    match optimizer:
        case Sgd():
            return torch.optim.SGD(groups, momentum=optimizer.momentum, nesterov=optimizer.nesterov, fused=fused)
        case Adam():
            return torch.optim.Adam(groups, betas=optimizer.betas, fused=fused)
        case AdamW():
            return torch.optim.AdamW(groups, betas=optimizer.betas, fused=fused)
        case _:
            assert_never(optimizer)


def choose_fused(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool | None:
    """Return True if PyTorch's fused kernel is the fastest, None for PyTorch's own choice (foreach on a GPU, else a
    loop over the parameters)."""
    if any(parameter.device.type not in ("cpu", "cuda") for parameter in parameters):
        return None
    is_large = sum(parameter.numel() for parameter in parameters) > FUSED_SGD_MAX_MEAN_NUMEL * len(parameters)
    return None if is_large and isinstance(optimizer, Sgd) and parameters[0].device.type == "cpu" else True


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step, times the lr multiplier of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def lr_at_step(schedule: Schedule, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step of a stage, counted from 0, for a base rate `lr`.

    It depends on the step alone, so that a resumed stage has the same rates. Step s of W warm-up steps has (s + 1) / W
    of the schedule's first rate; the schedule covers the remaining steps.
    """
    total_steps = steps_per_epoch * epochs
    if isinstance(schedule, OneCycle):
        return lr * _one_cycle_factor(step, max(0.0, schedule.warmup * total_steps - 1), total_steps - 1)
    warmup_steps = round(schedule.warmup * total_steps)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    match schedule:
        case Constant():
            return lr
        case StepDecay():
            return lr * schedule.gamma ** (step // (steps_per_epoch * schedule.step_size))
        case Cosine():
            return lr * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2
        case _:
            assert_never(schedule)


def _one_cycle_factor(step: int, peak_step: float, last_step: int) -> float:
    """Return the factor of the one-cycle policy with half cosines: from 1/25 to 1 at the peak, to 1/250,000 at the end.

    Smith and Topin, arXiv 1708.07120.
    """
    if step <= peak_step:
        return _cosine_anneal(1 / 25, 1.0, step / peak_step if peak_step else 1.0)
    return _cosine_anneal(1.0, 1 / 250_000, (step - peak_step) / (last_step - peak_step))


def _cosine_anneal(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
