from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ftcli.errors import CheckpointError
from ftcli.models.factory import create_model
from ftcli.models.pretrained.loading import PretrainedModel, load_pretrained
from ftcli.models.pretrained.state_dict_matching import guess_architecture
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter
from tests.conftest import LibraryLog

LOCATION = "x.yaml:3:22: backbone.weights"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network all of whose tensors differ from their initial values."""
    torch.manual_seed(3)
    network = create_model("shufflenet_v2_x0_5", meta=False).train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network.eval()


def _load(path: Path, **settings: str) -> PretrainedModel:
    backbone = Backbone.model_validate({"name": "shufflenet_v2_x0_5", "weights": str(path), **settings})
    return load_pretrained(backbone, LOCATION, NullReporter(), image_size=64)


def _save(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "w.ckpt.pth")
    return folder / "w.ckpt.pth"


def _forward(network: nn.Module, with_head: bool) -> torch.Tensor:
    """Return the logits of an image, or the input of the head."""
    image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    head = network.fc
    head_inputs: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: head_inputs.append(inputs[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        output: torch.Tensor = network(image)
    hook.remove()
    return output if with_head else head_inputs[0]


def _save_like_lightning(network: nn.Module) -> dict[str, Any]:
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {"criterion.weight": torch.ones(10), "val_acc.tp": torch.zeros(10)}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.999)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
    }


def _wrap_compiled_in_data_parallel(network: nn.Module) -> dict[str, Any]:
    wrapped = nn.DataParallel(cast(nn.Module, torch.compile(network)))
    return {"model": {f"net.{name}": tensor for name, tensor in wrapped.state_dict().items()}}


def _compile_stage(network: nn.Module) -> Any:
    wrapped = copy.deepcopy(network)
    wrapped.set_submodule("stage3", cast(nn.Module, torch.compile(wrapped.get_submodule("stage3"))))
    return wrapped.state_dict()


COMPILED_PROGRAMS = ("torch.compile", "combined", "a compiled part")  # these load the compiler, which takes seconds
STATE_DICTS_BY_PROGRAM: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "torchvision": (lambda network: network.state_dict(), []),
    "torchvision's script": (lambda network: {"model": network.state_dict(), "epoch": 3, "optimizer": {}}, []),
    "timm": (
        lambda network: {
            "epoch": 3,
            "arch": "shufflenet",
            "state_dict": {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()},
            "state_dict_ema": network.state_dict(),
            "metric": torch.tensor(0.7),
        },
        ["state_dict_ema is loaded instead of state_dict"],
    ),
    "DataParallel": (lambda network: nn.DataParallel(network).state_dict(), []),
    "torch.compile": (lambda network: torch.compile(network).state_dict(), []),  # type: ignore[attr-defined]
    "combined": (_wrap_compiled_in_data_parallel, []),
    "a compiled part": (_compile_stage, []),
    "averaged": (
        lambda network: AveragedModel(network).state_dict(),
        ["tensors outside the network are skipped: n_averaged []"],
    ),
    "lightning": (
        _save_like_lightning,
        ["tensors outside the network are skipped: criterion.weight [10], val_acc.tp [10]"],
    ),
    "two copies": (
        lambda network: {
            **{f"model.{name}": torch.zeros_like(tensor) for name, tensor in network.state_dict().items()},
            **{f"ema_model.module.{name}": tensor for name, tensor in network.state_dict().items()},
        },
        [
            "ema_model.module.* is loaded instead of model.*",
            "tensors outside the network are skipped: model.conv1.0.weight [24, 3, 3, 3], model.conv1.1.weight "
            "[24], model.conv1.1.bias [24], model.conv1.1.running_mean [24], model.conv1.1.running_var [24], "
            "model.conv1.1.num_batches_tracked [] and 332 more",
        ],
    ),
}


@pytest.mark.parametrize(
    "program",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COMPILED_PROGRAMS)) for name in STATE_DICTS_BY_PROGRAM],
)
def test_load_pretrained_loads_files_of_other_programs(
    network: nn.Module, tmp_path: Path, log: LibraryLog, program: str
) -> None:
    write, messages = STATE_DICTS_BY_PROGRAM[program]
    path = _save(write(network), tmp_path)
    loaded = _load(path)
    assert torch.equal(_forward(loaded.model, with_head=True), _forward(network, with_head=True))
    assert log.messages == [f"{path}: {sentence}" for sentence in messages]
    assert loaded.weights_info.num_loaded == 338


def test_load_pretrained_loads_safetensors(network: nn.Module, tmp_path: Path, log: LibraryLog) -> None:
    safetensors.torch.save_file(dict(network.state_dict()), tmp_path / "w.safetensors")
    loaded = _load(tmp_path / "w.safetensors")
    assert torch.equal(_forward(loaded.model, with_head=True), _forward(network, with_head=True))
    assert log.messages == []


def _replace_head(state: State, head: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")} | head


@pytest.mark.parametrize(
    ("head", "skipped"),
    [
        ({"fc.weight": (7, 1024), "fc.bias": (7,)}, "fc.weight [7, 1024], fc.bias [7]"),
        ({"fc.1.weight": (7, 1024), "fc.1.bias": (7,)}, "fc.1.weight [7, 1024], fc.1.bias [7]"),
        (
            {"classifier.0.weight": (7, 1024), "classifier.2.weight": (7, 7)},
            "classifier.0.weight [7, 1024], classifier.2.weight [7, 7]",
        ),
        ({}, ""),
    ],
)
def test_load_pretrained_skips_another_head(
    network: nn.Module, tmp_path: Path, log: LibraryLog, head: dict[str, tuple[int, ...]], skipped: str
) -> None:
    new = {name: torch.zeros(shape) for name, shape in head.items()}
    path = _save({f"module.{n}": t for n, t in _replace_head(network.state_dict(), new).items()}, tmp_path)
    loaded = _load(path)
    assert torch.equal(_forward(loaded.model, with_head=False), _forward(network, with_head=False))
    assert log.messages == ([f"{path}: tensors of another head are skipped: {skipped}"] if skipped else [])
    assert loaded.weights_info.skipped == (tuple(skipped.replace("], ", "]; ").split("; ")) if skipped else ())
    assert loaded.weights_info.num_loaded == 336


def test_load_pretrained_skips_head_outside_backbone(network: nn.Module, tmp_path: Path, log: LibraryLog) -> None:
    state = {f"backbone.{n}": t for n, t in _replace_head(network.state_dict(), {}).items()}
    path = _save({"state_dict": {**state, "head.weight": torch.zeros(7, 1024)}}, tmp_path)
    loaded = _load(path)
    assert torch.equal(_forward(loaded.model, with_head=False), _forward(network, with_head=False))
    assert log.messages == [f"{path}: tensors outside the network are skipped: head.weight [7, 1024]"]


def test_load_pretrained_rejects_extra_backbone_layer(network: nn.Module, tmp_path: Path) -> None:
    extra = {"stage2.0.attention.weight": torch.zeros(7)}
    path = _save(_replace_head(network.state_dict(), extra), tmp_path)
    with pytest.raises(CheckpointError) as error:
        _load(path)
    assert str(error.value) == (
        f"{LOCATION}: {path} does not fit shufflenet_v2_x0_5: 336 of 338 tensors match; 1 unexpected: "
        "stage2.0.attention.weight; give weights of this network"
    )


def test_load_pretrained_rejects_ambiguous_copies(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    path = _save(
        {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in state.items()}, tmp_path
    )
    with pytest.raises(CheckpointError) as error:
        _load(path)
    assert str(error.value) == (
        f"{LOCATION}: {path} contains 2 copies of shufflenet_v2_x0_5, student.* and teacher.*; save one of them in a "
        "separate file"
    )


def test_load_pretrained_returns_original_head_and_preprocessing(network: nn.Module, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    loaded = _load(_save(network.state_dict(), tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.head == "fc"
    assert not loaded.model.training
    assert (loaded.preprocessing.image_size, loaded.preprocessing.resize_size) == (64, 73)
    again = _load(_save(_replace_head(network.state_dict(), {}), tmp_path))
    other = _load(_save(_replace_head(network.state_dict(), {}), tmp_path))
    assert torch.equal(_forward(again.model, with_head=True), _forward(other.model, with_head=True))


def _create_state_dict(name: str) -> State:
    """Return zeros in the shapes of a model's tensors."""
    state = create_model(name, meta=True).state_dict()
    return {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in state.items()}


