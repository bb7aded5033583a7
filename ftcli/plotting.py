"""Text in any script for pictures: each character in a font that has it, or a clear word in its place."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.ft2font import FT2Font

from ftcli.errors import format_list

MAIN_FAMILY = "DejaVu Sans"
"""What matplotlib carries itself, with Latin, Greek, Cyrillic, Arabic, Hebrew and many symbols."""

_JOINERS = "\u200c\u200d"  # invisible, but Persian and the scripts of India are shaped by them
_SYMBOL_CATEGORIES = ("So", "Sk", "Sm", "Sc")
_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_NON_TEXT_FONTS = ("Last Resort", "STIXNon", "STIXSize", "cm")  # matplotlib's own for boxes and for formulas
_REGULAR = (400, "normal", "regular")
_FONT_ERRORS = (OSError, RuntimeError, ValueError, LookupError)  # what matplotlib raises over a font it cannot read

_Font = tuple[str, str, int]
"""Family, file, and place in the file."""


@dataclass(frozen=True)
class FittedText:
    """Text that can be drawn in full. `families` are the fonts that have its characters, in order; `missing` are the
    characters that no installed font has, which `text` names instead."""

    text: str
    families: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """What matplotlib's text functions are to be given beside the text: dollar signs are then no formulas."""
        return {"family": list(self.families), "parse_math": False, "usetex": False}


def fit_text(text: str, size: float = 10.0, width: float | None = None) -> FittedText:
    """Make a text drawable with the fonts that are installed, without a missing glyph or a warning.

    A symbol that no font has becomes its Unicode name, "[dog face]", another character its code, "U+72D7"; what
    controls or breaks lines is shown escaped. Where it is wider than `width` points at `size` points, its middle gives
    way to "…". The text is composed first (NFC), and colour variants of symbols are drawn plain.
    """
    clusters = _split_clusters(unicodedata.normalize("NFC", text))
    families = (MAIN_FAMILY, *_choose_families(frozenset(clusters)))
    drawn = _separate_codes([_replace_missing(cluster, families) for cluster in clusters])
    if not _is_drawable("".join(drawn), families):  # what several fonts have, each a part, they may lack together
        drawn = _separate_codes(
            [
                "".join(character if character.isascii() else _character_label(character) for character in piece)
                for piece in clusters
            ]
        )
    missing = (character for cluster in clusters for character in cluster if _is_missing(character, families))
    return FittedText(_shorten(drawn, families, size, width), families, tuple(dict.fromkeys(missing)))


def describe_missing_characters(texts: Iterable[FittedText]) -> str | None:
    """What to say of the characters that no installed font has, and what to install; None where there are none."""
    missing = tuple(dict.fromkeys(character for text in texts for character in text.missing))
    if not missing:
        return None
    shown = format_list((f"{character} (U+{ord(character):04X})" for character in missing), 6)
    return (
        f"no installed font has {shown}; names or codes are drawn instead; install fonts that have them, such "
        "as the packages fonts-noto-cjk, fonts-noto-core and fonts-symbola of Debian"
    )


def measure_width(text: str, families: Sequence[str], size: float) -> float:
    """How wide a text is, in points."""
    font = _load_font(families)
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def _split_clusters(text: str) -> list[str]:
    """What must come from one font together: a character with the marks and joiners that follow it."""
    clusters: list[str] = []
    for character in text:
        if _is_variation_selector(character):
            continue
        is_mark = unicodedata.category(character).startswith("M") or character in _JOINERS
        if is_mark and clusters and not _is_escaped(clusters[-1][0]):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _is_variation_selector(character: str) -> bool:
    return 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED_CATEGORIES


@cache
def _choose_families(clusters: frozenset[str]) -> tuple[str, ...]:
    """The fewest families that have what the main one lacks."""
    uncovered = {
        cluster for cluster in clusters if not _is_covered(cluster, (MAIN_FAMILY,)) and not _is_escaped(cluster[0])
    }
    chosen: list[str] = []
    while candidates := {font for cluster in uncovered for font in _find_fonts(cluster)}:
        num_covered = {font: sum(font in _find_fonts(cluster) for cluster in uncovered) for font in candidates}
        best = min(candidates, key=lambda font: (-num_covered[font], _font_preference(font[0])))
        chosen.append(best[0])
        uncovered = {cluster for cluster in uncovered if best not in _find_fonts(cluster)}
    return tuple(chosen)


