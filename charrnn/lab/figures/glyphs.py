"""Draw a user's own text in figures: find fonts with its characters, or write escapes if no installed font has them."""

import functools
import re
from collections.abc import Iterator

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter

from charrnn.data.characters import escape

MATHEMATICS = "mathematics"  # gid of a text in which dollar signs enclose a formula

BASE = "DejaVu Sans"  # comes with matplotlib

ESCAPE = re.compile(r"◌?(\\x|\\u|\\U0*)([0-9a-f]{2,})")  # a single long escape

SMALL = 0.6  # relative size of an escape in the place of one character


def make_drawable(figure: Figure) -> str:
    """Make the texts of a figure appear literally: `$` starts no formula, and no character becomes an empty box.

    Args:
        figure: a complete figure. A second call changes nothing.

    Returns:
        The characters that no installed font has, sorted. The figure shows escapes instead.
    """
    axes_of_names = [axis for axis in _axes(figure) if _has_names(axis)]
    for axis in axes_of_names:  # matplotlib itself sets the texts of ticks only when it draws
        axis.set_ticklabels(axis.get_major_formatter().format_ticks(axis.get_majorticklocs()))
    texts = _texts(figure)
    characters = {character for text in texts for character in text.get_text()}
    foreign = {character for character in characters - {"\n"} if not _has(BASE, character)}
    families, lacking = _find_families(frozenset(filter(str.isprintable, foreign)))
    unseen = {character for character in foreign if not character.isprintable()}
    escapes = {ord(character): escape(character) for character in lacking | unseen}
    for text in texts:
        text.set_parse_math(False)
        if text.get_text().startswith("◌"):  # a monospace font misplaces marks
            text.set_fontfamily([BASE, *families])
        elif not all(_has(text.get_fontfamily()[0], character) for character in text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), BASE, *families])
        text.set_text(text.get_text().translate(escapes))
        _fit(text)
    for axis in axes_of_names:
        axis.set_ticklabels([tick.label1.get_text() for tick in axis.get_major_ticks()])
    return "".join(sorted(lacking))


def _axes(figure: Figure) -> Iterator[Axis]:
    for axes in figure.axes:
        yield from (axes.xaxis, axes.yaxis)


def _has_names(axis: Axis) -> bool:
    """Tell whether the ticks of an axis have names."""
    return isinstance(axis.get_major_locator(), FixedLocator) and isinstance(axis.get_major_formatter(), FuncFormatter)


def _texts(figure: Figure) -> list[Text]:
    """Find all texts except formulas and the numbers at an axis, which may be formulas such as 10 to the power of 3."""
    numbers = [axis for axis in _axes(figure) if not _has_names(axis)]
    left_alone = {text for axis in numbers for text in axis.findobj(Text) if text is not axis.label}
    return [text for text in figure.findobj(Text) if text not in left_alone and text.get_gid() != MATHEMATICS]


def _fit(text: Text) -> None:
    r"""Fit a text that is one long escape, such as `\u4e2d`, into the space of one character: small, in lines."""
    if match := ESCAPE.fullmatch(text.get_text()):
        kind, digits = match.groups()
        kind = kind[:2]
        half = (len(digits) + 1) // 2 if len(digits) > 2 else 2
        text.set_text("\n".join(filter(None, (kind, digits[:half], digits[half:]))))
        text.set(fontsize=SMALL * text.get_fontsize(), linespacing=0.9)


# -------------------------------------------------------------------------------------------------------------- fonts


def _font(family: str) -> FT2Font:
    return get_font(findfont(FontProperties(family=[family])))


@functools.cache
def _has(family: str, character: str) -> bool:
    return bool(_font(family).get_char_index(ord(character)))


@functools.lru_cache(maxsize=256)
def _find_families(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    """Find installed families with these characters, in one pass, and the characters that no family has."""
    families, lacking = [], set(characters)
    usual = (entry for entry in fontManager.ttflist if entry.style == "normal" and entry.weight in (400, "normal"))
    names = {entry.name for entry in usual}
    for family in sorted(names, key=lambda name: ("sans" not in name.lower(), name)):
        if not lacking:
            break
        if "lastresort" in family.replace(" ", "").lower():  # has a box for every character
            continue
        try:
            font = _font(family)
        except (OSError, RuntimeError):  # deleted, or made of bitmaps as colour emoji are
            continue
        if found := {character for character in lacking if font.get_char_index(ord(character))}:
            families.append(family)
            lacking -= found
    return families, lacking
