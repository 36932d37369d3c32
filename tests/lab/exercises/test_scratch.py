"""The exercises of notebook 02, answered as learners would."""

import torch
import torch.nn.functional as F

from charrnn.lab.exercises import check
from charrnn.models import cells
from charrnn.models.state import map_state
from tests.lab.exercises.test_exercises import assert_judged


def test_rnn_step():
    def written_out(x, h, w_x, w_h, b_x, b_h):
        return ((w_x @ x.T).T + (w_h @ h.T).T + b_x + b_h).tanh()

    assert_judged(
        "rnn_step",
        right=[cells.rnn_cell, written_out, lambda x, h, *weights: torch.rnn_tanh_cell(x, h, *weights)],
        wrong=[
            lambda x, h, w_x, w_h, b_x, b_h: F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h),
            lambda x, h, w_x, w_h, b_x, b_h: 1 / (1 + torch.exp(-(x @ w_x.T + b_x + h @ w_h.T + b_h))),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(x @ w_x.T + F.linear(h, w_h, b_h)),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(F.linear(x, w_x, b_x) + h @ w_h.T),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(x @ w_x.T + h @ w_h.T),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(x @ w_x + h @ w_h.T + b_x + b_h),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(x @ w_x.T + h @ w_h + b_x + b_h),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(x @ w_x + h @ w_h + b_x + b_h),
            lambda x, h, w_x, w_h, b_x, b_h: torch.tanh(F.linear(x, w_x, b_x)) + torch.tanh(F.linear(h, w_h, b_h)),
        ],
    )


def collected(join, axis=1, carry=True, zeros=False, before=False, last=True):
    """A learner's loop over the sequence, with options for mistakes."""

    def answer(inputs, h, *weights):
        start = h
        if zeros:
            h = torch.zeros(len(inputs), h.shape[1]).double()
        states = []
        for t in range(inputs.shape[axis]):
            x = inputs[:, t] if axis == 1 else inputs[t]
            if before:
                states.append(h)
            new = cells.rnn_cell(x, h, *weights)
            if not before:
                states.append(new)
            if carry:
                h = new
        return join(states), new if last else start

    return answer


def test_rnn_forward():
    def filled(inputs, h, *weights):
        outputs = torch.zeros(*inputs.shape[:2], h.shape[1], dtype=h.dtype)
        for t in range(inputs.shape[1]):
            h = cells.rnn_cell(inputs[:, t], h, *weights)
            outputs[:, t] = h
        return [outputs, h]

    def by_stream(states):
        return torch.stack(states, 1)

    assert_judged(
        "rnn_forward",
        right=[filled, lambda *arguments: cells.unroll(cells.rnn_cell, *arguments), collected(by_stream)],
        wrong=[
            collected(by_stream, carry=False),
            collected(lambda states: torch.cat(states, dim=-1)),
            collected(torch.vstack),
            collected(torch.stack),
            collected(by_stream, axis=0),
            collected(torch.stack, axis=0),
            collected(by_stream, before=True),
            collected(by_stream, last=False),
            collected(by_stream, zeros=True),
        ],
    )


def picked(log_p, targets):
    rows, columns = torch.arange(log_p.shape[0]), torch.arange(log_p.shape[1])
    return log_p[rows[:, None], columns, targets]


def test_cross_entropy():
    def by_hand(logits, targets):
        top = logits.max(dim=2, keepdim=True).values
        return -picked(logits - top - torch.exp(logits - top).sum(2, keepdim=True).log(), targets).sum() / 15

    assert_judged(
        "cross_entropy",
        right=[
            by_hand,
            lambda logits, targets: F.cross_entropy(logits.transpose(1, 2), targets),
            lambda logits, targets: (torch.logsumexp(logits, -1) - picked(logits, targets)).mean(),
        ],
        wrong=[
            lambda logits, targets: -picked(torch.softmax(logits, -1).log(), targets).mean(),
            lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"),
            lambda logits, targets: -picked(logits.log_softmax(-1), targets).sum(1).mean(),
            lambda logits, targets: picked(logits.log_softmax(-1), targets).mean(),
            lambda logits, targets: (
                -(picked(logits.log_softmax(-1), targets) / torch.tensor(2.0).double().log()).mean()
            ),
            lambda logits, targets: -picked(logits.log_softmax(1), targets).mean(),
            lambda logits, targets: -logits.log_softmax(-1).mean(),
            F.cross_entropy,
        ],
    )


def test_a_loss_that_overflows_to_inf_or_nan_gets_the_same_hint():
    def infinite(logits, targets):
        return (logits.exp().sum(-1).log() - picked(logits, targets)).mean()

    def not_a_number(logits, targets):
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        return -picked(p, targets).log().mean()

    assert "overflows" in check("cross_entropy", infinite).message
    assert check("cross_entropy", infinite).message == check("cross_entropy", not_a_number).message


