"""What each processor draws, against its definition written out once more in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation import logits as processors
from charrnn.generation.logits import (
    COLDEST,
    cyclic,
    linear,
    log_softmax,
    min_p,
    only,
    repetition_penalty,
    sample,
    softmax,
    temperature,
    top_k,
    top_p,
    typical_p,
)
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SamplingParams
from charrnn.generation.text import UniformNumbers

DRAWS = 100_000
INF = math.inf

# ----------------------------------------------------- the definitions, from a list of probabilities to another


def normalised(weights):
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def keeping(p, kept):
    return normalised([value if i in kept else 0.0 for i, value in enumerate(p)])


def first_that_hold(p, order, mass):
    """The fewest tokens of `order` whose probabilities add up to `mass`, but for a hair of rounding."""
    kept = []
    for i in order:
        kept.append(i)
        if math.fsum(p[j] for j in kept) >= mass - 1e-9:
            break
    return keeping(p, kept)


def by_probability(p):
    return sorted(range(len(p)), key=lambda i: (-p[i], i))


def naive_softmax(logits):
    return normalised([math.exp(z - max(logits)) for z in logits])


def naive_temperature(p, value):
    if value == 0:
        return keeping(p, by_probability(p)[:1])
    return normalised([(pi / max(p)) ** (1 / value) for pi in p])


def naive_top_k(p, k):
    return keeping(p, by_probability(p)[:k])


def naive_top_p(p, mass):
    return first_that_hold(p, by_probability(p), mass)


def naive_min_p(p, share):
    return keeping(p, [i for i, pi in enumerate(p) if pi >= share * max(p) * (1 - 1e-9)])


def naive_typical_p(p, mass):
    entropy = -math.fsum(pi * math.log(pi) for pi in p if pi)
    strangeness = [abs(-math.log(pi) - entropy) if pi else INF for pi in p]
    return first_that_hold(p, sorted(range(len(p)), key=lambda i: (strangeness[i], i)), mass)


def naive_penalty(p, penalty, recent):
    return normalised([pi**penalty if i in recent else pi for i, pi in enumerate(p)])


def naive_only(p, allowed):
    return keeping(p, [i for i, yes in enumerate(allowed) if yes])


# ------------------------------------------------------------------------------------------ draws, by chi-square

DISTRIBUTIONS = {
    "as a model's": [2.0, 1.3, -0.4, 0.9, 3.1, -2.0, 0.1, 1.0],
    "with ties": [1.0, 0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0],
    "all alike": [0.3] * 8,
    "some already out": [-INF, 1.0, 0.5, -INF, 2.0, -1.0, 0.0, -INF],
    "one token has it all": [-INF, -INF, -3.0, -INF, -INF, -INF, -INF, -INF],
    "one token has nearly all": [0.0, -60.0, 300.0, -40.0, 1.0, 2.0, 3.0, 4.0],
}
EVERY_OTHER = [True, False] * 4
PROCESSORS = {
    "temperature 0": (temperature(0), lambda p: naive_temperature(p, 0)),
    "temperature 0.5": (temperature(0.5), lambda p: naive_temperature(p, 0.5)),
    "temperature 1": (temperature(1), lambda p: p),
    "temperature 1.7": (temperature(1.7), lambda p: naive_temperature(p, 1.7)),
    "top_k 1": (top_k(1), lambda p: naive_top_k(p, 1)),
    "top_k 3": (top_k(3), lambda p: naive_top_k(p, 3)),
    "top_k 99": (top_k(99), lambda p: p),
    "top_p 0.001": (top_p(1e-3), lambda p: naive_top_p(p, 1e-3)),
    "top_p 0.5": (top_p(0.5), lambda p: naive_top_p(p, 0.5)),
    "top_p 0.9": (top_p(0.9), lambda p: naive_top_p(p, 0.9)),
    "top_p 1": (top_p(1), lambda p: p),
    "min_p 0": (min_p(0), lambda p: p),
    "min_p 0.1": (min_p(0.1), lambda p: naive_min_p(p, 0.1)),
    "min_p 1": (min_p(1), lambda p: naive_min_p(p, 1)),
    "typical_p 0.25": (typical_p(0.25), lambda p: naive_typical_p(p, 0.25)),
    "typical_p 0.8": (typical_p(0.8), lambda p: naive_typical_p(p, 0.8)),
    "typical_p 1": (typical_p(1), lambda p: p),
    "repetition_penalty 1": (repetition_penalty(1, [2, 4]), lambda p: p),
    "repetition_penalty 1.5": (repetition_penalty(1.5, [4, 2, 4, 4]), lambda p: naive_penalty(p, 1.5, {2, 4})),
    "repetition_penalty of none": (repetition_penalty(2, []), lambda p: p),
    "only": (only(EVERY_OTHER), lambda p: naive_only(p, EVERY_OTHER)),
}


def assert_draws_follow(logits, expected, seed=1):
    """Chi-square of 100,000 draws from `logits` `(V,)`; tokens that are hardly ever due are counted together."""
    uniform = np.random.default_rng(seed).random(DRAWS)
    counts = np.bincount(sample(logits[None], uniform), minlength=len(logits))
    expected = np.array(expected) * DRAWS
    assert (counts[expected == 0] == 0).all()
    rare = (expected > 0) & (expected < 5)
    if expected[rare].sum() < 5:
        assert counts[rare].sum() < 20
        counts, expected = counts[expected >= 5], expected[expected >= 5]
    else:
        counts = [*counts[expected >= 5], counts[rare].sum()]
        expected = np.array([*expected[expected >= 5], expected[rare].sum()])
    if len(expected) > 1:
        assert stats.chisquare(counts, expected * (sum(counts) / expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
def test_draws_follow_the_definition(name, shape):
    processor, define = PROCESSORS[name]
    logits = np.array(DISTRIBUTIONS[shape])
    expected = define(naive_softmax(logits.tolist()))
    processed = processor(logits)
    np.testing.assert_allclose(softmax(processed), expected, rtol=1e-9, atol=1e-300)
    assert (np.isneginf(processed) >= np.isneginf(logits)).all()
    assert_draws_follow(processed, expected)


LETTERS = "abcdefgh"
# settings of `LogitsPipeline`, tokens drawn so far, and the definitions in the order they are to be applied
COMPOSITIONS = {
    "none": ({}, [], []),
    "sharp, then the nucleus of that": (
        {"temperature": 0.5, "top_p": 0.8},
        [],
        [lambda p: naive_temperature(p, 0.5), lambda p: naive_top_p(p, 0.8)],
    ),
    "flat, five, then the nucleus of these": (
        {"temperature": 1.8, "top_k": 5, "top_p": 0.7},
        [],
        [lambda p: naive_temperature(p, 1.8), lambda p: naive_top_k(p, 5), lambda p: naive_top_p(p, 0.7)],
    ),
    "allowed, then penalised, then flat": (
        {"allow": "abcde", "repetition_penalty": 1.6, "temperature": 1.4},
        [4, 0, 4],
        [
            lambda p: naive_only(p, [letter in "abcde" for letter in LETTERS]),
            lambda p: naive_penalty(p, 1.6, {0, 4}),
            lambda p: naive_temperature(p, 1.4),
        ],
    ),
    "without two, the typical of what min_p leaves": (
        {"forbid": "eb", "temperature": 1.2, "min_p": 0.1, "typical_p": 0.7},
        [],
        [
            lambda p: naive_only(p, [letter not in "eb" for letter in LETTERS]),
            lambda p: naive_temperature(p, 1.2),
            lambda p: naive_min_p(p, 0.1),
            lambda p: naive_typical_p(p, 0.7),
        ],
    ),
    "all at once": (
        {
            "allow": "abcdefg",
            "forbid": "c",
            "repetition_penalty": 1.3,
            "temperature": 1.5,
            "top_k": 6,
            "top_p": 0.98,
            "min_p": 0.05,
            "typical_p": 0.95,
        },
        [1, 4, 6],
        [
            lambda p: naive_only(p, [letter in "abdefg" for letter in LETTERS]),
            lambda p: naive_penalty(p, 1.3, {1, 4, 6}),
            lambda p: naive_temperature(p, 1.5),
            lambda p: naive_top_k(p, 6),
            lambda p: naive_top_p(p, 0.98),
            lambda p: naive_min_p(p, 0.05),
            lambda p: naive_typical_p(p, 0.95),
        ],
    ),
    "the likeliest of what is allowed": (
        {"forbid": "e", "temperature": 0},
        [],
        [lambda p: naive_only(p, [letter != "e" for letter in LETTERS]), lambda p: naive_temperature(p, 0)],
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize("shape", ["as a model's", "some already out", "one token has nearly all"])
def test_draws_follow_the_settings_in_their_order(name, shape):
    values, drawn, definitions = COMPOSITIONS[name]
    pipeline = LogitsPipeline(CharTokenizer(LETTERS), SamplingParams(**values))
    for token in drawn:
        pipeline.remember(np.array([token]))
    logits = np.array(DISTRIBUTIONS[shape])
    expected = naive_softmax(logits.tolist())
    for define in definitions:
        expected = define(expected)
    processed = pipeline(logits[None], len(drawn))[0]
    np.testing.assert_allclose(softmax(processed), expected, rtol=1e-9, atol=1e-300)
    assert_draws_follow(processed, expected)


def test_the_order_of_the_settings_matters():
    """So the test above would see two of them changed about."""
    p = naive_softmax(DISTRIBUTIONS["as a model's"])
    assert naive_top_p(naive_temperature(p, 0.5), 0.8) != naive_temperature(naive_top_p(p, 0.8), 0.5)
    p = naive_temperature(p, 1.2)
    assert naive_typical_p(naive_min_p(p, 0.1), 0.7) != naive_min_p(naive_typical_p(p, 0.7), 0.1)


def test_a_schedule_gives_each_step_its_temperature():
    pipeline = LogitsPipeline(CharTokenizer(LETTERS), SamplingParams(temperature=linear(0.5, 2.0, 3)))
    logits = np.array(DISTRIBUTIONS["as a model's"])
    for step, value in enumerate([0.5, 1.0, 1.5, 2.0, 2.0]):
        expected = naive_temperature(naive_softmax(logits.tolist()), value)
        np.testing.assert_allclose(softmax(pipeline(logits[None], step)[0]), expected, rtol=1e-12)


def test_the_penalty_forgets_after_32_tokens_and_sees_each_text_alone():
    pipeline = LogitsPipeline(CharTokenizer(LETTERS), SamplingParams(repetition_penalty=2.0))
    logits = np.zeros((2, 8))
    for token in [0] + [1] * 31:
        pipeline.remember(np.array([token, 2]))
    odds = softmax(pipeline(logits, 32))
    assert odds[0, 0] == odds[0, 1] < odds[0, 2]
    assert odds[1, 2] < odds[1, 0] == odds[1, 1]
    pipeline.remember(np.array([1, 2]))
    odds = softmax(pipeline(logits, 33))
    assert odds[0, 1] < odds[0, 0] == odds[0, 2]


# -------------------------------------------------------------------------------------------- the draw and its numbers


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_no_probability_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.1, 0.2, -torch.inf]])
    assert sample(logits, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 2)


def test_the_first_and_the_last_uniform_number_draw_the_first_and_the_last_token():
    for size in (1, 2, 3, 1000):
        logits = np.random.default_rng(size).normal(size=size)
        assert sample(logits, 0.0) == 0
        assert sample(logits, 1 - 2**-53) == size - 1


@pytest.mark.parametrize("seed", [0, 1, 5, 1337, 2**31, 2**32 - 3])
def test_uniform_numbers_are_those_of_torch(seed):
    texts = 3
    numbers = UniformNumbers(texts, seed)
    drawn = np.concatenate([numbers.draw(size) for size in (1, 32, 7)])  # (40, 3)
    for text in range(texts):
        expected = torch.rand(40, generator=torch.Generator().manual_seed(seed + text), dtype=torch.float64)
        assert drawn[:, text].tolist() == expected.tolist()


@given(st.integers(0, 2**32 - 1))
def test_uniform_numbers_are_those_of_torch_for_any_seed(seed):
    expected = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert UniformNumbers(1, seed).draw(2)[:, 0].tolist() == expected.tolist()


# --------------------------------------------------------------------------------------------------- what is left out

rows = st.lists(st.integers(-40, 40).map(lambda i: i / 4), min_size=1, max_size=12).map(np.array)
with_holes = st.lists(
    st.one_of(st.just(-INF), st.integers(-40, 40).map(lambda i: i / 4)), min_size=1, max_size=12
).filter(lambda row: max(row) > -INF)
without_ties = st.lists(
    st.integers(-400, 400).map(lambda i: i * 0.017), min_size=1, max_size=12, unique=True
).map(np.array)  # fmt: skip
shares = st.floats(1e-3, 1)


def kept(logits):
    return set(np.flatnonzero(np.asarray(logits) > -INF).tolist())


@given(with_holes.map(np.array), st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_the_first_of_equals(logits, k):
    finite = [i for i in np.argsort(-logits, kind="stable").tolist() if logits[i] > -INF]
    assert kept(top_k(k)(logits)) == set(finite[:k])


@given(with_holes.map(np.array), shares)
def test_the_nucleus_is_minimal(logits, p):
    probabilities = naive_softmax(logits.tolist())
    inside = kept(top_p(p)(logits))
    mass = math.fsum(probabilities[i] for i in inside)
    assert mass >= p - 1e-9
    assert all(mass - probabilities[i] < p for i in inside)
    assert min(probabilities[i] for i in inside) >= max(
        [probabilities[i] for i in range(len(logits)) if i not in inside] or [0]
    )


@given(with_holes.map(np.array), shares)
def test_the_typical_set_is_minimal_and_nearest_to_the_entropy(logits, p):
    probabilities = naive_softmax(logits.tolist())
    entropy = -math.fsum(q * math.log(q) for q in probabilities if q)
    far = [abs(-math.log(q) - entropy) if q else INF for q in probabilities]
    inside = kept(typical_p(p)(logits))
    mass = math.fsum(probabilities[i] for i in inside)
    farthest = max(inside, key=lambda i: (far[i], -probabilities[i]))
    assert mass >= p - 1e-9
    assert mass - max(probabilities[i] for i in inside if far[i] >= far[farthest] - 1e-9) < p
    assert far[farthest] <= min([far[i] for i in range(len(logits)) if i not in inside] or [INF]) + 1e-9


def test_typical_may_leave_out_the_likeliest():
    p = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # entropy 1.5 nats; surprisals 0.69 and 2.3
    assert kept(typical_p(0.4)(np.log(p))) == {0}
    p = np.array([0.3] + [0.07] * 10)  # entropy 2.2; 1.2 and 2.66
    assert kept(typical_p(0.4)(np.log(p))) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 10, 49, 70, 97])
def test_equal_probabilities_fill_a_share_exactly(size):
    """j of V equal tokens hold j / V, however the sum is rounded."""
    logits = np.full(size, 0.1)
    for many in range(1, size + 1):
        for make in (top_p, typical_p):
            assert kept(make(many / size)(logits)) == set(range(many))
        assert len(kept(top_k(many)(logits))) == many
    assert len(kept(min_p(1)(logits))) == size


def test_a_token_just_at_the_border_of_min_p_stays():
    for share in (0.1, 0.2, 0.3, 0.7):
        for likeliest in np.linspace(0.3, 0.6, 50):
            logits = np.log([likeliest, likeliest * share, 1e-3])
            assert kept(min_p(share)(logits)) == {0, 1}


@given(st.integers(0, 2**32 - 1))
def test_what_should_keep_all_keeps_all(seed):
    logits = np.random.default_rng(seed).normal(size=200) * 8  # some far below what a sum near 1 can show
    for processor in (top_p(1), typical_p(1), min_p(0), top_k(200)):
        np.testing.assert_array_equal(processor(logits), logits)


def test_the_smallest_share_keeps_one():
    for make in (top_p, typical_p):
        assert len(kept(make(5e-324)(np.array([0.0, 1.0, 1.0])))) == 1


# --------------------------------------------------------------------------------------------- the repetition penalty


@given(rows, st.floats(1, 5), st.lists(st.integers(0, 11), max_size=9))
def test_the_penalty_helps_no_recent_token_against_another_that_is_not(logits, penalty, drawn):
    recent = [token % len(logits) for token in drawn]
    before, after = log_softmax(logits), log_softmax(repetition_penalty(penalty, recent)(logits))
    for token in recent:
        for other in set(range(len(logits))) - set(recent):
            assert after[token] - after[other] <= before[token] - before[other] + 1e-9
    of_all = sorted(set(recent))
    assert np.exp(after[of_all]).sum() <= np.exp(before[of_all]).sum() + 1e-9
    np.testing.assert_allclose(repetition_penalty(1, recent)(logits), before, atol=1e-12)


@pytest.mark.parametrize("logit", [-3.0, -0.1, 0.0, 0.1, 3.0])
def test_a_recent_token_is_less_likely_whatever_the_sign_of_its_logit(logit):
    """To divide logits by the penalty, as its paper does, helps a token whose logit is negative."""
    logits = np.array([logit, 0.5, -0.5])
    assert softmax(repetition_penalty(1.2, [0])(logits))[0] < softmax(logits)[0]
    divided = np.array([logit / 1.2, 0.5, -0.5])
    assert (softmax(divided)[0] > softmax(logits)[0]) == (logit < 0)


@given(rows, st.floats(1, 5), st.lists(st.integers(0, 11), min_size=1, max_size=5))
def test_a_token_counts_once(logits, penalty, drawn):
    recent = [token % len(logits) for token in drawn]
    expected = repetition_penalty(penalty, sorted(set(recent)))(logits)
    np.testing.assert_array_equal(repetition_penalty(penalty, recent * 2)(logits), expected)


# -------------------------------------------------------------------------------------------------- what holds for all

MAKERS = st.one_of(
    st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 50.0]).map(temperature),
    st.integers(1, 15).map(top_k),
    shares.map(top_p),
    st.floats(0, 1).map(min_p),
    shares.map(typical_p),
    st.floats(1, 5).map(lambda penalty: repetition_penalty(penalty, [0, 0])),
)


@given(rows, MAKERS, st.integers(-30, 30))
def test_a_number_added_to_all_logits_changes_nothing(logits, processor, number):
    np.testing.assert_allclose(softmax(processor(logits + number)), softmax(processor(logits)), rtol=1e-9, atol=1e-300)


@given(without_ties, MAKERS, st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_changes_nothing(logits, processor, random):
    order = list(range(1, len(logits)))
    random.shuffle(order)
    order = [0, *order]  # the token that the penalty knows as 0 stays where it is
    entropy = -(softmax(logits) * log_softmax(logits)).sum()
    far = np.sort(np.abs(-log_softmax(logits) - entropy))
    assume(len(far) < 2 or np.diff(far).min() > 1e-9)  # nothing is equally typical
    np.testing.assert_allclose(processor(logits[order]), processor(logits)[order], rtol=1e-9, atol=1e-12)


@given(st.lists(st.lists(st.integers(-9, 9), min_size=5, max_size=5), min_size=1, max_size=6), MAKERS)
def test_rows_are_treated_as_they_would_be_alone(batch, processor):
    logits = np.array(batch, float)
    together = processor(logits)
    alone = np.stack([processor(row) for row in logits])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    packed = processor(np.stack([logits, logits])[:, :, None])  # (2, B, 1, V)
    np.testing.assert_array_equal(packed[1, :, 0], together)


def test_recent_tokens_of_each_row():
    logits = np.zeros((2, 3))
    result = softmax(repetition_penalty(2, [[0, 0], [1, 2]])(logits))
    np.testing.assert_allclose(result, [naive_penalty([1 / 3] * 3, 2, {0}), naive_penalty([1 / 3] * 3, 2, {1, 2})])


@given(rows, st.integers(1, 15), st.floats(0, 1))
def test_what_is_done_twice_as_if_once(logits, k, share):
    allowed = np.arange(len(logits)) % 3 != 1
    for processor in (temperature(0), top_k(k), min_p(share), only(allowed)):
        once = processor(logits)
        np.testing.assert_array_equal(processor(once), once)


@given(rows, shares)
def test_what_may_leave_out_more_the_second_time(logits, p):
    once = top_p(p)(logits)
    assert kept(top_p(p)(once)) <= kept(once)


def test_the_nucleus_of_a_nucleus_is_smaller():
    """What is left shares all of the probability, so fewer tokens hold p of it."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    once = top_p(0.6)(logits)
    assert kept(once) == {0, 1}
    assert kept(top_p(0.5)(top_p(0.5)(logits))) == {0} < kept(top_p(0.5)(logits))


