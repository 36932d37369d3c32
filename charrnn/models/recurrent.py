"""Character-level recurrent language models: tokens and a state in, logits and the next state out.

    logits, state = model(tokens, state=None)

    B  streams side by side (batch)       E  embedding_dim       L  num_layers
    T  tokens in a window                 H  hidden_size         G  gates: 1 in an RNN, 3 in a GRU, 4 in an LSTM
    V  vocab_size                         I  input size of a layer: E of the first, H of the others

The network is the one of Karpathy's char-rnn (2015, "The Unreasonable Effectiveness of Recurrent Neural Networks")
after Graves (2013, arXiv:1308.0850): embed each token, run it through stacked recurrent layers, and compute the
next token's logits from the top layer.

**Memory.** Training on a B x T window in fp32 with AdamW takes 4 bytes for each of these numbers:

    P = V E + (sum over layers of G H (I + H + 2)) + H V + V        parameters
    4 P                                                             parameters, gradients, two moments of AdamW
    B T ((L A + 1) H + 2 V)                                         activations kept for backward

A is what the `fused` backend keeps for each unit and step: 1 in an RNN (h), 5 in a GRU (r, z, n, the product behind r,
h), 7 in an LSTM (i, f, g, o, c, tanh c, h). The 1 is the head's copy of its input. Each dropout adds 2 numbers for each
unit and step that it drops from. 2 V are the logits and their softmax: little with 65 tokens, most of the memory with a
large vocabulary.

**Initialisation.** `init` chooses a column; the other rows hold for all three.

    tensor                  torch (default)    uniform    orthogonal        why
    layers: weight_ih       U(±1/sqrt H)       U(±0.08)   Xavier, by gate   a product varies about as much as its input
    layers: weight_hh       U(±1/sqrt H)       U(±0.08)   orthogonal, "     a product is as long as the state before
    layers: biases          U(±1/sqrt H)       U(±0.08)   0
    head: weight and bias   U(±1/sqrt H)       U(±0.08)   U(±1/sqrt H)      the first loss is near ln V

    embedding               the identity if `embedding_dim` is None and V at most 1024: a token starts as one-hot, the
                            input of the 2015 char-rnn; else N(0, 1) or, if uniform, U(±0.08); with `tie_weights` it is
                            the head's weight
    forget gates' bias      `forget_bias`, as the sum of both biases: see `CharModel`
    layer norm              gains 1, bias of the cell 0: at first it only normalises
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.kernels import fused
from charrnn.kernels.availability import disabling_numba_on_failure, numba_available
from charrnn.models.cells import Cell, gru_cell, layer_norm_lstm_cell, lstm_cell, rnn_cell, unroll
from charrnn.models.state import State, map_state

CELLS: dict[str, Cell] = {"rnn": rnn_cell, "gru": gru_cell, "lstm": lstm_cell}

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

LAYER_NORM_WEIGHTS = (*WEIGHTS[:2], "bias_l0", "gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0")


class Kernel(Protocol):
    """Computes one layer over a whole sequence from its weights."""

    def __call__(
        self, inputs: Tensor, state: Any, *weights: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Outputs `(B, T, H)` and the last state; arguments as in `kernels.fused.rnn`."""


FUSED: dict[Cell, Kernel] = {
    rnn_cell: fused.rnn,
    gru_cell: fused.gru,
    lstm_cell: fused.lstm,
    layer_norm_lstm_cell: fused.layer_norm_lstm,
}


class LayerNormLSTM(nn.Module):
    """The weights of one layer-normalised LSTM, named after torch's; the equations are `cells.layer_norm_lstm_cell`."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        gates, bound = 4 * hidden_size, 1 / math.sqrt(hidden_size)
        uniform = {"weight_ih_l0": (gates, input_size), "weight_hh_l0": (gates, hidden_size), "bias_l0": (gates,)}
        for name, shape in uniform.items():
            setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        for name, size in {"gain_ih_l0": gates, "gain_hh_l0": gates, "gain_c_l0": hidden_size}.items():
            setattr(self, name, nn.Parameter(torch.ones(size)))
        self.bias_c_l0 = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs `(B, T, H)` and the last state for `inputs` `(B, T, I)` and a state of `(1, B, H)`, as `nn.LSTM`."""
        state = map_state(lambda h: h[0], state)
        outputs, state = unroll(layer_norm_lstm_cell, inputs, state, *_weights(self))
        return outputs, map_state(lambda h: h.unsqueeze(0), state)


def _weights(layer: nn.Module) -> list[Tensor]:
    """A layer's weights in the order that its cell takes them.

    They are fetched by name, because pruning and parametrization reorder and rename the parameters.
    """
    return [getattr(layer, name) for name in (LAYER_NORM_WEIGHTS if isinstance(layer, LayerNormLSTM) else WEIGHTS)]


