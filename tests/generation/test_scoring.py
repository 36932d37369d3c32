import itertools

import numpy as np
import pytest
import torch

from charrnn.data.tokenizer import TOKENIZERS, BpeTokenizer, CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.generation.scoring import score
from charrnn.lab.probes.distribution import entropy, next_distribution
from charrnn.models.recurrent import CharGRU, CharLSTM

TEXT = "abc <&>\nfeed a bad cab\n"


@pytest.fixture(scope="module", params=[CharLSTM, CharGRU])
def generator(request):
    torch.manual_seed(0)
    model = request.param(12, 8, num_layers=2, dropout=0.5)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return TextGenerator(model, CharTokenizer("\n abcdefg<&>"))


def test_the_bits_are_those_of_the_next_distribution(generator):
    found = score(generator, TEXT)
    bits, entropies = found.surprisal, found.entropy
    assert found != score(generator, TEXT)  # arrays have no single answer
    tokens = generator.tokenizer.encode(TEXT)
    for place, token in enumerate(tokens):
        before, _ = next_distribution(generator, "\n" + TEXT[:place])
        assert bits[place] == pytest.approx(-np.log2(before[token]), rel=1e-4, abs=1e-5)
        assert entropies[place] == pytest.approx(entropy(before), rel=1e-4, abs=1e-5)
    first, _ = next_distribution(generator, "")
    assert bits[0] == pytest.approx(-np.log2(first[tokens[0]]), rel=1e-4)


def test_surprisals_add_up_to_the_texts_log_probability(generator):
    beam = generator.beam_search("", length=6, width=3)[0]
    assert score(generator, beam.text).surprisal.sum() == pytest.approx(-beam.log_probability / np.log(2), rel=1e-4)


def test_the_probabilities_of_all_texts_of_two_characters_add_up_to_one(generator):
    pairs = map("".join, itertools.product(generator.tokenizer.characters, repeat=2))
    assert sum(2 ** -score(generator, pair).surprisal.sum() for pair in pairs) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_a_text_in_pieces_is_the_text_as_a_whole(generator, chunk):
    np.testing.assert_allclose(
        score(generator, TEXT, chunk).surprisal, score(generator, TEXT).surprisal, rtol=1e-4, atol=1e-5
    )


def test_the_network_reads_without_dropout_and_is_left_as_it_was(generator):
    generator.model.train()
    try:
        first, second = score(generator, TEXT).surprisal, score(generator, TEXT).surprisal
        assert generator.model.training
    finally:
        generator.model.eval()
    np.testing.assert_array_equal(first, second)


def test_what_cannot_be_read_is_said(generator):
    with pytest.raises(ValueError, match="expected a text of at least one character, got an empty one"):
        score(generator, "")
    with pytest.raises(ValueError, match="got 'Z' .U.005A. at position 1"):
        score(generator, "aZ")


def test_certainty_costs_nothing_and_has_no_sign():
    found = score(TextGenerator(CharLSTM(1, 4), CharTokenizer("a")), "aaa")
    assert [str(value) for value in (*found.surprisal, *found.entropy, found.bpc)] == ["0.0"] * 7


def test_the_likeliest_tokens_are_what_a_model_without_chance_would_write(generator):
    for place, token in enumerate(score(generator, TEXT).likeliest):
        prompt = "\n" + TEXT[:place]
        assert generator.generate(prompt, length=1, temperature=0) == prompt + token


def test_the_worst_places_are_those_of_least_probability(generator):
    found = score(generator, TEXT)
    worst = found.worst(5)
    assert sorted(found.probability)[:5] == found.probability[worst].tolist()


def test_bits_are_counted_per_character_whatever_a_token_is():
    tokenizer = BpeTokenizer.from_text("the cat and the hat and the bat\n" * 20, 270)
    found = score(TextGenerator(CharLSTM(270, 8), tokenizer), "the hat and the cat\n")
    assert "".join(found.tokens) == "the hat and the cat\n"
    assert len(found.tokens) < found.characters == 20
    assert found.bpc == pytest.approx(found.surprisal.sum() / 20)


@pytest.mark.parametrize(("kind", "vocab_size"), [("byte", 256), ("bpe", 300), ("word", 3)])
def test_bits_per_character_are_those_of_the_text_whatever_a_token_is(kind, vocab_size):
    text = "déjà vu, déjà lu"
    tokenizer = TOKENIZERS[kind].from_text(text * 3, vocab_size)
    model = CharLSTM(tokenizer.vocab_size, 4)
    found = score(TextGenerator(model, tokenizer), text)
    assert found.characters == len(text)
    spelled = float(tokenizer.spelling(text)["bits"].sum())
    assert (spelled > 0) == (kind == "word")
    assert found.bpc == pytest.approx((found.surprisal.sum() + spelled) / len(text))
