"""Generate text from a model: one text, many, a stream, or the likeliest that a beam search finds.

The next token is drawn by inverting the cumulative distribution at one uniform number of the Mersenne Twister, the
generator behind a CPU's `torch.Generator`. A text depends on its prompt, its settings and its seed, and not on the way
it is asked for, streamed or whole, alone or in a batch. A model of documents begins a text with its end token, and ends
one where it draws that token.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from charrnn.checkpoint import Checkpoint, load_checkpoint
from charrnn.config import ModelConfig, RunConfig
from charrnn.data.tokenizer import Tokenizer
from charrnn.generation.beam_search import Beam, search
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import BeamSearchParams, SamplingParams, list_prompts, takes_sampling_params
from charrnn.generation.text import LARGEST_BLOCK, GeneratedText, TextStream, UniformNumbers, draw_blocks
from charrnn.kernels.availability import disabling_numba_on_failure, numba_available
from charrnn.types import Floats, Tokens

if TYPE_CHECKING:  # PyTorch and numba take seconds to load, and writing a text needs only one of them
    from charrnn.generation.decoder import Decoder, ResumableDecoder
    from charrnn.generation.numba_decoder import PackedWeights
    from charrnn.models.recurrent import CharModel

Weights = Mapping[str, NDArray[np.float32]]

TOKENS_AT_ONCE = 1 << 16  # of a batch, between two steps of its progress, if all are wanted


class TextGenerator:
    """Generates text from a model.

    Args:
        model: anything with the contract `logits, state = model(tokens, state)`; or a checkpoint, whose model is made
            when it is first asked for, since writing a text needs only its weights.
        tokenizer: the one it was trained with.
        config: the run it comes from; kept so that it can be saved again.
        training_state: the progress of that run; kept, too.
    """

    def __init__(
        self,
        model: "CharModel | Checkpoint",
        tokenizer: Tokenizer,
        config: RunConfig | None = None,
        training_state: dict[str, Any] | None = None,
    ):
        self._checkpoint = model if isinstance(model, Checkpoint) else None
        if not isinstance(model, Checkpoint):
            self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.training_state = training_state or {}
        self._packed: tuple[ModelConfig, Weights, PackedWeights] | None = None

    @functools.cached_property
    def model(self) -> "CharModel":
        """The model; that of a checkpoint is on the CPU."""
        assert self._checkpoint is not None
        return self._checkpoint.model

    @takes_sampling_params
    def generate(self, prompt: str = "", length: int = 1000, **settings: Any) -> str:
        """`prompt` and `length` more characters.

        Args:
            prompt: text to go on from; empty starts after a newline, a model of documents at the start of one.
            length: characters to generate, exactly; at most, if there is a `stop` or the model ends its texts.
            **settings: the other fields of `SamplingParams`, each described there. A text ends right after the first
                stop string of which any part was generated; its beginning may be the end of the prompt.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
            ValueError: a setting that `SamplingParams` refuses, or NaN in the logits.
        """
        return self.generate_batch([prompt], length, **settings)[0]

    @takes_sampling_params
    def stream(self, prompt: str = "", length: int | None = 1000, **settings: Any) -> TextStream:
        """The text of `generate`, piece by piece as it comes, the prompt first; a `length` of None sets no limit.

        A long prompt is also yielded in pieces, each before the model reads it.
        """
        params = SamplingParams(prompt=prompt, length=length, **settings)
        return TextStream(self.tokenizer, self._decoder(1), params, self.encode_prompt(prompt))

    @takes_sampling_params
    def generate_batch(
        self,
        prompts: Iterable[str],
        length: int = 1000,
        progress: Callable[[Iterable[Tokens]], Iterable[Tokens]] = iter,
        precision: Literal["fp32", "bf16"] = "fp32",
        **settings: Any,
    ) -> list[str]:
        """One text for each prompt, side by side: text i is `generate(prompts[i], …, seed=seed + i)`.

        With `precision="bf16"` the factors of the large products are rounded to three digits, which is faster on a
        processor with this type; the texts are as good, but not the same. `progress` wraps the loop over blocks of
        tokens `(N, B)`, as `tqdm` does; there may be more than needed.
        """
        prompts = list_prompts(prompts)
        params = SamplingParams(prompt="", length=length, **settings)
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: expected fp32 or bf16, got {precision!r}")
        if length is None:
            raise ValueError("length: expected a number for a text that comes whole, got None; use stream instead")
        texts = [GeneratedText(self.tokenizer, length, params.stop, prompt) for prompt in prompts]
        parts = [[prompt] for prompt in prompts]
        size = min(length, LARGEST_BLOCK)
        if length and len(prompts) > 1 and self.tokenizer.end is None and not params.stop:
            most = min(max(TOKENS_AT_ONCE // len(prompts), 16), 4 * LARGEST_BLOCK)
            size = math.ceil(length / math.ceil(length / most))  # equal blocks, so that no token is drawn in vain
        pipeline, uniform = LogitsPipeline(self.tokenizer, params), UniformNumbers(len(prompts), params.seed)
        encoded = [self.encode_prompt(prompt) for prompt in prompts]
        if length:
            decoder = self._decoder(len(prompts), precision)
            decoder.prefill(encoded)
            for block in progress(draw_blocks(decoder, pipeline, uniform, itertools.repeat(size))):
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
        logits: Floats = self._decoder(1).prefill([self.encode_prompt(prompt)])[0]
        return logits

    def beam_search(
        self, prompt: str = "", length: int = 100, width: int = 4, alpha: float = 0.0, stop: str | None = None
    ) -> list[Beam]:
        """The likeliest texts that a beam search finds, the best first; nothing is drawn at random.

        Args:
            prompt: as for `generate`.
            length: tokens to generate, at most.
            width: texts that are followed side by side.
            alpha: how much the score makes up for length, see `beam_search`; lengths differ only where texts end early.
            stop: a text ends right after this string.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
            ValueError: a setting that `BeamSearchParams` refuses, or NaN in the logits.
        """
        settings: dict[str, Any] = {"prompt": prompt, "length": length, "width": width, "alpha": alpha, "stop": stop}
        params = BeamSearchParams(**settings)

        def read(tokens: Tokens) -> tuple[str, bool]:
            text = GeneratedText(self.tokenizer, None, params.stop, prompt)
            return prompt + text.push(tokens), text.ended

        return search(self._decoder(width), self.encode_prompt(prompt), read, length, width, alpha)

    @overload
    def _decoder(self, batch_size: Literal[1]) -> "ResumableDecoder": ...

    @overload
    def _decoder(self, batch_size: int, precision: str = "fp32") -> "Decoder": ...

    def _decoder(self, batch_size: int, precision: str = "fp32") -> "Decoder":
        """A decoder of `batch_size` texts: a compiled one if there is one for this model on this machine."""
        parts = self._parts()
        if parts is not None and numba_available():
            with disabling_numba_on_failure():
                from charrnn.generation.numba_decoder import NumbaDecoder

                packed = self._pack(*parts)
                if batch_size == 1 and precision == "fp32":
                    return NumbaDecoder(packed)
                from charrnn.generation.batch_decoder import BatchDecoder

                return BatchDecoder(packed, precision)
        from charrnn.generation.decoder import ModelDecoder

        return ModelDecoder(self.model, precision)

    def _pack(self, weights: Weights, config: ModelConfig) -> "PackedWeights":
        """The packed weights, kept from an earlier call unless the weights have changed since.

        To compare them takes a tenth of the time, and sees every change: by training, in place, through numpy.
        """
        from charrnn.generation.numba_decoder import pack_weights

        kept = self._packed
        if kept and kept[0] == config and all(np.array_equal(kept[1][name], weights[name]) for name in weights):
            return kept[2]
        weights = {name: weight.copy() for name, weight in weights.items()}  # they may change while they are packed
        packed = pack_weights(weights, config)
        self._packed = config, weights, packed
        return packed

    def _parts(self) -> tuple[Weights, ModelConfig] | None:
        """The weights by name and the architecture, if they are all there is to the model, in fp32 on a CPU."""
        if self._checkpoint is not None and "model" not in vars(self):  # once made, the model may be trained
            return self._checkpoint.weights, self._checkpoint.config.model
        from charrnn.models.build import MODELS

        if type(self.model) not in MODELS.values():  # another forward may be another model
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return None
        weights = self.model.state_dict()
        shapes = self.model.config.shapes(self.tokenizer.vocab_size)
        if {name: tuple(weight.shape) for name, weight in weights.items()} != shapes:
            return None
        if any(weight.device.type != "cpu" or weight.dtype.itemsize != 4 for weight in weights.values()):
            return None
        return {name: weight.numpy() for name, weight in weights.items()}, self.model.config

    def encode_prompt(self, prompt: str) -> Tokens:
        """The tokens `(T,)` that the model reads for this prompt; for an empty one a newline, or else the first token.

        A model of documents reads its end token first, and nothing else if the prompt is empty.

        Raises:
            UnknownCharacterError: it has a character outside the vocabulary.
        """
        tokenizer = self.tokenizer
        start = [] if tokenizer.end is None else [tokenizer.end]
        if not prompt and start:
            return np.array(start, dtype=np.int64)
        try:
            tokens = tokenizer.encode(prompt or "\n")
        except ValueError:
            if prompt:
                raise
            return np.zeros(1, dtype=np.int64)  # no newline in the vocabulary
        if prompt and tokenizer.unknown is not None and tokenizer.unknown in tokens:
            warnings.warn(
                f"prompt: {(tokens == tokenizer.unknown).sum()} of its {len(tokens)} tokens are not in the "
                "vocabulary; the model reads U+FFFD in their place",
                stacklevel=4,
            )
        return np.array([*start, *tokens], dtype=np.int64)


def load_model(path: str | Path, device: str = "cpu") -> TextGenerator:
    """Load the model in a checkpoint directory, or the best one of a run's directory.

    Args:
        path: the directory.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`, whatever it was trained on. A CPU is fastest for single texts.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: `device` is not on this machine.
    """
    checkpoint = load_checkpoint(path)
    model: CharModel | Checkpoint = checkpoint
    if device != "cpu":
        from charrnn.device import select_device

        model = checkpoint.model.to(select_device(device))
    return TextGenerator(model, checkpoint.tokenizer, checkpoint.config, checkpoint.training_state)
