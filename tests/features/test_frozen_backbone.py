"""Tests of the frozen backbone: its features equal those of the model up to rounding, and the model is unchanged."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from ftcli.data.batches import Batch
from ftcli.data.transforms import Normalizer
from ftcli.features.frozen_backbone import MAX_BATCH_SIZES, FrozenBackbone, choose_batch_size, fuse_conv_bn
from ftcli.models.cut import HeadlessModel, ModelCut, cut_model
from ftcli.models.factory import create_model
from ftcli.models.freezing import FrozenNames, set_train_mode
from ftcli.models.summary import find_head, summarize
from ftcli.results import Preprocessing

CPU = torch.device("cpu")
FAMILIES = {
    "densenet121": (32, True),  # two thirds of its norms precede a convolution
    "mobilenet_v3_small": (32, False),
    "resnet18": (32, False),
    "timm/efficientnet_lite0": (32, False),
}


def _make_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(size, size, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def _cut_before(network: nn.Module, path: str, size: int) -> ModelCut:
    """Cut a network before the modules whose names begin with `path`."""
    frozen = {name for name, _ in network.named_parameters() if not name.startswith(path)}
    eval_modules = {name for name, _ in network.named_modules() if not name.startswith(path)}
    cut = cut_model(network, frozen, eval_modules, size)
    assert cut is not None
    return cut


def _batch(images: torch.Tensor) -> Batch:
    return Batch((images,), torch.zeros(0), torch.zeros(0), ())


def _randomize_norms(network: nn.Module) -> None:
    """Set the statistics and weights of norms to values as after training."""
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d)) and isinstance(layer.running_mean, torch.Tensor):
            nn.init.normal_(layer.running_mean, std=0.1)
            assert isinstance(layer.running_var, torch.Tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            if isinstance(layer.weight, torch.Tensor):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)


def _count_norms(graph: nn.Module) -> int:
    assert isinstance(graph, fx.GraphModule)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    return sum(isinstance(graph.get_submodule(name), nn.BatchNorm2d) for name in called)


@pytest.mark.parametrize(("name", "size", "has_norms"), [(name, *rest) for name, rest in FAMILIES.items()])
def test_fuse_conv_bn_gives_close_values_and_same_class(name: str, size: int, has_norms: bool) -> None:
    torch.manual_seed(0)
    network = create_model(name, meta=False, image_size=size)
    _randomize_norms(network)
    network.train()
    before = copy.deepcopy(network.state_dict())
    data_ptrs = {key: tensor.data_ptr() for key, tensor in network.state_dict().items()}
    cut = _cut_before(network, find_head(network, summarize(network, size)).path, size)
    backbone = FrozenBackbone(cut, _make_preprocessing(size), CPU, "float32")
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    (values,) = backbone.unpack_rows(backbone.compute(images))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert {key: tensor.data_ptr() for key, tensor in network.state_dict().items()} == data_ptrs

    network.eval()
    with torch.no_grad():
        plain = Normalizer(_make_preprocessing(size), CPU)(images)
        (expected,) = cut.prefix(plain)
        logits = network(plain)
        assert torch.equal(cut.suffix(values).argmax(1), logits.argmax(1))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert isinstance(cut.prefix, fx.GraphModule)
    assert (_count_norms(fuse_conv_bn(cut.prefix)) > 0) is has_norms


class _Standardised(nn.Conv2d):
    """A convolution that standardizes its weights and is a single call in a graph."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        factor = 0.5 if self.training else 1.0
        weight = self.weight - factor * self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(values, weight, self.bias)


