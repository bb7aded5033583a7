"""Generate docs/models.md: computed properties of torchvision's classifiers and of a sample of timm's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.factory import create_model, list_torchvision_models
from ftcli.models.freezing import FrozenNames, resolve_freeze, set_requires_grad, set_train_mode
from ftcli.models.heads import build_head, replace_head
from ftcli.models.pretrained_cfg import get_default_weights, list_downloadable_weights
from ftcli.models.summary import ModelSummary, count_parameters, find_head, summarize
from ftcli.recipe.schema import Head, Stage
from ftcli.results import HeadInfo, WeightsEntry

PATH = "docs/models.md"
NUM_CLASSES = 3
BATCH_SIZE = 2
_SAMPLE = """
    beit_base_patch16_224 coat_lite_tiny convnext_atto crossvit_tiny_240 cspresnet50 davit_tiny deit3_small_patch16_224
    deit_tiny_distilled_patch16_224 densenet121 dla34 dm_nfnet_f0 edgenext_xx_small efficientformer_l1
    efficientnet_lite0 efficientvit_b0 eva02_tiny_patch14_224 ghostnet_100 hiera_tiny_224 hrnet_w18_small inception_v4
    levit_128s maxvit_tiny_tf_224 mixer_b16_224 mobilenetv4_conv_small mobilevit_s mvitv2_tiny
    naflexvit_base_patch16_gap nest_tiny poolformer_s12 regnety_002 repvgg_a0 resnest14d resnet50_clip
    swin_tiny_patch4_window7_224 tf_efficientnetv2_b0 vgg11 vit_tiny_patch16_224 vitamin_small_224 volo_d1_224
    xcit_nano_12_p16_224
"""
SAMPLE = tuple(f"timm/{name}" for name in _SAMPLE.split())
"""One model of each of the most different architectures of timm."""

_COLUMNS = {
    "model": "---",
    "parameters": "--:",
    "G multiply-adds": "--:",
    "pixels": "--:",
    "head": "---",
    "width": "--:",
    "weights, top-1 %": "---",
    "trains": "---",
    "boundary tensors at the head": "---",
    "frozen through": "---",
    "fraction": "--:",
    "tensors": "--:",
    "values": "--:",
}

_PAGE_TEMPLATE = """\
# Models

`ftcli inspect` lists the models with their sizes, and `ftcli inspect NAME` shows the layers of one. This page lists
properties of each model that are computed on the meta device, without weights. It is generated with
`python -m docs.generator models`, and a test computes every row again.

- *parameters*, *G multiply-adds* and *pixels* are those of the network at the image size of its default weights,
  without auxiliary heads, which are used in training only.
- *head* is the layer that the head of a recipe replaces, and *width* is the number of its input features.
- *trains*: with a new head of {classes} classes and nothing frozen, a step in train mode gives every parameter a
  gradient; with `freeze: backbone`, the unfrozen part gives a gradient to the parameters of the head only.
- *boundary tensors at the head* are the outputs of the frozen backbone with `freeze: backbone`, with the shape for one
  image.
- *frozen through* is a module near the middle, as in `freeze: {{through: NAME}}`: of the modules that freeze 40% to 60%
  of the parameters of the backbone, the outermost one that is nearest to half, or else the module that is nearest to
  half. *fraction* is the frozen fraction of the parameters, *tensors* the number of boundary tensors there, and
  *values* the number of their values for one image. A `-` means that the code of the network branches on computed
  values, so that it cannot be cut.

## torchvision

All {count} classifiers of torchvision. The accuracies are those that torchvision publishes for ImageNet.

{torchvision}

## timm

A sample of timm's architectures, each with its first weights and the number of the others; timm does not publish
accuracies with its code. `ftcli inspect timm/NAME` checks any other model in the same way, without a download.

{timm}

These models of the sample are not supported:

{refused}
"""


@dataclass(frozen=True)
class ModelRow:
    """The properties of a model. The cuts are None if its code cannot be traced."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    head: HeadInfo
    weights: tuple[WeightsEntry, ...]
    is_trainable: bool
    head_cut: ModelCut | None
    middle_module: str
    frozen_fraction: float
    middle_cut: ModelCut | None


