import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.models import CharGRU, CharLSTM
from charrnn.sampling import TextGenerator, Reshaping, sample
from charrnn.stepping import ModelStepper
from charrnn.transforms import temperature, top_k, top_p
from charrnn.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, UnknownCharacterError, WordTokenizer

logits_of = st.lists(st.integers(-6, 6), min_size=1, max_size=12).map(lambda values: torch.tensor([values]).float())


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(3)
    return TextGenerator(CharLSTM(12, 16, 2, dropout=0.5), CharTokenizer("\n abcdefghij"))


def kept(logits):
    return (logits > -torch.inf).sum().item()


# ------------------------------------------------------------------------------------------------------- transforms


@given(logits_of, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_whatever_the_ties(logits, k):
    result = top_k(k)(logits)
    assert kept(result) == min(k, logits.shape[-1])
    assert result[result > -torch.inf].min() >= logits.sort(descending=True)[0][0, min(k, logits.shape[-1]) - 1]


@given(logits_of, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_holds_p(logits, p):
    result = top_p(p)(logits)
    probabilities = logits.softmax(-1)
    mass = probabilities[result > -torch.inf]
    assert mass.sum() >= p - 1e-5
    assert mass.sum() - mass.min() < p + 1e-5
    assert kept(result) >= 1


@given(logits_of, st.floats(0.1, 10))
def test_temperature_divides(logits, value):
    torch.testing.assert_close(temperature(value)(logits).softmax(-1), (logits / value).softmax(-1))


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_extreme_temperatures(value):
    probabilities = temperature(value)(torch.tensor([3.0, 1.0, -80.0])).softmax(-1)
    expected = [1.0, 0.0, 0.0] if value < 1 else [1 / 3] * 3
    assert probabilities.tolist() == pytest.approx(expected, abs=1e-4)


def test_temperature_zero_is_the_first_of_the_likeliest():
    assert temperature(0)(torch.tensor([1.0, 5.0, 5.0])).softmax(-1).tolist() == [0, 1, 0]


def test_order_is_temperature_top_k_top_p():
    logits = np.array([[2.0, 1.0, 0.0, -1.0]])
    expected = top_p(0.7)(top_k(3)(temperature(2.0)(logits)))
    reshape = Reshaping(CharTokenizer("abcd"), top_p=0.7, temperature=2.0, top_k=3)
    np.testing.assert_array_equal(reshape(logits, 0), expected)


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (temperature, -0.1, "temperature: expected a number of at least 0, got -0.1"),
        (temperature, math.nan, "temperature: .* got nan"),
        (temperature, math.inf, "temperature: .* got inf"),
        (top_k, 0, "top_k: expected at least 1, got 0"),
        (top_p, 0, "top_p: .* got 0"),
        (top_p, 1.1, "top_p: .* got 1.1"),
        (top_p, math.nan, "top_p: .* got nan"),
    ],
)
def test_settings_out_of_range(make, value, message):
    with pytest.raises(ValueError, match=message):
        make(value)


def test_draws_follow_the_distribution():
    """Chi-square of 100,000 draws against the softmax, 4 degrees of freedom: 23.5 is the 1 in 10,000 border."""
    logits = torch.tensor([1.0, 0.0, -torch.inf, 2.0, -1.0, 0.5])
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = torch.bincount(torch.from_numpy(sample(logits.expand(100_000, -1), uniform)), minlength=6)
    expected = logits.double().softmax(-1) * 100_000
    assert counts[2] == 0
    here = expected > 0
    assert ((counts - expected)[here] ** 2 / expected[here]).sum() < 23.5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_no_probability_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.1, 0.2, -torch.inf]])
    assert sample(logits, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 2)