class _Residual(nn.Module):
    """A block that uses the output of its convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        conv_output = self.conv(values)
        output: torch.Tensor = self.norm(conv_output) + conv_output
        return output


def _make_conv_net(*layers: nn.Module) -> tuple[nn.Module, ModelCut]:
    torch.manual_seed(0)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    _randomize_norms(network)
    return network.eval(), _cut_before(network, f"{len(layers) + 2}", 8)


@pytest.mark.parametrize(
    ("layers", "norms"),
    [
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), 0),
        ((nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), 0),
        ((nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU()), 0),
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 1),
        ((_Standardised(3, 4, 3), nn.BatchNorm2d(4)), 1),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        ((nn.Conv2d(3, 4, 3), _Residual()), 1),
    ],
)
def test_fuse_conv_bn_fuses_only_eligible_norms(layers: tuple[nn.Module, ...], norms: int) -> None:
    _, cut = _make_conv_net(*layers)
    assert isinstance(cut.prefix, fx.GraphModule)
    images = torch.randn(3, 3, 8, 8)
    fused = fuse_conv_bn(cut.prefix)
    assert _count_norms(fused) == norms
    if isinstance(layers[1], FrozenBatchNorm2d):  # in the graph it is arithmetic with constants, not a layer
        assert [node.op for node in cut.prefix.graph.nodes].count("get_attr") == 2
        assert not any(node.op == "get_attr" for node in fused.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(fused(images)[0], cut.prefix(images)[0], rtol=1e-5, atol=1e-6)


def test_fuse_conv_bn_skips_norm_in_train_mode() -> None:
    _, cut = _make_conv_net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert isinstance(cut.prefix, fx.GraphModule)
    cut.prefix.get_submodule("1").train()
    assert _count_norms(fuse_conv_bn(cut.prefix)) == 1


def test_fuse_conv_bn_skips_layer_called_twice() -> None:
    conv = nn.Conv2d(4, 4, 1)
    _, cut = _make_conv_net(nn.Conv2d(3, 4, 3), conv, nn.BatchNorm2d(4), conv)
    assert isinstance(cut.prefix, fx.GraphModule)
    assert _count_norms(fuse_conv_bn(cut.prefix)) == 1


def test_compute_gives_same_bits_in_any_batch() -> None:
    network = create_model("mobilenet_v3_small", meta=False, image_size=32)
    backbone = FrozenBackbone(_cut_before(network, "classifier.3", 32), _make_preprocessing(32), CPU, "float32")
    images = torch.randint(0, 256, (MAX_BATCH_SIZES["cpu"], 3, 32, 32), dtype=torch.uint8)
    full_batch = backbone.compute(images)
    assert full_batch.shape == (MAX_BATCH_SIZES["cpu"], backbone.row_bytes)
    assert np.array_equal(backbone.compute(images[3:8]), full_batch[3:8])
    assert np.array_equal(backbone.compute(images[5:6]), full_batch[5:6])
    assert np.array_equal(backbone.compute(images.flip(0)), full_batch[::-1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_compute_batches_gives_bits_of_single_batches(threads: int) -> None:
    network = create_model("mobilenet_v3_small", meta=False, image_size=32).train()
    backbone = FrozenBackbone(_cut_before(network, "classifier.3", 32), _make_preprocessing(32), CPU, "float32")
    images = torch.randint(0, 256, (7, MAX_BATCH_SIZES["cpu"], 3, 32, 32), dtype=torch.uint8)
    batches = [_batch(each) for each in (*images, images[0][:5], images[0][:0])]
    expected = [backbone.compute(batch.images) for batch in batches]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = list(backbone.compute_batches(batches))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(one is batch for (one, _), batch in zip(results, batches, strict=True))
    assert all(np.array_equal(rows, known) for (_, rows), known in zip(results, expected, strict=True))
    assert backbone.num_computed == 7 * MAX_BATCH_SIZES["cpu"] + 5
    assert all(module.training for module in network.modules())


def test_compute_batches_runs_one_batch_per_torch_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_model("resnet18", meta=False, image_size=32)
    cut = _cut_before(network, "fc", 32)
    barrier, data_ptrs = threading.Barrier(3), set[int]()

    def wait(backbone: FrozenBackbone, images: torch.Tensor) -> NDArray[np.uint8]:
        barrier.wait(20.0)
        data_ptrs.add(threading.get_ident())
        return np.empty((len(images), backbone.row_bytes), dtype=np.uint8)

    monkeypatch.setattr(FrozenBackbone, "_compute", wait)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    batches = [_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))] * 6
    assert len(list(FrozenBackbone(cut, _make_preprocessing(32), CPU, "float32").compute_batches(batches))) == 6
    assert threading.get_ident() not in data_ptrs
    assert len(list(FrozenBackbone(cut, _make_preprocessing(32), CPU, "float32").compute_batches(batches[:3]))) == 3
    barrier, data_ptrs = threading.Barrier(1), set()
    untraceable = replace(
        cut, prefix=HeadlessModel(network, "fc")
    )  # code that is not a graph may store what it computes
    assert len(list(FrozenBackbone(untraceable, _make_preprocessing(32), CPU, "float32").compute_batches(batches))) == 6
    assert data_ptrs == {threading.get_ident()}


def test_choose_batch_size_shrinks_for_large_images() -> None:
    sizes = (32, 320, 321, 384, 480, 600, 4000)
    assert [choose_batch_size(CPU, size) for size in sizes] == [16, 16, 8, 8, 4, 4, 1]
    assert [choose_batch_size(torch.device("cuda"), size) for size in sizes] == [256, 256, 128, 128, 64, 64, 1]


def test_compute_batches_restores_torch_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_model("resnet18", meta=False, image_size=32)
    backbone = FrozenBackbone(_cut_before(network, "fc", 32), _make_preprocessing(32), CPU, "float32")
    thread_counts: list[tuple[bool, int]] = []

    def record(backbone: FrozenBackbone, images: torch.Tensor) -> NDArray[np.uint8]:
        thread_counts.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return np.empty((len(images), backbone.row_bytes), dtype=np.uint8)

    monkeypatch.setattr(FrozenBackbone, "_compute", record)
    batches = [_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))] * 5
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert backbone.num_parallel_batches == 3
        assert len(list(backbone.compute_batches(batches))) == 5
        assert thread_counts == [(False, 1)] * 5
        backbone.compute(batches[0].images)
        assert thread_counts[5:] == [(True, 1)]
        stream = backbone.compute_batches(batches)
        next(stream)
        stream.close()
        assert torch.get_num_threads() == 3
        torch.set_num_threads(32)
        assert backbone.num_parallel_batches == 16
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_compute_gives_same_sigmoid_bits_with_any_thread_count(threads: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(5 * 75 * 75, 2))
    backbone = FrozenBackbone(_cut_before(network, "3", 75), _make_preprocessing(75), CPU, "float32")
    images = torch.randint(0, 256, (MAX_BATCH_SIZES["cpu"], 3, 75, 75), dtype=torch.uint8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = backbone.compute(images)
        torch.set_num_threads(threads)
        assert np.array_equal(backbone.compute(images), alone)
        for count in (1, 3, 5):
            assert all(np.array_equal(rows, alone) for _, rows in backbone.compute_batches([_batch(images)] * count))
    finally:
        torch.set_num_threads(before)


def test_unpack_rows_returns_trainable_boundary_tensors() -> None:
    network = create_model("resnet18", meta=False, image_size=64)
    trainable_modules = (
        "layer3.0.bn1",
        "layer3.0.conv2",
        "layer3.0.bn2",
        "layer3.0.downsample",
        "layer3.1",
        "layer4",
        "fc",
    )
    parameters = {name for name, _ in network.named_parameters() if not name.startswith(trainable_modules)}
    modules = {name for name, _ in network.named_modules() if not name.startswith(trainable_modules)}
    cut = cut_model(network, parameters, modules, 64)
    assert cut is not None
    backbone = FrozenBackbone(cut, _make_preprocessing(64), CPU, "float32")
    assert backbone.row_bytes == 4 * (128 * 8 * 8 + 256 * 4 * 4)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    values = backbone.unpack_rows(backbone.compute(images))
    set_train_mode(network, FrozenNames(frozenset(parameters), frozenset(modules)))
    with torch.no_grad():
        expected = cut.prefix(Normalizer(_make_preprocessing(64), CPU)(images))
    for value, known in zip(values, expected, strict=True):
        assert value.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(value, known, rtol=1e-4, atol=1e-5)
    cut.training_suffix(*values).sum().backward()
    assert network.get_submodule("layer3.0.conv2").weight.grad is not None


def test_unpack_rows_stores_bfloat16_as_float32() -> None:
    network = create_model("mobilenet_v3_small", meta=False, image_size=32)
    backbone = FrozenBackbone(_cut_before(network, "classifier.3", 32), _make_preprocessing(32), CPU, "bfloat16")
    (values,) = backbone.unpack_rows(backbone.compute(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)))
    assert values.dtype == torch.float32
    assert torch.equal(values, values.bfloat16().float())


def test_measure_seconds_per_image_keeps_rng_state() -> None:
    network = create_model("mobilenet_v3_small", meta=False, image_size=32)
    state = torch.get_rng_state()
    assert (
        0
        < FrozenBackbone(
            _cut_before(network, "classifier.3", 32), _make_preprocessing(32), CPU, "float32"
        ).measure_seconds_per_image()
        < 1
    )
    assert torch.equal(torch.get_rng_state(), state)