def backward(grad_outputs, states, w, weight=None, back=None, slope=None, carry=None, order=reversed):
    """A learner's backpropagation through time, with options for mistakes."""
    steps = range(grad_outputs.shape[1])
    grad_a, from_next = torch.zeros_like(grad_outputs), torch.zeros_like(grad_outputs[:, 0])
    for t in order(steps):
        grad_h = grad_outputs[:, t] + from_next
        grad_a[:, t] = grad_h * (1 - states[:, t + 1] ** 2 if slope is None else slope(states, t))
        from_next = (grad_a[:, t] if carry is None else carry(grad_h)) @ (w if back is None else back(w))
    right = sum(grad_a[:, t].T @ states[:, t] for t in steps)
    return grad_a, right if weight is None else weight(grad_a, states)


def state_gradients(grad_outputs, states, w):
    grad_a, grad_h = backward(grad_outputs, states, w)[0], grad_outputs.clone()
    for t in range(3):
        grad_h[:, t] += grad_a[:, t + 1] @ w
    return grad_h


def weight_from_state_gradients(grad_outputs, states, w):
    grad_h = state_gradients(grad_outputs, states, w)
    return grad_h, sum(grad_h[:, t].T @ states[:, t] for t in range(4))


def test_rnn_backward():
    def by_autograd(grad_outputs, states, w):
        total, carried = [], 0
        for t in range(grad_outputs.shape[1] - 1, -1, -1):
            total.append((grad_outputs[:, t] + carried) * (1 - states[:, t + 1].square()))
            carried = torch.autograd.functional.vjp(lambda h: h @ w.T, states[:, t], total[-1])[1]
        grad_a = torch.stack(total[::-1], dim=1)
        return grad_a, grad_a.flatten(0, 1).T @ states[:, :-1].flatten(0, 1)

    def wrong(**changes):
        return lambda grad_outputs, states, w: backward(grad_outputs, states, w, **changes)

    assert_judged(
        "rnn_backward",
        right=[backward, by_autograd],
        wrong=[
            wrong(carry=torch.zeros_like),
            wrong(slope=lambda states, t: 1),
            wrong(slope=lambda states, t: 1 - states[:, t] ** 2),
            wrong(carry=lambda grad_h: grad_h),
            wrong(order=list),
            wrong(back=lambda w: w.T),
            wrong(weight=lambda grad_a, states: sum(grad_a[:, t].T @ states[:, t + 1] for t in range(4))),
            wrong(weight=lambda grad_a, states: sum(states[:, t].T @ grad_a[:, t] for t in range(4))),
            wrong(weight=lambda grad_a, states: grad_a[:, 3].T @ states[:, 3]),
            wrong(weight=lambda grad_a, states: sum(grad_a[:, t].T @ states[:, t] for t in range(4)) / 8),
            wrong(weight=lambda grad_a, states: sum(grad_a[:, t].T @ states[:, t] for t in range(4)) / 2),
            lambda *arguments: (state_gradients(*arguments), backward(*arguments)[1]),
            weight_from_state_gradients,
        ],
    )


def windows(carry, cut=None, shift=1, reduction="mean", rest=True):
    """A learner's training loop without the update."""

    def answer(model, tokens, seq_length):
        losses, state, last = [], None, tokens.shape[1] - 1
        for begin in range(0, last, seq_length):
            end = min(begin + seq_length, last)
            if end - begin < seq_length and not rest:
                break
            inputs, targets = tokens[:, begin:end], tokens[:, begin + shift : end + shift]
            if cut:
                inputs, targets = cut(tokens[:, begin:end])
            logits, state = model(inputs, state)
            losses.append(F.cross_entropy(logits.transpose(1, 2), targets, reduction=reduction))
            state = carry(state)
        return losses

    return answer


def test_window_losses():
    def detached(state):
        return tuple(h.detach() for h in state)

    def without_gradients(*arguments):
        with torch.no_grad():
            return windows(detached)(*arguments)

    assert_judged(
        "window_losses",
        right=[windows(detached), windows(lambda state: map_state(lambda h: h.detach().clone(), state))],
        wrong=[
            windows(lambda state: state),
            windows(lambda state: None),
            without_gradients,
            windows(detached, rest=False),
            windows(detached, shift=0),
            windows(detached, cut=lambda part: (part[:, :-1], part[:, 1:])),
            windows(detached, reduction="sum"),
        ],
    )


def test_bare_numbers_get_the_hint_about_gradients():
    def items(model, tokens, seq_length):
        return [
            loss.item() for loss in windows(lambda state: tuple(h.detach() for h in state))(model, tokens, seq_length)
        ]

    assert "no .item()" in check("window_losses", items).message
    assert (
        "leave out .item()"
        in check("cross_entropy", lambda logits, targets: F.cross_entropy(logits.mT, targets).item()).message
    )
