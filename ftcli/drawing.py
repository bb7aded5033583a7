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

MAIN_FAMILY = "DejaVu Sans"
"""What matplotlib carries itself, with Latin, Greek, Cyrillic, Arabic, Hebrew and many symbols."""

_JOINERS = "\u200c\u200d"  # invisible, but Persian and the scripts of India are shaped by them
_NAMED = ("So", "Sk", "Sm", "Sc")
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_NO_TEXT = ("Last Resort", "STIXNon", "STIXSize", "cm")  # matplotlib's own for boxes and for formulas
_REGULAR = (400, "normal", "regular")
_UNUSABLE = (OSError, RuntimeError, ValueError, LookupError)  # what matplotlib raises over a font it cannot read

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
    drawn = _part_codes([_spell(cluster, families) for cluster in clusters])
    if not _is_drawable("".join(drawn), families):  # what several fonts have, each a part, they may lack together
        drawn = _part_codes(["".join(sign if sign.isascii() else _name(sign) for sign in piece) for piece in clusters])
    lacking = (sign for cluster in clusters for sign in cluster if _is_missing(sign, families))
    return FittedText(_shorten(drawn, families, size, width), families, tuple(dict.fromkeys(lacking)))


def tell_missing(texts: Iterable[FittedText]) -> str | None:
    """What to say of the characters that no installed font has, and what to install; None where there are none."""
    missing = tuple(dict.fromkeys(sign for text in texts for sign in text.missing))
    if not missing:
        return None
    listed = ", ".join(f"{sign} (U+{ord(sign):04X})" for sign in missing[:6])
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    return (
        f"no installed font has {listed}{more}; names or codes are drawn instead; install fonts that have them, such "
        "as the packages fonts-noto-cjk, fonts-noto-core and fonts-symbola of Debian"
    )


def measure_width(text: str, families: Sequence[str], size: float) -> float:
    """How wide a text is, in points."""
    font = _load(families)
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def _split_clusters(text: str) -> list[str]:
    """What must come from one font together: a character with the marks and joiners that follow it."""
    clusters: list[str] = []
    for sign in text:
        if _chooses_variant(sign):
            continue
        follows = unicodedata.category(sign).startswith("M") or sign in _JOINERS
        if follows and clusters and not _is_escaped(clusters[-1][0]):
            clusters[-1] += sign
        else:
            clusters.append(sign)
    return clusters


def _chooses_variant(sign: str) -> bool:
    return 0xFE00 <= ord(sign) <= 0xFE0F or 0xE0100 <= ord(sign) <= 0xE01EF


def _is_escaped(sign: str) -> bool:
    return unicodedata.category(sign) in _ESCAPED


@cache
def _choose_families(clusters: frozenset[str]) -> tuple[str, ...]:
    """The fewest families that have what the main one lacks."""
    left = {cluster for cluster in clusters if not _is_covered(cluster, (MAIN_FAMILY,)) and not _is_escaped(cluster[0])}
    chosen: list[str] = []
    while candidates := {font for cluster in left for font in _find_fonts(cluster)}:
        gains = {font: sum(font in _find_fonts(cluster) for cluster in left) for font in candidates}
        best = min(candidates, key=lambda font: (-gains[font], _rank(font[0])))
        chosen.append(best[0])
        left = {cluster for cluster in left if best not in _find_fonts(cluster)}
    return tuple(chosen)


@cache
def _find_fonts(cluster: str) -> frozenset[_Font]:
    """The fonts that have all of a cluster; those installed since matplotlib made its list count where it has none."""
    for fonts in (_list_fonts, _list_new_fonts):
        if found := frozenset(font for font in fonts() if _has(font, cluster)):
            return found
    return frozenset()


def _rank(family: str) -> tuple[bool, bool, bool, str]:
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
        and not entry.name.startswith(_NO_TEXT)
    )


@cache
def _list_new_fonts() -> tuple[_Font, ...]:
    """The same for fonts that are installed and not yet in matplotlib's list, which they are added to."""
    before = _list_fonts()
    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(path)
        except _UNUSABLE:
            continue  # such as fonts of coloured bitmaps, which matplotlib cannot draw
    _list_fonts.cache_clear()
    return tuple(font for font in _list_fonts() if font not in before)


def _has(font: _Font, cluster: str) -> bool:
    try:
        face = FT2Font(font[1], face_index=font[2])
    except _UNUSABLE:
        return False  # it was taken away since it was listed
    return all(face.get_char_index(ord(sign)) for sign in cluster)


def _is_covered(cluster: str, families: Iterable[str]) -> bool:
    return not _is_escaped(cluster[0]) and any(
        all(_load((family,)).get_char_index(ord(sign)) for sign in cluster) for family in families
    )


def _is_missing(sign: str, families: Iterable[str]) -> bool:
    return not _is_escaped(sign) and not _is_covered(sign, families)


def _load(families: Sequence[str]) -> FT2Font:
    return get_font([findfont(FontProperties(family=family), fallback_to_default=False) for family in families])


def _spell(cluster: str, families: Sequence[str]) -> str:
    """A cluster as it is where a font has all of it; else its base, if that can be drawn, and the rest by name."""
    if _is_covered(cluster, families):
        return cluster
    first, marks = cluster[0], cluster[1:]
    shown = first if _is_covered(first, families) else _name(first)
    return " ".join([shown, *(_name(mark) for mark in marks if mark not in _JOINERS)])


def _name(sign: str) -> str:
    if _is_escaped(sign):
        return sign.encode("unicode_escape").decode()
    if unicodedata.category(sign) in _NAMED and (name := unicodedata.name(sign, "")):
        return f"[{name.lower()}]"
    return f"U+{ord(sign):04X}"


def _part_codes(pieces: list[str]) -> list[str]:
    """The pieces with a space between two codes that follow one another."""
    return [
        f" {piece}" if number and piece.startswith("U+") and pieces[number - 1].startswith("U+") else piece
        for number, piece in enumerate(pieces)
    ]


def _is_drawable(text: str, families: Sequence[str]) -> bool:
    """Whether matplotlib itself finds a glyph for all of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _load(families).set_text(text)
    return not told


def _shorten(pieces: list[str], families: Sequence[str], size: float, width: float | None) -> str:
    whole = "".join(pieces)
    if width is None or measure_width(whole, families, size) <= width:
        return whole
    least, most = 0, len(pieces) - 1  # how many pieces may stay
    while least < most:
        kept = (least + most + 1) // 2
        fits = measure_width(_cut_middle(pieces, kept), families, size) <= width
        least, most = (kept, most) if fits else (least, kept - 1)
    return _cut_middle(pieces, least)


def _cut_middle(pieces: list[str], kept: int) -> str:
    return "".join([*pieces[: (kept + 1) // 2], "…", *pieces[len(pieces) - kept // 2 :]])
