"""One token after another through a model on a CPU, its weights packed for that and the whole step compiled by numba.

    rows = embedding @ weight_ih.T + biases    of the first layer, (V, G·H): the input product of a token is a look-up
    gates = row + weight_hh @ h                and for the other layers the same with weight_ih @ h of the layer below

A step through the plain path is dozens of framework calls, each dearer than its arithmetic at batch size 1. Here it is
one loop, and so are the softmax and the draw after it: what is left is to read each weight once. PyTorch is not needed,
and it takes longer to load than a page of text to write.

    L  layers      H  hidden_size      G  gates      V  vocab_size      B  streams side by side
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import ModelConfig
from charrnn.generation.logits import COLDEST, ROUNDING, Cut, checked
from charrnn.kernels.cache import cached_jit, jit
from charrnn.kernels.numba_math import LARGEST, ZERO, copy, exp, sigmoid, tanh
from charrnn.types import Tokens

Floats = NDArray[np.float32]

EPS = 1e-5  # as in `cells`, which needs PyTorch

KINDS = RNN, GRU, LSTM, LAYER_NORM_LSTM = range(4)

CHUNK = 1024  # tokens that are read in one compiled call, which Ctrl-C cannot interrupt


class PackedWeights(NamedTuple):
    """A model's weights, packed; what a kind of model has none of is there all the same, and not used."""

    kind: int
    residual: bool
    rows: Floats  # (V, G·H)
    weight_ih: Floats  # (L - 1, H, G·H), of the layers above the first
    bias_ih: Floats  # (L - 1, G·H)
    weight_hh: Floats  # (L, H, G·H)
    bias_hh: Floats  # (L, G·H), of what a GRU's reset gate acts on
    gain_ih: Floats  # (L - 1, G·H), of layer normalisation, as the next three
    gain_hh: Floats  # (L, G·H)
    gain_c: Floats  # (L, H)
    bias_c: Floats  # (L, H)
    head: Floats  # (H, V)
    head_bias: Floats  # (V,)


def pack_weights(weights: Mapping[str, Floats], config: ModelConfig) -> PackedWeights:
    """The weights of a `CharModel`, by their names in its state_dict, packed."""
    kind = LAYER_NORM_LSTM if config.layer_norm else {"rnn": RNN, "gru": GRU, "lstm": LSTM}[config.type]
    layers = [_layer(weights, i, kind) for i in range(config.num_layers)]
    first, above = layers[0], layers[1:]
    with np.errstate(invalid="ignore", over="ignore"):  # damaged weights are found in the logits
        rows = weights["embedding.weight"] @ first["weight_ih"]
        if kind == LAYER_NORM_LSTM:
            rows = _normalised(rows) * first["gain_ih"]
    size = config.hidden_size
    empty = {"weight_ih": (0, *first["weight_hh"].shape), "bias_ih": (0, *first["bias_ih"].shape)}
    empty["gain_ih"] = empty["bias_ih"]

    def stacked(name: str, among: Sequence[dict[str, Floats]]) -> Floats:
        return np.stack([layer[name] for layer in among]) if among else np.zeros(empty[name], np.float32)

    return PackedWeights(
        kind=kind,
        residual=config.residual,
        rows=rows + first["bias_ih"],
        **{name: stacked(name, above) for name in ("weight_ih", "bias_ih")},
        **{name: stacked(name, layers) for name in ("weight_hh", "bias_hh")},
        gain_ih=stacked("gain_ih", above),
        **{name: stacked(name, layers) for name in ("gain_hh", "gain_c", "bias_c")},
        head=np.ascontiguousarray(weights["head.weight"].T[:size]),
        head_bias=weights["head.bias"].copy(),
    )


def _layer(weights: Mapping[str, Floats], i: int, kind: int) -> dict[str, Floats]:
    """One layer's weights under the names of `PackedWeights`, matrices turned around, all but a GRU's biases in one."""
    own = {name: np.asarray(value) for name, value in _of_layer(weights, i).items()}
    matrices = {name: np.ascontiguousarray(own[name].T) for name in ("weight_ih", "weight_hh")}
    width, size = matrices["weight_hh"].shape[1], matrices["weight_hh"].shape[0]
    one = {name: np.ones(width if "h" in name else size, np.float32) for name in ("gain_ih", "gain_hh", "gain_c")}
    rest = {**one, "bias_c": np.zeros(size, np.float32), "bias_hh": np.zeros(width, np.float32)}
    if kind == LAYER_NORM_LSTM:
        return {**matrices, **rest, "bias_ih": own["bias"], **{name: own[name] for name in (*one, "bias_c")}}
    if kind == GRU:
        return {**matrices, **rest, "bias_ih": own["bias_ih"], "bias_hh": own["bias_hh"]}
    return {**matrices, **rest, "bias_ih": own["bias_ih"] + own["bias_hh"]}


