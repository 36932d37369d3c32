"""Text out of a model: one, many, streamed, or the likeliest that a beam search finds.

The next token is drawn by inverting the cumulative distribution at one uniform number of the Mersenne Twister, the
generator behind a CPU's `torch.Generator`. A text depends on its prompt, its settings and its seed: not on how it is
asked for, streamed or whole, alone or in a batch. A model of documents begins a text with its end token, and ends one
where it draws that token.
"""

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn import transforms
from charrnn.beams import Beam, search
from charrnn.config import LONGEST_STOP, ConfigError
from charrnn.installed import giving_up_numba, has_numba
from charrnn.sampling_params import SEEDS, BeamSearchParams, SamplingParams, SamplingSettings, list_prompts
from charrnn.tokenizer import UNKNOWN, StreamDecoder, Tokenizer
from charrnn.transforms import Cut, Transform, checked

if TYPE_CHECKING:  # PyTorch takes seconds to load, and the fast path does without it
    from charrnn.config import ModelConfig
    from charrnn.models import CharModel

Floats = NDArray[np.floating]
Tokens = NDArray[np.integer]
RECENT = 32  # tokens that the repetition penalty remembers
LARGEST_UNSORTED = 1024  # vocabulary size
CHARACTERS_AT_ONCE = 1 << 16  # of a batch, between two steps of its progress, if all are wanted
CHUNK = 1024  # tokens of a prompt that are read between two of its pieces
LARGEST_BLOCK, LONGEST_BLOCK = 64, 0.01  # tokens, and about as many seconds, between two pieces of a streamed text


def sample(logits: ArrayLike, uniform: ArrayLike) -> Tokens:
    """Draw a token from each distribution.

    Args:
        logits: `(..., V)`; -inf is never drawn.
        uniform: numbers `(...)` in [0, 1).

    Returns:
        Tokens `(...)`, int64.

    Raises:
        ValueError: a logit is NaN or infinite, or all are -inf.
    """
    logits = checked(logits)
    cumulative = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    point = np.asarray(uniform)[..., None] * cumulative[..., -1:]
    return (cumulative <= point).sum(axis=-1)