class CharModel(nn.Module):
    """Embedding, stacked recurrent layers, linear read-out. Subclasses name the cell.

    Layers are stacked one by one with an explicit dropout between: the dropout inside multi-layer `nn.LSTM` is wrong on
    some Apple MPS releases.

    Args:
        vocab_size: number of tokens V.
        hidden_size: units H of each layer.
        num_layers: layers, one above the other.
        dropout: dropout probability between layers while training.
        options: the other fields of `config.ModelConfig`, by name. Two need more than its help says:
            `embedding_dim`, the size E of a token's vector: None means V, started as one-hot and free to move from
            there. Of a vocabulary above 1024 that would be millions of weights, so there it means H, as it does with
            `tie_weights`.
            `forget_bias`, the sum that the biases of an LSTM's forget gates start with. The usual 1 (Gers et al., 2000;
            Jozefowicz et al., 2015) lets a new network remember where each text starts from an empty state. Here the
            state is carried through a whole epoch: a bias of 1 lets the cells grow without bound.

    Attributes:
        backend: the code that computes the layers: `torch` (torch's own), `numba` (`kernels.numba_cells`), `fused`
            (`kernels.fused`) or `reference` (`models.cells`). They give the same numbers to rounding, and the backend
            is not saved. Where the embedding or a layer has forward hooks, the modules themselves are called instead,
            so that the hooks run.
        config: describes the model.

    Raises:
        pydantic.ValidationError: an unknown option, a number out of range, or options that do not go together.
    """

    kind: ClassVar[Literal["lstm", "gru", "rnn"]]
    layer: ClassVar[Callable[..., nn.RNNBase]]

    def __init__(
        self, vocab_size: int, hidden_size: int = 128, num_layers: int = 1, dropout: float = 0.0, **options: Any
    ):
        super().__init__()
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "dropout": dropout}
        self.config = config = ModelConfig(type=self.kind, **sizes, **options)
        width = config.width(vocab_size)
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            LayerNormLSTM(size, hidden_size) if config.layer_norm else self.layer(size, hidden_size, batch_first=True)
            for size in [width, *[hidden_size] * (num_layers - 1)]
        )
        self.head = nn.Linear(hidden_size, vocab_size)
        self.backend = self.known_backends()[0]
        self._initialise(config.one_hot(vocab_size))

    def _initialise(self, one_hot: bool) -> None:
        """Initialise as the table at the top says, where that differs from torch's defaults."""
        size = self.config.hidden_size
        if self.config.init == "uniform":
            for name, parameter in self.named_parameters():
                if not name.endswith(LAYER_NORM_WEIGHTS[3:]):  # 2015 had no layer norm
                    nn.init.uniform_(parameter, -0.08, 0.08)
        if self.config.init == "orthogonal":
            fill = {"weight_ih": nn.init.xavier_uniform_, "weight_hh": nn.init.orthogonal_, "bias": nn.init.zeros_}
            for layer in self.layers:
                for name, parameter in layer.named_parameters():
                    for gate in parameter.chunk(len(parameter) // size):  # each gate is a matrix of its own
                        for prefix, initialise in fill.items():
                            if name.startswith(prefix):
                                initialise(gate)
        if self.config.tie_weights:
            self.embedding.weight = self.head.weight
        if one_hot:
            nn.init.eye_(self.embedding.weight)
        if self.kind == "lstm":
            with torch.no_grad():
                for layer in self.layers:
                    for name, bias in layer.named_parameters():
                        if name in ("bias_ih_l0", "bias_hh_l0", "bias_l0"):  # the second of two gets 0
                            bias[size : 2 * size] = 0.0 if name == "bias_hh_l0" else self.config.forget_bias

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied model: copying separates a layer's weights, and cuDNN needs them contiguous."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for layer in self.layers:
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.head.out_features

    @property
    def cell(self) -> Cell:
        """The equations of one step of a layer."""
        return layer_norm_lstm_cell if self.config.layer_norm else CELLS[self.kind]

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that can compute the layers here; torch has no layer-normalised LSTM.

        The first call tries `numba`, where numba is installed, which takes a second or more.
        """
        return tuple(name for name in self.known_backends() if name != "numba" or numba_lstm())

    def known_backends(self) -> tuple[str, ...]:
        """The same as `backends`, without trying `numba`: it may still turn out not to work."""
        if self.config.layer_norm:
            return ("fused", "reference")
        weight = self.head.weight
        if self.kind == "lstm" and weight.device.type == "cpu" and weight.dtype == torch.float32 and numba_available():
            return ("torch", "numba", "fused", "reference")
        return ("torch", "fused", "reference")

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read `tokens`, going on from `state`.

        Args:
            tokens: ids `(B, T)`, int64.
            state: the state that an earlier call returned for the same B streams; None starts from zeros.

        Returns:
            Logits `(B, T, V)` of the token after each, and the state after the last: one entry per layer. Feeding a
            text in chunks with the state carried equals feeding it whole.

        Raises:
            ValueError: `backend` is not one of `backends`, or `state` is not one of this model for B streams.
        """
        config, kernel = self.config, self._kernel()
        state = self.zero_state(len(tokens)) if state is None else self._checked(state, len(tokens))
        rows_vary = self.training and config.input_dropout > 0
        if kernel is None or rows_vary or self.vocab_size > tokens.numel():
            x = self._drop(self.embedding(tokens), config.input_dropout)  # (B, T, E)
            x, first = self._run(self.layers[0], kernel, x, state[0])
        else:  # the vocabulary has fewer rows than the window has places: multiply each row once
            x, first = kernel(self.embedding.weight, state[0], *_weights(self.layers[0]), tokens=tokens)
        new_state = [first]
        for layer, layer_state in zip(self.layers[1:], state[1:], strict=True):
            below = self._drop(x, config.dropout)
            x, layer_state = self._run(layer, kernel, below, layer_state)  # x (B, T, H)
            x = x + below if config.residual else x
            new_state.append(layer_state)
        return self.head(self._drop(x, config.output_dropout)), tuple(new_state)  # (B, T, V)

    def zero_state(self, batch_size: int) -> State:
        """The state that every text starts from: one entry per layer, `(B, H)` each."""
        zeros = self.head.weight.new_zeros(batch_size, self.config.hidden_size)
        return tuple((zeros, zeros) if self.kind == "lstm" else zeros for _ in self.layers)

    def _checked(self, state: State, batch_size: int) -> State:
        """Raise ValueError unless `state` has the shapes of this model's; some backends would broadcast another."""
        size = (batch_size, self.config.hidden_size)
        expected = ((size, size) if self.kind == "lstm" else size,) * len(self.layers)
        got = map_state(lambda h: tuple(h.shape), state)
        if got != expected:
            raise ValueError(f"state: expected shapes {expected} for these tokens, one entry per layer, got {got}")
        return state

    def _kernel(self) -> Kernel | None:
        """The function that computes a layer from its weights; None calls the layer as a module."""
        if self.backend not in self.known_backends():
            raise ValueError(f"backend: expected {' or '.join(self.backends)} for this model, got {self.backend!r}")
        if any(module._forward_hooks or module._forward_pre_hooks for module in (self.embedding, *self.layers)):
            return None  # only a call of the module runs its hooks, such as those of nn.utils.prune
        training = torch.is_grad_enabled()  # kernels only speed up the backward pass
        if self.backend == "fused" and training:
            return FUSED[self.cell]
        if self.backend in ("fused", "reference"):
            return self._unroll
        if self.backend == "numba" and training:
            kernel = numba_lstm()
            self.backend = "numba" if kernel else "torch"  # numba turned out not to work here
            return kernel
        return None

    def _unroll(
        self, inputs: Tensor, state: State, *weights: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The cell over a whole sequence, step by step: the kernel of the `reference` backend."""
        return unroll(self.cell, inputs if tokens is None else F.embedding(tokens, inputs), state, *weights)

    def _run(self, layer: nn.Module, kernel: Kernel | None, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One layer over `inputs` `(B, T, I)`: its outputs `(B, T, H)`, its state after the last."""
        if kernel is not None:
            return kernel(inputs, state, *_weights(layer))
        outputs, state = layer(inputs, map_state(lambda h: h.unsqueeze(0), state))  # torch has (1, B, H)
        return outputs, map_state(lambda h: h[0], state)

    def _drop(self, x: Tensor, share: float) -> Tensor:
        """Dropout on `x` `(B, T, N)`; the variational kind drops the same units at every step of the window."""
        if not (self.training and share):
            return x
        if self.config.variational_dropout:
            return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), share)
        return F.dropout(x, share)


