from __future__ import annotations

import pytest

from ftcli.errors import DataError, ErrorList, format_list, quote_names


def test_format_list_truncates() -> None:
    assert format_list(["a", "b c"], 2) == "a, b c"
    assert format_list(map(str, range(1500)), 2) == "0, 1 and 1,498 more"
    assert quote_names(["a", "b c"]) == "'a', 'b c'"
    assert quote_names(map(str, range(5)), max_names=2) == "'0', '1' and 3 more"


def test_error_list_counts_errors_of_a_kind() -> None:
    errors = ErrorList("data.root")
    errors.raise_if_any()
    for number in range(12):
        errors.add(f"{number}.png is corrupt", "images are corrupt")
    errors.add("a is empty")
    assert len(errors) == 13
    with pytest.raises(DataError) as raised:
        errors.raise_if_any()
    assert raised.value.messages == (
        *(f"data.root: {number}.png is corrupt" for number in range(10)),
        "data.root: a is empty",
        "data.root: 2 more images are corrupt",
    )
