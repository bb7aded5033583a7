"""docs/models.md: what ftcli finds in torchvision's classifiers and in a sample of timm's. Every cell is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.anatomy import Anatomy, Cut, examine, find_cut, find_head
from ftcli.models.freezing import Freezing, apply_freezing, resolve_freezing, set_modes
from ftcli.models.heads import build_head, replace_head
from ftcli.models.inspection import count_parameters
from ftcli.models.zoo import build_network, default_preprocessing, list_models, list_weights
from ftcli.recipe.schema import Head, Stage
from ftcli.results import HeadPlace, WeightsEntry

PATH = "docs/models.md"
CLASSES = 3
IMAGES = 2
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
"""One network of each of timm's architectures that differ most."""

_COLUMNS = {
    "model": "---",
    "parameters": "--:",
    "G multiply-adds": "--:",
    "pixels": "--:",
    "head": "---",
    "width": "--:",
    "weights, top-1 %": "---",
    "trains": "---",
    "crosses at the head": "---",
    "frozen through": "---",
    "share": "--:",
    "values": "--:",
    "numbers": "--:",
}

_TEXT = """\
# Models

`ftcli inspect` lists the models with their sizes, and `ftcli inspect NAME` shows the layers of one. This page tells
what ftcli finds in each, computed without weights and without memory for them; `python -m docs.generator models` writes
it anew, and a test computes every row again.

- *parameters*, *G multiply-adds* and *pixels* are those of the network at the image size of its default weights.
  Auxiliary heads, which take part in training alone, are taken away.
- *head* is the layer that a recipe's head takes the place of, *width* how many features it reads.
- *trains*: with a new head of {classes} classes and nothing frozen, a step in train mode gives every parameter a
  gradient of its shape; with `freeze: backbone` the live part gives the head's parameters one and no others.
- *crosses at the head* is what goes from the frozen part to the live one with `freeze: backbone`, for one image.
- *frozen through* is a module near the middle, to be written `freeze: {{through: NAME}}`: of those that freeze 40 to
  60 % of the backbone's parameters one of the highest in the network, and of these the nearest to half; where there is
  none, the nearest to half of all. *share* is how much it freezes, *values* how many values cross there, and *numbers*
  how many numbers they hold for one image. Where it says `-`, the network's own code branches on what it computes, and
  the network cannot be cut.

## torchvision

All {count} classifiers of torchvision. The accuracies are those that torchvision publishes for ImageNet.

{torchvision}

## timm

A sample of timm's architectures, each with its first weights and the number of the others; timm publishes no accuracies
with the code. Any other is tried in the same way, before anything is downloaded, by `ftcli inspect timm/NAME`.

{timm}

These of the sample cannot be used, and ftcli says why:

{refused}
"""


