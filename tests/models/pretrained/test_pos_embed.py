from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from ftcli.errors import CheckpointError
from ftcli.models.pretrained.loading import load_pretrained
from ftcli.models.pretrained.pos_embed import PosEmbedResizeError, resize_pos_embed
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter
from tests.conftest import LibraryLog

LOCATION = "x.yaml:3:22: backbone.weights"
TINY = "timm/vit_tiny_patch16_224"
SWIN = "timm/swin_tiny_patch4_window7_224"
State = dict[str, torch.Tensor]


def _load(name: str, state: State, folder: Path, size: int, match: str = "name") -> State:
    torch.save(state, folder / "w.pth")
    backbone = Backbone.model_validate({"name": name, "weights": str(folder / "w.pth"), "match": match})
    return dict(load_pretrained(backbone, LOCATION, NullReporter(), image_size=size).model.state_dict())


def _refuse(name: str, state: State, folder: Path, size: int) -> str:
    with pytest.raises(CheckpointError) as error:
        _load(name, state, folder, size)
    return str(error.value)


def _equal(one: State, other: State, except_suffix: str) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other if not name.endswith(except_suffix))


@pytest.mark.parametrize("match", ["name", "position"])
def test_load_pretrained_resizes_timm_pos_embed(tmp_path: Path, log: LibraryLog, match: str) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=96)
    given = {f"x_{name}" if match == "position" else name: tensor for name, tensor in source.state_dict().items()}
    loaded = _load(TINY, given, tmp_path, 32, match)
    expected: Any = timm.create_model("vit_tiny_patch16_224", img_size=32)
    expected.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), expected))
    assert _equal(loaded, expected.state_dict(), except_suffix="-")
    assert log.messages == [f"{tmp_path}/w.pth: position embeddings of 6 x 6 interpolated to 2 x 2"]


def _make_vit(size: int) -> VisionTransformer:
    return VisionTransformer(size, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)


def test_resize_pos_embed_resizes_torchvision_vit() -> None:
    old, new = _make_vit(64).state_dict(), _make_vit(32)
    torch.nn.init.normal_(old["encoder.pos_embedding"])
    resized, messages = resize_pos_embed(new, old, ["encoder.pos_embedding"])
    assert messages == ["position embeddings of 4 x 4 interpolated to 2 x 2"]
    expected = interpolate_embeddings(32, 16, OrderedDict(old))
    assert resized.keys() == {"encoder.pos_embedding"}
    assert torch.equal(resized["encoder.pos_embedding"], expected["encoder.pos_embedding"])


@pytest.mark.slow
def test_load_pretrained_resizes_torchvision_pos_embed(tmp_path: Path, log: LibraryLog) -> None:
    from torchvision.models import vit_b_16

    source = vit_b_16(image_size=64).state_dict()
    loaded = _load("vit_b_16", source, tmp_path, 32)
    assert _equal(loaded, source, except_suffix="pos_embedding")
    assert log.messages == [f"{tmp_path}/w.pth: position embeddings of 4 x 4 interpolated to 2 x 2"]


@pytest.mark.slow
@pytest.mark.parametrize("original", [False, True])
def test_load_pretrained_resizes_and_remaps_swin(tmp_path: Path, log: LibraryLog, original: bool) -> None:
    source = timm.create_model("swin_tiny_patch4_window7_224").state_dict()

    def original_name(name: str) -> str:  # Swin's original code downsamples at the end of a stage
        renamed = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        return renamed.replace("head.fc.", "head.")

    given = {original_name(name): tensor for name, tensor in source.items()} if original else source
    loaded = _load(SWIN, given, tmp_path, 64)
    assert _equal(loaded, source, except_suffix="bias_table")
    messages = [
        "relative position tables of windows of 7 x 7 interpolated to 4 x 4 (6 times)",
        "relative position tables of windows of 7 x 7 interpolated to 2 x 2 (2 times)",
    ]
    remapped = ["names are remapped by timm's function for SwinTransformer"] if original else []
    assert log.messages == [f"{tmp_path}/w.pth: {message}" for message in remapped + messages]


def test_load_pretrained_rejects_non_square_pos_embed(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 12, 192)
    assert _refuse(TINY, state, tmp_path, 32) == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit {TINY} at this image size: pos_embed cannot be interpolated from "
        "[1, 13, 192] to [1, 5, 192]: only square grids are supported; set data.image_size to that of the weights"
    )


@pytest.mark.slow
def test_load_pretrained_rejects_pos_embed_without_filter(tmp_path: Path) -> None:
    state = timm.create_model("cait_xxs24_224", img_size=64).state_dict()
    assert _refuse("timm/cait_xxs24_224", state, tmp_path, 32).endswith(
        "at this image size: pos_embed cannot be interpolated: its library does not support it; set data.image_size "
        "to that of the weights"
    )


@pytest.mark.parametrize("shape", [(), (192,), (2, 5, 192), (1, 2, 2, 192)])
def test_resize_pos_embed_rejects_unusual_shapes(shape: tuple[int, ...]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    given = {"pos_embed": torch.zeros(shape)}
    if shape == ():
        assert resize_pos_embed(model, given, ["pos_embed"]) == ({}, [])
    else:
        with pytest.raises(PosEmbedResizeError, match="only square grids are supported"):
            resize_pos_embed(model, given, ["pos_embed"])