def _of_layer(weights: Mapping[str, Floats], i: int) -> dict[str, Floats]:
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix).removesuffix("_l0"): w for name, w in weights.items() if name.startswith(prefix)}


def _normalised(x: Floats) -> Floats:
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + np.float32(EPS))


NO_TOKENS, NO_NUMBERS = np.zeros(0, np.int64), np.zeros(0)


class NumbaDecoder:
    """One text at a time through a packed model, as `decoder.Decoder` wants it."""

    def __init__(self, packed: PackedWeights):
        self._packed = packed
        num_layers, size, width = packed.weight_hh.shape
        vocab_size = len(packed.head_bias)
        h, c = np.zeros((2, num_layers, size), np.float32)
        inputs, product = np.zeros((2, width // size, size), np.float32)
        self._logits = np.zeros(vocab_size, np.float32)
        self._state = h, c, inputs, product, np.zeros(size, np.float32), self._logits, np.zeros(vocab_size)
        self.decode(NO_TOKENS)  # compiles the loop, or loads it: if that fails, it fails here

    def prefill(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with this prompt, `[(T,)]`; logits `(1, V)` after it."""
        (prompt,) = prompts
        for array in self._state:
            array[:] = 0
        return self.extend(prompt)

    def extend(self, tokens: Tokens) -> Floats:
        """Read more tokens of the text, `(T,)`; logits `(1, V)` after them."""
        for start in range(0, len(tokens), CHUNK):
            self.decode(tokens[start : start + CHUNK])
        return self._logits[None]

    def snapshot(self) -> tuple[Floats, Floats, Floats]:
        """A copy of h and c, `(L, H)` each, and of the logits `(V,)`, for `restore`."""
        h, c, *_ = self._state
        return h.copy(), c.copy(), self._logits.copy()

    def restore(self, snapshot: tuple[Floats, Floats, Floats]) -> Floats:
        """Go back to where `snapshot` was taken; logits `(1, V)`."""
        h, c, *_ = self._state
        h[:], c[:], self._logits[:] = snapshot
        return self._logits[None]

    def decode(self, tokens: Tokens) -> Floats:
        """Read one more token, `(1,)`, or several; logits `(1, V)` after the last.

        Raises:
            IndexError: a token that is not in the vocabulary.
        """
        if not _run(self._packed, tokens, NO_TOKENS, NO_NUMBERS, NO_NUMBERS, *Cut(), *self._state):
            raise out_of_range(tokens, len(self._packed.rows))
        return self._logits[None]

    def reorder(self, rows: Tokens) -> None:
        """Go on with the text."""

    def decode_n(self, uniform: NDArray[np.float64], temperatures: NDArray[np.float64], cut: Cut) -> Tokens:
        """Draw tokens `(N, 1)` one after another and read them.

        Args:
            uniform: for each a number in [0, 1), `(N, 1)`.
            temperatures: for each, `(N,)`.
            cut: what is left out of the draw.

        Raises:
            ValueError: a logit is NaN or infinite, or all are -inf.
        """
        tokens = np.empty(len(uniform), np.int64)
        if not _run(self._packed, NO_TOKENS, tokens, uniform[:, 0].copy(), temperatures, *cut, *self._state):
            checked(self._logits)
        return tokens[:, None]


def out_of_range(tokens: Tokens, vocab_size: int) -> IndexError:
    """What to raise where compiled code would read outside its memory."""
    return IndexError(f"expected tokens from 0 to {vocab_size - 1}, got {min(tokens)} to {max(tokens)}")


# ------------------------------------------------------------------------------------------------ what numba compiles


@jit()
def _add_product(x, weight, out):
    """Add x @ weight to out: four rows of the weight at a time, for each pass reads and writes all of out."""
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
def _finish(kind, product, gain, bias):
    """What is done to a product before the gates see it."""
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
def _cell(kind, inputs, product, gain_c, bias_c, h, c):
    """One step of one layer of one text, from what was multiplied of x and of h, `(G, H)` each: h and c (H) change.

    A gate is a row of those two, found by its number, for a view costs as much as a dozen of its elements. An LSTM has
    two loops, for in one the compiler runs out of registers.
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
def _advance(model, token, h, c, inputs, product, x):
    """One step of one text: h and c (L, H) change, x (H) becomes what the head reads."""
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
def _score(model, x, logits):
    copy(model.head_bias, logits)
    _add_product(x, model.head, logits)


@cached_jit()
def _run(model, given, drawn, uniform, temperatures, k, p, share, possible, h, c, inputs, product, x, logits, weights):
    """Read the tokens that are given, then draw tokens one after another and read each; whether all went well."""
    for token in given:
        if not 0 <= token < len(model.rows):
            return False
        _advance(model, token, h, c, inputs, product, x)
    if len(given):
        _score(model, x, logits)
    for n in range(len(drawn)):
        for j in range(len(possible)):
            if not possible[j]:
                logits[j] = -np.inf
        drawn[n] = _draw(logits, uniform[n], temperatures[n], k, p, share, weights)
        if drawn[n] < 0:
            return False
        _advance(model, drawn[n], h, c, inputs, product, x)
        _score(model, x, logits)
    return True


@jit()
def _draw(logits, uniform, temperature, k, p, share, weights):
    """The token that `sampling.sample` draws after temperature, top_k, top_p and min_p; -1 if logits are no numbers."""
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
        weights[j] = exp(z) if z > -LARGEST else ZERO  # what is less likely by e^80 is never drawn
    for weight in weights:
        total += weight
    if k < len(logits) or p < 1 or share > 0:
        total = _leave_out(k, p, share, weights)
    point = uniform * total
    held, drawn = 0.0, 0
    for weight in weights:
        held += weight
        drawn += held <= point
    return drawn


@jit()
def _leave_out(k, p, share, weights):
    """Make the weights 0 that top_k, top_p and min_p do not keep; what the others add up to.

    The likeliest are found one by one, of equals the first, which beats sorting where few are kept of a small
    vocabulary.
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
def _likeliest(weights, taken):
    best = -1
    for j in range(len(weights)):
        if not taken[j] and (best < 0 or weights[j] > weights[best]):
            best = j
    return best


@jit()
def _drop(weights, taken):
    """Make the others 0; what is left."""
    total = 0.0
    for j in range(len(weights)):
        if not taken[j]:
            weights[j] = 0
        total += weights[j]
    return total


@functools.cache
def cells(kind):
    """The step of one layer of B texts, compiled for one kind of model: the branches of the others cost a tenth."""

    @cached_jit()
    def step(model, layer, tokens, below, own, h, c, x, factor, factor_above):
        """Change h, c and x (B, H), and with them the factors of the next products.

        `below` and `own` hold what was multiplied of the layer below and of this one, in fp32 or in the bits of bf16:
        what the layer itself reads and, after that, what the layer above does. x is used with residual connections.
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
            if kind in (GRU, LAYER_NORM_LSTM):  # the others have all in bias_ih
                _finish(kind, all_product, model.gain_hh[layer], model.bias_hh[layer])
            _cell(kind, inputs, product, gain_c, bias_c, h[b], c[b])
            copy(h[b], factor[b])
            if model.residual:
                for j in range(size):
                    x[b, j] = h[b, j] + x[b, j] if layer else h[b, j]
                copy(x[b], factor_above[b])

    return step


@cached_jit()
def draw(products, bias, possible, uniform, temperature, k, p, share, logits, tokens):
    """A token for each of B texts, as `_draw` draws it; whether all went well.

    Logits (B, V) are the products, in fp32 or in the bits of bf16, and the bias.
    """
    weights = np.empty(len(bias))
    for b in range(len(tokens)):
        copy(products[b], logits[b])
        for j in range(len(bias)):
            logits[b, j] += bias[j]
        for j in range(len(possible)):
            if not possible[j]:
                logits[b, j] = -np.inf
        tokens[b] = _draw(logits[b], uniform[b], temperature, k, p, share, weights)
        if tokens[b] < 0:
            return False
    return True
