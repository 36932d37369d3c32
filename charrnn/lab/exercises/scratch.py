"""Exercises of notebook 02: an RNN from scratch.

    B  streams     T  tokens of a window     H  hidden_size     V  vocab_size

All numbers are float64. Sizes that a mistake could mix up are equal on purpose: a function that forgets to transpose
has to run to its end before its mistake can be named.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.config import ModelConfig
from charrnn.lab.exercises.exercise import Exercise, randn
from charrnn.models.build import build_model
from charrnn.models.recurrent import CharModel
from charrnn.models.state import detach_state


def _transposed(function: Callable[..., Any], *places: int) -> Callable[..., Any]:
    """Make a function that transposes some of its arguments, which are square matrices."""

    def mistaken(*arguments: Tensor) -> Any:
        return function(*(each.T if i in places else each for i, each in enumerate(arguments)))

    return mistaken


# --------------------------------------------------------------------------------------------------------- one step


def rnn_step(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """Compute the next h of Elman (1990), `(B, H)`."""
    return torch.tanh(_activation(x, h, weight_ih, weight_hh, bias_ih, bias_hh))


def _activation(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    return x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh


def _step_cases() -> list[tuple[Tensor, ...]]:
    """Make x, h, both weights, both biases: `I = H`, so that a matrix and its transpose have the same shape."""
    return [
        randn((B, H), (B, H), (H, H), (H, H), (H,), (H,), seed=seed, scale=0.5) for seed, B, H in [(0, 3, 4), (1, 1, 5)]
    ]


RNN_STEP = Exercise(
    task="Take x (B, I), h (B, H), weight_ih (H, I), weight_hh (H, H), "
    "bias_ih and bias_hh (H,). Return the next h (B, H).",
    solution=rnn_step,
    mistakes={
        "your numbers leave the range from -1 to 1. Something must squash the sum before it becomes the new state.": (
            _activation
        ),
        "your numbers are all positive. A squashing function is right, but this state can be negative.": (
            lambda *arguments: torch.sigmoid(_activation(*arguments))
        ),
        "one of your arguments makes no difference to your result: bias_ih.": (
            lambda x, h, weight_ih, weight_hh, bias_ih, bias_hh: torch.tanh(x @ weight_ih.T + h @ weight_hh.T + bias_hh)
        ),
        "one of your arguments makes no difference to your result: bias_hh.": (
            lambda x, h, weight_ih, weight_hh, bias_ih, bias_hh: torch.tanh(x @ weight_ih.T + bias_ih + h @ weight_hh.T)
        ),
        "two of your arguments make no difference to your result: the biases.": (
            lambda x, h, weight_ih, weight_hh, bias_ih, bias_hh: torch.tanh(x @ weight_ih.T + h @ weight_hh.T)
        ),
        "weight_ih is (H, I): units by inputs. In the product with x, I has to meet I. Yours runs only because "
        "H = I here.": (_transposed(rnn_step, 2)),
        "weight_hh is (H, H): its rows are the new units, its columns the old ones. Your product uses it the other "
        "way round.": _transposed(rnn_step, 3),
        "both weights are used the wrong way round: (H, I) is units by inputs, and a state is a row of (B, H).": (
            _transposed(rnn_step, 2, 3)
        ),
        "you squash the input's part and the state's part separately. Add them first, then squash once.": (
            lambda x, h, weight_ih, weight_hh, bias_ih, bias_hh: (
                torch.tanh(x @ weight_ih.T + bias_ih) + torch.tanh(h @ weight_hh.T + bias_hh)
            )
        ),
    },
    cases=_step_cases,
)


# ------------------------------------------------------------------------------------------------------ the sequence


def rnn_forward(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the state after every step `(B, T, H)`, and after the last `(B, H)`."""
    steps = _steps(inputs, h, *weights)
    return torch.stack(steps, dim=1), steps[-1]


def _steps(inputs: Tensor, h: Tensor, *weights: Tensor) -> list[Tensor]:
    steps = []
    for x in inputs.unbind(dim=1):  # (B, I)
        h = rnn_step(x, h, *weights)
        steps.append(h)
    return steps


