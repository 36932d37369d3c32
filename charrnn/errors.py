"""Errors that a user can mend. All of them are `CharrnnError`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only reads weights does without PyTorch, which takes seconds to load
    pass


class CharrnnError(Exception):
    """An error that a user can mend: the base of all below."""


class UnknownCharacterError(CharrnnError, ValueError):
    """A character that is not in the vocabulary."""

    def __init__(self, character: str, position: int, vocabulary: str):
        self.character, self.position, self.vocabulary = character, position, vocabulary
        known = vocabulary if len(vocabulary) <= 100 else vocabulary[:100] + "…"
        super().__init__(
            f"expected only characters of the vocabulary, got {character!r} (U+{ord(character):04X}) "
            f"at position {position:,}; use one of these {len(vocabulary):,}: {known!r}"
        )


class LoneSurrogateError(UnknownCharacterError):
    """Half a character, which has no UTF-8."""

    def __init__(self, character: str, position: int):
        super().__init__(character, position, "")
        self.args = (f"expected text, got half a character, U+{ord(character):04X}, at position {position:,}; drop it",)


class CorpusError(CharrnnError, ValueError):
    """A text that cannot be had or used; the message says which and what to do."""


class DivergedError(CharrnnError, FloatingPointError):
    """The loss or the gradient became NaN or infinite."""


class CheckpointError(CharrnnError, ValueError):
    """A checkpoint that is absent, damaged or does not fit; the message names the file."""


class ConfigError(CharrnnError, ValueError):
    """A setting that is unknown or out of range; the message names it and where it came from."""


class MeasurementError(CharrnnError, ValueError):
    """The process of a measurement failed; the message is the last line that it wrote."""
