"""The exercises of notebook 03, answered as learners would."""

import pytest
import torch

from charrnn.lab.exercises import check
from tests.lab.exercises.test_exercises import assert_judged

# -------------------------------------------------------------------------------------------------- state_jacobian


def jacobian_right(weight_hh, h):
    return torch.diag(1 - h * h) @ weight_hh


def jacobian_by_torch(weight_hh, h):
    before = torch.linalg.solve(weight_hh, torch.atanh(h))
    return torch.func.jacrev(lambda state: torch.tanh(weight_hh @ state))(before)


def jacobian_without_tanh(weight_hh, h):
    return weight_hh.clone()


def jacobian_transposed(weight_hh, h):
    return weight_hh.T @ torch.diag(1 - h * h)


def jacobian_diag_on_the_right(weight_hh, h):
    return weight_hh @ torch.diag(1 - h * h)


def jacobian_tanh_twice(weight_hh, h):
    return torch.diag(1 - torch.tanh(h).square()) @ weight_hh


def jacobian_not_squared(weight_hh, h):
    return torch.diag(1 - h) @ weight_hh


# ----------------------------------------------------------------------------------------------------- with_radius


def radius_right(weight, radius):
    eigenvalues = torch.linalg.eigvals(weight)
    largest = max(abs(value) for value in eigenvalues.tolist())
    return weight / largest * radius


def radius_singular(weight, radius):
    return weight / torch.linalg.svdvals(weight)[0] * radius


def radius_frobenius(weight, radius):
    return radius * weight / weight.pow(2).sum().sqrt()


def radius_real_part(weight, radius):
    return weight / max(value.real for value in torch.linalg.eigvals(weight).tolist()) * radius


def radius_forgotten(weight, radius):
    return weight / torch.linalg.eigvals(weight).abs().max()


def radius_not_divided(weight, radius):
    return radius * weight


# -------------------------------------------------------------------------------------------------- clip_gradients


def clip_right(gradients, max_norm):
    total = sum((g**2).sum() for g in gradients) ** 0.5
    factor = max_norm / total if total > max_norm else 1.0
    return [g * factor for g in gradients]


def clip_by_torch(gradients, max_norm):
    parameters = [torch.zeros_like(g) for g in gradients]
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return tuple(parameter.grad for parameter in parameters)


def clip_each(gradients, max_norm):
    return [g * (max_norm / g.norm()) if g.norm() > max_norm else g for g in gradients]


def clip_entries(gradients, max_norm):
    return [torch.clamp(g, min=-max_norm, max=max_norm) for g in gradients]


def clip_always(gradients, max_norm):
    total = sum((g**2).sum() for g in gradients) ** 0.5
    return [g * max_norm / total for g in gradients]


def clip_sum_of_norms(gradients, max_norm):
    total = sum(g.norm() for g in gradients)
    return [g * max_norm / total if total > max_norm else g for g in gradients]


def clip_to_one(gradients, max_norm):
    total = sum((g**2).sum() for g in gradients) ** 0.5
    return [g / total if total > max_norm else g for g in gradients]


# ---------------------------------------------------------------------------------------------- truncated_gradient


def truncated(weight_hh, inputs, window, begin=lambda h: h.detach(), each=lambda h: h):
    h, gradient = torch.zeros(inputs.shape[1], dtype=inputs.dtype), 0
    for start in range(0, len(inputs), window):
        h, loss = begin(h), 0
        for x in inputs[start : start + window]:
            h = torch.tanh(weight_hh @ each(h) + x)
            loss = loss + (h**2).sum()
        gradient = gradient + torch.autograd.grad(loss, weight_hh, retain_graph=True)[0]
    return gradient


def truncated_with_backward(weight_hh, inputs, window):
    h, loss = torch.zeros(inputs.shape[1], dtype=inputs.dtype), 0
    for t, x in enumerate(inputs):
        if t % window == 0:
            h = h.detach()
        h = torch.tanh(weight_hh @ h + x)
        loss = loss + (h**2).sum()
    loss.backward()
    return weight_hh.grad