def _mismatch_error(model: str, content: Mapping[str, object], path: Path, match: str = "name") -> CheckpointError:
    torch.save(content, path)
    backbone = Backbone.model_validate({"name": model, "weights": str(path), "match": match})
    with pytest.raises(CheckpointError) as error:
        load_pretrained(backbone, LOCATION, NullReporter(), image_size=64)
    return error.value


@pytest.fixture(scope="module")
def shufflenet() -> State:
    return _create_state_dict("shufflenet_v2_x0_5")


@pytest.mark.parametrize("match", ["name", "position"])
def test_mismatch_error_names_matching_model(shufflenet: State, tmp_path: Path, match: str) -> None:
    path = tmp_path / "w.pth"
    error = _mismatch_error("squeezenet1_1", {"state_dict": shufflenet}, path, match)
    reason = {
        "name": (
            "does not fit squeezenet1_1: 0 of 52 tensors match; 50 missing: features.0.weight, features.0.bias, "
            "features.3.squeeze.weight and 47 more; 338 unexpected: conv1.0.weight, conv1.1.weight, conv1.1.bias and "
            "335 more"
        ),
        "position": "has 338 tensors and the network 52, and match: position needs the same number",
    }[match]
    remedy = "the file's tensors are those of shufflenet_v2_x0_5; set backbone.name: shufflenet_v2_x0_5"
    assert str(error) == f"{LOCATION}: {path} {reason}; {remedy}"