@dataclass(frozen=True)
class Row:
    """What ftcli finds in a network. The cuts are None where its code cannot be traced."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    head: HeadPlace
    weights: tuple[WeightsEntry, ...]
    trains: bool
    at_head: Cut | None
    middle: str
    share: float
    in_middle: Cut | None


def describe_model(name: str) -> Row:
    """Compute the row of a model, on the meta device. Raises RecipeError where ftcli cannot use it."""
    size = default_preprocessing(name, "none").image_size
    network = build_network(name, True, size, "inspect")
    anatomy = examine(network, size, "inspect")
    head, parameters = find_head(network, anatomy, "inspect"), count_parameters(network)
    replace_head(network, head.path, build_head(network.get_submodule(head.path), Head(), CLASSES))
    middle, share = _find_middle(network, anatomy, head.path)

    def freeze(what: Any) -> Freezing:
        stage = Stage.model_validate(
            {"name": "one", "freeze": what, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
        )
        return resolve_freezing(network, anatomy, head.path, stage, "freeze")

    backbone, half = freeze("backbone"), freeze({"through": middle})
    at_head = find_cut(network, backbone.parameters, backbone.modules, size)
    trains = _gives_gradients(network.train(), [_make_images(3, size, size)], dict(network.named_parameters()))
    if at_head is not None:
        values = [_make_images(*value.shape) for value in at_head.crossing]
        trained = {name: p for name, p in network.named_parameters() if name not in backbone.parameters}
        apply_freezing(network, backbone)
        set_modes(network, backbone)
        trains = trains and _gives_gradients(at_head.training_suffix, values, trained)
    return Row(
        name=name,
        parameters=parameters,
        multiply_adds=anatomy.multiply_adds,
        image_size=size,
        head=head,
        weights=list_weights(name),
        trains=trains,
        at_head=at_head,
        middle=middle,
        share=share,
        in_middle=find_cut(network, half.parameters, half.modules, size),
    )


def _make_images(*shape: int) -> torch.Tensor:
    return torch.empty(IMAGES, *shape, device="meta")


def _find_middle(network: nn.Module, anatomy: Anatomy, head: str) -> tuple[str, float]:
    """The module to freeze through, and the share of the backbone's parameters that this freezes."""
    sizes = {name: p.numel() for name, p in network.named_parameters() if not name.startswith(f"{head}.")}
    begun = [(time, sizes[name]) for name, time in anatomy.first_use.items() if name in sizes]
    shares = {
        module: sum(size for time, size in begun if time < end) / sum(sizes.values())
        for module, end in anatomy.left.items()
        if end < anatomy.entered[head]
    }
    central = [module for module, share in shares.items() if 0.4 <= share <= 0.6]
    depth = min((module.count(".") for module in central), default=None)
    near = [module for module in central if module.count(".") == depth] or list(shares)
    chosen = min(near, key=lambda module: abs(shares[module] - 0.5))
    return chosen, shares[chosen]


def _gives_gradients(module: nn.Module, inputs: Sequence[torch.Tensor], wanted: Mapping[str, nn.Parameter]) -> bool:
    """Whether a step gives exactly the wanted parameters, of those that the module holds, gradients of their shapes."""
    module.zero_grad()
    output = module(*inputs)
    output.sum().backward()
    given = {id(p): p.grad.shape for p in module.parameters() if p.grad is not None}
    return output.shape == (IMAGES, CLASSES) and given == {id(p): p.shape for p in wanted.values()}


def render_documents() -> dict[str, str]:
    """The text of docs/models.md, by its path in the project."""
    return {PATH: render_page([render_line(name) for name in (*list_models(), *SAMPLE)])}


def render_page(lines: Sequence[str]) -> str:
    """The page with a line for each of torchvision's models and of the sample, in order."""
    own = len(list_models())
    return _TEXT.format(
        classes=CLASSES,
        count=own,
        torchvision=_render_table(lines[:own]),
        timm=_render_table([line for line in lines[own:] if line.startswith("|")]),
        refused="\n".join(line for line in lines[own:] if not line.startswith("|")),
    )


def render_line(name: str) -> str:
    """A model's row, or what ftcli says of one that it cannot use, as Markdown."""
    try:
        return render_row(describe_model(name))
    except RecipeError as error:
        return f"- `{name}`: {str(error).removeprefix('inspect: ')}"


def render_row(row: Row) -> str:
    """A row of the table, as Markdown."""
    cells = (
        f"`{row.name}`",
        f"{row.parameters:,}",
        f"{row.multiply_adds / 1e9:.2f}",
        str(row.image_size),
        f"`{row.head.path}`",
        str(row.head.in_features),
        _tell_weights(row.weights),
        "yes" if row.trains else "no",
        "-" if row.at_head is None else ", ".join(f"`{c.name}` {_tell_shape(c.shape)}" for c in row.at_head.crossing),
        f"`{row.middle}`",
        f"{row.share:.0%}",
        "-" if row.in_middle is None else str(len(row.in_middle.crossing)),
        "-" if row.in_middle is None else f"{sum(math.prod(c.shape) for c in row.in_middle.crossing):,}",
    )
    return f"| {' | '.join(cells)} |"


def _render_table(rows: Iterable[str]) -> str:
    return "\n".join((f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join(_COLUMNS.values())} |", *rows))


def _tell_weights(weights: Sequence[WeightsEntry]) -> str:
    if any(entry.accuracy is not None for entry in weights):
        return ", ".join(f"{entry.name} {entry.accuracy or math.nan:.2f}".replace("nan", "-") for entry in weights)
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    return weights[0].name + more if weights else "none"


def _tell_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
