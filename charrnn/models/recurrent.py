"""Character-level recurrent language models: tokens and a state in, logits and the next state out.

    logits, state = model(tokens, state=None)

    B  streams side by side (batch)       E  embedding_dim
    T  tokens in a window                 H  hidden_size
    V  vocab_size

The network is the one of Karpathy's char-rnn (2015, "The Unreasonable Effectiveness of Recurrent Neural Networks")
after Graves (2013, arXiv:1308.0850): embed each token, run it through stacked recurrent layers, read the next token's
logits off the top.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.kernels.availability import disabling_numba_on_failure, numba_available
from charrnn.kernels.fused import gru, layer_norm_lstm, lstm, rnn
from charrnn.models.cells import Cell, gru_cell, layer_norm_lstm_cell, lstm_cell, rnn_cell, unroll
from charrnn.models.state import State, map_state

Kernel = Callable[..., tuple[Tensor, Any]]


class LayerNormLSTM(nn.Module):
    """The weights of one layer-normalised LSTM, named after torch's; what they do is `cells.layer_norm_lstm_cell`.

    Gains start at 1, the other weights as in `nn.LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_ih_l0 = uniform(4 * hidden_size, input_size)
        self.weight_hh_l0 = uniform(4 * hidden_size, hidden_size)
        self.bias_l0 = uniform(4 * hidden_size)
        self.gain_ih_l0 = nn.Parameter(torch.ones(4 * hidden_size))
        self.gain_hh_l0 = nn.Parameter(torch.ones(4 * hidden_size))
        self.gain_c_l0 = nn.Parameter(torch.ones(hidden_size))
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
    return [getattr(layer, name) for name in (LAYER_NORM if isinstance(layer, LayerNormLSTM) else PLAIN)]


PLAIN = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

LAYER_NORM = (*PLAIN[:2], "bias_l0", "gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0")


class CharModel(nn.Module):
    """Embedding, stacked recurrent layers, linear read-out. Subclasses name the cell.

    Layers are stacked one by one with an explicit dropout between: the dropout inside multi-layer `nn.LSTM` is wrong on
    some Apple MPS releases.

    Args:
        vocab_size: number of tokens V.
        hidden_size: units H of each layer.
        num_layers: layers, one above the other.
        dropout: share of units dropped between layers while training.
        embedding_dim: size E of a token's vector. None means V, started as one-hot: the input of the 2015 char-rnn,
            free to move from there. Of a vocabulary above 1024 that would be millions of weights, so there it means H,
            as it does with `tie_weights`.
        forget_bias: what the biases of an LSTM's forget gates sum to at the start; other cells have none. The usual 1
            (Gers et al., 2000; Jozefowicz et al., 2015) lets a new network remember where each text starts from an
            empty state. Here the state is carried through a whole epoch: started at 1 the cells run away.
        options: the other fields of `config.ModelConfig`, by name.

    Attributes:
        backend: what computes the layers: `torch` (torch's own), `numba` (`numba`), `fused` (`kernels`) or
            `reference` (`cells`). They give the same numbers to rounding, and it is not part of what is saved. Where a
            layer has forward hooks, the layers themselves are called instead, so that the hooks run.
        config: what the model was made from.

    Raises:
        pydantic.ValidationError: an unknown option, a number out of range, or options that do not go together.
    """

    kind: ClassVar[str]
    cell: ClassVar[Cell]
    layer: ClassVar[type[nn.RNNBase]]

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
        embedding_dim: int | None = None,
        forget_bias: float = 0.0,
        **options: Any,
    ):
        super().__init__()
        self.config = ModelConfig(
            type=self.kind,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            embedding_dim=embedding_dim,
            forget_bias=forget_bias,
            **options,
        )
        config = self.config
        width = config.width(vocab_size)
        widths = [width, *[hidden_size] * (num_layers - 1)]
        self.embedding = nn.Embedding(vocab_size, width)
        if config.layer_norm:
            self.cell = layer_norm_lstm_cell
            self.layers = nn.ModuleList(LayerNormLSTM(width, hidden_size) for width in widths)
        else:
            self.layers = nn.ModuleList(self.layer(width, hidden_size, batch_first=True) for width in widths)
        self.head = nn.Linear(hidden_size, vocab_size)
        self.backend = self.known_backends()[0]
        self._initialise(config.one_hot(vocab_size))

    def _initialise(self, one_hot: bool) -> None:
        """What torch's defaults are not: the `init` that is asked for, the one-hot embedding, the forget gates."""
        INITIALISATIONS[self.config.init](self)
        if self.config.tie_weights:
            self.embedding.weight = self.head.weight
        if one_hot:
            nn.init.eye_(self.embedding.weight)
        if self.layer is nn.LSTM:
            forget = slice(self.config.hidden_size, 2 * self.config.hidden_size)  # gate order i, f, g, o
            with torch.no_grad():
                for layer in self.layers:
                    first, *others = (bias for name, bias in layer.named_parameters() if name in FORGET_BIASES)
                    first[forget] = self.config.forget_bias
                    for bias in others:
                        bias[forget] = 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy whole: a layer's weights, copied one by one, no longer lie together, as cuDNN wants them."""
        super().__setstate__(state)
        for layer in self.layers:
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.head.out_features

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that can compute the layers here; torch has no layer-normalised LSTM.

        The first call tries `numba`, where numba is installed, which takes a second or more.
        """
        return tuple(name for name in self.known_backends() if name != "numba" or numba_lstm())

    def known_backends(self) -> tuple[str, ...]:
        """`backends`, but for an untried `numba`: numba may still turn out not to work."""
        if self.config.layer_norm:
            return ("fused", "reference")
        on_cpu = self.head.weight.device.type == "cpu" and self.head.weight.dtype == torch.float32
        compiled = ("numba",) if self.layer is nn.LSTM and on_cpu and numba_available() else ()
        return ("torch", *compiled, "fused", "reference")

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read `tokens`, going on from `state`.

        Args:
            tokens: ids `(B, T)`, int64.
            state: what an earlier call returned for the same B streams; None starts from zeros.

        Returns:
            Logits `(B, T, V)` of the token after each, and the state after the last: one entry per layer. Feeding a
            text in chunks with the state carried equals feeding it whole.

        Raises:
            ValueError: `backend` is none of `backends`, or `state` is not one of this model for B streams.
        """
        if self.backend not in self.known_backends():
            raise ValueError(f"backend: expected {' or '.join(self.backends)} for this model, got {self.backend!r}")
        config = self.config
        if state is None:
            state = self.zero_state(len(tokens))
        else:
            self._check_state(state, len(tokens))
        kernel = self._kernel() if torch.is_grad_enabled() else None  # kernels only speed up the backward pass
        rows_vary = self.training and config.input_dropout
        look_up = kernel and not rows_vary and self.vocab_size <= tokens.numel()  # else the rows that occur are fewer
        x = None if look_up else self._drop(self.embedding(tokens), config.input_dropout)  # (B, T, E)
        new_state = []
        for i, layer in enumerate(self.layers):
            below = x if i == 0 else self._drop(x, config.dropout)
            if i == 0 and look_up:
                x, layer_state = kernel(self.embedding.weight, state[i], *_weights(layer), tokens=tokens)
            else:
                x, layer_state = self._run(layer, below, state[i], kernel)  # (B, T, H)
            if config.residual and i > 0:
                x = x + below
            new_state.append(layer_state)
        return self.head(self._drop(x, config.output_dropout)), tuple(new_state)  # (B, T, V)

    def zero_state(self, batch_size: int) -> State:
        """The state that every text starts from: one entry per layer, `(B, H)` each."""
        zeros = self.head.weight.new_zeros(batch_size, self.config.hidden_size)
        return tuple((zeros, zeros) if self.layer is nn.LSTM else zeros for _ in self.layers)

    def _check_state(self, state: State, batch_size: int) -> None:
        """Raise ValueError unless `state` has the shapes of this model's; some backends would broadcast another."""
        size = (batch_size, self.config.hidden_size)
        expected = ((size, size) if self.layer is nn.LSTM else size,) * len(self.layers)
        got = map_state(lambda h: tuple(h.shape), state)
        if got != expected:
            raise ValueError(f"state: expected shapes {expected} for these tokens, one entry per layer, got {got}")

    def _kernel(self) -> Kernel | None:
        """The function that computes a layer with its own backward pass, if the backend has one."""
        if self._hooked():
            return None
        if self.backend == "numba":
            kernel = numba_lstm()
            self.backend = "numba" if kernel else "torch"
            return kernel
        return FUSED[self.cell] if self.backend == "fused" else None

    def _run(self, layer: nn.Module, inputs: Tensor, state: State, kernel: Kernel | None) -> tuple[Tensor, State]:
        """One layer over `inputs` `(B, T, I)`: its outputs `(B, T, H)`, its state after the last."""
        if kernel:
            return kernel(inputs, state, *_weights(layer))
        if self.backend in ("torch", "numba") or self._hooked():
            outputs, state = layer(inputs, map_state(lambda h: h.unsqueeze(0), state))  # torch has (1, B, H)
            return outputs, map_state(lambda h: h[0], state)
        return unroll(self.cell, inputs, state, *_weights(layer))

    def _hooked(self) -> bool:
        """Whether a layer has forward hooks, such as those of `nn.utils.prune`, which only a call of the layer runs."""
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.layers)

    def _drop(self, x: Tensor, share: float) -> Tensor:
        """Dropout on `x` `(B, T, N)`; the variational kind drops the same units at every step of the window."""
        if not (self.training and share):
            return x
        if self.config.variational_dropout:
            return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), share)
        return F.dropout(x, share)


def numba_lstm() -> Kernel | None:
    """The LSTM that numba compiles; None where numba is not installed or does not work, see `installed`."""
    if numba_available():
        with disabling_numba_on_failure():
            from charrnn.kernels import numba_cells as compiled  # takes a second to load

            compiled.prepare()
            return compiled.lstm
    return None


FORGET_BIASES = ("bias_ih_l0", "bias_hh_l0", "bias_l0")


def _init_2015(model: CharModel) -> None:
    for name, parameter in model.named_parameters():
        if not name.endswith(("gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0")):  # 2015 had no layer norm
            nn.init.uniform_(parameter, -0.08, 0.08)


def _init_orthogonal(model: CharModel) -> None:
    for layer in model.layers:
        for name, parameter in layer.named_parameters():
            for gate in parameter.split(model.config.hidden_size):  # each gate is a matrix of its own
                if name == "weight_ih_l0":
                    nn.init.xavier_uniform_(gate)
                elif name == "weight_hh_l0":
                    nn.init.orthogonal_(gate)
                elif name.startswith("bias"):
                    nn.init.zeros_(gate)


INITIALISATIONS: dict[str, Callable[[CharModel], None]] = {
    "torch": lambda model: None,
    "uniform": _init_2015,
    "orthogonal": _init_orthogonal,
}


class CharRNN(CharModel):
    """Elman (1990) network: h = tanh(W_ih x + b_ih + W_hh h + b_hh)."""

    kind = "rnn"
    cell = staticmethod(rnn_cell)
    layer = nn.RNN


class CharGRU(CharModel):
    """Gated recurrent unit of Cho et al. (2014, arXiv:1406.1078), with reset after the product, as in cuDNN."""

    kind = "gru"
    cell = staticmethod(gru_cell)
    layer = nn.GRU


class CharLSTM(CharModel):
    """Long short-term memory of Hochreiter & Schmidhuber (1997) with the forget gates of Gers et al. (2000)."""

    kind = "lstm"
    cell = staticmethod(lstm_cell)
    layer = nn.LSTM


def evaluation_view(model: nn.Module) -> nn.Module:
    """A model in evaluation mode that shares the weights of `model`, whose own mode other threads may rely on."""
    if not any(module.training for module in model.modules()):
        return model
    view = object.__new__(type(model))  # copy.copy refuses modules with parametrizations
    view.__dict__ |= model.__dict__
    view._modules = {name: module and evaluation_view(module) for name, module in model._modules.items()}
    view.training = False
    return view


FUSED: dict[Callable[..., Any], Callable[..., Any]] = {  # the same recurrence, step by step and at once
    rnn_cell: rnn,
    gru_cell: gru,
    lstm_cell: lstm,
    layer_norm_lstm_cell: layer_norm_lstm,
}