def test_guess_architecture_ignores_head(shufflenet: State) -> None:
    backbone = {name: tensor for name, tensor in shufflenet.items() if not name.startswith("fc.")}
    expected = [("shufflenet_v2_x0_5", "name")]
    assert guess_architecture(backbone, None, "resnet18") == expected
    assert (
        guess_architecture({**backbone, "fc.weight": torch.zeros(3, 1024), "fc.bias": torch.zeros(3)}, None, "x")
        == expected
    )
    assert guess_architecture({f"net.{name}": tensor for name, tensor in backbone.items()}, None, "x") == expected


def test_mismatch_error_suggests_match_position(shufflenet: State, tmp_path: Path) -> None:
    renamed = {f"t{number}": tensor for number, tensor in enumerate(shufflenet.values())}
    path = tmp_path / "w.pth"
    assert str(_mismatch_error("squeezenet1_1", renamed, path)).endswith(
        "the file's tensors are those of shufflenet_v2_x0_5; set backbone.name: shufflenet_v2_x0_5 and match: position"
    )
    assert str(_mismatch_error("shufflenet_v2_x0_5", renamed, path)).endswith(
        "number and shapes agree in order, so set match: position"
    )


def test_mismatch_error_suggests_match_name(shufflenet: State, tmp_path: Path) -> None:
    reversed_state = dict(reversed(shufflenet.items()))
    assert str(_mismatch_error("shufflenet_v2_x0_5", reversed_state, tmp_path / "w.pth", "position")) == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit shufflenet_v2_x0_5 at tensor 1 of 338: conv1.0.weight is "
        "[24, 3, 3, 3] in the network and fc.bias is [1000] in the file; names and shapes agree, so set match: name"
    )


@pytest.mark.slow
def test_guess_architecture_uses_arch_of_file(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    assert str(
        _mismatch_error("squeezenet1_1", {"arch": "vit_tiny_patch16_224", "state_dict": state}, tmp_path / "w")
    ).endswith(
        "the file's tensors are those of timm/vit_tiny_patch16_224; set backbone.name: timm/vit_tiny_patch16_224"
    )
    assert guess_architecture(state, "resnet18", "x") == []


def test_mismatch_error_table_starts_before_first_difference(tmp_path: Path) -> None:
    state = _create_state_dict("squeezenet1_1")
    state["features.4.expand1x1.weight"] = torch.zeros(64, 16, 3, 3)
    table = _mismatch_error("squeezenet1_1", state, tmp_path / "w.pth").table
    assert table is not None
    assert table.columns == (">", "network", "shape", "file", "shape")
    assert table.rows[0] == ("8", "features.3.expand3x3.bias", "[64]", "features.3.expand3x3.bias", "[64]")
    differing = "features.4.expand1x1.weight"
    assert table.rows[3] == ("11", differing, "[64, 16, 1, 1]", differing, "[64, 16, 3, 3]")
    assert len(table.rows) == 12
    assert table.note == "tensors 8 to 19 of 52, in order, without batch counters"


def test_mismatch_error_table_pads_shorter_side(tmp_path: Path) -> None:
    state = dict(list(_create_state_dict("squeezenet1_1").items())[:4])
    table = _mismatch_error("squeezenet1_1", state, tmp_path / "w.pth", "position").table
    assert table is not None
    assert [row[3:] for row in table.rows[1:4]] == [
        ("features.3.squeeze.weight", "[16, 64, 1, 1]"),
        ("features.3.squeeze.bias", "[16]"),
        ("-", "-"),
    ]