def test_nan_logits_raise():
    with pytest.raises(ValueError, match="got NaN"):
        sample(torch.tensor([[0.0, math.nan]]), torch.tensor([0.5], dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("prompt", ["", "abc"])
@pytest.mark.parametrize("length", [0, 1, 300])
def test_length_is_exact_and_follows_the_prompt(generator, prompt, length):
    text = generator.generate(prompt, length, seed=1)
    assert len(text) == len(prompt) + length
    assert text.startswith(prompt)


@given(st.text("abc \n", max_size=5), st.integers(0, 40), st.sampled_from([0, 0.5, 1.0]), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_one_text_however_it_is_asked_for(generator, prompt, length, temperature, seed):
    settings = {"length": length, "temperature": temperature, "top_k": 5, "top_p": 0.9}
    alone = generator.generate(prompt, **settings, seed=seed)
    assert "".join(generator.stream(prompt, **settings, seed=seed)) == alone
    assert generator.generate_batch([prompt, "a", prompt], **settings, seed=seed)[0] == alone
    assert generator.generate_batch(["ab", "c", prompt], **settings, seed=seed)[2] == generator.generate(
        prompt, **settings, seed=seed + 2
    )


@pytest.mark.parametrize("kind", [ByteTokenizer, WordTokenizer, BpeTokenizer])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_length_is_in_characters_whatever_a_token_is(kind, length):
    torch.manual_seed(0)
    tokenizer = kind.from_text("déjà vu, 中文 and words that are longer than one character\n" * 3)
    generator = TextGenerator(CharGRU(tokenizer.vocab_size, 8), tokenizer)
    texts = generator.generate_batch(["vu", "déjà vu, "], length, seed=3)
    assert [len(text) for text in texts] == [2 + length, 9 + length]
    assert texts[1].startswith("déjà vu, ")
    assert "".join(generator.stream("déjà vu, ", length, seed=4)) == texts[1]
    assert all(generator.stream("vu", length, seed=4))  # no empty pieces


def test_unknown_words_in_a_prompt_are_said():
    tokenizer = WordTokenizer.from_text("to be or not to be")
    generator = TextGenerator(CharGRU(tokenizer.vocab_size, 8), tokenizer)
    with pytest.warns(UserWarning, match="prompt: 1 of its 3 tokens are not in the vocabulary; the model reads U.FFFD"):
        text = generator.generate("to zebra", 5, seed=1)
    assert text.startswith("to zebra")


def test_texts_of_a_batch_differ(generator):
    assert len(set(generator.generate_batch(["a"] * 4, 50, seed=1))) == 4


def test_another_seed_gives_another_text_and_none_gives_new_ones(generator):
    texts = [generator.generate("a", 60, seed=seed) for seed in (1, 2, None, None)]
    assert len(set(texts)) == 4


def test_the_global_random_state_is_left_alone(generator):
    before = torch.get_rng_state()
    generator.generate("a", 300)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_follows_the_largest_logit_with_the_prompts_last_character_fed_once(generator):
    text = generator.generate("abc", 20, temperature=0)
    model = generator.model.eval()
    for end in range(3, 23):
        tokens = torch.as_tensor(generator.tokenizer.encode(text[:end]).astype("int64"))
        with torch.no_grad():
            logits, _ = model(tokens.unsqueeze(0))
        assert generator.tokenizer.decode([logits[0, -1].argmax()]) == text[end]


def test_an_empty_prompt_starts_after_a_newline_or_the_first_token(generator):
    assert generator.generate("", 30, seed=5) == generator.generate("\n", 30, seed=5)[1:]
    torch.manual_seed(0)
    other = TextGenerator(CharGRU(3, 4), CharTokenizer("xyz"))
    assert other.generate("", 30, seed=5) == other.generate("x", 30, seed=5)[1:]


def test_a_long_prompt_is_read_whole(generator):
    prompt = "abcdefghij" * 250
    tokens = torch.as_tensor(generator.tokenizer.encode(prompt).astype("int64"))
    with torch.no_grad():
        whole, _ = generator.model.eval()(tokens.unsqueeze(0))
    logits = ModelStepper(generator.model, chunk=7).read([tokens.numpy()])
    torch.testing.assert_close(torch.from_numpy(logits), whole[:, -1])


def test_errors_come_before_the_first_character(generator):
    with pytest.raises(UnknownCharacterError, match="'Z' .* at position 1"):
        generator.stream("aZ")
    with pytest.raises(ValueError, match="top_p"):
        generator.stream("a", top_p=2)
    with pytest.raises(ValueError, match="length: expected at least 0, got -1"):
        generator.stream("a", length=-1)
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        generator.generate_batch([])


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_as_it_was(generator, training):
    generator.model.train(training)
    texts = [generator.generate("a", 30, seed=1) for _ in range(2)]
    assert texts[0] == texts[1]  # dropout is off
    assert generator.model.training is training


def test_damaged_weights_raise_and_restore_the_mode():
    model = CharLSTM(12, 4)
    torch.nn.init.constant_(model.head.bias, math.nan)
    with pytest.raises(ValueError, match="got NaN"):
        TextGenerator(model, CharTokenizer("\n abcdefghij")).generate("a", 3)
    assert model.training
