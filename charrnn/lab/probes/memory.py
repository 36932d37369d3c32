"""The memory of a trained network, measured in three ways that need not agree, and the share of letters it can copy.

    state_gradients       how much a small change of an earlier state still changes the current one
    character_gradients   how much a small change of an earlier character still changes a prediction
    context_losses        how much worse a prediction gets without all characters further back

All of them only use the contract `logits, state = model(tokens, state)`, with any backend.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from charrnn.data.corpus import Corpus
from charrnn.models.recurrent import CharModel
from charrnn.models.state import State, flatten_state, map_state


def state_gradients(model: CharModel, tokens: Tensor, lags: int, seed: int = 0) -> Tensor:
    """Compute gradient norms of the last state's component in a random direction, with respect to earlier states.

    The mean of such squared norms over directions is the mean square of the Jacobian's singular values. So each is a
    fair sample of the Jacobian's size, for one backward pass. An LSTM's state is h and c together.

    Args:
        model: on the CPU.
        tokens: texts to read, `(B, T)`.
        lags: the number of steps to go back, less than T.
        seed: of the directions, one unit vector for each text.

    Returns:
        `(lags + 1,)`, the geometric mean over the texts; entry k belongs to the state k steps before the last, so
        entry 0 is 1.
    """
    begin = tokens.shape[1] - lags
    with torch.no_grad():
        _, state = model(tokens[:, :begin])
    states = [map_state(lambda h: h.detach().requires_grad_(), state)]
    for token in tokens[:, begin:].split(1, dim=1):  # (B, 1)
        states.append(model(token, states[-1])[1])
    last = torch.cat(_tensors(states[-1]), dim=1)  # (B, N)
    random = torch.randn(last.shape, generator=torch.Generator().manual_seed(seed))
    number = (last * F.normalize(random)).sum()
    gradients = iter(torch.autograd.grad(number, [tensor for state in states for tensor in _tensors(state)]))
    norms = [torch.cat([next(gradients) for _ in _tensors(state)], dim=1).norm(dim=1) for state in states]  # (B,) each
    return geometric_mean(torch.stack(norms[::-1], dim=1))


def _tensors(state: State) -> list[Tensor]:
    return list(flatten_state(state).values())


def character_gradients(model: CharModel, tokens: Tensor, lags: int) -> Tensor:
    """Compute gradient norms of a prediction's log-probability with respect to earlier characters' embeddings.

    Args:
        model: on the CPU.
        tokens: `(B, T + 1)`: T characters to read, then the one that comes.
        lags: the number of steps to go back, less than T.

    Returns:
        `(lags + 1,)`, the geometric mean over the texts; entry 0 belongs to the character read last.
    """
    read, target = tokens[:, :-1], tokens[:, -1:]
    table = model.embedding.weight.detach()[read].flatten(0, 1).requires_grad_()  # each place has its own row
    places = torch.arange(read.numel()).view(read.shape)
    logits, _ = functional_call(model, {"embedding.weight": table}, (places,), tie_weights=False)
    number = logits[:, -1].log_softmax(-1).gather(1, target).sum()
    (gradient,) = torch.autograd.grad(number, table)
    norms = gradient.view(*read.shape, -1).norm(dim=-1)  # (B, T)
    return geometric_mean(norms.flip(1)[:, : lags + 1])


def geometric_mean(norms: Tensor) -> Tensor:
    """Compute the geometric mean over the first dimension, the typical value of numbers that differ by factors."""
    return norms.log().mean(0).exp()


@torch.no_grad()
def context_losses(model: CharModel, tokens: Tensor, contexts: Iterable[int]) -> dict[int, Tensor]:
    """Compute the losses of predicting the last token of each row from only the `k` tokens before it.

    Args:
        model: on the CPU.
        tokens: `(B, T + 1)`.
        contexts: each k, 1 to T. Every k predicts the same B tokens.

    Returns:
        Nats per token, `(B,)` for each k. The rows are paired, so compare two of them with `paired_difference`.
    """
    losses = {}
    for k in contexts:
        logits, _ = model(tokens[:, -k - 1 : -1])  # starts with an empty memory
        losses[k] = F.cross_entropy(logits[:, -1], tokens[:, -1], reduction="none")
    return losses


def paired_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Compute the mean of `first - second` `(B,)` and its standard error; B is at least 2."""
    difference = first - second
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


# -------------------------------------------------------------------------------------------------------- delayed copy


@torch.no_grad()
def copied_share(model: CharModel, corpus: Corpus, delay: int, width: int, streams: int = 10) -> float:
    """Compute the share of letters after the delay that a network recalls, if it may only choose a letter.

    Args:
        model: on the CPU.
        corpus: whole lines of `synthetic.copy`, a multiple of `streams`.
        delay: the number of dots between the letters and their copy.
        width: the number of letters to remember.
        streams: the number of parallel streams, read from empty memories; their first lines do not count.
    """
    tokens = torch.as_tensor(corpus.tokens.astype(np.int64)).view(streams, -1)
    logits, _ = model(tokens)
    letters = torch.tensor([corpus.tokenizer.decode([token]).isalpha() for token in range(model.vocab_size)])
    named = logits.masked_fill(~letters, -torch.inf).argmax(-1).roll(1, dims=1)  # (B, T), beside what came
    right = (named == tokens).view(streams, -1, 2 * width + delay + 1)
    return right[:, 1:, width + delay : -1].float().mean().item()
