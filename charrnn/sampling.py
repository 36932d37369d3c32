"""Logits -> logits transforms, and text out of a model: one, many, streamed.

Temperature, then top-k, then top-p (the nucleus of Holtzman et al., 2020, arXiv:1904.09751) reshape the distribution
of the next token; a token is then drawn by inverting its cumulative distribution at one uniform number from a CPU
`torch.Generator`. A text depends on its prompt, its settings and its seed: not on how it is asked for, streamed or
whole, alone or in a batch.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from charrnn.models import CharModel, State, map_state
from charrnn.tokenizer import StreamDecoder, Tokenizer

Transform = Callable[[Tensor], Tensor]


# ------------------------------------------------------------------------------------------------------- transforms


def temperature(value: float) -> Transform:
    """Logits / value. Below 1 sharpens, above 1 flattens; 0 leaves only the likeliest token, the first of equals.

    Raises:
        ValueError: negative, NaN or infinite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"temperature: expected a number of at least 0, got {value}")
    if value == 0:
        return top_k(1)
    # the largest is moved to 0 first, so that a tiny temperature cannot overflow
    return lambda logits: (logits - logits.amax(-1, keepdim=True)) / value


def top_k(k: int) -> Transform:
    """Keep the k largest logits, -inf for the others; of equals the first ones, so never more than k.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k: expected at least 1, got {k}")

    def keep(logits: Tensor) -> Tensor:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        return logits.scatter(-1, order[..., k:], -torch.inf)

    return keep


def top_p(p: float) -> Transform:
    """Keep the likeliest tokens until they hold probability p together, -inf for the others; at least one stays.

    Raises:
        ValueError: p outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p: expected a probability above 0 and at most 1, got {p}")

    def keep(logits: Tensor) -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # held by the likelier ones
        return logits.scatter(-1, order, ordered.masked_fill(before >= p, -torch.inf))

    return keep


TRANSFORMS = {"temperature": temperature, "top_k": top_k, "top_p": top_p}  # in the order they apply


