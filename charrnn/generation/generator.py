"""Text out of a model: one, many, streamed, or the likeliest that a beam search finds.

The next token is drawn by inverting the cumulative distribution at one uniform number of the Mersenne Twister, the
generator behind a CPU's `torch.Generator`. A text depends on its prompt, its settings and its seed: not on how it is
asked for, streamed or whole, alone or in a batch. A model of documents begins a text with its end token, and ends one
where it draws that token.
"""

import copy
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.checkpoint import Checkpoint, load_checkpoint
from charrnn.config import LONGEST_STOP, ModelConfig
from charrnn.data.tokenizer import StreamDecoder, Tokenizer
from charrnn.generation.beam_search import Beam, search
from charrnn.generation.logits import Cut, checked
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import BeamSearchParams, SamplingParams, SamplingSettings, list_prompts
from charrnn.generation.text import _Text, _Uniform
from charrnn.kernels.availability import disabling_numba_on_failure, numba_available
from charrnn.types import Floats, Tokens

if TYPE_CHECKING:  # PyTorch takes seconds to load, and the fast path does without it
    from charrnn.generation.decoder import Decoder, ResumableDecoder
    from charrnn.models.recurrent import CharModel

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
        return TextStream(self.tokenizer, self._decoder(1), params, self.encode_prompt(prompt))

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
        reshape, uniform = LogitsPipeline(self.tokenizer, params), _Uniform(len(prompts), params.seed)
        encoded = [self.encode_prompt(prompt) for prompt in prompts]
        if length:
            decoder = self._decoder(len(prompts), precision)
            blocks = _draw(decoder, decoder.prefill(encoded), reshape, uniform, itertools.repeat(size))
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
        return self._decoder(1).prefill([self.encode_prompt(prompt)])[0]

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

        return search(self._decoder(width), self.encode_prompt(prompt), read, length, width, alpha)

    def _decoder(self, batch_size: int, precision: str = "fp32") -> "Decoder":
        """What reads `batch_size` texts: the fused path where there is one for this model on this machine."""
        parts = self._parts()
        if parts is not None and numba_available():
            with disabling_numba_on_failure():
                from charrnn.generation.numba_decoder import NumbaDecoder, pack_weights

                if batch_size == 1 and precision == "fp32":
                    return NumbaDecoder(pack_weights(*parts))
                from charrnn.generation.batch_decoder import BatchDecoder

                return BatchDecoder(pack_weights(*parts), precision)
        from charrnn.generation.decoder import ModelDecoder

        return ModelDecoder(self.model, precision)

    def _parts(self) -> "tuple[Mapping[str, Floats], ModelConfig] | None":
        """The weights by name and the architecture, if they are all there is to the model, in fp32 on a CPU."""
        from charrnn.models.build import MODELS

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
    decoder: "Decoder", logits: Floats, reshape: "LogitsPipeline", uniform: "_Uniform", sizes: Iterator[int]
) -> Iterator[Tokens]:
    """Blocks `(N, B)` of tokens, of these sizes N, each token drawn from what the ones before leave; first `logits`."""
    write = getattr(decoder, "decode_n", None) if reshape.cut else None
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
                logits = decoder.decode(row)
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

    def __init__(self, tokenizer: Tokenizer, decoder: "ResumableDecoder", params: SamplingParams, tokens: Tokens):
        prompt, count = params.prompt, math.ceil(len(tokens) / CHUNK)
        borders = [len(prompt) * i // count for i in range(count + 1)]
        self._unread = [
            (prompt[start:end], tokens[i * CHUNK : (i + 1) * CHUNK])
            for i, (start, end) in enumerate(itertools.pairwise(borders))
        ]
        self._tokenizer, self._decoder = tokenizer, decoder
        # where the text is: the state of the model, the tokens beyond it that were shown, characters half written
        self._state, self._shown, self._text_decoder = decoder.snapshot(), tokens[:0], StreamDecoder(tokenizer)
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
        self._pieces = self._write(params, LogitsPipeline(self._tokenizer, params), _Uniform(1, params.seed))

    def _write(self, params: SamplingParams, reshape: "LogitsPipeline", uniform: "_Uniform") -> Iterator[str]:
        logits = self._read()
        while self._unread:
            (piece, self._shown), self._unread = self._unread[0], self._unread[1:]
            if piece:
                yield self._noted(piece)
            logits = self._read()
        text = _Text(self._tokenizer, params.length, params.stop, self._tail)
        blocks = _draw(self._decoder, logits, reshape, uniform, _growing())
        while not text.ended:
            tokens = next(blocks)[:, 0]
            text.text_decoder = self._text_decoder.copy()
            piece = text.push(tokens.tolist())
            if text.ended:
                self._shown, self._text_decoder = self._part(tokens, piece)
            else:
                self._state, self._text_decoder = self._decoder.snapshot(), text.text_decoder
            if piece:
                yield self._noted(piece)

    def _read(self) -> Floats:
        """Read what was shown but not read, from the last known state on; an interrupt may have left another."""
        logits = self._decoder.restore(self._state)
        if len(self._shown):
            logits = self._decoder.extend(self._shown)
            self._state, self._shown = self._decoder.snapshot(), self._shown[:0]
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


def load_model(path: str | Path, device: str = "cpu") -> TextGenerator:
    """The model in a checkpoint directory, or the best one of a run's directory.

    Args:
        path: the directory.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`, wherever it was trained. Single texts come fastest from a CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: `device` is not on this machine.
    """
    checkpoint = load_checkpoint(path)
    if device == "cpu":
        return _Stored(checkpoint)
    from charrnn.device import select_device

    model = checkpoint.model.to(select_device(device))
    return TextGenerator(model, checkpoint.tokenizer, checkpoint.config, checkpoint.training_state)


class _Stored(TextGenerator):
    """A generator whose model is made when it is first asked for: to write a text, its weights are enough."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.config = checkpoint.config
        self.training_state = checkpoint.training_state

    @functools.cached_property
    def model(self) -> "CharModel":
        """The model, on the CPU."""
        return self._checkpoint.model

    def _parts(self) -> tuple[Mapping[str, NDArray[np.float32]], ModelConfig] | None:
        if "model" in vars(self):  # it may have been trained since
            return super()._parts()
        return self._checkpoint.weights, self._checkpoint.config.model
