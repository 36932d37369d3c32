"""The exercises of notebook 06, answered as learners would."""

import math

import pytest
import torch

from tests.lab.exercises.test_exercises import assert_judged

# ------------------------------------------------------------------------------------------ temperature_probabilities


def first_of_the_largest(logits):
    result = torch.zeros_like(logits)
    result[logits.argmax()] = 1
    return result


def tempered(logits, temperature):
    if temperature == 0:
        return first_of_the_largest(logits)
    return torch.softmax(logits / temperature, dim=0)


def tempered_by_exp(logits, temperature):
    if temperature == 0:
        return first_of_the_largest(logits)
    powers = torch.exp((logits - logits.max()) / temperature)
    return powers / powers.sum()


def tempered_times(logits, temperature):
    return first_of_the_largest(logits) if temperature == 0 else torch.softmax(logits * temperature, dim=0)


def tempered_too_late(logits, temperature):
    if temperature == 0:
        return first_of_the_largest(logits)
    probabilities = torch.softmax(logits, dim=0) / temperature
    return probabilities / probabilities.sum()


def tempered_logits(logits, temperature):
    return first_of_the_largest(logits) if temperature == 0 else logits / temperature


def tempered_without_exp(logits, temperature):
    if temperature == 0:
        return first_of_the_largest(logits)
    scaled = logits / temperature
    return scaled / scaled.sum()


def tempered_to_infinity(logits, temperature):
    if temperature == 0:
        return first_of_the_largest(logits)
    powers = torch.exp(logits / temperature)
    return powers / powers.sum()


def tempered_shared(logits, temperature):
    if temperature == 0:
        likeliest = (logits == logits.max()).to(logits.dtype)
        return likeliest / likeliest.sum()
    return torch.softmax(logits / temperature, dim=0)


def tempered_zero_is_one(logits, temperature):
    return torch.softmax(logits / (temperature or 1), dim=0)


# ----------------------------------------------------------------------------------------------------------- top_k_mask


def top_k_by_loop(logits, k):
    result = torch.full_like(logits, -math.inf)
    left = logits.clone()
    for _ in range(min(k, len(logits))):
        place = left.argmax()
        result[place] = logits[place]
        left[place] = -math.inf
    return result


def top_k_by_sort(logits, k):
    order = torch.sort(logits, descending=True, stable=True).indices
    result = logits.clone()
    result[order[k:]] = -math.inf
    return result


def top_k_ties(logits, k):
    smallest = logits.topk(min(k, len(logits))).values[-1]
    return torch.where(logits >= smallest, logits, -math.inf)


def top_k_last_of_equals(logits, k):
    order = sorted(range(len(logits)), key=lambda place: (float(logits[place]), place))
    result = logits.clone()
    result[order[: max(len(order) - k, 0)]] = -math.inf
    return result


def top_k_smallest(logits, k):
    order = torch.sort(logits, stable=True).indices
    result = logits.clone()
    result[order[k:]] = -math.inf
    return result


def top_k_zeros(logits, k):
    order = torch.sort(logits, descending=True, stable=True).indices
    result = logits.clone()
    result[order[k:]] = 0
    return result


def top_k_sorted(logits, k):
    values = torch.sort(logits, descending=True).values
    values[k:] = -math.inf
    return values


def top_k_too_few(logits, k):
    order = torch.sort(logits, descending=True, stable=True).indices
    result = logits.clone()
    result[order[k - 1 :]] = -math.inf
    return result


def top_k_only(logits, k):
    return logits.sort(descending=True, stable=True).values[:k]


# ----------------------------------------------------------------------------------------------------------- top_p_mask


def nucleus(logits, p):
    order = torch.sort(logits, descending=True, stable=True).indices
    result, held = torch.full_like(logits, -math.inf), 0.0
    for place in order:
        if held >= p:
            break
        result[place] = logits[place]
        held += torch.softmax(logits, dim=0)[place].item()
    return result


def nucleus_with(logits, order, keep, out=-math.inf):
    probabilities = torch.softmax(logits, dim=0)[order]
    result = torch.full_like(logits, out)
    result[order[keep(probabilities)]] = logits[order[keep(probabilities)]]
    return result


def down(logits):
    return torch.sort(logits, descending=True, stable=True).indices