@cache
def _find_fonts(cluster: str) -> frozenset[_Font]:
    """The fonts that have all of a cluster; those installed since matplotlib made its list count where it has none."""
    for fonts in (_list_fonts, _list_new_fonts):
        if matching := frozenset(font for font in fonts() if _font_has(font, cluster)):
            return matching
    return frozenset()


def _font_preference(family: str) -> tuple[bool, bool, bool, str]:
    """Noto's fonts without serifs first; where all East Asian forms are there, the simplified Chinese ones."""
    return not family.startswith("Noto Sans"), "Mono" in family, "CJK" in family and "SC" not in family, family


@cache
def _list_fonts() -> tuple[_Font, ...]:
    """Every upright regular font that is for text."""
    return tuple(
        (entry.name, entry.fname, entry.index)
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular")
        and not entry.name.startswith(_NON_TEXT_FONTS)
    )


@cache
def _list_new_fonts() -> tuple[_Font, ...]:
    """The same for fonts that are installed and not yet in matplotlib's list, which they are added to."""
    known_fonts = _list_fonts()
    known_files = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known_files):
        try:
            fontManager.addfont(path)
        except _FONT_ERRORS:
            continue  # such as fonts of coloured bitmaps, which matplotlib cannot draw
    _list_fonts.cache_clear()
    return tuple(font for font in _list_fonts() if font not in known_fonts)


def _font_has(font: _Font, cluster: str) -> bool:
    try:
        face = FT2Font(font[1], face_index=font[2])
    except _FONT_ERRORS:
        return False  # it was taken away since it was listed
    return all(face.get_char_index(ord(character)) for character in cluster)


def _is_covered(cluster: str, families: Iterable[str]) -> bool:
    return not _is_escaped(cluster[0]) and any(
        all(_load_font((family,)).get_char_index(ord(character)) for character in cluster) for family in families
    )


def _is_missing(character: str, families: Iterable[str]) -> bool:
    return not _is_escaped(character) and not _is_covered(character, families)


def _load_font(families: Sequence[str]) -> FT2Font:
    return get_font([findfont(FontProperties(family=family), fallback_to_default=False) for family in families])


def _replace_missing(cluster: str, families: Sequence[str]) -> str:
    """A cluster as it is where a font has all of it; else its base, if that can be drawn, and the rest by name."""
    if _is_covered(cluster, families):
        return cluster
    base, marks = cluster[0], cluster[1:]
    base_text = base if _is_covered(base, families) else _character_label(base)
    return " ".join([base_text, *(_character_label(mark) for mark in marks if mark not in _JOINERS)])


def _character_label(character: str) -> str:
    if _is_escaped(character):
        return character.encode("unicode_escape").decode()
    if unicodedata.category(character) in _SYMBOL_CATEGORIES and (name := unicodedata.name(character, "")):
        return f"[{name.lower()}]"
    return f"U+{ord(character):04X}"


def _separate_codes(pieces: list[str]) -> list[str]:
    """The pieces with a space between two codes that follow one another."""
    return [
        f" {piece}" if number and piece.startswith("U+") and pieces[number - 1].startswith("U+") else piece
        for number, piece in enumerate(pieces)
    ]


def _is_drawable(text: str, families: Sequence[str]) -> bool:
    """Whether matplotlib itself finds a glyph for all of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _load_font(families).set_text(text)
    return not caught


def _shorten(pieces: list[str], families: Sequence[str], size: float, width: float | None) -> str:
    text = "".join(pieces)
    if width is None or measure_width(text, families, size) <= width:
        return text
    low, high = 0, len(pieces) - 1  # how many pieces may stay
    while low < high:
        num_pieces = (low + high + 1) // 2
        fits = measure_width(_elide_middle(pieces, num_pieces), families, size) <= width
        low, high = (num_pieces, high) if fits else (low, num_pieces - 1)
    return _elide_middle(pieces, low)


def _elide_middle(pieces: list[str], num_pieces: int) -> str:
    return "".join([*pieces[: (num_pieces + 1) // 2], "…", *pieces[len(pieces) - num_pieces // 2 :]])
