"""Tests of text in any script: drawn if a font has it, named otherwise, without boxes and warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from ftcli import plotting
from ftcli.plotting import MAIN_FAMILY, FittedText, describe_missing_characters, fit_text, measure_width


@pytest.fixture(autouse=True)
def clear_font_caches() -> Iterator[None]:
    """Clear the cache of chosen fonts before and after each test."""
    plotting._choose_families.cache_clear()
    yield
    plotting._choose_families.cache_clear()


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the fonts of matplotlib only."""
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])


def render_text(fitted: FittedText) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the text as gray pixels, 0 for black."""
    figure = Figure(figsize=(6, 0.6), dpi=100)
    figure.text(0.01, 0.3, fitted.text, size=20, **fitted.options)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., 0]  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize(
    ("text", "drawn", "missing"),
    [
        ("cat 1", "cat 1", ()),
        ("кошка שלום سلام", "кошка שלום سلام", ()),
        ("\U0001f436 dog", "[dog face] dog", ("\U0001f436",)),
        ("\u72d7", "[U+72D7]", ("\u72d7",)),
        ("\u72d7\u732b!", "[U+72D7][U+732B]!", ("\u72d7", "\u732b")),
        ("\U0001f468\u200d\U0001f469", "[man]\u200d[woman]", ("\U0001f468", "\U0001f469")),
        ("\u2764\ufe0f", "\u2764", ()),
        ("\u0939\u093f", "[U+0939][U+093F]", ("\u0939", "\u093f")),
        ("q\u0951", "q[U+0951]", ("\u0951",)),
        ("e\u0301", "\u00e9", ()),
        ("\U0001fae8\ue000", "[U+1FAE8][U+E000]", ("\U0001fae8", "\ue000")),
        ("a\nb\tc\x07", "a\\nb\\tc\\x07", ()),
        ("\u202egnp.exe", "\\u202egnp.exe", ()),
        ("\udcff", "\\udcff", ()),
        ("\u200d", "\u200d", ()),
        ("", "", ()),
    ],
)
def test_fit_text_names_missing_characters(text: str, drawn: str, missing: tuple[str, ...]) -> None:
    fitted = fit_text(text)
    assert (fitted.text, fitted.missing) == (drawn, missing)
    assert fitted.families == (MAIN_FAMILY,)
    render_text(fitted)


@pytest.mark.parametrize(
    "text", ["\u72d7", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22", "\ud55c\uad6d\uc5b4", "\U0001f436"]
)
def test_fit_text_never_draws_missing_glyph(text: str) -> None:
    fitted = fit_text(f"{text} q\u0951 \u72d7\ufe0f\u0301")
    ink = render_text(fitted)  # a missing glyph causes a warning, which is an error here
    box = FittedText(text, (MAIN_FAMILY,), ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not np.array_equal(render_text(fit_text(text)), render_text(box))
    assert ink.min() < 100


def test_fit_text_finds_unlisted_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])
    dog, cat = fit_text("\u72d7"), fit_text("\u732b")
    if dog.missing:
        pytest.skip("no installed font has Chinese characters")
    assert dog.text == "\u72d7"
    assert dog.families[0] == MAIN_FAMILY
    assert len(dog.families) == 2
    assert not np.array_equal(render_text(dog), render_text(cat))
    assert measure_width(dog.text, dog.families, 20) == pytest.approx(20, abs=2)


def test_arabic_is_shaped_right_to_left() -> None:
    word = "\u0633\u0644\u0627\u0645"
    alone = sum(measure_width(letter, (MAIN_FAMILY,), 40) for letter in word)
    assert measure_width(word, (MAIN_FAMILY,), 40) < 0.9 * alone
    columns = np.flatnonzero((255 - render_text(fit_text("\u0627\u0628\u0628\u0628\u0628")).astype(int)).sum(0))
    heights = (255 - render_text(fit_text("\u0627\u0628\u0628\u0628\u0628")).astype(int) > 128).sum(0)
    # The first letter, a vertical stroke, is on the right.
    assert heights.argmax() > columns.min() + 0.9 * (columns.max() - columns.min())


def test_fit_text_disables_mathtext() -> None:
    fitted = fit_text(r"$a_b$ \alpha")
    assert fitted.text == r"$a_b$ \alpha"
    figure = Figure(figsize=(6, 1), dpi=72)
    shown = figure.text(0, 0, fitted.text, size=20, **fitted.options)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    width = measure_width(fitted.text, fitted.families, 20)
    assert shown.get_window_extent(renderer).width == pytest.approx(width, rel=0.05)


def test_fit_text_shortens_middle() -> None:
    name = "train/" + "x" * 300 + "/cell_0001.png"
    fitted = fit_text(name, 10, 150)
    head, tail = fitted.text.split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    assert measure_width(fitted.text, fitted.families, 10) <= 150
    assert measure_width(head + "xx…" + tail, fitted.families, 10) > 150
    assert fit_text(name, 10, 5).text == "…"


@pytest.mark.usefixtures("no_system_fonts")
def test_describe_missing_characters_names_packages() -> None:
    assert describe_missing_characters([fit_text("cat"), fit_text("a\n")]) is None
    assert describe_missing_characters([fit_text("\u72d7"), fit_text("\u72d7 \U0001f436")]) == (
        "no installed font has \u72d7 (U+72D7), \U0001f436 (U+1F436), drawn as names or codes; install a font for "
        "them, such as the Debian packages fonts-noto-cjk, fonts-noto-core and fonts-symbola"
    )
    message = describe_missing_characters([fit_text("".join(map(chr, range(0x4E00, 0x4E09))))])
    assert message is not None
    assert "(U+4E05) and 3 more, drawn" in message