def numba_lstm() -> Kernel | None:
    """The LSTM that numba compiles; None where numba is not installed or does not work, see `kernels.availability`."""
    if numba_available():
        with disabling_numba_on_failure():
            from charrnn.kernels import numba_cells  # takes a second to load

            numba_cells.prepare()
            return numba_cells.lstm
    return None


class CharRNN(CharModel):
    """Elman (1990) network: h = tanh(W_ih x + b_ih + W_hh h + b_hh)."""

    kind = "rnn"
    layer = nn.RNN


class CharGRU(CharModel):
    """Gated recurrent unit of Cho et al. (2014, arXiv:1406.1078), with reset after the product, as in cuDNN."""

    kind = "gru"
    layer = nn.GRU


class CharLSTM(CharModel):
    """Long short-term memory of Hochreiter & Schmidhuber (1997) with the forget gates of Gers et al. (2000)."""

    kind = "lstm"
    layer = nn.LSTM


def evaluation_view(model: Module) -> Module:
    """A model in evaluation mode that shares the weights of `model`, whose own mode other threads may rely on."""
    if not any(module.training for module in model.modules()):
        return model
    view: Module = object.__new__(type(model))  # copy.copy refuses modules with parametrizations
    view.__dict__ |= model.__dict__
    view._modules = {name: module and evaluation_view(module) for name, module in model._modules.items()}
    view.training = False
    return view
