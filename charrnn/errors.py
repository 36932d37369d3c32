"""Errors that the user can fix. All of them are `CharrnnError`.

CharrnnError
├── UnknownCharacterError   a character outside the vocabulary
│   └── LoneSurrogateError  half of a surrogate pair
├── CorpusError             a text that cannot be read or is too short
├── ConfigError             a setting that is unknown or out of range
├── CheckpointError         a checkpoint that is missing, damaged or does not match
├── DivergedError           a loss or gradient that is NaN or infinite
└── MeasurementError        a failed measurement
"""


class CharrnnError(Exception):
    """The base of all errors that the user can fix."""


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
        self.args = (
            f"expected text, got a lone surrogate, U+{ord(character):04X}, at position {position:,}; remove it",
        )


class CorpusError(CharrnnError, ValueError):
    """A text that cannot be read or is too short; the message says which one and what to do."""


class DivergedError(CharrnnError, FloatingPointError):
    """The loss or the gradient became NaN or infinite."""


class CheckpointError(CharrnnError, ValueError):
    """A checkpoint that is missing, damaged or does not match; the message names the file."""


class ConfigError(CharrnnError, ValueError):
    """A setting that is unknown or out of range; the message names it and its source."""


class MeasurementError(CharrnnError, ValueError):
    """A measurement's process failed; the message is the last line that it wrote."""
