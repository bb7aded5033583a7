"""Palette, PNG output and text in any script for all plots. matplotlib is imported when a plot is drawn."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Colors of Okabe and Ito for color-blind readers, with grey instead of yellow, which is too pale for lines."""

MAIN_FAMILY = "DejaVu Sans"
"""The font of matplotlib, with Latin, Greek, Cyrillic, Arabic, Hebrew and many symbols."""

_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Indic scripts need them
_SYMBOL_CATEGORIES = ("So", "Sk", "Sm", "Sc")
_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_NON_TEXT_FONTS = ("Last Resort", "STIXNon", "STIXSize", "cm")  # fonts of matplotlib for boxes and formulas
_FONT_ERRORS = (OSError, RuntimeError, ValueError, LookupError)  # raised by matplotlib for fonts that it cannot read


def create_figure(width: float, height: float, dpi: int = 120, **options: Any) -> Figure:
    """Create a figure that is drawn by Agg, without pyplot; `width` and `height` are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, **options)
    FigureCanvasAgg(figure)
    return figure


def render_png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@dataclass(frozen=True)
class FittedText:
    """A text that the installed fonts can draw.

    `families` is the fallback list for matplotlib. `missing` are the characters without a font, which `text` contains
    by name or code.
    """

    text: str
    families: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Options for matplotlib's text functions; dollar signs do not begin formulas."""
        return {"family": list(self.families), "parse_math": False, "usetex": False}


def fit_text(text: str, size: float = 10.0, width: float | None = None) -> FittedText:
    """Make a text drawable with the installed fonts, without missing glyphs and warnings.

    A symbol without a font is replaced by its Unicode name, "[dog face]", another character by its code, "[U+72D7]".
    Control characters are escaped. A text wider than `width` points at `size` points is shortened in the middle.
    """
    composed = _VARIATION_SELECTORS.sub("", unicodedata.normalize("NFC", text))
    characters = frozenset(character for character in composed if not _is_escaped(character))
    families, missing = _choose_families(characters)
    parts = [_label(part) if part in missing or _is_escaped(part) else part for part in composed]
    if not _can_draw("".join(parts), families):  # a letter and its accent may have no common font
        parts = [part if part.isascii() else _label(part) for part in parts]
    shown_missing = tuple(dict.fromkeys(character for character in composed if character in missing))
    return FittedText(_shorten(parts, families, size, width), families, shown_missing)


def describe_missing_characters(texts: Iterable[FittedText]) -> str | None:
    """Return a warning for the characters without a font, with the packages to install, or None."""
    missing = tuple(dict.fromkeys(character for text in texts for character in text.missing))
    if not missing:
        return None
    shown = ", ".join(f"{character} (U+{ord(character):04X})" for character in missing[:6])
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    return (
        f"no installed font has {shown}{more}, drawn as names or codes; install a font for them, such as the Debian "
        "packages fonts-noto-cjk, fonts-noto-core and fonts-symbola"
    )


def measure_width(text: str, families: Sequence[str], size: float) -> float:
    """Return the width of a text in points."""
    font = _load_font(families)
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED_CATEGORIES and character not in _JOINERS


def _label(character: str) -> str:
    if _is_escaped(character):
        return character.encode("unicode_escape").decode()
    if unicodedata.category(character) in _SYMBOL_CATEGORIES and (name := unicodedata.name(character, "")):
        return f"[{name.lower()}]"
    return "".join(f"[U+{ord(part):04X}]" for part in character)


@cache
def _choose_families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the font families that cover the characters, the main one first, and the characters without a font.

    A short list is chosen because matplotlib opens every font of its fallback list.
    """
    families = [MAIN_FAMILY]
    main_font = _load_font(families)
    missing = {character for character in characters if not main_font.get_char_index(ord(character))}
    for list_fonts in (_list_fonts, _list_new_fonts):  # matplotlib caches its list, without fonts installed later
        for family, path, index in list_fonts() if missing else ():
            if covered := _covered_characters(path, index, missing):
                families.append(family)
                missing -= covered
    return tuple(families), frozenset(missing)


def _list_fonts() -> list[tuple[str, str, int]]:
    """Return family, file and index in the file of the upright regular fonts for text, the preferred ones first."""
    from matplotlib.font_manager import fontManager

    return sorted(
        (
            (entry.name, entry.fname, entry.index)
            for entry in fontManager.ttflist
            if entry.style == "normal"
            and entry.weight in (400, "normal", "regular")
            and not entry.name.startswith(_NON_TEXT_FONTS)
        ),
        key=lambda font: _font_preference(font[0]),
    )


def _list_new_fonts() -> list[tuple[str, str, int]]:
    """Return the same after adding the fonts that are not yet in matplotlib's list."""
    from matplotlib import font_manager

    known_paths = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known_paths):
        try:
            font_manager.fontManager.addfont(path)
        except _FONT_ERRORS:  # such as a font of color bitmaps, which matplotlib cannot draw
            continue
    return _list_fonts()


def _font_preference(family: str) -> tuple[bool, bool, bool, str]:
    """Sort key: Noto Sans first, proportional before monospaced, and simplified Chinese before other CJK fonts."""
    return not family.startswith("Noto Sans"), "Mono" in family, "CJK" in family and "SC" not in family, family


def _covered_characters(path: str, index: int, characters: Iterable[str]) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path, face_index=index)
    except _FONT_ERRORS:  # the font was removed
        return set()
    return {character for character in characters if font.get_char_index(ord(character))}


def _load_font(families: Sequence[str]) -> FT2Font:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font([findfont(FontProperties(family=family), fallback_to_default=False) for family in families])


def _can_draw(text: str, families: Sequence[str]) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _load_font(families).set_text(text)
    return not caught


def _shorten(parts: list[str], families: Sequence[str], size: float, width: float | None) -> str:
    text = "".join(parts)
    if width is None or measure_width(text, families, size) <= width:
        return text
    low, high = 0, len(parts) - 1  # number of parts that fit
    while low < high:
        num_parts = (low + high + 1) // 2
        fits = measure_width(_elide_middle(parts, num_parts), families, size) <= width
        low, high = (num_parts, high) if fits else (low, num_parts - 1)
    return _elide_middle(parts, low)


def _elide_middle(parts: list[str], num_parts: int) -> str:
    return "".join([*parts[: (num_parts + 1) // 2], "…", *parts[len(parts) - num_parts // 2 :]])
