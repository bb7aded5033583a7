"""Choices by measurement are stored and reused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.caching.measured_choices import CHOICES_FILE, count_choices, load_choice, save_choice

BENCHMARK = {"precision of": "resnet18", "image_size": 224}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path))
    return tmp_path


def test_load_choice_depends_on_benchmark(cache: Path) -> None:
    assert load_choice(BENCHMARK) is None
    save_choice(BENCHMARK, "bfloat16")
    save_choice({**BENCHMARK, "image_size": 96}, "float32")
    assert load_choice(dict(reversed(BENCHMARK.items()))) == "bfloat16"
    assert load_choice({**BENCHMARK, "image_size": 160}) is None
    assert count_choices(cache) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "not JSON", '{"a": 1}'])
def test_load_choice_ignores_corrupt_file(cache: Path, content: str) -> None:
    (cache / CHOICES_FILE).write_text(content)
    assert load_choice(BENCHMARK) is None
    save_choice(BENCHMARK, "float32")
    assert load_choice(BENCHMARK) == "float32"


def test_save_choice_writes_nothing_without_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    save_choice(BENCHMARK, "float32")
    assert load_choice(BENCHMARK) is None
    assert not (cache / CHOICES_FILE).exists()