@pytest.mark.parametrize("value", [1e-6, 1e-300, 5e-324])
def test_a_tiny_temperature_leaves_the_likeliest(value):
    assert softmax(temperature(value)(np.array([3.0, 1.0, -80.0]))).tolist() == [1, 0, 0]
    half = 0.0 if value < COLDEST else 0.5  # as with 0, the first of equals
    assert softmax(temperature(value)(np.array([3.0, -INF, 3.0]))).tolist() == [1 - half, 0, half]
    assert softmax(temperature(value)(np.array([1e300, -1e300]))).tolist() == [1, 0]


def test_a_huge_temperature_makes_all_alike_but_what_is_out():
    for value in (1e6, 1e300):
        result = softmax(temperature(value)(np.array([3.0, 1.0, -INF, -80.0])))
        assert result == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=1e-4)
        assert result[2] == 0


def every_transform():
    return [
        temperature(0),
        temperature(0.7),
        top_k(1),
        top_k(2),
        top_p(0.5),
        top_p(1),
        min_p(0.0),
        min_p(0.5),
        typical_p(0.5),
        typical_p(1),
        repetition_penalty(2, [0]),
    ]


@pytest.mark.parametrize("processor", every_transform())
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, math.nan, 1.0], "expected logits that are numbers, got NaN: the model's weights are damaged"),
        ([-INF, math.nan, -INF], "got NaN"),
        ([INF, math.nan, 0.0], "got NaN"),
        ([0.0, INF, 1.0], "expected logits that are numbers, got infinity"),
        ([-INF, -INF, -INF], "expected at least one token with a probability above 0, got none"),
    ],
)
def test_logits_that_are_no_distribution(processor, row, message):
    fine = [0.0, 1.0, 2.0]
    for each in (processor, only([True, False, False])):  # which would hide them
        for logits in (np.array(row), np.array([fine, row]), torch.tensor([fine, row])):
            with pytest.raises(ValueError, match=message):
                each(logits)
    with pytest.raises(ValueError, match=message):
        sample(np.array([fine, row]), [0.5, 0.5])
    with pytest.raises(ValueError, match=message):
        LogitsPipeline(CharTokenizer("abc"), SamplingParams(top_k=1, allow="a"))(np.array([fine, row]), 0)


