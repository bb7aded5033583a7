"""Optimizers and learning rates, as functions of the recipe and the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn

from ftcli.recipe.schema import Adam, AdamW, Constant, Cosine, OneCycle, Optimizer, Schedule, Sgd, StepDecay

FUSED_SGD_MAX_MEAN_NUMEL = 2**16
"""The mean size of a parameter, in numbers, from which the fused kernel of SGD is slower on the CPU than plain
arithmetic: it saves calls, which dominate where parameters are small, but each number takes 1.5 to 3 times as long."""


def build_optimizer(
    model: nn.Module, optimizer: Optimizer, lr_mults: Mapping[str, float], no_weight_decay: Collection[str]
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that require gradients.

    Parameters are grouped by their multiple of the learning rate (`rates`, 1 where it is silent), kept in the group
    as `lr_mult`, and by whether weight decay reaches them: with `decay_norm_and_bias: false` it skips those whose
    names are in `undecayed`. Where that is faster, a step is one pass over all parameters (fused).
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
    """True where PyTorch's fused kernels are the fastest, None where it is to choose by itself (foreach on a GPU, one
    parameter after the other elsewhere)."""
    if any(parameter.device.type not in ("cpu", "cuda") for parameter in parameters):
        return None
    is_large = sum(parameter.numel() for parameter in parameters) > FUSED_SGD_MAX_MEAN_NUMEL * len(parameters)
    return None if is_large and isinstance(optimizer, Sgd) and parameters[0].device.type == "cpu" else True


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; each group gets its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def lr_at_step(schedule: Schedule, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a step of a stage, counted from 0.

    A function of the step alone, so a resumed stage goes on with the rate it would have had. Over the warm-up's W
    steps the rate of step s is (s + 1) / W of what the schedule begins with; after it the schedule runs over what
    is left.
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
    """Smith and Topin, arXiv 1708.07120, with half cosines: from 1/25 to 1 at `peak`, to 1/250,000 at the last step."""
    if step <= peak_step:
        return _cosine_anneal(1 / 25, 1.0, step / peak_step if peak_step else 1.0)
    return _cosine_anneal(1.0, 1 / 250_000, (step - peak_step) / (last_step - peak_step))


def _cosine_anneal(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