class Stepper(Protocol):
    """A model that reads B texts side by side; it keeps their states."""

    def read(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with these B prompts; logits `(B, V)` after each, as it would be alone."""

    def step(self, tokens: Tokens) -> Floats:
        """Read one more token of each, `(B,)`; logits `(B, V)` after it."""

    def select(self, rows: Tokens) -> None:
        """Go on with the texts at these places `(B',)`; one may be taken twice."""


class ResumableStepper(Stepper, Protocol):
    """A stepper for one text that can go back."""

    def extend(self, tokens: Tokens) -> Floats:
        """Read more tokens, `(T,)`; logits `(1, V)` after them."""

    def snapshot(self) -> Any:
        """The state and the logits as they are now."""

    def restore(self, snapshot: Any) -> Floats:
        """Go back to where `snapshot` was taken; logits `(1, V)`."""


class TextGenerator:
    """Text out of a model.

    Args:
        model: anything with the contract `logits, state = model(tokens, state)`.
        tokenizer: the one it was trained with.
        config: the run it comes from; carried along, so that nothing is lost when it is saved again.
        training_state: how far that run was; carried along, too.
    """

    def __init__(
        self,
        model: "CharModel",
        tokenizer: Tokenizer,
        config: Any = None,
        training_state: dict[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.training_state = training_state or {}

    def generate(self, prompt: str = "", length: int = 1000, **settings: Unpack[SamplingSettings]) -> str:
        """`prompt` and `length` more characters.

        Args:
            prompt: text to go on from; empty starts after a newline, a model of documents at the start of one.
            length: characters to generate, exactly; at most, if there is a `stop` or the model ends its texts.
            **settings: fields of `SamplingParams`, each described there: temperature, top_k, top_p, min_p, typical_p,
                repetition_penalty, allow, forbid, stop, seed. A text ends right after the first stop string of which
                any part was generated; its beginning may be the end of the prompt.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
            ValueError: a setting that `SamplingParams` refuses, or NaN in the logits.
        """
        return self.generate_batch([prompt], length, **settings)[0]

    def stream(self, prompt: str = "", length: int | None = 1000, **settings: Unpack[SamplingSettings]) -> "TextStream":
        """The text of `generate`, piece by piece as it comes, the prompt first; a `length` of None sets no limit.

        A long prompt comes in pieces, too, each before it is read.
        """
        params = SamplingParams(prompt=prompt, length=length, **settings)
        return TextStream(self.tokenizer, self._stepper(1), params, self.encode_prompt(prompt))

    def generate_batch(
        self,
        prompts: Iterable[str],
        length: int = 1000,
        progress: Callable[[Iterable[Tokens]], Iterable[Tokens]] = iter,
        precision: Literal["fp32", "bf16"] = "fp32",
        **settings: Unpack[SamplingSettings],
    ) -> list[str]:
        """One text for each prompt, side by side: text i is `generate(prompts[i], …, seed=seed + i)`.

        With `precision="bf16"` the large products are rounded to three digits, which is faster where the processor has
        this type; the texts are as good, but others. `progress` wraps the loop over blocks of tokens `(N, B)`, to show
        how far it is; there may be more than needed.
        """
        prompts = list_prompts(prompts)
        params = SamplingParams(prompt="", length=length, **settings)
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: expected fp32 or bf16, got {precision!r}")
        if length is None:
            raise ValueError("length: expected a number for a text that comes whole, got None; stream has no end")
        texts = [_Text(self.tokenizer, length, params.stop, prompt) for prompt in prompts]
        parts = [[prompt] for prompt in prompts]
        size = min(length, LARGEST_BLOCK)
        if length and len(prompts) > 1 and self.tokenizer.end is None and not params.stop:
            most = min(max(CHARACTERS_AT_ONCE // len(prompts), 16), 4 * LARGEST_BLOCK)
            size = math.ceil(length / math.ceil(length / most))  # blocks of one size: none is drawn in vain
        reshape, uniform = Reshaping(self.tokenizer, params), _Uniform(len(prompts), params.seed)
        encoded = [self.encode_prompt(prompt) for prompt in prompts]
        if length:
            stepper = self._stepper(len(prompts), precision)
            blocks = _draw(stepper, stepper.read(encoded), reshape, uniform, itertools.repeat(size))
            for block in progress(blocks):
                for text, part, tokens in zip(texts, parts, block.T.tolist(), strict=True):
                    part.append(text.push(tokens))
                if all(text.ended for text in texts):
                    break
        return ["".join(part) for part in parts]

    def next_logits(self, prompt: str = "") -> Floats:
        """Logits `(V,)` of the token after `prompt`.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
        """
        return self._stepper(1).read([self.encode_prompt(prompt)])[0]

    def beam_search(
        self, prompt: str = "", length: int = 100, width: int = 4, alpha: float = 0.0, stop: str | None = None
    ) -> list[Beam]:
        """The likeliest texts that a beam search finds, the best first; it draws nothing.

        Args:
            prompt: as for `generate`.
            length: tokens to generate, at most.
            width: texts that are followed side by side.
            alpha: how much the score makes up for length, see `beams`; only where texts end early do lengths differ.
            stop: a text is at its end right after this string.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
            ValueError: a setting that `BeamSearchParams` refuses, or NaN in the logits.
        """
        params = BeamSearchParams(prompt=prompt, length=length, width=width, alpha=alpha, stop=stop)

        def read(tokens: Tokens) -> tuple[str, bool]:
            text = _Text(self.tokenizer, None, params.stop, prompt)
            return prompt + text.push(tokens), text.ended

        return search(self._stepper(width), self.encode_prompt(prompt), read, length, width, alpha)

    def _stepper(self, batch_size: int, precision: str = "fp32") -> Stepper:
        """What reads `batch_size` texts: the fused path where there is one for this model on this machine."""
        parts = self._parts()
        if parts is not None and has_numba():
            with giving_up_numba():
                from charrnn.folded import FoldedStepper, fold

                if batch_size == 1 and precision == "fp32":
                    return FoldedStepper(fold(*parts))
                from charrnn.batching import BatchStepper

                return BatchStepper(fold(*parts), precision)
        from charrnn.stepping import ModelStepper

        return ModelStepper(self.model, precision)

    def _parts(self) -> "tuple[Mapping[str, Floats], ModelConfig] | None":
        """The weights by name and the architecture, if they are all there is to the model, in fp32 on a CPU."""
        from charrnn.models import MODELS

        if type(self.model) not in MODELS.values():  # another forward may be another model
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return None
        weights = self.model.state_dict()
        if {name: tuple(weight.shape) for name, weight in weights.items()} != self.model.config.shapes(
            self.tokenizer.vocab_size
        ):
            return None
        if any(weight.device.type != "cpu" or weight.dtype.itemsize != 4 for weight in weights.values()):
            return None
        return {name: weight.numpy() for name, weight in weights.items()}, self.model.config

    def encode_prompt(self, prompt: str) -> Tokens:
        """Tokens `(T,)` that a text with this prompt goes on from; an empty one is a newline, or else the first token.

        A model of documents reads its end token first, and nothing else where the prompt is empty.

        Raises:
            UnknownCharacterError: it has a character outside the vocabulary.
        """
        end = self.tokenizer.end
        if prompt:
            tokens = self.tokenizer.encode(prompt)
            if self.tokenizer.unknown is not None and self.tokenizer.unknown in tokens:
                warnings.warn(
                    f"prompt: {(tokens == self.tokenizer.unknown).sum()} of its {len(tokens)} tokens are not in the "
                    "vocabulary; the model reads U+FFFD in their place",
                    stacklevel=4,
                )
        elif end is not None:
            tokens = []
        else:
            try:
                tokens = self.tokenizer.encode("\n")
            except ValueError:  # no newline in the vocabulary
                tokens = [0]
        return np.array([*([] if end is None else [end]), *tokens], dtype=np.int64)


# ------------------------------------------------------------------------------------------------------ one by one


def _draw(
    stepper: Stepper, logits: Floats, reshape: "Reshaping", uniform: "_Uniform", sizes: Iterator[int]
) -> Iterator[Tokens]:
    """Blocks `(N, B)` of tokens, of these sizes N, each token drawn from what the ones before leave; first `logits`."""
    write = getattr(stepper, "write", None) if reshape.cut else None
    if logits.shape[-1] > LARGEST_UNSORTED and reshape.cut and reshape.cut[:3] != Cut()[:3]:
        write = None  # it looks for the likeliest one by one, which is slow among many
    step = 0
    for size in sizes:
        numbers = uniform.draw(size)
        if write:
            block = write(numbers, reshape.temperatures(step, size), reshape.cut)
        else:
            block = np.empty(numbers.shape, dtype=np.int64)
            for i, row in enumerate(block):
                row[:] = sample(reshape(logits, step + i), numbers[i])
                reshape.remember(row)
                logits = stepper.step(row)
        step += size
        yield block


def _growing() -> Iterator[int]:
    """Sizes that double as long as what they are asked for comes quickly."""
    size, asked = 1, time.perf_counter()
    while True:
        yield size
        now = time.perf_counter()
        if now - asked < LONGEST_BLOCK / 2 and size < LARGEST_BLOCK:
            size *= 2
        asked = now


class TextStream(Iterator[str]):
    """A text that comes piece by piece, as `TextGenerator.stream` gives it; `go_on` continues it where it is."""

    def __init__(self, tokenizer: Tokenizer, stepper: ResumableStepper, params: SamplingParams, tokens: Tokens):
        prompt, count = params.prompt, math.ceil(len(tokens) / CHUNK)
        borders = [len(prompt) * i // count for i in range(count + 1)]
        self._unread = [
            (prompt[start:end], tokens[i * CHUNK : (i + 1) * CHUNK])
            for i, (start, end) in enumerate(itertools.pairwise(borders))
        ]
        self._tokenizer, self._stepper = tokenizer, stepper
        # where the text is: the state of the model, the tokens beyond it that were shown, characters half written
        self._state, self._shown, self._text_decoder = stepper.snapshot(), tokens[:0], StreamDecoder(tokenizer)
        self._tail = ""  # as much of what was shown as a stop string may begin in
        self._begin(params)

    def __next__(self) -> str:
        return next(self._pieces)

    def go_on(self, length: int | None = 1000, **settings: Unpack[SamplingSettings]) -> "TextStream":
        """Continue after the last piece, which may be any, without reading the text again; this stream is at its end.

        If it stopped within its prompt, the rest of that comes first.

        Args:
            length: as for `TextGenerator.stream`, counted from here.
            **settings: likewise; none is taken over from this stream, so another seed is wise.
        """
        other = copy.copy(self)
        other._begin(SamplingParams(prompt="", length=length, **settings))
        self._pieces = iter(())
        return other

    def _begin(self, params: SamplingParams) -> None:
        # wrong settings are reported here and now, not when the first piece is asked for
        self._pieces = self._write(params, Reshaping(self._tokenizer, params), _Uniform(1, params.seed))

    def _write(self, params: SamplingParams, reshape: "Reshaping", uniform: "_Uniform") -> Iterator[str]:
        logits = self._read()
        while self._unread:
            (piece, self._shown), self._unread = self._unread[0], self._unread[1:]
            if piece:
                yield self._noted(piece)
            logits = self._read()
        text = _Text(self._tokenizer, params.length, params.stop, self._tail)
        blocks = _draw(self._stepper, logits, reshape, uniform, _growing())
        while not text.ended:
            tokens = next(blocks)[:, 0]
            text.text_decoder = self._text_decoder.copy()
            piece = text.push(tokens.tolist())
            if text.ended:
                self._shown, self._text_decoder = self._part(tokens, piece)
            else:
                self._state, self._text_decoder = self._stepper.snapshot(), text.text_decoder
            if piece:
                yield self._noted(piece)

    def _read(self) -> Floats:
        """Read what was shown but not read, from the last known state on; an interrupt may have left another."""
        logits = self._stepper.restore(self._state)
        if len(self._shown):
            logits = self._stepper.extend(self._shown)
            self._state, self._shown = self._stepper.snapshot(), self._shown[:0]
        return logits

    def _noted(self, piece: str) -> str:
        self._tail = (self._tail + piece)[-LONGEST_STOP:]
        return piece

    def _part(self, tokens: Tokens, piece: str) -> tuple[Tokens, StreamDecoder]:
        """Those of the last tokens that spell `piece`, which may end within one, and the decoder after them."""
        decoder, missing = self._text_decoder.copy(), piece
        for i, token in enumerate(tokens.tolist()):
            if not missing or token == self._tokenizer.end:
                return tokens[:i], decoder
            characters = decoder.push([token])
            if len(characters) > len(missing):
                spelled = self._tokenizer.encode(missing).astype(np.int64)
                return np.concatenate([tokens[:i], spelled]), StreamDecoder(self._tokenizer)
            missing = missing[len(characters) :]
        return tokens, decoder


class Reshaping:
    """What the settings make of the logits of each step: the transforms they ask for, in their order.

    That is what may be drawn at all, then what was drawn of late, then the temperature, then what is too unlikely.

    Attributes:
        cut: what a compiled path needs to do the same by itself; None if the settings ask for more.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams):
        possible = _possible(tokenizer, params.allow, params.forbid)
        self._only = None if possible is None else transforms.only(possible)
        self._penalty = params.repetition_penalty
        self._recent: list[Tokens] = []
        self._temperature = params.temperature
        self._divide = None if callable(params.temperature) else transforms.temperature(params.temperature)
        settings = {name: getattr(params, name) for name in ("top_k", "top_p", "min_p", "typical_p")}
        settings = {name: value for name, value in settings.items() if value is not None}
        self._filters = [getattr(transforms, name)(value) for name, value in settings.items()]
        self.cut: Cut | None = None
        if params.repetition_penalty is None and params.typical_p is None:
            exact = Cut(min(params.top_k or Cut().top_k, Cut().top_k), params.top_p or 1.0, params.min_p or 0.0)
            self.cut = exact if possible is None else exact._replace(possible=possible)

    def __call__(self, logits: Floats, step: int) -> Floats:
        """The logits `(B, V)` of the draw at `step`, counted from 0."""
        logits = checked(logits)
        for transform in self._transforms(step):
            logits = transform(logits)
        return logits

    def _transforms(self, step: int) -> Iterator[Transform]:
        if self._only is not None:
            yield self._only
        if self._recent:
            yield transforms.repetition_penalty(self._penalty, np.stack(self._recent, axis=-1))
        yield self._divide or transforms.temperature(self._temperature(step))
        yield from self._filters

    def temperatures(self, step: int, size: int) -> NDArray[np.float64]:
        """The temperatures `(size,)` of the steps from `step` on."""
        if self._divide:
            return np.full(size, self._temperature, dtype=np.float64)
        values = [self._temperature(step + i) for i in range(size)]
        for value in values:
            if not (isinstance(value, float) and 0 <= value < math.inf):  # checked as quickly as most allow
                transforms.temperature(value)  # which says what is out of range
        return np.array(values, dtype=np.float64)

    def remember(self, tokens: Tokens) -> None:
        """Note what was drawn, `(B,)`."""
        if self._penalty is not None:
            self._recent = [*self._recent[1 - RECENT :], tokens]