def test_what_leaves_nothing_is_an_error_of_the_next():
    with pytest.raises(ValueError, match="expected at least one token with a probability above 0, got none"):
        sample(only([True, False])(np.array([-INF, 0.0])), 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("processor", every_transform())
def test_tensors_give_their_like(processor, dtype):
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.25, -torch.inf]], dtype=dtype, requires_grad=True)
    result = processor(logits)
    assert (result.dtype, result.shape, result.device) == (dtype, logits.shape, logits.device)
    expected = processor(logits.detach().double().numpy())
    assert expected.dtype == np.float64
    assert torch.equal(result, torch.tensor(expected, dtype=dtype))
    assert logits.tolist() == [[2.0, 0.5, -1.0], [0.0, 0.25, -torch.inf]]


@pytest.mark.parametrize("processor", every_transform())
def test_arrays_are_left_as_they_were_and_give_float64(processor):
    for dtype in (np.float32, np.float64):
        logits = np.array([[2.0, 0.5, -1.0], [0.0, 0.25, -INF]], dtype)
        logits.flags.writeable = False
        assert processor(logits).dtype == np.float64
    assert processor(np.array([3])).shape == (1,)  # V = 1, whole numbers


@pytest.mark.parametrize("processor", every_transform())
def test_a_vocabulary_of_one(processor):
    assert softmax(processor(np.array([[-7.0]]))).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "temperature: expected a value greater than or equal to 0, got -0.1"),
        ("temperature", math.nan, "temperature: .* got nan"),
        ("temperature", INF, "temperature: .* got inf"),
        ("top_k", 0, "top_k: expected a value greater than or equal to 1, got 0"),
        ("top_k", math.nan, "top_k: .* got nan"),
        ("top_p", 0, "top_p: .* got 0"),
        ("top_p", 1.1, "top_p: .* got 1.1"),
        ("top_p", math.nan, "top_p: .* got nan"),
        ("min_p", -0.1, "min_p: expected a value greater than or equal to 0, got -0.1"),
        ("min_p", 1.1, "min_p: .* got 1.1"),
        ("min_p", math.nan, "min_p: .* got nan"),
        ("typical_p", 0, "typical_p: .* got 0"),
        ("typical_p", 1.5, "typical_p: .* got 1.5"),
        ("typical_p", math.nan, "typical_p: .* got nan"),
        ("repetition_penalty", 0.9, "repetition_penalty: expected a value greater than or equal to 1, got 0.9"),
        ("repetition_penalty", INF, "repetition_penalty: .* got inf"),
        ("repetition_penalty", math.nan, "repetition_penalty: .* got nan"),
        ("only", [False, False], "expected at least one token that is allowed, got none"),
    ],
)
def test_settings_out_of_range(name, value, message):
    rest = [[0]] if name == "repetition_penalty" else []
    with pytest.raises(ValueError, match=message):
        getattr(processors, name)(value, *rest)
    if name != "only":
        with pytest.raises(ValueError, match=message):
            SamplingParams(**{name: value})


