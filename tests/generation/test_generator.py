import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, WordTokenizer
from charrnn.errors import UnknownCharacterError
from charrnn.generation.decoder import ModelDecoder
from charrnn.generation.generator import TextGenerator
from charrnn.generation.text import _growing
from charrnn.models.recurrent import CharGRU, CharLSTM


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(3)
    return TextGenerator(CharLSTM(12, 16, 2, dropout=0.5), CharTokenizer("\n abcdefghij"))


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


def test_blocks_of_a_stream_double_while_they_come_quickly(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    sizes, seen = _growing(), []
    for seconds in (0, 0.001, 0.1, 0.1, 0, 0, 0, 0, 0, 0):
        seen.append(next(sizes))
        clock[0] += seconds
    assert seen == [1, 2, 4, 4, 4, 8, 16, 32, 64, 64]


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
    logits = ModelDecoder(generator.model, chunk=7).prefill([tokens.numpy()])
    torch.testing.assert_close(torch.from_numpy(logits), whole[:, -1])


def test_errors_come_before_the_first_character(generator):
    with pytest.raises(UnknownCharacterError, match="'Z' .* at position 1"):
        generator.stream("aZ")
    with pytest.raises(ValueError, match="top_p"):
        generator.stream("a", top_p=2)
    with pytest.raises(ValueError, match="length: expected a value greater than or equal to 0, got -1"):
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


# ------------------------------------------------------------------------------- where a text ends, what it is made of


class Chain(torch.nn.Module):
    """A model made by hand: the next token depends on the last alone, as `table` (V, V) of logits says."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.as_tensor(table, dtype=torch.float32), requires_grad=False)

    def forward(self, tokens, state=None):
        return self.table[tokens], torch.zeros(len(tokens), 1) if state is None else state


def chain(tokenizer, likely, default=-30.0):
    """A generator in which `likely` has the probability of each pair of letters; all others have next to none."""
    table = np.full((tokenizer.vocab_size,) * 2, default)
    for (first, second), probability in likely.items():
        table[first, second] = math.log(probability)
    return TextGenerator(Chain(table), tokenizer)


def letters(text):
    """A chain of characters from `ab=0.5 …`."""
    pairs = {pair: float(value) for pair, value in (part.split("=") for part in text.split())}
    tokenizer = CharTokenizer("".join(sorted(set("".join(pairs)))))
    return chain(tokenizer, {tuple(tokenizer.encode(pair).tolist()): value for pair, value in pairs.items()})


KINDS = (CharTokenizer, ByteTokenizer, WordTokenizer, BpeTokenizer)
SOME_TEXT = "the cat, the café and the dog; the cat sat by the bed. déjà vu\n" * 3


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.kind)
def of_any_kind(request):
    torch.manual_seed(5)
    tokenizer = request.param.from_text(SOME_TEXT)
    return TextGenerator(CharGRU(tokenizer.vocab_size, 8), tokenizer)


def up_to_the_first(text, stops, before):
    """What follows `before`, up to the first stop of which any part is in it."""
    whole = before + text
    places = [(place, stop) for stop in stops for place in range(len(whole)) if whole.startswith(stop, place)]
    ends = [place + len(stop) - len(before) for place, stop in places if place + len(stop) > len(before)]
    return text[: min(ends, default=None)]


@pytest.mark.parametrize("seed", range(4))
def test_a_text_is_the_one_without_stops_up_to_the_first(of_any_kind, seed):
    """Across pieces and tokens: the stops are cut out of the text itself, at random."""
    whole = of_any_kind.generate("the ", 150, seed=seed)[4:]
    random = np.random.default_rng(seed)
    for many in (0, 1, 2, 3):
        places = random.integers(5, 140, size=many)
        stops = [whole[place : place + size] for place, size in zip(places, random.integers(1, 9, many), strict=True)]
        stops = stops or [whole[:7]]  # it reaches over all of the first pieces of a stream, which are short
        settings = {"stop": stops[0] if many <= 1 else stops, "seed": seed}
        expected = "the " + up_to_the_first(whole, stops, "the ")
        assert of_any_kind.generate("the ", 150, **settings) == expected
        assert "".join(of_any_kind.stream("the ", 150, **settings)) == expected
        assert "".join(of_any_kind.stream("the ", None, **settings)) == expected
        assert of_any_kind.generate_batch(["the ", "the"], 150, **settings)[0] == expected


def test_a_stop_counts_if_any_part_of_it_is_generated():
    generator = letters("ab=1 bc=1 ca=1")
    assert generator.generate("ca", 9, temperature=0, stop="ab") == "cab"
    assert generator.generate("ab", 9, temperature=0, stop="ab") == "abcab"
    short_and_long = generator.generate("cab", 9, temperature=0, stop=["cabcab", "a"])
    assert short_and_long == "cabca"  # the short one in the prompt does not count
    assert "".join(generator.stream("ca", None, temperature=0, stop="ab")) == "cab"
    assert generator.generate_batch(["ca", "a"], 9, temperature=0, stop="cab") == ["cab", "abcab"]
    assert generator.beam_search("ca", 9, width=1, stop="ab")[0].text == "cab"
    assert generator.generate("ab", 9, temperature=0, stop=["b", "zz"]) == "abcab"
    assert generator.generate("a", 3, temperature=0, stop="zz") == "abca"
    assert generator.generate("a", 3, temperature=0, stop=[]) == "abca"
    assert generator.generate("a", 3, temperature=0, stop="a") == "abca"
    assert generator.generate("a", 5, temperature=0, stop=["bcab", "ca"]) == "abca"  # the first to be complete


def test_texts_of_a_batch_end_each_at_its_own_stop():
    generator = letters("ab=1 bc=1 cd=1 da=1")
    assert generator.generate_batch(["a", "c", "d"], 6, temperature=0, stop="d") == ["abcd", "cd", "dabcd"]


def test_an_empty_stop_is_an_error(generator):
    for stop in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop: expected at least 1 character, got ''"):
            generator.generate("a", 3, stop=stop)


def test_only_allowed_characters_are_written_and_none_that_is_forbidden(of_any_kind):
    for seed in range(3):
        assert set(of_any_kind.generate("the", 80, seed=seed, allow="the acd ")[3:]) <= set("the acd ")
        assert not set(of_any_kind.generate("the", 80, seed=seed, forbid="ea \n")[3:]) & set("ea \n")
        assert set(of_any_kind.generate("the", 80, seed=seed, allow="bed the", forbid="te")[3:]) <= set("bd h")


def test_allow_and_forbid_give_the_rest_of_the_odds():
    generator = letters("ab=0.5 ac=0.3 ad=0.2 ba=1 ca=1 da=1")
    texts = [generator.generate("a", 1, seed=seed, forbid="b")[1] for seed in range(1000)]
    assert set(texts) == {"c", "d"}
    assert texts.count("c") == pytest.approx(600, abs=60)  # 4 standard deviations


def test_half_of_a_forbidden_character_is_forbidden():
    """A byte is a token, too, so that two could spell what neither says alone."""
    tokenizer = BpeTokenizer.from_text(SOME_TEXT)
    first, second = (tokenizer.token_bytes.index(bytes([byte])) for byte in "é".encode())
    start = int(tokenizer.encode("a")[0])
    generator = chain(tokenizer, {(start, first): 1.0, (first, second): 1.0, (second, start): 1.0})
    assert generator.generate("a", 3, temperature=0) == "aéaé"
    assert "é" not in generator.generate("a", 20, temperature=0, forbid="é")


def test_what_cannot_be_written_is_a_sentence(of_any_kind):
    for name in ("allow", "forbid"):
        with pytest.raises(ValueError, match=f"{name}: expected characters in the vocabulary, got '中'"):
            of_any_kind.stream("the", **{name: "a中"})
    with pytest.raises(ValueError, match="allow, forbid: expected to leave at least one token, got none"):
        of_any_kind.stream("the", allow="a", forbid="a")
    with pytest.raises(ValueError, match="allow: expected at least 1 character, got ''"):
        of_any_kind.stream("the", allow="")


# ------------------------------------------------------------------------------------------------------- beam search


def log_probabilities(generator, prompt, continuation):
    """Of each token of `continuation` after `prompt`, the text fed whole."""
    tokens = np.concatenate([generator.tokenizer.encode(prompt), continuation]).astype("int64")
    with torch.no_grad():
        logits, _ = generator.model.eval()(torch.from_numpy(tokens)[None])
    start = len(tokens) - len(continuation)
    return logits[0].double().log_softmax(-1)[range(start - 1, len(tokens) - 1), tokens[start:]]


def score(log_probability, tokens, alpha):
    return log_probability / ((5 + tokens) / 6) ** alpha


def test_a_beam_of_width_1_is_greedy(generator):
    for prompt in ("a", "", "hij"):
        (beam,) = generator.beam_search(prompt, 40, width=1)
        assert beam.text == generator.generate(prompt, 40, temperature=0)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_beams_probability_is_that_of_its_text_fed_whole(of_any_kind, width):
    prompt = "the cat"
    beams = of_any_kind.beam_search(prompt, 5, width=width, alpha=0.7)
    assert len(beams) == width
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    for beam in beams:
        assert beam.tokens == 5
        assert beam.score == pytest.approx(score(beam.log_probability, 5, 0.7))
        assert beam.text.startswith(prompt)
    if of_any_kind.tokenizer.kind == "char":
        assert len({beam.text for beam in beams}) == width
        for beam in beams:
            expected = log_probabilities(of_any_kind, prompt, of_any_kind.tokenizer.encode(beam.text[len(prompt) :]))
            assert beam.log_probability == pytest.approx(expected.sum().item(), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("stop", [None, "c", "ba"])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_wide_enough_for_all_texts_finds_the_best(seed, stop, alpha):
    torch.manual_seed(seed)
    model = CharGRU(3, 4)
    torch.nn.init.normal_(model.head.weight, std=2)
    generator = TextGenerator(model, CharTokenizer("abc"))
    length, found = 4, {}
    for tokens in itertools.product(range(3), repeat=length):
        written = up_to_the_first(generator.tokenizer.decode(tokens), [stop] if stop else [], "ab")
        log_p = log_probabilities(generator, "ab", tokens[: len(written)]).sum().item()
        found["ab" + written] = score(log_p, len(written), alpha)
    best = max(found, key=found.get)
    beams = generator.beam_search("ab", length, width=3**length, alpha=alpha, stop=stop)
    assert beams[0].text == best
    assert {beam.text: beam.score for beam in beams} == pytest.approx(found, abs=1e-4)


def test_a_wider_beam_sees_past_a_first_step_that_is_likely_alone():
    generator = letters("ab=0.6 ac=0.4 bb=0.3 bc=0.35 ba=0.35 cc=0.9 cb=0.1")
    assert generator.beam_search("a", 3, width=1)[0].text.startswith("ab")
    best = generator.beam_search("a", 3, width=2)[0]
    assert best.text == "accc"
    assert math.exp(best.log_probability) == pytest.approx(0.4 * 0.9 * 0.9, rel=1e-4)


def test_alpha_makes_up_for_length():
    generator = letters("a.=0.3 ab=0.7 bc=0.6 b.=0.4 c.=0.55 ca=0.45 ..=1")
    by_alpha = {alpha: generator.beam_search("a", 3, width=20, alpha=alpha, stop=".") for alpha in (0.0, 2.0)}
    assert by_alpha[0.0][0].text == "a."
    assert by_alpha[2.0][0].text == "abc."
    for beams in by_alpha.values():
        assert {beam.text: beam.tokens for beam in beams if beam.text in ("a.", "abc.")} == {"a.": 1, "abc.": 3}


def test_a_longer_text_may_overtake_those_that_have_ended():
    generator = letters("a.=0.5 ab=0.5 b.=0.5 bc=0.5 cd=1 de=1 ef=1 ..=1")
    beams = generator.beam_search("a", 5, width=2, alpha=2.0, stop=".")  # after two steps two texts have ended
    assert [beam.text for beam in beams] == ["abcdef", "a."]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_what_a_beam_search_finds_is_at_its_end(width):
    generator = letters("a.=0.3 aa=0.6 ab=0.1 b.=0.1 ba=0.5 bb=0.4 .a=1")
    for beam in generator.beam_search("a", 6, width=width, stop="."):
        assert beam.tokens == 6 or beam.text.endswith("."), beam
        assert beam.text.count(".") <= 1


def test_a_beam_ends_right_after_the_stop_in_the_middle_of_a_token():
    tokenizer = WordTokenizer(["\ufffd", "abc", "xyz", " "])
    generator = chain(tokenizer, {(1, 2): 1.0, (2, 3): 1.0, (3, 1): 1.0})
    assert generator.generate("abc", 9, temperature=0, stop="xy") == "abcxy"
    assert generator.beam_search("abc", 9, width=1, stop="xy")[0].text == "abcxy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length: expected a value greater than or equal to 1, got 0"),
        ({"width": 0}, "width: expected a value greater than or equal to 1, got 0"),
        ({"alpha": -0.1}, "alpha: expected a value greater than or equal to 0, got -0.1"),
        ({"alpha": math.nan}, "alpha: expected a finite number, got nan"),
        ({"prompt": "aZ"}, "got 'Z' .* at position 1"),
        ({"stop": ""}, "stop: expected at least 1 character, got ''"),
    ],
)
def test_a_beam_search_out_of_range(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator.beam_search(**arguments)


def test_texts_written_at_the_same_time_do_not_disturb_each_other():
    """A model in training mode is shared with threads that each want it without dropout."""
    torch.manual_seed(0)
    model = CharLSTM(12, 16, num_layers=2, dropout=0.5).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=3)  # so wild that a unit dropped once changes the text
    generator = TextGenerator(model, CharTokenizer("\n abcdefghij"))
    short_begun, long_begun, short_ended = threading.Event(), threading.Event(), threading.Event()

    def hook(*_):
        """Let the short text end while the long one is inside the model."""
        if threading.current_thread().name.startswith("long"):
            long_begun.set()
            short_ended.wait(9)
        elif threading.current_thread().name.startswith("short"):
            short_begun.set()
            long_begun.wait(9)

    model.embedding.register_forward_hook(hook)
    alone = generator.generate("a", 60, seed=1)
    with ThreadPoolExecutor(1, "short") as short, ThreadPoolExecutor(1, "long") as long:
        first = short.submit(generator.generate, "a", 1, seed=1)
        first.add_done_callback(lambda _: short_ended.set())
        short_begun.wait(9)
        together = long.submit(generator.generate, "a", 60, seed=1)
        assert together.result() == alone
    assert model.training