def not_detached(weight_hh, inputs, window):
    return truncated(weight_hh, inputs, window, begin=lambda h: h)


def reset(weight_hh, inputs, window):
    return truncated(weight_hh, inputs, window, begin=lambda h: torch.zeros_like(h))


def detached_at_every_step(weight_hh, inputs, window):
    return truncated(weight_hh, inputs, window, each=lambda h: h.detach())


def overwritten(weight_hh, inputs, window):
    h = torch.zeros(inputs.shape[1], dtype=inputs.dtype)
    for part in inputs.split(window):
        h, loss, weight_hh.grad = h.detach(), 0, None
        for x in part:
            h = torch.tanh(weight_hh @ h + x)
            loss = loss + (h**2).sum()
        loss.backward()
    return weight_hh.grad


# -------------------------------------------------------------------------------------------------- memory_horizon


def horizon_right(losses, margin):
    for k in sorted(losses):
        if losses[k] - losses[max(losses)] <= margin:
            return k


def horizon_first_plateau(losses, margin):
    previous = None
    for k in sorted(losses):
        if previous is not None and losses[previous] - losses[k] <= margin:
            return previous
        previous = k
    return previous


def horizon_index(losses, margin):
    values = [losses[k] for k in sorted(losses)]
    return next(i for i, value in enumerate(values) if value <= values[-1] + margin)


def horizon_relative(losses, margin):
    for k in sorted(losses):
        if losses[k] / losses[max(losses)] - 1 <= margin:
            return k


def horizon_last_in_the_dictionary(losses, margin):
    longest = list(losses)[-1]
    return min(k for k, loss in losses.items() if loss <= losses[longest] + margin)


def horizon_one_too_short(losses, margin):
    answer = None
    for k in sorted(losses):
        if losses[k] > losses[max(losses)] + margin:
            answer = k
    return answer


def horizon_below_the_least(losses, margin):
    return next(k for k in sorted(losses) if losses[k] <= min(losses.values()) + margin)


def horizon_from_above(losses, margin):
    answer = max(losses)
    for k in sorted(losses)[::-1]:
        if losses[k] - losses[max(losses)] > margin:
            return answer
        answer = k
    return answer


def horizon_strictly(losses, margin):
    return next(k for k in sorted(losses) if losses[k] - losses[max(losses)] < margin)


def horizon_either_side(losses, margin):
    return next(k for k in sorted(losses) if abs(losses[k] - losses[max(losses)]) <= margin)


ANSWERS = {
    "state_jacobian": (
        [jacobian_right, jacobian_by_torch],
        [
            jacobian_without_tanh,
            jacobian_transposed,
            jacobian_diag_on_the_right,
            jacobian_tanh_twice,
            jacobian_not_squared,
        ],
    ),
    "with_radius": (
        [radius_right],
        [radius_singular, radius_frobenius, radius_real_part, radius_forgotten, radius_not_divided],
    ),
    "clip_gradients": (
        [clip_right, clip_by_torch],
        [clip_each, clip_entries, clip_always, clip_sum_of_norms, clip_to_one],
    ),
    "truncated_gradient": (
        [truncated, truncated_with_backward],
        [not_detached, reset, detached_at_every_step, overwritten],
    ),
    "memory_horizon": (
        [horizon_right],
        [
            horizon_first_plateau,
            horizon_index,
            horizon_relative,
            horizon_last_in_the_dictionary,
            horizon_one_too_short,
            horizon_below_the_least,
            horizon_from_above,
            horizon_strictly,
            horizon_either_side,
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_judged(name):
    assert_judged(name, *ANSWERS[name])


def test_a_loss_cut_from_the_graph_is_told():
    def answer(weight_hh, inputs, window):
        h = torch.tanh(inputs[0])
        return torch.autograd.grad((h**2).sum().detach(), weight_hh)[0]

    verdict = check("truncated_gradient", answer)
    assert not verdict.passed
    assert "RuntimeError" in verdict.message