def _stacked(join: Callable[[list[Tensor]], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make a function that goes through the sequence correctly, then joins the steps with `join`."""

    def mistaken(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        steps = _steps(inputs, h, *weights)
        return join(steps), steps[-1]

    return mistaken


def _never_carried(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    steps = [rnn_step(x, h, *weights) for x in inputs.unbind(dim=1)]
    return torch.stack(steps, dim=1), steps[-1]


def _before_each(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    steps = _steps(inputs, h, *weights)
    return torch.stack([h, *steps[:-1]], dim=1), steps[-1]


def _along_streams(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    steps = _steps(inputs.transpose(0, 1), h, *weights)
    return torch.stack(steps), steps[-1]


def _along_streams_stacked(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return rnn_forward(inputs.transpose(0, 1), h, *weights)


def _old_state_last(inputs: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return rnn_forward(inputs, h, *weights)[0], h


def _forward_cases() -> list[tuple[Tensor, ...]]:
    """Make inputs, h, weights and biases: `B = T`, so that a loop over the wrong axis runs."""
    shapes = [(4, 4, 3), (4, 5), (5, 3), (5, 5), (5,), (5,)]
    return [randn(*shapes, seed=seed, scale=0.7) for seed in (2, 3)]


RNN_FORWARD = Exercise(
    task="Take inputs (B, T, I), h (B, H), weight_ih, weight_hh, bias_ih, bias_hh; "
    "return h after every step (B, T, H) and h after the last (B, H).",
    solution=rnn_forward,
    mistakes={
        "all your steps start from the same state. Each step has to start from the result of the step before.": (
            _never_carried
        ),
        "the steps of a stream are joined into one long row. They need an axis of their own: "
        "one function makes a new axis, and another does not.": _stacked(lambda steps: torch.cat(steps, dim=1)),
        "the steps of all streams are joined along the axis of the streams. They need an axis of their own.": _stacked(
            torch.cat
        ),
        "your result has time first, (T, B, H); here streams come first, (B, T, H). The shape does not show it, "
        "because B = T.": _stacked(torch.stack),
        "you loop over the streams, as if the first axis were time. One step reads one character of every stream.": (
            _along_streams_stacked
        ),
        "you loop over the first axis and stack along it, so the streams are read as if they were time steps.": (
            _along_streams
        ),
        "you return the state before each step, h_0 to h_{T-1}. Return h_1 to h_T.": _before_each,
        "your second result is the initial state, not the last one.": _old_state_last,
        "the state that you are given makes no difference: your function always starts from zeros.": (
            lambda inputs, h, *weights: rnn_forward(inputs, torch.zeros_like(h), *weights)
        ),
    },
    cases=_forward_cases,
)


# ---------------------------------------------------------------------------------------------------------- the loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean nats per token of logits `(B, T, V)`; subtracting the largest logit first avoids overflow."""
    return -_log_softmax(logits).gather(-1, targets[..., None]).mean()


def _log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    shifted = logits - logits.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _overflowing(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.exp().sum(-1).log() - logits.gather(-1, targets[..., None])[..., 0]).mean()


def _loss_cases() -> list[tuple[Tensor, Tensor]]:
    """Make logits and targets, `T = V`; the last logits are large."""
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(5, (3, 5), generator=generator)
    return [(randn((3, 5, 5), seed=seed, scale=scale)[0], targets) for seed, scale in [(5, 1.0), (6, 3.0), (7, 1000.0)]]


def _finite_or_nan(loss: Any, *arguments: Tensor) -> Any:
    """Replace inf by nan, because both mean that the numbers were too large."""
    return torch.where(loss.isfinite(), loss, torch.nan) if isinstance(loss, Tensor) else loss


CROSS_ENTROPY = Exercise(
    task="Take logits (B, T, V) and targets (B, T); return the mean loss in nats per token, a tensor with shape ().",
    solution=cross_entropy,
    mistakes={
        "correct while logits are small, but at 1000 it is inf or nan: exp overflows, or you take the logarithm of "
        "a number rounded to 0. Subtract the largest logit of each row; the probabilities stay the same.": _overflowing,
        "that is the sum over all tokens; the loss must not depend on the number of tokens in a window.": (
            lambda logits, targets: cross_entropy(logits, targets) * targets.numel()
        ),
        "you sum over the time steps and average over the streams only.": (
            lambda logits, targets: cross_entropy(logits, targets) * targets.shape[1]
        ),
        "the sign is wrong: a loss is never negative, and it is small if the right token is likely.": (
            lambda logits, targets: -cross_entropy(logits, targets)
        ),
        "those are bits; the loss has to be in nats.": lambda logits, targets: cross_entropy(logits, targets) / _LN_2,
        "your probabilities sum to 1 over the time steps. They have to sum to 1 over the vocabulary, the last axis, "
        "for each token.": (lambda logits, targets: -_log_softmax(logits, dim=1).gather(-1, targets[..., None]).mean()),
        "F.cross_entropy expects the vocabulary on the second axis, where your time steps are; it runs only because "
        "T = V. Flatten logits to (B T, V), or transpose them to (B, V, T).": (
            lambda logits, targets: F.cross_entropy(logits, targets)
        ),
        "that is the mean over the whole vocabulary. Only the token that came counts, and the targets name it.": (
            lambda logits, targets: -_log_softmax(logits).mean()
        ),
    },
    cases=_loss_cases,
    probe=_finite_or_nan,
)
_LN_2 = torch.tensor(2.0, dtype=torch.float64).log()


# ------------------------------------------------------------------------------------- backpropagation through time


def rnn_backward(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the pre-activations `(B, T, H)` and of weight_hh `(H, H)`."""
    grad_a = _grad_activations(grad_outputs, states, weight_hh)
    return grad_a, _grad_weight(grad_a, states[:, :-1])


def _grad_activations(
    grad_outputs: Tensor, states: Tensor, weight_hh: Tensor, carry: float = 1.0, shift: int = 1
) -> Tensor:
    """Loop from the last step to the first; `carry` scales the gradient from the next step, `shift` 0 uses h_{t-1}."""
    steps = [torch.empty(0)] * grad_outputs.shape[1]
    carried = torch.zeros_like(states[:, 0])
    for t in reversed(range(len(steps))):
        steps[t] = (grad_outputs[:, t] + carry * carried) * (1 - states[:, t + shift] ** 2)
        carried = steps[t] @ weight_hh
    return torch.stack(steps, dim=1)


def _grad_weight(grad_a: Tensor, states: Tensor) -> Tensor:
    return torch.einsum("bti,btj->ij", grad_a, states)


def _backward_with(**changes: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def mistaken(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        grad_a = _grad_activations(grad_outputs, states, weight_hh, **changes)
        return grad_a, _grad_weight(grad_a, states[:, :-1])

    return mistaken


def _without_slope(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    flat = torch.cat([states[:, :1], torch.zeros_like(states[:, 1:])], dim=1)
    grad_a = _grad_activations(grad_outputs, flat, weight_hh)
    return grad_a, _grad_weight(grad_a, states[:, :-1])


def _carried_before_slope(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    steps, carried = [], torch.zeros_like(states[:, 0])
    for t in reversed(range(grad_outputs.shape[1])):
        grad_h = grad_outputs[:, t] + carried
        steps.insert(0, grad_h * (1 - states[:, t + 1] ** 2))
        carried = grad_h @ weight_hh
    grad_a = torch.stack(steps, dim=1)
    return grad_a, _grad_weight(grad_a, states[:, :-1])


def _forward_in_time(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    steps, carried = [], torch.zeros_like(states[:, 0])
    for t in range(grad_outputs.shape[1]):
        steps.append((grad_outputs[:, t] + carried) * (1 - states[:, t + 1] ** 2))
        carried = steps[-1] @ weight_hh
    grad_a = torch.stack(steps, dim=1)
    return grad_a, _grad_weight(grad_a, states[:, :-1])


def _grad_h(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> Tensor:
    """Compute the gradient of h after each step, `(B, T, H)`."""
    grad_a = _grad_activations(grad_outputs, states, weight_hh)
    from_next = torch.cat([grad_a[:, 1:] @ weight_hh, torch.zeros_like(grad_a[:, :1])], dim=1)
    return grad_outputs + from_next


def _grad_h_first(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    return _grad_h(grad_outputs, states, weight_hh), rnn_backward(grad_outputs, states, weight_hh)[1]


def _grad_h_for_both(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    grad_h = _grad_h(grad_outputs, states, weight_hh)
    return grad_h, _grad_weight(grad_h, states[:, :-1])


def _weight_from(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make a function with correct pre-activations and another gradient of the weight."""

    def mistaken(grad_outputs: Tensor, states: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        grad_a = _grad_activations(grad_outputs, states, weight_hh)
        return grad_a, change(grad_a, states)

    return mistaken


def _backward_cases() -> list[tuple[Tensor, ...]]:
    """Make the gradients from the losses, h_0 to h_T, and weight_hh."""
    cases = []
    for seed in (8, 9):
        grad_outputs, raw, weight_hh = randn((2, 4, 3), (2, 5, 3), (3, 3), seed=seed)
        cases.append((grad_outputs, raw.tanh(), weight_hh))
    return cases


RNN_BACKWARD = Exercise(
    task="Take grad_outputs (B, T, H), the gradient of each h from the loss of its own step; "
    "states (B, T + 1, H), h_0 to h_T; and weight_hh (H, H). "
    "Return the gradients of the pre-activations (B, T, H) and of weight_hh (H, H).",
    solution=rnn_backward,
    mistakes={
        "only the last step's pre-activations are right. Every other h also affects the steps after it, and their "
        "gradients have to come back.": _backward_with(carry=0.0),
        "you pass the gradient through the tanh unchanged. The slope is 1 - tanh², and h is the tanh.": _without_slope,
        "you take the slope of the tanh at the state before the step. states begins with h_0, so where is h_t?": (
            _backward_with(shift=0)
        ),
        "you carry back the gradient of h. On its way to the step before, it has to pass the tanh, and then "
        "weight_hh.": _carried_before_slope,
        "you loop forward in time. The gradient of a step needs the gradient of the step after it.": _forward_in_time,
        "you carry the gradient back through weight_hh the wrong way. The forward product is h @ weight_hh.T, so the "
        "backward product has no transpose.": _transposed(rnn_backward, 2),
        "the pre-activations are right, weight_hh is not: it was multiplied by the state before the step, and you use "
        "the state after it.": _weight_from(lambda grad_a, states: _grad_weight(grad_a, states[:, 1:])),
        "the pre-activations are right, but your gradient of weight_hh is transposed: its rows are new units, and its "
        "columns are old ones.": _weight_from(lambda grad_a, states: _grad_weight(grad_a, states[:, :-1]).T),
        "the pre-activations are right, but weight_hh acts in every step, and you count only one of them.": (
            _weight_from(lambda grad_a, states: _grad_weight(grad_a[:, -1:], states[:, -2:-1]))
        ),
        "your first result is the gradient of h after each step; the pre-activations come before the tanh, so its "
        "slope is missing. weight_hh is right.": _grad_h_first,
        "you return the gradients of h and compute weight_hh from them. Both need the pre-activations: apply the slope "
        "of the tanh first.": _grad_h_for_both,
        "the pre-activations are right, but your gradient of weight_hh is a mean over the streams. It is a sum over "
        "streams and steps.": (_weight_from(lambda grad_a, states: _grad_weight(grad_a, states[:, :-1]) / len(states))),
        "the pre-activations are right, but your gradient of weight_hh is a mean. The gradient of a weight that is "
        "used many times is a sum over its uses.": (
            _weight_from(lambda grad_a, states: _grad_weight(grad_a, states[:, :-1]) / grad_a[..., 0].numel())
        ),
    },
    cases=_backward_cases,
)


# ------------------------------------------------------------------------------------------------ successive windows


def window_losses(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
    """Compute the loss of each window of `tokens` `(B, N)`; the state is carried between windows, gradients are not."""
    return _windows(model, tokens, seq_length, detach_state)


def _windows(
    model: CharModel,
    tokens: Tensor,
    seq_length: int,
    carry: Callable[[Any], Any],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[Tensor]:
    """Compute the losses; `carry` turns the state after a window into the start of the next one."""
    losses, state = [], None
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for read, come in zip(inputs.split(seq_length, dim=1), targets.split(seq_length, dim=1), strict=True):
        logits, state = model(read, state)
        losses.append(loss(logits.flatten(0, 1), come.flatten()))
        state = carry(state)
    return losses


def _windows_with(**changes: Any) -> Callable[..., list[Tensor]]:
    def mistaken(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
        return _windows(model, tokens, seq_length, **({"carry": detach_state} | changes))

    return mistaken


def _reads_each_twice(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
    """Predict the token that was just read."""
    losses, state = [], None
    for part in tokens[:, :-1].split(seq_length, dim=1):
        logits, state = model(part, state)
        losses.append(F.cross_entropy(logits.flatten(0, 1), part.flatten()))
        state = detach_state(state)
    return losses


def _shifts_in_each_window(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
    """Cut first and shift afterwards, so that the last token of each window has no target."""
    losses, state = [], None
    for part in tokens[:, :-1].split(seq_length, dim=1):
        if part.shape[1] > 1:
            logits, state = model(part[:, :-1], state)
            losses.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()))
            state = detach_state(state)
    return losses


def _without_gradients(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
    with torch.no_grad():
        return window_losses(model, tokens, seq_length)


def _drops_the_rest(model: CharModel, tokens: Tensor, seq_length: int) -> list[Tensor]:
    return window_losses(model, tokens, seq_length)[: (tokens.shape[1] - 1) // seq_length]


def _window_cases() -> list[tuple[CharModel, Tensor, int]]:
    """Make a model, tokens and a seq_length that leaves a shorter window at the end."""
    model = build_model(ModelConfig(type="rnn", hidden_size=4, num_layers=1), vocab_size=5, seed=1).double()
    generator = torch.Generator().manual_seed(10)
    return [(model, torch.randint(5, (2, 12), generator=generator), seq_length) for seq_length in (3, 4)]


def _losses_and_gradients(
    returned: Any, model: CharModel, tokens: Tensor, seq_length: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Collect the losses and their gradients for weight_hh, which reveal a graph that reaches too far back."""
    losses = [torch.as_tensor(loss, dtype=torch.float64) for loss in returned]
    weight = dict(model.named_parameters())["layers.0.weight_hh_l0"]
    gradients = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0] if loss.requires_grad else torch.zeros_like(weight)
        for loss in losses
    ]
    return [loss.detach() for loss in losses], gradients


WINDOW_LOSSES = Exercise(
    task="Take a model, tokens (B, N) and seq_length; predict every token except the first, window by window, "
    "each starting from the state of the one before, with no gradient across the border. "
    "Return a list of their mean losses.",
    solution=window_losses,
    mistakes={
        "every loss is right, but its gradient reaches back into the windows before. Cut the state from its graph at "
        "the border; charrnn.models.state has a helper.": _windows_with(carry=lambda state: state),
        "each window starts with an empty memory. Pass on the state that the model returned.": (
            _windows_with(carry=lambda state: None)
        ),
        "every loss is right, but none has a gradient, so you could not train with them. Cut only the state between "
        "windows, and keep each loss as a tensor: no .item(), no no_grad.": _without_gradients,
        "the last window is missing: it may be shorter than the others, but it still has to be read.": _drops_the_rest,
        "the target of a token is the token after it; your targets are the tokens that the model has just read.": (
            _reads_each_twice
        ),
        "you cut first and shift afterwards, so the last token of each window is never read and some targets are "
        "missing. Shift the whole text, then cut both parts.": _shifts_in_each_window,
        "those are sums over the window; a mean does not depend on its length.": (
            _windows_with(loss=lambda logits, targets: F.cross_entropy(logits, targets, reduction="sum"))
        ),
    },
    cases=_window_cases,
    probe=_losses_and_gradients,
)

SCRATCH: dict[str, Exercise] = {
    "rnn_step": RNN_STEP,
    "rnn_forward": RNN_FORWARD,
    "cross_entropy": CROSS_ENTROPY,
    "rnn_backward": RNN_BACKWARD,
    "window_losses": WINDOW_LOSSES,
}
