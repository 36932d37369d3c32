"""A streamed text that is stopped, gone on with, and whose prompt is long."""

import itertools

import pytest
import torch

from charrnn.cli.interactive import Session
from charrnn.config import GenerationConfig
from charrnn.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, WordTokenizer
from charrnn.errors import ConfigError, UnknownCharacterError
from charrnn.generation.generator import TextGenerator
from charrnn.generation.text import CHUNK
from charrnn.lab.panels.worker import Writer
from charrnn.models.recurrent import CharGRU, CharLSTM
from tests.generation.test_generator import SOME_TEXT, letters


@pytest.fixture(params=["numba", "plain"])
def generator(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr("charrnn.generation.generator.numba_available", lambda: False)
    torch.manual_seed(3)
    return TextGenerator(CharLSTM(12, 16, 2), CharTokenizer("\n abcdefghij"))


def count_read(stream):
    """A list that grows by the number of tokens that the stream reads at once, draws apart."""
    read, extend = [], stream._decoder.extend
    stream._decoder.extend = lambda tokens: read.append(len(tokens)) or extend(tokens)
    return read


@pytest.mark.parametrize("pieces", [0, 1, 2, 9, None])
@pytest.mark.parametrize("rest", [{}, {"repetition_penalty": 1.3}])
def test_a_text_gone_on_with_is_the_one_that_is_read_again(generator, pieces, rest):
    stream = generator.stream("ab", 150, seed=1)
    text = "".join(itertools.islice(stream, pieces))
    read = count_read(stream)
    for seed in (2, 3):
        stream = stream.go_on(77, seed=seed, **rest)
        more = "".join(stream)
        assert text + more == generator.generate(text or "ab", 77, seed=seed, **rest)
        text += more
        assert sum(read) <= 64 * (seed - 1) + 2


def test_a_text_gone_on_with_is_like_a_longer_one():
    """Whatever a token is; where the length cuts a token its own spelling takes its place."""
    torch.manual_seed(5)
    for kind in (CharTokenizer, ByteTokenizer, WordTokenizer, BpeTokenizer):
        tokenizer = kind.from_text(SOME_TEXT)
        generator = TextGenerator(CharGRU(tokenizer.vocab_size, 8), tokenizer)
        whole = generator.generate("the ", 90, seed=1, temperature=0)
        for cut in range(12, 20):
            stream = generator.stream("the ", cut, temperature=0)
            text = "".join(stream) + "".join(stream.go_on(90 - cut, temperature=0))
            assert len(text) == len(whole)
            assert text == whole or kind in (WordTokenizer, BpeTokenizer)


def test_a_stop_string_counts_across_the_seam():
    generator = letters("ab=1 bc=1 ca=1")
    stream = generator.stream("a", 1, temperature=0)
    assert "".join(stream) == "ab"
    assert "".join(stream.go_on(9, temperature=0, stop="bc")) == "c"


def test_a_stream_that_was_gone_on_with_is_at_its_end(generator):
    stream = generator.stream("ab", None, seed=1)
    next(stream)
    with pytest.raises(ConfigError, match="top_k"):
        stream.go_on(top_k="5")
    assert next(stream)  # a wrong setting changed nothing
    more = stream.go_on(5, seed=2)
    assert list(stream) == []
    assert len("".join(more)) == 5


def test_a_long_prompt_comes_in_pieces_and_is_read_as_a_whole(generator):
    prompt = "abcdefghij" * 250
    stream = generator.stream(prompt, 20, seed=1)
    read = count_read(stream)
    pieces = [next(stream) for _ in range(3)]
    assert "".join(pieces) == prompt
    assert read == [CHUNK, CHUNK]  # each piece comes before it is read, so nobody waits for more than one
    assert prompt + "".join(stream) == generator.generate(prompt, 20, seed=1)
    tokens = generator.encode_prompt(prompt)
    expected = generator._decoder(1).prefill([tokens])
    decoder = generator._decoder(1)
    for start in range(0, len(tokens), CHUNK):
        logits = decoder.extend(tokens[start : start + CHUNK])
    assert logits.tolist() == expected.tolist()


def test_a_stream_stopped_within_its_prompt_goes_on_with_the_rest_of_it(generator):
    prompt = "abcdefghij" * 250
    stream = generator.stream(prompt, 20, seed=1)
    begun = next(stream)
    assert begun + "".join(stream.go_on(20, seed=2)) == generator.generate(prompt, 20, seed=2)


def test_an_interrupt_at_any_place_loses_nothing(generator):
    """Whether in the middle of the prompt or of a block of tokens."""
    prompt = "abcdefghij" * 250
    for place in range(1, 6):
        stream, calls = generator.stream(prompt, None, seed=1), 0

        def interrupted(method, place=place):
            def call(*arguments):
                nonlocal calls
                result = method(*arguments)
                calls += 1
                if calls == place:
                    raise KeyboardInterrupt
                return result

            return call

        decoder = stream._decoder
        for name in ("extend", "decode", "decode_n"):
            if hasattr(decoder, name):
                setattr(decoder, name, interrupted(getattr(decoder, name)))
        pieces = []
        with pytest.raises(KeyboardInterrupt):
            pieces.extend(stream)  # keeps what came before
        text = "".join(pieces)
        rest = "".join(stream.go_on(20, seed=2))
        before = text if len(text) > len(prompt) else prompt
        assert text + rest == generator.generate(before, 20, seed=2)


# ----------------------------------------------------------------------------------- in the terminal and in a widget


def test_more_reads_nothing_again_and_stops_across_the_seam():
    generator = letters("ab=1 bc=1 ca=1")
    session = Session(generator, GenerationConfig(length=2, temperature=0, top_p=None).settings() | {"seed": 5})
    assert "".join(session.write("c" + "abc" * 500)) == "c" + "abc" * 500 + "ab"
    session.change("stop", "bca")
    read = count_read(session._stream)
    assert "".join(session.more()) == "ca"
    assert session.text.endswith("abca")
    assert sum(read) <= 64


def test_a_writer_hears_a_stop_within_a_prompt_and_goes_on_with_its_rest(generator):
    prompt, writer = "abcdefghij" * 1000, Writer()
    stream, calls = generator.stream, []

    def stopping(*arguments, **settings):
        text = stream(*arguments, **settings)
        extend = text._decoder.extend

        def stop(tokens):
            calls.append(len(tokens))
            if len(calls) == 2:
                writer.stop()
            return extend(tokens)

        text._decoder.extend = stop
        return text

    generator.stream = stopping
    settings = {"prompt": prompt, "length": 20, "seed": 1}
    writer.start(generator, settings)
    assert writer.wait(20)
    assert len(calls) == 2
    assert prompt.startswith(writer.text)
    assert 0 < len(writer.text) < len(prompt)
    assert writer.characters == 0
    writer.go_on(generator, settings)
    assert writer.wait(20)
    assert writer.error is None
    assert writer.text == generator.generate(prompt, 20, seed=2)
    assert writer.characters == 20


def test_a_writer_goes_on_with_another_network_and_keeps_its_text_if_that_cannot_read_it(generator):
    writer, settings = Writer(), {"prompt": "ab", "length": 20, "seed": 1}
    writer.start(generator, settings)
    assert writer.wait(20)
    text = writer.text
    other = TextGenerator(CharGRU(12, 8), generator.tokenizer)
    writer.go_on(TextGenerator(CharGRU(3, 8), CharTokenizer("xyz")), settings)
    assert writer.wait(20)
    assert isinstance(writer.error, UnknownCharacterError)
    assert writer.text == text
    writer.go_on(other, settings)
    assert writer.wait(20)
    assert writer.text == other.generate(text, 20, seed=3)
    assert writer.characters == 40
    writer.start(generator, settings | {"top_k": "5"})
    assert writer.wait(20)
    assert isinstance(writer.error, ConfigError)
    assert len(writer.text) == 42  # wrong settings cost no text