def _possible(tokenizer: Tokenizer, allow: str | None, forbid: str | None) -> NDArray[np.bool_] | None:
    """Which tokens `(V,)` are made of allowed characters alone and have no forbidden one; None: all may be drawn."""
    if allow is None and forbid is None:
        return None
    texts = [token.decode("utf-8", "replace") for token in tokenizer.token_bytes]
    characters = set().union(*texts)
    for name, wanted in (("allow", allow), ("forbid", forbid)):
        if unknown := sorted(set(wanted or "") - characters):
            raise ValueError(f"{name}: expected characters that there are tokens for, got {unknown[0]!r}")
    allowed = characters if allow is None else set(allow)
    forbidden = set(forbid or "")
    if not (forbid or "").isascii():
        forbidden.add(UNKNOWN)  # a token that is half of a character may be half of this one
    possible = np.array([allowed.issuperset(text) and forbidden.isdisjoint(text) for text in texts])
    if not any(text for text, left in zip(texts, possible, strict=True) if left):  # an end token alone writes nothing
        raise ValueError("allow, forbid: expected to leave at least one token, got none")
    return possible


class _Text:
    """The characters that are generated, out of tokens of any size: exactly `length`, or up to a string or the end."""

    def __init__(self, tokenizer: Tokenizer, length: int | None, stops: Sequence[str], before: str):
        self._missing = length
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._tail = self._end_of(before)
        self.text_decoder = StreamDecoder(tokenizer)
        self._end = tokenizer.end
        self.ended = length == 0

    def push(self, tokens: Iterable[int]) -> str:
        """Take tokens; the characters they add, of which there may be none."""
        if self.ended:
            return ""
        tokens = list(tokens)
        at_end = self._end is not None and self._end in tokens
        piece = self.text_decoder.push(tokens[: tokens.index(self._end)] if at_end else tokens)
        piece = (piece + self.text_decoder.flush() if at_end else piece)[: self._missing]
        if self._stops:
            piece = self._up_to_a_stop(piece)
        self.ended |= at_end
        if self._missing is not None:
            self._missing -= len(piece)
            self.ended |= self._missing == 0
        return piece

    def _up_to_a_stop(self, piece: str) -> str:
        """The piece as far as the first stop string that ends in it."""
        known, text = len(self._tail), self._tail + piece
        found = ((text.find(stop, max(0, known - len(stop) + 1)), len(stop)) for stop in self._stops)
        ends = [place + size for place, size in found if place >= 0]
        if ends:
            self.ended = True
            return piece[: min(ends) - known]
        self._tail = self._end_of(text)
        return piece

    def _end_of(self, text: str) -> str:
        """As much of the end of `text` as may be the beginning of a stop string."""
        return text[max(0, len(text) - self._longest + 1) :] if self._stops else ""


class _Uniform:
    """Uniform numbers for B texts, each from a generator of its own.

    They are those of `torch.rand(…, dtype=torch.float64)` with a `torch.Generator` of the same seed: 53 bits out of 64,
    which are two numbers of the Mersenne Twister of Matsumoto & Nishimura (1998).
    """

    def __init__(self, size: int, seed: int | None):
        if seed is not None and seed + size > SEEDS:
            raise ConfigError(f"seed: expected at most {SEEDS - size} for {size} texts, got {seed}")
        first = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._generators = [np.random.MT19937(0) for _ in range(size)]
        for i, generator in enumerate(self._generators):
            np.random.RandomState(generator).seed((first + i) % SEEDS)

    def draw(self, size: int) -> Floats:
        """The next numbers of each text, `(size, B)`, float64."""
        pairs = np.stack([generator.random_raw(2 * size) for generator in self._generators], axis=-1)  # (2 * size, B)
        bits = (pairs[0::2] << np.uint64(32) | pairs[1::2]) & np.uint64(2**53 - 1)
        return bits * 2.0**-53
