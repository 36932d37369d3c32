"""Character-level recurrent language models: tokens and a state in, logits and the next state out.

    logits, state = model(tokens, state=None)

    B  streams side by side (batch)       E  embedding_dim
    T  tokens in a window                 H  hidden_size
    V  vocab_size

The network is the one of Karpathy's char-rnn (2015, "The Unreasonable Effectiveness of Recurrent Neural Networks")
after Graves (2013, arXiv:1308.0850): embed each token, run it through stacked recurrent layers, read the next token's
logits off the top.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from charrnn.config import ModelConfig

State = Any  # nested tuples of tensors whose first dimension is B
LARGEST_ONE_HOT = 1024  # vocabulary size


class CharModel(nn.Module):
    """Embedding, stacked recurrent layers, linear read-out. Subclasses name the recurrent layer.

    Layers are stacked one by one with an explicit dropout between: the dropout inside multi-layer `nn.LSTM` is wrong on
    some Apple MPS releases.

    Args:
        vocab_size: number of tokens V.
        hidden_size: units H of each layer.
        num_layers: layers, one above the other.
        dropout: share of units dropped between layers while training.
        embedding_dim: size E of a token's vector. None means V, started as one-hot: the input of the 2015 char-rnn,
            free to move from there. Of a vocabulary above 1024 that would be millions of weights, so there it means H.
        forget_bias: what the two biases of an LSTM's forget gates sum to at the start; other cells have none. 1 lets a
            new network remember (Gers et al., 2000; Jozefowicz et al., 2015).

    Raises:
        pydantic.ValidationError: a number out of range.
    """

    kind: ClassVar[str]
    layer: ClassVar[type[nn.RNNBase]]

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
        embedding_dim: int | None = None,
        forget_bias: float = 1.0,
    ):
        super().__init__()
        self.config = ModelConfig(
            type=self.kind,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            embedding_dim=embedding_dim,
            forget_bias=forget_bias,
        )
        one_hot = embedding_dim is None and vocab_size <= LARGEST_ONE_HOT
        width = vocab_size if one_hot else embedding_dim or hidden_size
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            self.layer(width if i == 0 else hidden_size, hidden_size, batch_first=True) for i in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, vocab_size)
        if one_hot:
            nn.init.eye_(self.embedding.weight)
        if self.layer is nn.LSTM:
            forget = slice(hidden_size, 2 * hidden_size)  # gate order i, f, g, o
            with torch.no_grad():
                for layer in self.layers:
                    layer.bias_ih_l0[forget] = forget_bias
                    layer.bias_hh_l0[forget] = 0.0

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.head.out_features

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read `tokens`, going on from `state`.

        Args:
            tokens: ids `(B, T)`, int64.
            state: what an earlier call returned for the same B streams; None starts from zeros.

        Returns:
            Logits `(B, T, V)` of the token after each, and the state after the last: one entry per layer. Feeding a
            text in chunks with the state carried equals feeding it whole.
        """
        x = self.embedding(tokens)  # (B, T, E)
        new_state = []
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = self.dropout(x)
            x, layer_state = layer(x, None if state is None else _time_major(state[i]))  # (B, T, H)
            new_state.append(map_state(lambda h: h[0], layer_state))  # (1, B, H) -> (B, H)
        return self.head(x), tuple(new_state)  # (B, T, V)


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


MODELS: dict[str, type[CharModel]] = {model.kind: model for model in (CharLSTM, CharGRU, CharRNN)}


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> CharModel:
    """The model that `config` describes, with weights drawn from `seed`; the global random state is left as it was."""
    options = config.model_dump(exclude={"type"})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MODELS[config.type](vocab_size, **options)


def count_parameters(model: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """`function` of the tensors that stand in the same place of each state, whatever their nesting."""
    if isinstance(states[0], Tensor):
        return function(*states)
    return tuple(map_state(function, *parts) for parts in zip(*states, strict=True))


def detach_state(state: State) -> State:
    """The same state, cut from the graph: gradients stop here (truncated backpropagation through time)."""
    return map_state(Tensor.detach, state)


def flatten_state(state: State) -> dict[str, Tensor]:
    """Every tensor in a state by its path, `0.1` being the second tensor of the first layer; nothing for None."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {"": state}
    parts = ((str(i), key, value) for i, part in enumerate(state) for key, value in flatten_state(part).items())
    return {f"{i}.{key}".rstrip("."): value for i, key, value in parts}


def unflatten_state(tensors: Mapping[str, Tensor]) -> State:
    """The state that `flatten_state` took apart."""
    if not tensors:
        return None
    if "" in tensors:
        return tensors[""]
    parts: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        i, _, rest = path.partition(".")
        parts.setdefault(int(i), {})[rest] = value
    return tuple(unflatten_state(parts[i]) for i in sorted(parts))


def _time_major(layer_state: State) -> State:
    return map_state(lambda h: h.unsqueeze(0), layer_state)  # (B, H) -> (1, B, H), as torch's layers want it