def nucleus_by_mask(logits, p):
    return nucleus_with(logits, down(logits), lambda q: torch.cat([torch.zeros(1), q.cumsum(0)[:-1]]) < p)


def nucleus_without_the_last(logits, p):
    return nucleus_with(logits, down(logits), lambda q: q.cumsum(0) < p)


def nucleus_too_many(logits, p):
    count = int((torch.softmax(logits, 0)[down(logits)].cumsum(0) < p).sum()) + 2
    return nucleus_with(logits, down(logits), lambda q: torch.arange(len(q)) < count)


def nucleus_unsorted(logits, p):
    return nucleus_with(logits, torch.arange(len(logits)), lambda q: q.cumsum(0) - q < p)


def nucleus_of_the_tail(logits, p):
    return nucleus_with(logits, down(logits).flip(0), lambda q: q.cumsum(0) - q < p)


def nucleus_each(logits, p):
    return nucleus_with(logits, down(logits), lambda q: q > p)


def nucleus_each_rest(logits, p):
    return nucleus_with(logits, down(logits), lambda q: q > 1 - p)


def nucleus_zeros(logits, p):
    return nucleus_with(logits, down(logits), lambda q: q.cumsum(0) - q < p, out=0.0)


def nucleus_sorted(logits, p):
    values = torch.sort(logits, descending=True).values
    q = torch.softmax(values, dim=0)
    return values.masked_fill(q.cumsum(0) - q >= p, -math.inf)


# ----------------------------------------------------------------------------------------------------------------- draw


def draw_by_loop(probabilities, u):
    total = 0.0
    for token, probability in enumerate(probabilities.tolist()):
        total += probability
        if u < total:
            return token
    return len(probabilities) - 1


def draw_by_search(probabilities, u):
    return torch.searchsorted(probabilities.cumsum(0), torch.tensor(u, dtype=torch.float64), right=True)


def draw_left(probabilities, u):
    total = 0.0
    for token, probability in enumerate(probabilities.tolist()):
        total += probability
        if u <= total:
            return token
    return len(probabilities) - 1


def draw_before(probabilities, u):
    return draw_by_loop(probabilities, u) - 1


def draw_argmax(probabilities, u):
    return probabilities.argmax().item()


def draw_evenly(probabilities, u):
    return math.floor(u * len(probabilities))


def draw_without_sum(probabilities, u):
    for token, probability in enumerate(probabilities.tolist()):
        if probability > u:
            return token
    return 0


def draw_sorted(probabilities, u):
    return draw_by_loop(torch.sort(probabilities, descending=True).values, u)


def draw_by_torch(probabilities, u):
    return torch.multinomial(probabilities, num_samples=1).item()


# ----------------------------------------------------------------------------------------------------------- repetition


def penalised(logits, recent, penalty):
    log_p = torch.log_softmax(logits, dim=0)
    log_p[list(set(recent))] *= penalty
    return log_p


def penalised_by_mask(logits, recent, penalty):
    log_p = logits - logits.logsumexp(0)
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[torch.tensor(recent)] = True
    return torch.where(mask, log_p * penalty, log_p)


def penalised_divided(logits, recent, penalty):
    for token in set(recent):
        logits[token] /= penalty
    return logits


def penalised_logits(logits, recent, penalty):
    for token in set(recent):
        logits[token] *= penalty
    return logits


def penalised_by_sign(logits, recent, penalty):
    for token in set(recent):
        logits[token] = logits[token] / penalty if logits[token] >= 0 else logits[token] * penalty
    return logits


def penalised_wrong_way(logits, recent, penalty):
    log_p = torch.log_softmax(logits, dim=0)
    log_p[list(set(recent))] /= penalty
    return log_p


def penalised_twice(logits, recent, penalty):
    log_p = torch.log_softmax(logits, dim=0)
    for token in recent:
        log_p[token] = log_p[token] * penalty
    return log_p


def penalised_others(logits, recent, penalty):
    log_p = torch.log_softmax(logits, dim=0)
    others = [token for token in range(len(logits)) if token not in recent]
    log_p[others] *= penalty
    return log_p


# ------------------------------------------------------------------------------------------------------------ beam_step