def analyze_model(name: str) -> ModelRow:
    """Compute the row of a model on the meta device. Raises RecipeError if ftcli does not support it."""
    size = get_default_weights(name).preprocessing.image_size
    network = create_model(name, True, size, "inspect")
    summary = summarize(network, size, "inspect")
    head, parameters = find_head(network, summary, "inspect"), count_parameters(network)
    replace_head(network, head.path, build_head(network.get_submodule(head.path), Head(), NUM_CLASSES))
    middle, frozen_fraction = _find_middle_module(network, summary, head.path)

    def freeze(value: Any) -> FrozenNames:
        stage = Stage.model_validate(
            {"name": "one", "freeze": value, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
        )
        return resolve_freeze(network, summary, head.path, stage, "freeze", errors=[])

    frozen_backbone, frozen_half = freeze("backbone"), freeze({"through": middle})
    head_cut = cut_model(network, frozen_backbone.parameters, frozen_backbone.modules, size)
    is_trainable = _has_gradients(network.train(), [_meta_images(3, size, size)], dict(network.named_parameters()))
    if head_cut is not None:
        boundary = [_meta_images(*value.shape) for value in head_cut.boundary]
        trainable = {name: p for name, p in network.named_parameters() if name not in frozen_backbone.parameters}
        set_requires_grad(network, frozen_backbone)
        set_train_mode(network, frozen_backbone)
        is_trainable = is_trainable and _has_gradients(head_cut.training_suffix, boundary, trainable)
    return ModelRow(
        name=name,
        parameters=parameters,
        multiply_adds=summary.multiply_adds,
        image_size=size,
        head=head,
        weights=list_downloadable_weights(name),
        is_trainable=is_trainable,
        head_cut=head_cut,
        middle_module=middle,
        frozen_fraction=frozen_fraction,
        middle_cut=cut_model(network, frozen_half.parameters, frozen_half.modules, size),
    )


def _meta_images(*shape: int) -> torch.Tensor:
    return torch.empty(BATCH_SIZE, *shape, device="meta")


def _find_middle_module(network: nn.Module, summary: ModelSummary, head: str) -> tuple[str, float]:
    """Return the module to freeze through, and the fraction of the backbone's parameters that this freezes."""
    sizes = {name: p.numel() for name, p in network.named_parameters() if not name.startswith(f"{head}.")}
    parameter_use = [(time, sizes[name]) for name, time in summary.first_use.items() if name in sizes]
    fractions = {
        module: sum(size for time, size in parameter_use if time < end) / sum(sizes.values())
        for module, end in summary.exit_order.items()
        if end < summary.enter_order[head]
    }
    central = [module for module, fraction in fractions.items() if 0.4 <= fraction <= 0.6]
    depth = min((module.count(".") for module in central), default=None)
    candidates = [module for module in central if module.count(".") == depth] or list(fractions)
    chosen = min(candidates, key=lambda module: abs(fractions[module] - 0.5))
    return chosen, fractions[chosen]


def _has_gradients(module: nn.Module, inputs: Sequence[torch.Tensor], expected: Mapping[str, nn.Parameter]) -> bool:
    """Return whether a step gives gradients to exactly the expected parameters of the module."""
    module.zero_grad()
    output = module(*inputs)
    output.sum().backward()
    actual = {id(p): p.grad.shape for p in module.parameters() if p.grad is not None}
    return output.shape == (BATCH_SIZE, NUM_CLASSES) and actual == {id(p): p.shape for p in expected.values()}


def render_documents() -> dict[str, str]:
    """Return the text of docs/models.md by its path in the repository."""
    return {PATH: render_page([render_line(name) for name in (*list_torchvision_models(), *SAMPLE)])}


def render_page(lines: Sequence[str]) -> str:
    """Return the page with a line for each torchvision model and each model of the sample, in order."""
    num_torchvision = len(list_torchvision_models())
    return _PAGE_TEMPLATE.format(
        classes=NUM_CLASSES,
        count=num_torchvision,
        torchvision=_render_table(lines[:num_torchvision]),
        timm=_render_table([line for line in lines[num_torchvision:] if line.startswith("|")]),
        refused="\n".join(line for line in lines[num_torchvision:] if not line.startswith("|")),
    )


def render_line(name: str) -> str:
    """Return the row of a model, or the error of an unsupported one, as Markdown."""
    try:
        return render_row(analyze_model(name))
    except RecipeError as error:
        return f"- `{name}`: {str(error).removeprefix('inspect: ')}"


def render_row(row: ModelRow) -> str:
    """Return a row of the table as Markdown."""
    cells = (
        f"`{row.name}`",
        f"{row.parameters:,}",
        f"{row.multiply_adds / 1e9:.2f}",
        str(row.image_size),
        f"`{row.head.path}`",
        str(row.head.in_features),
        _format_weights(row.weights),
        "yes" if row.is_trainable else "no",
        "-"
        if row.head_cut is None
        else ", ".join(f"`{c.name}` {_format_shape(c.shape)}" for c in row.head_cut.boundary),
        f"`{row.middle_module}`",
        f"{row.frozen_fraction:.0%}",
        "-" if row.middle_cut is None else str(len(row.middle_cut.boundary)),
        "-" if row.middle_cut is None else f"{sum(math.prod(c.shape) for c in row.middle_cut.boundary):,}",
    )
    return f"| {' | '.join(cells)} |"


def _render_table(rows: Iterable[str]) -> str:
    return "\n".join((f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join(_COLUMNS.values())} |", *rows))


def _format_weights(weights: Sequence[WeightsEntry]) -> str:
    if any(entry.accuracy is not None for entry in weights):
        return ", ".join(f"{entry.name} {entry.accuracy or math.nan:.2f}".replace("nan", "-") for entry in weights)
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    return weights[0].name + more if weights else "none"


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
