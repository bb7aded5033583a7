"""Weights that do not fit: whose they are, and both sides in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ftcli.errors import CheckpointError
from ftcli.models.factory import create_model
from ftcli.models.pretrained.guess_architecture import guess_architecture
from ftcli.models.pretrained.loading import load_pretrained
from ftcli.recipe.schema import Backbone
from tests.models.conftest import RecordingReporter

LOCATION = "x.yaml:3:22: backbone.weights"
State = dict[str, torch.Tensor]


def _create_state_dict(name: str) -> State:
    """The tensors of a model in their true shapes; the values do not matter."""
    state = create_model(name, meta=True).state_dict()
    return {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in state.items()}


def _refuse(model: str, content: Mapping[str, object], path: Path, match: str = "name") -> CheckpointError:
    torch.save(content, path)
    backbone = Backbone.model_validate({"name": model, "weights": str(path), "match": match})
    with pytest.raises(CheckpointError) as error:
        load_pretrained(backbone, LOCATION, RecordingReporter(), image_size=64)
    return error.value


@pytest.fixture(scope="module")
def shufflenet() -> State:
    return _create_state_dict("shufflenet_v2_x0_5")


@pytest.mark.parametrize("match", ["name", "position"])
def test_mismatch_error_names_matching_model(shufflenet: State, tmp_path: Path, match: str) -> None:
    path = tmp_path / "w.pth"
    error = _refuse("squeezenet1_1", {"state_dict": shufflenet}, path, match)
    why = {
        "name": (
            "does not fit squeezenet1_1: 0 of 52 tensors match; 50 missing: features.0.weight, features.0.bias, "
            "features.3.squeeze.weight and 47 more; 338 left over: conv1.0.weight, conv1.1.weight, conv1.1.bias and "
            "335 more"
        ),
        "position": "has 338 tensors and the network 52; match: position needs as many",
    }[match]
    remedy = "the file's tensors are those of shufflenet_v2_x0_5; set backbone.name: shufflenet_v2_x0_5"
    assert str(error) == f"{LOCATION}: {path} {why}; {remedy}"


def test_guess_architecture_ignores_head(shufflenet: State) -> None:
    bare = {name: tensor for name, tensor in shufflenet.items() if not name.startswith("fc.")}
    expected = [("shufflenet_v2_x0_5", "name")]
    assert guess_architecture(bare, None, "resnet18") == expected
    assert (
        guess_architecture({**bare, "fc.weight": torch.zeros(3, 1024), "fc.bias": torch.zeros(3)}, None, "x")
        == expected
    )
    assert guess_architecture({f"net.{name}": tensor for name, tensor in bare.items()}, None, "x") == expected


def test_mismatch_error_suggests_match_position(shufflenet: State, tmp_path: Path) -> None:
    renamed = {f"t{number}": tensor for number, tensor in enumerate(shufflenet.values())}
    path = tmp_path / "w.pth"
    assert str(_refuse("squeezenet1_1", renamed, path)).endswith(
        "the file's tensors are those of shufflenet_v2_x0_5; set backbone.name: shufflenet_v2_x0_5 and match: position"
    )
    assert str(_refuse("shufflenet_v2_x0_5", renamed, path)).endswith(
        "number and shapes agree in order: match: position would load them"
    )


def test_mismatch_error_suggests_match_name(shufflenet: State, tmp_path: Path) -> None:
    reversed_state = dict(reversed(shufflenet.items()))
    assert str(_refuse("shufflenet_v2_x0_5", reversed_state, tmp_path / "w.pth", "position")) == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit at tensor 1 of 338: conv1.0.weight is [24, 3, 3, 3] in the network "
        "and fc.bias is [1000] in the file; names and shapes agree: match: name would load them"
    )


@pytest.mark.slow
def test_guess_architecture_uses_arch_of_file(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    assert str(
        _refuse("squeezenet1_1", {"arch": "vit_tiny_patch16_224", "state_dict": state}, tmp_path / "w")
    ).endswith(
        "the file's tensors are those of timm/vit_tiny_patch16_224; set backbone.name: timm/vit_tiny_patch16_224"
    )
    assert guess_architecture(state, "resnet18", "x") == []


def test_mismatch_error_table_starts_before_first_difference(tmp_path: Path) -> None:
    state = _create_state_dict("squeezenet1_1")
    state["features.4.expand1x1.weight"] = torch.zeros(64, 16, 3, 3)
    table = _refuse("squeezenet1_1", state, tmp_path / "w.pth").table
    assert table is not None
    assert table.columns == (">", "network", "shape", "file", "shape")
    assert table.rows[0] == ("8", "features.3.expand3x3.bias", "[64]", "features.3.expand3x3.bias", "[64]")
    differing = "features.4.expand1x1.weight"
    assert table.rows[3] == ("11", differing, "[64, 16, 1, 1]", differing, "[64, 16, 3, 3]")
    assert len(table.rows) == 12
    assert table.note == "tensors 8 to 19 of 52, in order, without batch counters"


def test_mismatch_error_table_pads_shorter_side(tmp_path: Path) -> None:
    state = dict(list(_create_state_dict("squeezenet1_1").items())[:4])
    table = _refuse("squeezenet1_1", state, tmp_path / "w.pth", "position").table
    assert table is not None
    assert [row[3:] for row in table.rows[1:4]] == [
        ("features.3.squeeze.weight", "[16, 64, 1, 1]"),
        ("features.3.squeeze.bias", "[16]"),
        ("-", "-"),
    ]
