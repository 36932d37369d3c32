import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.corpus import Extent, load_corpus
from charrnn.data.statistics import entropy
from charrnn.data.tokenizer import ByteTokenizer, CharTokenizer
from charrnn.models.ngrams import NgramModel, _discounts, ngram_ladder

texts = st.lists(st.integers(0, 4), min_size=6, max_size=200).map(lambda tokens: np.array(tokens, dtype=np.uint8))


@given(texts, st.lists(st.integers(0, 4), max_size=8), st.integers(0, 6), st.integers(5, 7))
def test_probabilities_sum_to_1_after_every_context(tokens, context, order, vocab_size):
    model = NgramModel(tokens, vocab_size, max_order=6)
    distribution = model.distribution(np.array(context, dtype=np.uint8), order)
    assert distribution.sum() == pytest.approx(1, abs=1e-12)
    assert (distribution >= 0).all()
    if order > 1 or vocab_size > 5 or len(set(tokens.tolist())) < 5:
        assert (distribution > 0).all()  # nothing is impossible


@given(texts, texts, st.integers(0, 6))
def test_a_sequence_is_predicted_as_its_distributions_say(tokens, sequence, order):
    model = NgramModel(tokens, 6, max_order=6)
    expected = [model.distribution(sequence[:i], order)[sequence[i]] for i in range(1, len(sequence))]
    assert model.probabilities(sequence, order).tolist() == pytest.approx(expected, rel=1e-9)


@given(texts, st.integers(5, 300))
def test_the_uniform_model_costs_log2_of_v_exactly(tokens, vocab_size):
    assert NgramModel(tokens, vocab_size, 2).bits(tokens, 0) == math.log2(vocab_size)


@given(texts)
def test_a_unigram_costs_the_entropy_of_its_own_text(tokens):
    _, tokens = np.unique(tokens, return_inverse=True)  # every token of the vocabulary is seen
    model = NgramModel(tokens, int(tokens.max()) + 1, 2)
    assert model.bits(np.append(tokens[:1], tokens), 1) == pytest.approx(entropy(tokens), abs=1e-12)


def test_smoothing_is_that_of_chen_and_goodman_worked_by_hand():
    """Bigrams of abracadabra: the counts are too few to estimate discounts from, so they are 0.5, 1 and 1.5."""
    tokens = CharTokenizer("abcdr").encode("abracadabra")
    model = NgramModel(tokens, 5, 2)
    # after a: b twice, c once, d once; b is discounted by 1, c and d by 0.5
    # lower order: in how many contexts each occurs, a after c, d and r
    contexts = {"a": 3, "b": 1, "c": 1, "d": 1, "r": 1}
    lower = {letter: count / 7 for letter, count in contexts.items()}
    after_a = model.distribution(tokens[:1], 2)
    gamma = (1 + 0.5 + 0.5) / 4
    expected = {"b": (2 - 1) / 4, "c": 0.5 / 4, "d": 0.5 / 4, "a": 0, "r": 0}
    for i, letter in enumerate("abcdr"):
        assert after_a[i] == pytest.approx(expected[letter] + gamma * lower[letter])


def test_what_a_text_repeats_is_predicted_better_by_longer_contexts():
    rng = np.random.default_rng(0)
    sentence = rng.integers(0, 8, 40)
    tokens = np.tile(sentence, 50).astype(np.uint8)
    model = NgramModel(tokens, 8, 6)
    bits = [model.bits(tokens, order) for order in range(7)]
    assert bits == sorted(bits, reverse=True)
    assert bits[6] < 0.2


def test_a_high_order_writes_its_text_from_memory():
    tokens = np.frombuffer(b"the quick brown fox jumps over a lazy dog. " * 30, dtype=np.uint8)
    model = NgramModel(tokens, 256, 8)
    written = bytes(model.generate(tokens[:8], 60, 8, seed=1)).decode()
    assert written[:12] in "the quick brown fox jumps over a lazy dog. " * 2
    assert model.generate(tokens[:8], 60, 8, seed=1) == model.generate(tokens[:8], 60, 8, seed=1)


def test_the_ladder_is_per_character():
    text = "déjà vu " * 40
    byte = ByteTokenizer().encode(text)
    ladder = ngram_ladder(NgramModel(byte, 256, 3), ByteTokenizer(), byte)
    assert list(ladder) == ["uniform", "unigram", "2-gram", "3-gram"]
    assert ladder["uniform"] == pytest.approx(8 * (len(byte) - 1) / (len(text) - 1))


def test_the_ladder_charges_what_is_unknown():
    tokenizer = CharTokenizer("a\ufffd", "\ufffd")
    tokens = tokenizer.encode("abab")
    with pytest.raises(ValueError, match="extent: expected that of the tokens, some of which are unknown"):
        ngram_ladder(NgramModel(tokens, 2, 1), tokenizer, tokens)
    ladder = ngram_ladder(NgramModel(tokens, 2, 1), tokenizer, tokens, Extent(3, 3, 16.0))
    assert ladder["uniform"] == pytest.approx(1 + 16 / 3)
    assert ngram_ladder(NgramModel(tokens, 2, 1), tokenizer, tokens[:1].repeat(9))["uniform"] == 1


@pytest.mark.parametrize(
    "name", ["counting:largest=10,length=500", "copy:width=2,length=5000", "brackets:length=20000"]
)
def test_nothing_is_impossible_in_texts_without_rare_grams(name):
    corpus = load_corpus(name)
    train, val, _ = corpus.split()
    assert all(math.isfinite(bpc) for bpc in ngram_ladder(NgramModel(train, 14, 8), corpus.tokenizer, val).values())


def test_discounts_are_never_nothing():
    counts = np.repeat([1, 2, 3, 4], [10, 1, 2, 2])  # by the formula, pairs seen twice would lose 0.83, others nothing
    assert _discounts(counts).tolist() == [0, 0.5, 1, 1.5]
    many = np.repeat([1, 2, 3, 4], [400, 150, 80, 50])
    assert (_discounts(many)[1:] > 0).all()
    assert (_discounts(many) <= [0, 1, 2, 3]).all()


def test_what_cannot_be_counted_or_predicted_is_said():
    tokens = np.zeros(9, dtype=np.uint8)
    with pytest.raises(ValueError, match="expected at least 8 tokens to count 8-grams in, got 7"):
        NgramModel(tokens[:7], 2)
    with pytest.raises(ValueError, match="order: expected 0 to 2, got 3"):
        NgramModel(tokens, 2, 2).bits(tokens, 3)
    with pytest.raises(ValueError, match="expected a character to predict, got 1 tokens"):
        ngram_ladder(NgramModel(tokens, 1, 2), CharTokenizer("a"), tokens[:1])
