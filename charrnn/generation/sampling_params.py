"""The settings of text generation: each is named, described and bounded once, and checked before any work begins.

`SamplingParams` extends the generation section of a run's configuration by the settings that only a call can give: a
seed, a temperature that changes over the text, several stop strings. The keyword arguments of `TextGenerator`'s methods
are its fields, see `takes_sampling_params`.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from charrnn.config import LONGEST_STOP, GenerationConfig, explain
from charrnn.errors import ConfigError

SEEDS = 2**32  # the Mersenne Twister takes 32 bits

StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]

# a function gives the temperature of each step, counted from 0
Temperature = Annotated[float, Field(ge=0)] | SkipJsonSchema[Callable[[int], float]]

Method = TypeVar("Method", bound=Callable[..., Any])


class _CallParams(BaseModel):
    """Takes numbers of Python and NumPy, never a string for a number; an error is one sentence."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from None

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

    @field_validator("stop", mode="before", check_fields=False)
    @classmethod
    def _several_stops(cls, stop: Any) -> Any:
        if stop is None or isinstance(stop, str):
            return () if stop is None else (stop,)
        if isinstance(stop, bytes) or not isinstance(stop, Iterable):
            raise ValueError(f"expected a string or several strings, got {stop!r}")
        return tuple(stop)


def _described(name: str, default: Any, **bounds: Any) -> Any:
    """A field that a run's configuration has, too, with another default or type."""
    return Field(default, description=GenerationConfig.model_fields[name].description, **bounds)


class SamplingParams(_CallParams, GenerationConfig):
    """Settings for generating text.

    A call accepts values that a file cannot hold, so some fields are wider than those of `GenerationConfig`.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type or out of range; it is a ValueError.
    """

    prompt: InstanceOf[str] = Field("", description="text to go on from")  # any string, even of invalid Unicode
    length: int | None = Field(1000, ge=0, description="characters to generate; None: no limit")  # type: ignore[assignment]
    temperature: Temperature = _described("temperature", 1.0)  # type: ignore[assignment]
    top_p: float | None = _described("top_p", None, gt=0, le=1)
    stop: tuple[StopString, ...] = Field(  # type: ignore[assignment]
        (), description="end right after this string, or after the first of several to be complete"
    )
    seed: int | None = Field(
        None, ge=0, lt=SEEDS, description="the same seed gives the same text (default: another each time)"
    )


def takes_sampling_params(method: Method) -> Method:
    """Give `method` a signature that lists the fields of `SamplingParams` in place of its `**settings`."""
    signature = inspect.signature(method)
    own = {name: parameter for name, parameter in signature.parameters.items() if name != "settings"}
    settings = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.default or None, annotation=field.annotation
        )
        for name, field in SamplingParams.model_fields.items()
        if name not in (*own, "prompt")
    ]
    method.__signature__ = signature.replace(parameters=[*own.values(), *settings])  # type: ignore[attr-defined]
    return method


class BeamSearchParams(_CallParams):
    """How `TextGenerator.beam_search` searches.

    Raises:
        ConfigError: as `SamplingParams`.
    """

    prompt: InstanceOf[str] = ""
    length: int = Field(100, ge=1, description="tokens to generate, at most")
    width: int = Field(4, ge=1, description="texts that are followed side by side")
    alpha: float = Field(0.0, ge=0, le=10, allow_inf_nan=False, description="how much the score makes up for length")
    stop: tuple[StopString, ...] = ()


def list_prompts(prompts: Iterable[str]) -> list[str]:
    """The prompts of a batch, from a list, a generator or any other iterable of strings.

    Raises:
        ConfigError: it is empty, a single string, or holds something else than strings.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise ConfigError(f"prompts: expected a list of strings, got {prompts!r}")
    listed = list(prompts)
    if not listed:
        raise ConfigError("prompts: expected at least one, got none")
    for i, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt {i}: expected a string, got {prompt!r}")
    return listed
