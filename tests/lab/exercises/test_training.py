"""The exercises of notebook 05, answered as learners would."""

import math

import pytest
import torch
import torch.nn.functional as F

from charrnn.lab.exercises import check
from tests.lab.exercises.test_exercises import assert_judged

# ---------------------------------------------------------------------------------------------------------- one_window


def cut(state):
    return state.detach() if isinstance(state, torch.Tensor) else tuple(cut(part) for part in state)


def mean_loss(logits, targets):
    return F.cross_entropy(logits.transpose(1, 2), targets)


def window_right(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return mean_loss(logits, targets), cut(state)


def window_by_log_p(model, inputs, targets, state):
    logits, state = model(inputs, state)
    log_p = torch.log_softmax(logits, dim=-1)
    return -log_p.gather(-1, targets.unsqueeze(-1)).mean(), cut(state)


def window_not_detached(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return mean_loss(logits, targets), state


def window_without_state(model, inputs, targets, state):
    logits, state = model(inputs)
    return mean_loss(logits, targets), cut(state)


def window_old_state(model, inputs, targets, state):
    logits, _ = model(inputs, state)
    return mean_loss(logits, targets), state


def window_sum(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return mean_loss(logits, targets) * targets.numel(), cut(state)


def window_last_only(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return F.cross_entropy(logits[:, -1, :], targets[:, -1]), cut(state)


def window_misaligned(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets.flatten()), cut(state)


def window_item(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return mean_loss(logits, targets).item(), cut(state)


def window_mean_over_streams(model, inputs, targets, state):
    logits, state = model(inputs, state)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.sum(1).mean(), cut(state)


def window_vocabulary_last(model, inputs, targets, state):
    logits, state = model(inputs, state)
    return F.cross_entropy(logits, targets), cut(state)


# ----------------------------------------------------------------------------------------------------- cosine_schedule


def cosine_right(share, warmup, hold):
    if share < warmup:
        return 0.1 + 0.9 * (share / warmup)
    if share < warmup + hold:
        return 1
    done = (share - warmup - hold) / (1 - warmup - hold)
    return (math.cos(done * math.pi) + 1) / 2


def cosine_from_nothing(share, warmup, hold):
    return share / warmup if share < warmup else cosine_right(share, warmup, hold)


def cosine_without_hold(share, warmup, hold):
    return cosine_right(share, warmup, 0.0)


def cosine_hold_from_the_start(share, warmup, hold):
    if share < warmup:
        return 0.1 + 0.9 * (share / warmup)
    if share < hold:
        return 1.0
    start = max(hold, warmup)
    return (math.cos((share - start) / (1 - start) * math.pi) + 1) / 2


def cosine_not_to_the_end(share, warmup, hold):
    if share < warmup + hold:
        return cosine_right(share, warmup, hold)
    return (math.cos((share - warmup - hold) * math.pi) + 1) / 2


def cosine_quarter(share, warmup, hold):
    if share < warmup + hold:
        return cosine_right(share, warmup, hold)
    return math.cos((share - warmup - hold) / (1 - warmup - hold) * math.pi / 2)


def cosine_linear(share, warmup, hold):
    if share < warmup + hold:
        return cosine_right(share, warmup, hold)
    return (1 - share) / (1 - warmup - hold)


def cosine_upside_down(share, warmup, hold):
    if share <= warmup + hold:
        return cosine_right(share, warmup, hold)
    return 1 - cosine_right(share, warmup, hold)


# ----------------------------------------------------------------------------------------------------------------- ema


def ema_right(mean, weights, step, decay):
    kept = min(decay, (1 + step) / (10 + step))
    return [old + (1 - kept) * (new - old) for old, new in zip(mean, weights, strict=True)]


def ema_in_place(mean, weights, step, decay):
    for old, new in zip(mean, weights, strict=True):
        old.lerp_(new, 1 - min(decay, (1 + step) / (10 + step)))
    return mean


def ema_swapped(mean, weights, step, decay):
    kept = min(decay, (1 + step) / (10 + step))
    return [kept * new + (1 - kept) * old for old, new in zip(mean, weights, strict=True)]


def ema_without_start(mean, weights, step, decay):
    return [decay * old + (1 - decay) * new for old, new in zip(mean, weights, strict=True)]


def ema_max(mean, weights, step, decay):
    kept = max(decay, (step + 1) / (step + 10))
    return [kept * old + (1 - kept) * new for old, new in zip(mean, weights, strict=True)]


def ema_without_decay(mean, weights, step, decay):
    kept = (step + 1) / (step + 10)
    return [kept * old + (1 - kept) * new for old, new in zip(mean, weights, strict=True)]


def ema_growing(mean, weights, step, decay):
    kept = min(decay, (1 + step) / (10 + step))
    return [kept * old + new for old, new in zip(mean, weights, strict=True)]


# ------------------------------------------------------------------------------------------------------- smoothed_loss


def smooth_by_torch(logits, targets, epsilon):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=epsilon)


def smooth_by_targets(logits, targets, epsilon):
    size = logits.shape[-1]
    soft = F.one_hot(targets, size) * (1 - epsilon) + epsilon / size
    return -(soft * torch.log_softmax(logits, dim=2)).sum(-1).mean()


def smooth_others_only(logits, targets, epsilon):
    size = logits.shape[-1]
    right = F.one_hot(targets, size)
    soft = right * (1 - epsilon) + (1 - right) * epsilon / (size - 1)
    return -(soft * torch.log_softmax(logits, dim=2)).sum(-1).mean()


def smooth_too_much(logits, targets, epsilon):
    soft = F.one_hot(targets, logits.shape[-1]) * (1 - epsilon) + epsilon
    return -(soft * torch.log_softmax(logits, dim=2)).sum(-1).mean()


def smooth_keeping_all(logits, targets, epsilon):
    return F.cross_entropy(logits.transpose(1, 2), targets) - epsilon * logits.log_softmax(2).mean()


def smooth_not(logits, targets, epsilon):
    return F.cross_entropy(logits.transpose(1, 2), targets)


def smooth_sum(logits, targets, epsilon):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=epsilon, reduction="sum")


def smooth_logits(logits, targets, epsilon):
    right = logits.gather(2, targets.unsqueeze(2)).squeeze(2)
    return -((1 - epsilon) * right + epsilon * logits.mean(2)).mean()


def smooth_wrong_axis(logits, targets, epsilon):
    log_p = torch.log_softmax(logits, dim=1)
    right = log_p.gather(2, targets.unsqueeze(2)).squeeze(2)
    return -((1 - epsilon) * right + epsilon * log_p.mean(2)).mean()


def smooth_mean_over_streams(logits, targets, epsilon):
    losses = F.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=epsilon, reduction="none")
    return losses.sum(dim=1).mean()


def smooth_vocabulary_last(logits, targets, epsilon):
    return F.cross_entropy(logits, targets, label_smoothing=epsilon)


# ------------------------------------------------------------------------------------------------------ muon_direction


def direction_by_svd(gradient):
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    return left @ right


def direction_by_root(gradient):
    tall = gradient if gradient.shape[0] >= gradient.shape[1] else gradient.T
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    result = tall @ vectors @ torch.diag(values**-0.5) @ vectors.T
    return result if tall is gradient else result.T


def direction_scaled(gradient):
    return gradient / (gradient**2).sum().sqrt()


def direction_by_largest(gradient):
    return gradient / torch.linalg.svdvals(gradient).max()


def direction_signs(gradient):
    return (gradient > 0).double() - (gradient < 0).double()


def direction_rows(gradient):
    return F.normalize(gradient, dim=1)


def direction_columns(gradient):
    return F.normalize(gradient, dim=0)


def direction_v_transposed(gradient):
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    return torch.matmul(left, right.T)


def direction_inverse(gradient):
    return torch.linalg.pinv(gradient).T


ANSWERS = {
    "one_window": (
        [window_right, window_by_log_p],
        [
            window_not_detached,
            window_without_state,
            window_old_state,
            window_sum,
            window_last_only,
            window_misaligned,
            window_item,
            window_mean_over_streams,
            window_vocabulary_last,
        ],
    ),
    "cosine_schedule": (
        [cosine_right],
        [
            cosine_from_nothing,
            cosine_without_hold,
            cosine_hold_from_the_start,
            cosine_not_to_the_end,
            cosine_quarter,
            cosine_linear,
            cosine_upside_down,
        ],
    ),
    "ema": ([ema_right, ema_in_place], [ema_swapped, ema_without_start, ema_max, ema_without_decay, ema_growing]),
    "smoothed_loss": (
        [smooth_by_torch, smooth_by_targets],
        [
            smooth_others_only,
            smooth_too_much,
            smooth_keeping_all,
            smooth_not,
            smooth_sum,
            smooth_logits,
            smooth_wrong_axis,
            smooth_mean_over_streams,
            smooth_vocabulary_last,
        ],
    ),
    "muon_direction": (
        [direction_by_svd, direction_by_root],
        [
            direction_scaled,
            direction_by_largest,
            direction_signs,
            direction_rows,
            direction_columns,
            direction_inverse,
            direction_v_transposed,
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_judged(name):
    assert_judged(name, *ANSWERS[name])


def test_a_loss_for_each_place_is_told():
    verdict = check(
        "one_window",
        lambda model, inputs, targets, state: (
            F.cross_entropy(model(inputs, state)[0].transpose(1, 2), targets, reduction="none"),
            state,
        ),
    )
    assert not verdict.passed
    assert "expected one number as the loss, got a tensor (3, 3)" in verdict.message
