"""Tests of compiled training steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError, RunError
from ftcli.training.compile import check_compiler, compile_forward
from tests.conftest import LibraryLog
from tests.training.classifiers import CPU, build_classifier, fake_clock


def test_check_compiler_reports_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_compile(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        def fail(_: Tensor) -> Tensor:
            raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", fake_compile)
    with pytest.raises(RecipeError) as caught:
        check_compiler("r.yaml:3:10: compile", CPU)
    assert str(caught.value) == (
        "r.yaml:3:10: compile: true needs a C++ compiler (on a GPU: Triton), which fails here: InvalidCxxCompiler: No "
        "working C++ compiler found; install g++ and the headers of Python, or set compile: false"
    )


def test_compile_forward_reports_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: tuple[Tensor, ...]) -> Tensor:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    classifier = build_classifier()
    inputs = (torch.zeros((4, 3, 16, 16), dtype=torch.uint8),)
    with pytest.raises(RunError) as caught:
        compile_forward(lambda values: classifier.compute_logits(values[0]), inputs, classifier.model)
    assert str(caught.value) == (
        "compile: true: this model cannot be compiled: InvalidCxxCompiler: No working C++ compiler found; set "
        "compile: false"
    )


@pytest.mark.slow
@pytest.mark.covers("compile")
def test_compile_forward_matches_eager_and_preserves_model(log: LibraryLog) -> None:
    check_compiler("compile", CPU)
    classifier = build_classifier()
    model = classifier.model.train()
    inputs = (torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8),)
    state_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng_state = torch.get_rng_state()
    eager_batch_sizes = list[int]()

    def forward(values: tuple[Tensor, ...]) -> Tensor:
        if not torch.compiler.is_compiling():
            eager_batch_sizes.append(len(values[0]))
        return classifier.compute_logits(values[0])

    compiled = compile_forward(forward, inputs, model, fake_clock(0.5, 0.25, 18.0, 0.2, 0.125))
    assert log.messages == ["compile: took 18 s; a step takes 0.125 s, 0.25 s before"]
    assert model.state_dict().keys() == state_before.keys()
    assert all(torch.equal(state_before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng_state)
    eager_batch_sizes.clear()
    dropout = model.get_submodule("5")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    logits = compiled(inputs)
    assert eager_batch_sizes == []
    assert torch.allclose(logits, forward(inputs), rtol=1e-4, atol=1e-5)
    eager_batch_sizes.clear()
    compiled((inputs[0][:3],))
    assert eager_batch_sizes == [3]
    dropout.p = 0.5
    dropped = []
    for _ in range(2):
        torch.manual_seed(5)
        dropped.append(compiled(inputs))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(compiled(inputs), dropped[0])  # another seed, another dropout
