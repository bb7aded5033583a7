"""What was tried out once is chosen alike the next time."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.caching.choices import CHOICES, count_choices, keep_choice, recall_choice

QUESTION = {"precision of": "resnet18", "image_size": 224}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path))
    return tmp_path


def test_a_choice_is_that_of_its_question_alone(cache: Path) -> None:
    assert recall_choice(QUESTION) is None
    keep_choice(QUESTION, "bfloat16")
    keep_choice({**QUESTION, "image_size": 96}, "float32")
    assert recall_choice(dict(reversed(QUESTION.items()))) == "bfloat16"
    assert recall_choice({**QUESTION, "image_size": 160}) is None
    assert count_choices(cache) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "no json", '{"a": 1}'])
def test_what_is_damaged_is_asked_again(cache: Path, content: str) -> None:
    (cache / CHOICES).write_text(content)
    assert recall_choice(QUESTION) is None
    keep_choice(QUESTION, "float32")
    assert recall_choice(QUESTION) == "float32"


def test_nothing_is_kept_where_nothing_may_be(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    keep_choice(QUESTION, "float32")
    assert recall_choice(QUESTION) is None
    assert not (cache / CHOICES).exists()