def beams(totals, logits, width):
    candidates = totals.unsqueeze(1) + torch.log_softmax(logits, dim=1)
    best = candidates.flatten().argsort(descending=True)[:width]
    rows, tokens = torch.div(best, logits.shape[1], rounding_mode="floor"), best % logits.shape[1]
    return rows, tokens, candidates[rows, tokens]


def beams_by_loop(totals, logits, width):
    log_p = torch.log_softmax(logits, dim=1)
    found = [
        ((totals[row] + log_p[row, token]).item(), row, token)
        for row in range(len(totals))
        for token in range(logits.shape[1])
    ]
    found = sorted(found, reverse=True)[:width]
    return [row for _, row, _ in found], [token for _, _, token in found], [total for total, _, _ in found]


def beams_alone(totals, logits, width):
    log_p = torch.log_softmax(logits, dim=1)
    found = sorted(
        ((totals[row] + log_p[row].max()).item(), row, int(log_p[row].argmax())) for row in range(len(totals))
    )[::-1][:width]
    return [row for _, row, _ in found], [token for _, _, token in found], [total for total, _, _ in found]


def beams_without_totals(totals, logits, width):
    return beams(totals * 0, logits, width)


def beams_of_logits(totals, logits, width):
    candidates = totals.unsqueeze(1) + logits
    best = candidates.flatten().argsort(descending=True)[:width]
    rows, tokens = best // logits.shape[1], best % logits.shape[1]
    return rows, tokens, candidates[rows, tokens]


def beams_of_probabilities(totals, logits, width):
    candidates = totals.unsqueeze(1) + torch.softmax(logits, dim=1)
    best = candidates.flatten().argsort(descending=True)[:width]
    rows, tokens = best // logits.shape[1], best % logits.shape[1]
    return rows, tokens, candidates[rows, tokens]


def beams_one_softmax(totals, logits, width):
    log_p = logits - logits.flatten().logsumexp(0)
    candidates = totals.unsqueeze(1) + log_p
    best = candidates.flatten().argsort(descending=True)[:width]
    rows, tokens = best // logits.shape[1], best % logits.shape[1]
    return rows, tokens, candidates[rows, tokens]


def beams_swapped(totals, logits, width):
    rows, tokens, best = beams(totals, logits, width)
    return tokens, rows, best


def beams_worst(totals, logits, width):
    candidates = totals.unsqueeze(1) + torch.log_softmax(logits, dim=1)
    best = candidates.flatten().argsort()[:width]
    rows, tokens = best // logits.shape[1], best % logits.shape[1]
    return rows, tokens, candidates[rows, tokens]


ANSWERS = {
    "temperature_probabilities": (
        [tempered, tempered_by_exp],
        [
            tempered_times,
            tempered_too_late,
            tempered_logits,
            tempered_without_exp,
            tempered_to_infinity,
            tempered_shared,
            tempered_zero_is_one,
        ],
    ),
    "top_k_mask": (
        [top_k_by_loop, top_k_by_sort],
        [
            top_k_ties,
            top_k_last_of_equals,
            top_k_smallest,
            top_k_zeros,
            top_k_sorted,
            top_k_too_few,
            top_k_only,
        ],
    ),
    "top_p_mask": (
        [nucleus, nucleus_by_mask],
        [
            nucleus_without_the_last,
            nucleus_too_many,
            nucleus_unsorted,
            nucleus_of_the_tail,
            nucleus_each,
            nucleus_each_rest,
            nucleus_zeros,
            nucleus_sorted,
        ],
    ),
    "draw": (
        [draw_by_loop, draw_by_search],
        [draw_left, draw_before, draw_argmax, draw_evenly, draw_without_sum, draw_sorted, draw_by_torch],
    ),
    "repetition": (
        [penalised, penalised_by_mask],
        [
            penalised_divided,
            penalised_logits,
            penalised_by_sign,
            penalised_wrong_way,
            penalised_twice,
            penalised_others,
        ],
    ),
    "beam_step": (
        [beams, beams_by_loop],
        [
            beams_alone,
            beams_without_totals,
            beams_of_logits,
            beams_of_probabilities,
            beams_one_softmax,
            beams_swapped,
            beams_worst,
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_judged(name):
    assert_judged(name, *ANSWERS[name])
