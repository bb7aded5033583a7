"""Tests that extracted features have the bits of the network's own forward pass, and that it is unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import Normalizer, build_eval_transform
from ftcli.errors import RunError
from ftcli.features.extractor import Extractor
from ftcli.features.layers import resolve_layers
from ftcli.features.pooling import Pool
from ftcli.models.factory import create_model
from ftcli.results import Preprocessing

CPU = torch.device("cpu")
FAMILIES = {
    "alexnet": (64, "classifier.6", "features.7"),
    "convnext_tiny": (32, "classifier.2", "features.1.0.block.3"),
    "densenet121": (32, "classifier", "features.denseblock2"),
    "efficientnet_b0": (32, "classifier.1", "features.4.1"),
    "googlenet": (64, "fc", "inception4a"),
    "inception_v3": (96, "fc", "Mixed_5c"),
    "maxvit_t": (224, "classifier.5", "blocks.1"),
    "mnasnet0_5": (32, "classifier.1", "layers.10.1"),
    "mobilenet_v2": (32, "classifier.1", "features.9"),
    "mobilenet_v3_small": (32, "classifier.3", "features.5.block"),
    "regnet_y_400mf": (32, "fc", "trunk_output.block2"),
    "resnet18": (32, "fc", "layer2.1.bn1"),
    "resnext50_32x4d": (32, "fc", "layer3.0"),
    "shufflenet_v2_x0_5": (32, "fc", "stage3.2"),
    "squeezenet1_1": (32, "classifier.1", "features.6.squeeze"),
    "swin_t": (32, "head", "features.3.0.attn"),
    "swin_v2_t": (32, "head", "features.4"),
    "vgg11": (32, "classifier.6", "features.8"),
    "vit_b_16": (32, "heads.head", "encoder.layers.encoder_layer_3"),
    "timm/convnext_atto": (32, "head.fc", "stages.2.blocks.1"),
    "timm/efficientnet_lite0": (32, "classifier", "blocks.3.1.bn2"),
    "timm/mixer_s32_224": (64, "head", "blocks.2.mlp_tokens"),
    "timm/swin_tiny_patch4_window7_224": (56, "head.fc", "layers.1.blocks.0"),
    "timm/vit_tiny_patch16_224": (32, "head", "blocks.4.mlp"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _make_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(size, size, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def _open_loader(
    root: Path,
    pre: Preprocessing,
    count: int = 2,
    batch_size: int = 2,
    on_corrupt_image: Literal["error", "skip"] = "error",
) -> ImageLoader:
    names = [f"train/{label}/{number}.jpg" for number in range(20) for label in ("china", "flower")][:count]
    samples = [Sample(name, number % 2) for number, name in enumerate(names)]
    return ImageLoader(samples, build_eval_transform(pre), batch_size, LoaderConfig(root, on_corrupt_image, 0))


def _create_extractor(
    model: nn.Module,
    size: int,
    names: Sequence[str],
    pool: Pool | None = "none",
    head: str = "fc",
    precision: str = "float32",
) -> Extractor:
    layers = resolve_layers(model, head, names, size)
    return Extractor(model, _make_preprocessing(size), layers, pool, CPU, precision)


def _read_inputs(root: Path, size: int, count: int = 2) -> Tensor:
    (batch,) = _open_loader(root, _make_preprocessing(size), count, count).batches()
    inputs: Tensor = Normalizer(_make_preprocessing(size), CPU)(batch.images)
    return inputs.contiguous(memory_format=torch.channels_last)


def _build(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, False, size)


def _count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return _build("resnet18", 32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "head", "inner"), [(name, *rest) for name, rest in FAMILIES.items()])
def test_extract_gives_bits_of_manual_forward_for_each_family(
    name: str, size: int, head: str, inner: str, photo_folder: Path
) -> None:
    model = _build(name, size)
    expected: dict[str, Tensor] = {}
    with torch.inference_mode():
        model.to(memory_format=torch.channels_last)
        hooks = [
            model.get_submodule(head).register_forward_pre_hook(
                lambda _module, inputs: expected.update(head=inputs[0].clone())
            ),
            model.get_submodule(inner).register_forward_hook(
                lambda _module, _inputs, output: expected.update(inner=output.clone())
            ),
        ]
        model(_read_inputs(photo_folder, size))
    for hook in hooks:
        hook.remove()
    extractor = _create_extractor(model, size, (f"input of {head}", inner), head=head)
    (batch,) = extractor.extract(_open_loader(photo_folder, _make_preprocessing(size)))
    for features, expected_features, shape in zip(
        batch.features, (expected["head"], expected["inner"]), extractor.shapes, strict=True
    ):
        assert torch.equal(features, expected_features)
        assert features.shape == (2, *shape)
        assert features.std() > 0
        assert features.is_contiguous()
    assert not torch.equal(batch.features[0][0], batch.features[0][1])
    assert _count_hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "head", "nodes"),
    [
        ("resnet18", "fc", ("layer1.0.add", "layer1.0.relu_1", "layer4.1.add")),
        ("timm/vit_tiny_patch16_224", "head", ("blocks.0.add_1", "blocks.3.attn.reshape")),
    ],
)
def test_extract_node_matches_single_node_graph(
    name: str, head: str, nodes: tuple[str, ...], photo_folder: Path
) -> None:
    # With several nodes, torchvision's own extractor returns layer1.0.add after the in-place ReLU.
    model = _build(name, 32)
    inputs = _read_inputs(photo_folder, 32)
    extractor = _create_extractor(model, 32, (*nodes, f"input of {head}"), head=head)
    (batch,) = extractor.extract(_open_loader(photo_folder, _make_preprocessing(32)))
    for node, features in zip(nodes, batch.features, strict=False):
        single_node_graph = create_feature_extractor(model, [node], suppress_diff_warning=True).eval()
        with torch.inference_mode():
            assert torch.equal(features, single_node_graph(inputs)[node])
    assert len(batch.features) == len(nodes) + 1
    assert not model.training


def test_extract_handles_in_place_and_reused_modules(resnet: nn.Module, photo_folder: Path) -> None:
    names = ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer1.0", "maxpool", "layer1.0.bn2", "layer1.0.conv2")
    (batch,) = _create_extractor(resnet, 32, names).extract(_open_loader(photo_folder, _make_preprocessing(32)))
    conv1, bn1, relu, block, maxpool, bn2, conv2 = batch.features
    with torch.inference_mode():
        assert torch.equal(bn1, resnet.get_submodule("layer1.0.bn1")(conv1))
        assert torch.equal(bn2, resnet.get_submodule("layer1.0.bn2")(conv2))
        assert torch.equal(relu, block)
        assert torch.equal(block, (bn2 + maxpool).relu())
    assert (bn1 < 0).any()
    assert (bn2 < 0).any()


def test_extract_is_ordered_and_reproducible(resnet: nn.Module, photo_folder: Path) -> None:
    extractor = _create_extractor(resnet, 32, ("layer2", "layer4.1.add"), "avg")
    loader = _open_loader(photo_folder, _make_preprocessing(32), 7, 3)
    resnet.train()
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    first, second = (list(extractor.extract(loader)) for _ in range(2))
    assert [len(batch.paths) for batch in first] == [3, 3, 1]
    assert [path for batch in first for path in batch.paths] == [sample.path for sample in loader.samples]
    assert torch.cat([batch.labels for batch in first]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one.features, two.features, strict=True)
    )
    assert extractor.shapes == ((128,), (512,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    assert not resnet.training
    assert _count_hooks(resnet) == 0
    assert all(tensor.dtype == torch.float32 for batch in first for tensor in batch.features)


def test_extract_frees_previous_batch(resnet: nn.Module, photo_folder: Path) -> None:
    batches = _create_extractor(resnet, 32, ("layer1", "layer2.0.add")).extract(
        _open_loader(photo_folder, _make_preprocessing(32), 4, 2)
    )
    first = next(batches)
    references = [weakref.ref(features) for features in first.features]
    del first
    assert _count_hooks(resnet) == 0  # between batches too
    next(batches)
    assert [ref() for ref in references] == [None, None]


def test_extract_pools_in_float32(resnet: nn.Module, photo_folder: Path) -> None:
    loader = _open_loader(photo_folder, _make_preprocessing(32))
    (maps,) = _create_extractor(resnet, 32, ("layer2",)).extract(loader)
    (means,) = _create_extractor(resnet, 32, ("layer2",), None).extract(loader)
    assert torch.allclose(means.features[0], maps.features[0].mean((2, 3)), rtol=1e-6)
    (bfloat16_means,) = _create_extractor(resnet, 32, ("layer2",), None, precision="bfloat16").extract(loader)
    assert bfloat16_means.features[0].dtype == torch.float32
    assert not torch.equal(bfloat16_means.features[0], means.features[0])
    assert torch.allclose(bfloat16_means.features[0], means.features[0], rtol=0.1, atol=0.1)
    # The mean itself is not rounded to bfloat16.
    assert (bfloat16_means.features[0] != bfloat16_means.features[0].bfloat16().float()).any()


def test_extract_skips_corrupt_images(resnet: nn.Module, photo_folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("china/0", "flower/0", "china/1", "flower/1", "china/2")):
        target = tmp_path / f"train/{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"" if number in (1, 2, 3) else (photo_folder / f"train/{name}.jpg").read_bytes())
    batches = list(
        _create_extractor(resnet, 32, ()).extract(_open_loader(tmp_path, _make_preprocessing(32), 5, 2, "skip"))
    )
    assert [batch.paths for batch in batches] == [("train/china/0.jpg",), (), ("train/china/2.jpg",)]
    assert [tuple(batch.features[0].shape) for batch in batches] == [(1, 512), (0, 512), (1, 512)]
    assert [len(batch.skipped) for batch in batches] == [1, 2, 0]
    assert batches[1].skipped[0].path == "train/china/1.jpg"
    assert next(resnet.parameters()).is_contiguous(memory_format=torch.channels_last)


def _tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_extract_reports_layer_and_image_of_nonfinite_value(photo_folder: Path) -> None:
    model = _tiny()
    extractor = _create_extractor(model, 16, ("0",), head="4")
    model[0].register_forward_hook(
        lambda _module, _inputs, output: output.index_fill(0, torch.tensor([1]), float("nan"))
    )
    with pytest.raises(RunError) as error:
        list(extractor.extract(_open_loader(photo_folder, _make_preprocessing(16))))
    assert str(error.value) == (
        "0: the output for train/flower/0.jpg is not finite; the weights are corrupt or do not suit such images, give "
        "others"
    )
    assert _count_hooks(model) == 1  # the one registered above


@pytest.mark.parametrize("name", ["1", "0"])
def test_extract_removes_hooks_when_out_of_memory(name: str, photo_folder: Path) -> None:
    model = _tiny()
    extractor = _create_extractor(model, 16, (name,), head="4")

    def fail(*_inputs: Any) -> None:
        raise torch.OutOfMemoryError("no room for this.")

    model[3].forward = fail
    with pytest.raises(RunError) as error:
        list(extractor.extract(_open_loader(photo_folder, _make_preprocessing(16))))
    assert str(error.value).startswith("out of memory (no room for this.)")
    assert _count_hooks(model) == 0
