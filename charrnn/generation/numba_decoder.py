"""A compiled decoder for a CPU: the whole step is one loop that numba compiles. Its readable twin is `ModelDecoder`.

    rows = embedding @ weight_ih.T + biases    of the first layer, (V, G·H): the input product of a token is a look-up
    gates = row + weight_hh @ h                and for the other layers the same with weight_ih @ h of the layer below

A step through the plain path is dozens of framework calls, each slower than its arithmetic at batch size 1. Here the
weights are packed for one loop, which includes the softmax and the draw; what remains is the time to read each weight
once. PyTorch is not needed: loading it takes longer than writing a page of text.

    L  layers      H  hidden_size      G  gates      V  vocab_size      B  streams side by side
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import EPS, ModelConfig
from charrnn.generation.logits import COLDEST, ROUNDING, Truncation, checked
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.kernels.cache import cached_jit, jit
from charrnn.kernels.numba_math import LARGEST, ZERO, Array, Fp32, copy, exp, sigmoid, tanh
from charrnn.types import Floats, Tokens

Fp64 = NDArray[np.float64]

Mask = NDArray[np.bool_]

KINDS = RNN, GRU, LSTM, LAYER_NORM_LSTM = range(4)

CHUNK = 1024  # tokens that are read in one compiled call, which Ctrl-C cannot interrupt


class PackedWeights(NamedTuple):
    """A model's weights, packed. Where a kind of model lacks a weight, a neutral one stands in its place."""

    kind: int
    residual: bool
    rows: Fp32  # (V, G·H)
    weight_ih: Fp32  # (L - 1, H, G·H), of the layers above the first
    bias_ih: Fp32  # (L - 1, G·H)
    weight_hh: Fp32  # (L, H, G·H)
    bias_hh: Fp32  # (L, G·H), separate because of a GRU's reset gate
    gain_ih: Fp32  # (L - 1, G·H), of layer normalisation, as the next three
    gain_hh: Fp32  # (L, G·H)
    gain_c: Fp32  # (L, H)
    bias_c: Fp32  # (L, H)
    head: Fp32  # (H, V)
    head_bias: Fp32  # (V,)


def pack_weights(weights: Mapping[str, Fp32], config: ModelConfig) -> PackedWeights:
    """Pack the weights of a `CharModel`, given by their names in its state_dict."""
    kind = LAYER_NORM_LSTM if config.layer_norm else {"rnn": RNN, "gru": GRU, "lstm": LSTM}[config.type]
    layers = [_layer(weights, f"layers.{i}.", kind) for i in range(config.num_layers)]
    first, (size, width) = layers[0], layers[0]["weight_hh"].shape
    with np.errstate(invalid="ignore", over="ignore"):  # damaged weights are found in the logits
        rows = weights["embedding.weight"] @ first["weight_ih"]
        if kind == LAYER_NORM_LSTM:
            rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + np.float32(EPS))
            rows = rows * first["gain_ih"]
    above = {"weight_ih": (size, width), "bias_ih": (width,), "gain_ih": (width,)}
    return PackedWeights(
        kind=kind,
        residual=config.residual,
        rows=rows + first["bias_ih"],
        head=np.ascontiguousarray(weights["head.weight"].T),
        head_bias=weights["head.bias"].copy(),
        **{name: np.stack([layer[name] for layer in layers]) for name in first if name not in above},
        **{
            name: np.array([layer[name] for layer in layers[1:]], np.float32).reshape(-1, *shape)  # may be none
            for name, shape in above.items()
        },
    )


def _layer(weights: Mapping[str, Fp32], prefix: str, kind: int) -> dict[str, Fp32]:
    """One layer's weights under the names of `PackedWeights`, matrices transposed, biases summed where they can be."""
    own = {name.removeprefix(prefix).removesuffix("_l0"): w for name, w in weights.items() if name.startswith(prefix)}
    own |= {name: np.ascontiguousarray(own[name].T) for name in ("weight_ih", "weight_hh")}
    size, width = own["weight_hh"].shape
    if kind == LAYER_NORM_LSTM:
        own["bias_ih"] = own.pop("bias")
    elif kind != GRU:
        own["bias_ih"] = own["bias_ih"] + own.pop("bias_hh")
    neutral = {"gain_ih": np.ones(width), "gain_hh": np.ones(width), "gain_c": np.ones(size)}
    neutral |= {"bias_hh": np.zeros(width), "bias_c": np.zeros(size)}
    return {name: value.astype(np.float32) for name, value in neutral.items()} | own