# --------------------------------------------------------------------------------------------- temperatures over a text


def test_a_linear_course_and_its_ends():
    course = linear(0.2, 1.4, 4)
    assert [course(step) for step in (0, 1, 2, 3, 4, 5, 10**9)] == pytest.approx([0.2, 0.5, 0.8, 1.1, 1.4, 1.4, 1.4])
    assert [linear(2, 0, 1)(step) for step in range(3)] == [2, 0, 0]


def test_a_cyclic_course_its_ends_and_its_period():
    course = cyclic(0.4, 1.2, 8)
    assert [course(step) for step in (0, 2, 4, 6, 8)] == pytest.approx([0.4, 0.8, 1.2, 0.8, 0.4])
    for step in range(8):
        assert course(step + 800) == pytest.approx(course(step))
        assert course(8 - step) == pytest.approx(course(step))
    assert [cyclic(1, 0, 2)(step) for step in range(4)] == [1, 0, 1, 0]
    assert cyclic(0.5, 2, 1)(3) == pytest.approx(0.5)


@given(st.floats(0, 5), st.floats(0, 5), st.integers(1, 1000), st.integers(0, 10**7))
def test_a_course_stays_between_its_ends(first, last, steps, step):
    for course in (linear(first, last, steps), cyclic(first, last, steps)):
        assert min(first, last) - 1e-12 <= course(step) <= max(first, last) + 1e-12
        temperature(course(step))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (linear, (1, 2, 0), "steps: expected at least 1, got 0"),
        (linear, (1, 2, -3), "steps: expected at least 1, got -3"),
        (cyclic, (1, 2, 0), "period: expected at least 1, got 0"),
        (cyclic, (1, 2, math.nan), "period: expected at least 1, got nan"),
        (linear, (-1, 2, 5), "temperature: expected a value greater than or equal to 0, got -1"),
        (cyclic, (1, INF, 5), "temperature: expected a finite number, got inf"),
    ],
)
def test_a_course_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)