def build_transforms(**settings: float | None) -> list[Transform]:
    """The transforms that `temperature`, `top_k` and `top_p` ask for, in that order; None leaves one out.

    Raises:
        ValueError: a setting out of range.
    """
    return [make(settings[name]) for name, make in TRANSFORMS.items() if settings[name] is not None]


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token from each distribution.

    Args:
        logits: `(..., V)`; -inf is never drawn.
        uniform: numbers `(...)` in [0, 1), float64.

    Returns:
        Tokens `(...)`, int64.

    Raises:
        ValueError: a logit is NaN.
    """
    if logits.isnan().any():
        raise ValueError("expected logits that are numbers, got NaN: the model's weights are damaged or have diverged")
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # a hair below the total, so that rounding cannot fall off the end
    point = uniform.unsqueeze(-1) * cumulative[..., -1:] * (1 - 2**-52)
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1)


# -------------------------------------------------------------------------------------------------------- generation


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
        model: CharModel,
        tokenizer: Tokenizer,
        config: Any = None,
        training_state: dict[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.training_state = training_state or {}

    def generate(
        self,
        prompt: str = "",
        length: int = 1000,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """`prompt` and `length` more characters.

        Args:
            prompt: text to go on from; empty starts after a newline.
            length: characters to generate, exactly.
            temperature: divides the logits; 0 always takes the likeliest token.
            top_k: draw among the k likeliest tokens only.
            top_p: draw among the likeliest tokens that hold this probability.
            seed: the same seed gives the same text; None another each time.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
            ValueError: a setting out of range, or NaN in the logits.
        """
        return self.generate_batch([prompt], length, temperature, top_k, top_p, seed)[0]

    def stream(
        self,
        prompt: str = "",
        length: int = 1000,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece as it comes, the prompt first."""
        # wrong settings are reported here and now, not when the first piece is asked for
        tokens = self._tokens(
            [prompt], length, build_transforms(temperature=temperature, top_k=top_k, top_p=top_p), seed
        )
        return self._pieces(prompt, length, tokens)

    def generate_batch(
        self,
        prompts: Sequence[str],
        length: int = 1000,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
    ) -> list[str]:
        """One text for each prompt, side by side: text i is `generate(prompts[i], …, seed=seed + i)`.

        `progress` wraps the loop over the tokens, as `tqdm` does, to show how far it is.
        """
        transforms = build_transforms(temperature=temperature, top_k=top_k, top_p=top_p)
        texts = [_Text(prompt, length, self.tokenizer) for prompt in prompts]
        for tokens in progress(self._tokens(prompts, length, transforms, seed)):
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.push(token)
            if all(text.missing == 0 for text in texts):
                break
        return ["".join(text.pieces) for text in texts]

    def next_logits(self, prompt: str = "") -> Tensor:
        """Logits `(V,)` of the token after `prompt`, on the CPU.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
        """
        return self._read([self._encode(prompt)])[0][0]

    def _pieces(self, prompt: str, length: int, tokens: Iterator[Tensor]) -> Iterator[str]:
        text = _Text(prompt, length, self.tokenizer)
        yield from text.pieces
        while text.missing:
            if piece := text.push(next(tokens).item()):
                yield piece

    def _tokens(
        self, prompts: Sequence[str], length: int, transforms: list[Transform], seed: int | None
    ) -> Iterator[Tensor]:
        """The next token `(B,)` of each of B texts, again and again; the texts may need fewer or more than `length`."""
        if length < 0:
            raise ValueError(f"length: expected at least 0, got {length}")
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        tokens = [self._encode(prompt) for prompt in prompts]
        return self._continue(tokens, transforms, _Uniform(len(prompts), seed)) if length else iter(())

    def _continue(self, prompts: list[Tensor], transforms: list[Transform], uniform: "_Uniform") -> Iterator[Tensor]:
        logits, state = self._read(prompts)
        while True:
            for transform in transforms:
                logits = transform(logits)
            tokens = sample(logits, uniform.draw())  # (B,)
            yield tokens
            logits, state = self._step(tokens.unsqueeze(1), state)

    def _encode(self, prompt: str) -> Tensor:
        if prompt:
            tokens = self.tokenizer.encode(prompt)
            if self.tokenizer.unknown is not None and self.tokenizer.unknown in tokens:
                warnings.warn(
                    f"prompt: {(tokens == self.tokenizer.unknown).sum()} of its {len(tokens)} tokens are not in the "
                    "vocabulary; the model reads U+FFFD in their place",
                    stacklevel=4,
                )
        else:
            try:
                tokens = self.tokenizer.encode("\n")
            except ValueError:  # no newline in the vocabulary
                tokens = [0]
        return torch.as_tensor([int(token) for token in tokens])

    def _read(self, prompts: list[Tensor], chunk: int = 1024) -> tuple[Tensor, State]:
        """Logits `(B, V)` after each prompt and the state: read one by one, so that each is as it would be alone."""
        all_logits, states = [], []
        for prompt in prompts:
            state = None
            for part in prompt.split(chunk):
                logits, state = self._step(part.unsqueeze(0), state)
            all_logits.append(logits)
            states.append(state)
        return torch.cat(all_logits), map_state(lambda *parts: torch.cat(parts), *states)

    def _step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits `(B, V)` after the last of `tokens` `(B, T)`, on the CPU; the model's mode is left as it was."""
        was_training = self.model.training
        if was_training:  # to set the mode of every layer is not free, and this runs for each character
            self.model.eval()
        try:
            with torch.inference_mode():
                device = next(self.model.parameters()).device
                logits, state = self.model(tokens.to(device), state)
                return logits[:, -1].float().cpu(), state
        finally:
            if was_training:
                self.model.train()


class _Text:
    """A prompt and the characters that are generated after it, exactly `length`, out of tokens of any size."""

    def __init__(self, prompt: str, length: int, tokenizer: Tokenizer):
        self.pieces = [prompt] if prompt else []
        self.missing = length
        self._decoder = StreamDecoder(tokenizer)

    def push(self, token: int) -> str:
        """Take a token; the characters it adds, of which there may be none."""
        piece = self._decoder.push(token)[: self.missing]
        self.missing -= len(piece)
        self.pieces.append(piece)
        return piece


class _Uniform:
    """Uniform numbers for B texts, each from a generator of its own; drawn ahead in blocks, for speed alone."""

    def __init__(self, size: int, seed: int | None, block: int = 256):
        first = torch.Generator().seed() % 2**32 if seed is None else seed
        self._generators = [torch.Generator().manual_seed((first + i) % 2**63) for i in range(size)]
        self._block = block
        self._used = block

    def draw(self) -> Tensor:
        """The next number of each text, `(B,)`, float64."""
        if self._used == self._block:
            rows = [torch.rand(self._block, generator=g, dtype=torch.float64) for g in self._generators]
            self._numbers, self._used = torch.stack(rows, dim=1), 0  # (block, B)
        self._used += 1
        return self._numbers[self._used - 1]