class Buffers(NamedTuple):
    """The memory of a `NumbaDecoder`: the state, and what a step computes."""

    h: Fp32  # (L, H)
    c: Fp32  # (L, H)
    inputs: Fp32  # (G, H)
    product: Fp32  # (G, H)
    x: Fp32  # (H,), the input of the layer above or of the head
    logits: Fp32  # (V,)
    weights: Fp64  # (V,), of the draw


NO_TOKENS, NO_NUMBERS = np.zeros(0, np.int64), np.zeros(0)


class NumbaDecoder:
    """A `decoder.ResumableDecoder` of one text with a packed model."""

    def __init__(self, packed: PackedWeights):
        num_layers, size, width = packed.weight_hh.shape
        vocab_size = len(packed.head_bias)
        h, c = np.zeros((2, num_layers, size), np.float32)
        inputs, product = np.zeros((2, width // size, size), np.float32)
        logits = np.zeros(vocab_size, np.float32)
        self._packed = packed
        self._buffers = Buffers(h, c, inputs, product, np.zeros(size, np.float32), logits, np.zeros(vocab_size))
        self.decode(NO_TOKENS)  # compiles the loop, or loads it: if that fails, it fails here

    def prefill(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with this prompt, `[(T,)]`; logits `(1, V)` after it."""
        (prompt,) = prompts
        for array in self._buffers:
            array[:] = 0
        return self.extend(prompt)

    def extend(self, tokens: Tokens) -> Floats:
        """Read more tokens of the text, `(T,)`; logits `(1, V)` after them."""
        for start in range(0, len(tokens), CHUNK):
            self.decode(tokens[start : start + CHUNK])
        return self._buffers.logits[None]

    def snapshot(self) -> tuple[Fp32, Fp32, Fp32]:
        """A copy of h and c, `(L, H)` each, and of the logits `(V,)`, for `restore`."""
        return self._buffers.h.copy(), self._buffers.c.copy(), self._buffers.logits.copy()

    def restore(self, snapshot: tuple[Fp32, Fp32, Fp32]) -> Floats:
        """Go back to the place where `snapshot` was taken; logits `(1, V)`."""
        self._buffers.h[:], self._buffers.c[:], self._buffers.logits[:] = snapshot
        return self._buffers.logits[None]

    def decode(self, tokens: Tokens) -> Floats:
        """Read one more token, `(1,)`, or several; logits `(1, V)` after the last.

        Raises:
            IndexError: a token that is not in the vocabulary.
        """
        if not _run(self._packed, tokens, NO_TOKENS, NO_NUMBERS, NO_NUMBERS, Truncation(), self._buffers):
            raise out_of_range(tokens, len(self._packed.rows))
        return self._buffers.logits[None]

    def decode_n(self, uniform: Floats, pipeline: LogitsPipeline, step: int) -> Tokens:
        """Draw tokens `(N, 1)` one after another and read them."""
        logits, truncation = self._buffers.logits, pipeline.truncation
        if truncation is None:
            return pipeline.decode_n(self.decode, logits[None], uniform, step)
        tokens, temperatures = np.empty(len(uniform), np.int64), pipeline.temperatures(step, len(uniform))
        if not _run(
            self._packed,
            NO_TOKENS,
            tokens,
            np.array(uniform[:, 0], np.float64),
            temperatures,
            truncation,
            self._buffers,
        ):
            checked(logits)
        return tokens[:, None]

    def reorder(self, rows: Tokens) -> None:
        """Go on with the one text."""


def out_of_range(tokens: Tokens, vocab_size: int) -> IndexError:
    """The error to raise before compiled code would read outside its memory."""
    return IndexError(f"expected tokens from 0 to {vocab_size - 1}, got {min(tokens)} to {max(tokens)}")


# ------------------------------------------------------------------------------------------------ compiled by numba


@jit()
def _add_product(x: Fp32, weight: Fp32, out: Fp32) -> None:
    """Add x @ weight to out, four rows of the weight at a time, since each pass reads and writes all of out."""
    size = len(x)
    for k in range(0, size - 3, 4):
        x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        for j in range(len(out)):
            out[j] += (x0 * w0[j] + x1 * w1[j]) + (x2 * w2[j] + x3 * w3[j])
    for k in range(size - size % 4, size):
        for j in range(len(out)):
            out[j] += x[k] * weight[k, j]


@jit()
def _finish(kind: int, product: Fp32, gain: Fp32, bias: Fp32) -> None:
    """Normalise a product, if the kind of model asks for it, and add the bias."""
    if kind == LAYER_NORM_LSTM:
        mean = variance = 0.0
        for value in product:
            mean += value
        mean /= len(product)
        for value in product:
            variance += (value - mean) ** 2
        scale = np.float32(1 / np.sqrt(variance / len(product) + EPS))
        for j in range(len(product)):
            product[j] = (product[j] - np.float32(mean)) * scale * gain[j]
    for j in range(len(product)):
        product[j] += bias[j]


@jit()
def _cell(kind: int, inputs: Fp32, product: Fp32, gain_c: Fp32, bias_c: Fp32, h: Fp32, c: Fp32) -> None:
    """One step of one layer of one text, from the products of x and of h, `(G, H)` each: h and c (H) change.

    The equations are those of `models.cells`. A gate is indexed by its number, since a view costs as much as a dozen of
    its elements. An LSTM has two loops, since in one the compiler runs out of registers.
    """
    size = len(h)
    if kind == RNN:
        for j in range(size):
            h[j] = tanh(inputs[0, j] + product[0, j])
    elif kind == GRU:
        for j in range(size):
            reset = sigmoid(inputs[0, j] + product[0, j])
            update = sigmoid(inputs[1, j] + product[1, j])
            candidate = tanh(inputs[2, j] + reset * product[2, j])
            h[j] = candidate + update * (h[j] - candidate)
    else:
        for j in range(size):
            kept = sigmoid(inputs[1, j] + product[1, j]) * c[j]
            c[j] = kept + sigmoid(inputs[0, j] + product[0, j]) * tanh(inputs[2, j] + product[2, j])
        seen = c
        if kind == LAYER_NORM_LSTM:
            seen = product[0]
            copy(c, seen)
            _finish(kind, seen, gain_c, bias_c)
        for j in range(size):
            h[j] = sigmoid(inputs[3, j] + product[3, j]) * tanh(seen[j])


@jit()
def _advance(model: PackedWeights, token: int, buffers: Buffers) -> None:
    """One step of one text: h and c change, x becomes the input of the head."""
    h, c, inputs, product, x = buffers.h, buffers.c, buffers.inputs, buffers.product, buffers.x
    all_inputs, all_product = inputs.ravel(), product.ravel()
    for layer in range(len(h)):
        if layer == 0:
            copy(model.rows[token], all_inputs)
        else:
            all_inputs[:] = 0
            _add_product(x, model.weight_ih[layer - 1], all_inputs)
            _finish(model.kind, all_inputs, model.gain_ih[layer - 1], model.bias_ih[layer - 1])
        all_product[:] = 0
        _add_product(h[layer], model.weight_hh[layer], all_product)
        _finish(model.kind, all_product, model.gain_hh[layer], model.bias_hh[layer])
        _cell(model.kind, inputs, product, model.gain_c[layer], model.bias_c[layer], h[layer], c[layer])
        below = model.residual and layer > 0
        for j in range(len(x)):
            x[j] = h[layer, j] + x[j] if below else h[layer, j]


@jit()
def _score(model: PackedWeights, x: Fp32, logits: Fp32) -> None:
    copy(model.head_bias, logits)
    _add_product(x, model.head, logits)


@cached_jit()
def _run(
    model: PackedWeights,
    given: Tokens,
    drawn: Tokens,
    uniform: Fp64,
    temperatures: Fp64,
    truncation: Truncation,
    buffers: Buffers,
) -> bool:
    """Read the given tokens, then draw tokens one after another and read each; False if a token or a logit is wrong."""
    x, logits = buffers.x, buffers.logits
    for token in given:
        if not 0 <= token < len(model.rows):
            return False
        _advance(model, token, buffers)
    if len(given):
        _score(model, x, logits)
    for n in range(len(drawn)):
        drawn[n] = _draw(logits, uniform[n], temperatures[n], truncation, buffers.weights)
        if drawn[n] < 0:
            return False
        _advance(model, drawn[n], buffers)
        _score(model, x, logits)
    return True


@jit()
def _draw(logits: Fp32, uniform: float, temperature: float, truncation: Truncation, weights: Fp64) -> int:
    """The token that `logits.sample` draws after temperature, top_k, top_p and min_p; -1 if the logits are damaged."""
    for j in range(len(truncation.allowed)):
        if not truncation.allowed[j]:
            logits[j] = -np.inf
    likeliest, numbers = 0, True
    for j in range(len(logits)):
        numbers &= not np.isnan(logits[j])
        if logits[j] > logits[likeliest]:
            likeliest = j
    largest = np.float64(logits[likeliest])
    if not (numbers and np.isfinite(largest)):
        return -1
    if temperature < COLDEST:
        return likeliest
    total = 0.0
    for j in range(len(logits)):
        z = np.float32((logits[j] - largest) / temperature)
        weights[j] = exp(z) if z > -LARGEST else ZERO  # a token less likely by e^80 is never drawn
    for weight in weights:
        total += weight
    if truncation.top_k < len(logits) or truncation.top_p < 1 or truncation.min_p > 0:
        total = _truncate(truncation.top_k, truncation.top_p, truncation.min_p, weights)
    point = uniform * total
    held, drawn = 0.0, 0
    for weight in weights:
        held += weight
        drawn += held <= point
    return drawn


@jit()
def _truncate(k: int, p: float, share: float, weights: Fp64) -> float:
    """Set the weights to 0 that top_k, top_p and min_p do not keep; the sum of the others.

    The likeliest are found one by one, of equals the first, which is faster than sorting a small vocabulary.
    """
    taken = np.zeros(len(weights), np.bool_)
    if k < len(weights):
        for _ in range(k):
            taken[_likeliest(weights, taken)] = True
        _drop(weights, taken)
    total = held = 0.0
    for j in range(len(weights)):
        taken[j] = False
        total += weights[j]
    while p == 1 or held / total < p * (1 - ROUNDING):
        best = _likeliest(weights, taken)
        if best < 0 or weights[best] < share or weights[best] == 0:
            break
        taken[best] = True
        held += weights[best]
    return _drop(weights, taken)


@jit()
def _likeliest(weights: Fp64, taken: Mask) -> int:
    best = -1
    for j in range(len(weights)):
        if not taken[j] and (best < 0 or weights[j] > weights[best]):
            best = j
    return best


@jit()
def _drop(weights: Fp64, taken: Mask) -> float:
    """Set the weights that are not taken to 0; the sum of the others."""
    total = 0.0
    for j in range(len(weights)):
        if not taken[j]:
            weights[j] = 0
        total += weights[j]
    return total


@functools.cache
def batch_step(kind: int) -> Callable[..., None]:
    """Compile the step of one layer of B texts for one kind of model: the branches of the others would cost a tenth."""

    @cached_jit()
    def step(
        model: PackedWeights,
        layer: int,
        tokens: Tokens,
        below: Array,
        own: Array,
        h: Fp32,
        c: Fp32,
        x: Fp32,
        factor: Array,
        factor_above: Array,
    ) -> None:
        """Update h, c and x (B, H), and the factors of the next products.

        `below` and `own` hold the products of the layer below and of this one, in fp32 or bf16: first the part for the
        layer itself, then the part for the layer above. x is used with residual connections.
        """
        size, width = h.shape[1], model.weight_hh.shape[2]
        inputs, product = np.empty((width // size, size), np.float32), np.empty((width // size, size), np.float32)
        all_inputs, all_product = inputs.ravel(), product.ravel()
        gain_c, bias_c = model.gain_c[layer], model.bias_c[layer]
        for b in range(len(h)):
            if layer == 0:
                copy(model.rows[tokens[b]], all_inputs)
            else:
                copy(below[b, width:], all_inputs)
                _finish(kind, all_inputs, model.gain_ih[layer - 1], model.bias_ih[layer - 1])
            copy(own[b, :width], all_product)
            if kind in (GRU, LAYER_NORM_LSTM):  # the others have all biases in bias_ih
                _finish(kind, all_product, model.gain_hh[layer], model.bias_hh[layer])
            _cell(kind, inputs, product, gain_c, bias_c, h[b], c[b])
            copy(h[b], factor[b])
            if model.residual:
                for j in range(size):
                    x[b, j] = h[b, j] + x[b, j] if layer else h[b, j]
                copy(x[b], factor_above[b])

    return step


@cached_jit()
def batch_draw(
    products: Array, bias: Fp32, uniform: Fp64, temperature: float, truncation: Truncation, logits: Fp32, tokens: Tokens
) -> bool:
    """Draw a token for each of B texts, as `_draw` does; False if a logit is wrong.

    Logits (B, V) are the sum of the products, in fp32 or bf16, and the bias.
    """
    weights = np.empty(len(bias))
    for b in range(len(tokens)):
        copy(products[b], logits[b])
        for j in range(len(bias)):
            logits[b, j] += bias[j]
        tokens[b] = _draw(logits[b], uniform[b], temperature, truncation, weights)
        if tokens[b] < 0:
            return False
    return True
