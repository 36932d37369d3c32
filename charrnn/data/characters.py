"""Characters that are hard to see, made visible: spaces, newlines, controls and combining marks."""

import unicodedata

SIGNS = {" ": "␣", "\n": "⏎"}

# printable according to Python, but invisible
BLANK = {"\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0", *map(chr, range(0xFE00, 0xFE10))}


def escape(character: str) -> str:
    r"""A character as in a Python string: `\t`, `\x1b`, `\u200d`."""
    return character.encode("unicode_escape").decode()


# a terminal may obey newline and tab
CONTROLS = {code: escape(chr(code)) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def escape_controls(text: str) -> str:
    r"""Replace each control character except newline and tab by its escape, such as `\x1b`.

    In a terminal, control characters move the cursor, clear the screen, ring the bell or set the title.
    """
    return text.translate(CONTROLS)


def visible(text: str) -> str:
    """Make every character of a text visible.

    A space becomes `␣` and a newline `⏎`. Other characters without a glyph become escapes. A combining mark without a
    letter before it stands on a dotted circle.
    """
    shown: list[str] = []
    for character in text:
        if character in SIGNS:
            shown.append(SIGNS[character])
        elif not character.isprintable() or character in BLANK:
            shown.append(escape(character))
        elif unicodedata.category(character).startswith("M") and (not shown or len(shown[-1]) > 1 or shown[-1] in "␣⏎"):
            shown.append("◌" + character)
        else:
            shown.append(character)
    return "".join(shown)


def spoken(character: str) -> str:
    """The name of a character in a sentence: `space`, `newline`, else as `visible` shows it."""
    return {" ": "space", "\n": "newline"}.get(character) or visible(character)
