import json
import random
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn.data.tokenizer
from charrnn.data.tokenizer import (
    TOKENIZERS,
    UNKNOWN,
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    WordTokenizer,
    count_characters,
    cut_between_words,
    tokenizer_from_json,
)
from charrnn.errors import LoneSurrogateError, UnknownCharacterError

python_text = st.text(alphabet=st.characters(exclude_categories=()), min_size=1)  # lone surrogates and NUL included
any_text = st.text(min_size=1)
# what real texts have much of, and what is likely to go wrong
wordy_text = st.text(alphabet="ab 9\n\t.,_'éß中文👩🏽\u200d\u0301\u3000\x1c\ufffd", min_size=1)
texts = any_text | wordy_text
kinds = st.sampled_from(list(TOKENIZERS.values()))


# --------------------------------------------------------------------------------------------------- what all have


@given(kinds, texts)
def test_round_trip(kind, text):
    tokenizer = kind.from_text(text)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens.max() < tokenizer.vocab_size
    assert tokens.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert tokens.flags.writeable
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size


@given(kinds, texts)
def test_json_round_trip(kind, text):
    tokenizer = kind.from_text(text)
    saved = tokenizer.to_json()
    assert saved.isascii()
    loaded = tokenizer_from_json(saved)
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded != CharTokenizer("another")


@given(kinds, texts, st.lists(st.integers(0, 255), max_size=20))
def test_tokens_one_by_one_give_the_text_of_all(kind, text, more):
    tokenizer = kind.from_text(text)
    tokens = [*tokenizer.encode(text).tolist(), *(token % tokenizer.vocab_size for token in more)]  # any garbage
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.push([token]) for token in tokens) + decoder.flush() == tokenizer.decode(tokens)
    assert StreamDecoder(tokenizer).push(tokens).startswith(tokenizer.decode(tokens).rstrip("\ufffd"))


@given(kinds, texts)
def test_characters_are_counted_in_tokens_of_every_kind(kind, text):
    tokenizer = kind.from_text(text)
    assert count_characters(tokenizer, tokenizer.encode(text), block=3) == len(text)


@given(kinds, texts, st.integers(1, 40))
def test_a_text_in_pieces_is_encoded_as_the_whole(kind, text, size):
    text = f"{text} " * 5
    tokenizer = kind.from_text(text)
    pieces = list(cut_between_words([text], size)) if tokenizer.whole_words else [text[:size], text[size:]]
    assert "".join(pieces) == text
    tokens = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    if not tokenizer.whole_words or all(len(piece) < size for piece in pieces):  # else a word may have been cut
        assert tokens.tolist() == tokenizer.encode(text).tolist()
        assert kind.from_text(iter(pieces)) == tokenizer


@given(st.lists(wordy_text, max_size=8), st.integers(1, 30))
def test_pieces_are_cut_between_words(pieces, size):
    cut = list(cut_between_words(pieces, size))
    assert "".join(cut) == "".join(pieces)
    assert all(len(piece) <= size for piece in cut)
    assert all(cut)
    for before, after in pairwise(cut):
        assert len(before) == size or (before[-1].isalnum() and after[0].isspace())


@pytest.mark.parametrize("kind", TOKENIZERS.values())
def test_empty_text(kind):
    tokenizer = kind.from_text("ab ab")
    assert tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("kind", TOKENIZERS.values())
def test_ids_outside_the_vocabulary_are_refused(kind):
    tokenizer = kind.from_text("ab")
    last = tokenizer.vocab_size - 1
    with pytest.raises(IndexError, match=f"from 0 to {last}, got 0 to {last + 1}"):
        tokenizer.decode([0, last + 1])
    with pytest.raises(IndexError, match="got -1"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("kind", [ByteTokenizer, BpeTokenizer])
def test_half_a_character_is_refused(kind):
    with pytest.raises(LoneSurrogateError, match="got a lone surrogate, U\\+D800, at position 1; remove it"):
        kind.from_text("ab").encode("a\ud800")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "{}",
        "[1]",
        '{"type": "x"}',
        '{"type": "char"}',
        '{"type": "char", "x": 1}',
        '{"type": "byte", "x": 1}',
        '{"type": "bpe", "spec": {}}',
        '{"type": "word", "words": ["a"]}',
        '{"type": "word", "words": ["\\ufffd", 3]}',
    ],
)
def test_json_that_is_no_tokenizer(text):
    with pytest.raises(ValueError, match="expected "):
        tokenizer_from_json(text)


# ------------------------------------------------------------------------------------------------------- characters


@given(python_text)
def test_any_string_round_trips_through_characters(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert tokenizer_from_json(tokenizer.to_json()) == tokenizer


@given(python_text, st.characters(exclude_categories=()))
def test_an_unknown_character_is_named_with_its_position(text, character):
    tokenizer = CharTokenizer.from_text(text.replace(character, "") or chr(97 + (character == "a")))
    known = tokenizer.characters[0]
    with pytest.raises(UnknownCharacterError, match="at position 3") as caught:
        tokenizer.encode(known * 3 + character + known)
    assert (caught.value.character, caught.value.position) == (character, 3)


@given(st.text(alphabet="aabbcdeé中文字\ufffd", min_size=1), st.integers(1, 4), st.integers(2, 6))
def test_rare_characters_become_one(text, min_frequency, vocab_size):
    tokenizer = CharTokenizer.from_text(text, vocab_size, min_frequency)
    assert tokenizer.vocab_size <= vocab_size
    kept = set(tokenizer.characters) - {UNKNOWN}
    assert all(text.count(character) >= min_frequency for character in kept)
    expected = "".join(character if character in kept else UNKNOWN for character in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    if UNKNOWN not in text:
        assert (tokenizer.unknown is None) == (kept == set(text))
    assert tokenizer_from_json(tokenizer.to_json()) == tokenizer
    if tokenizer.unknown is not None:
        assert tokenizer.encode("never seen: \U0010ffff").tolist()[-1] == tokenizer.unknown


def test_of_too_many_characters_the_commonest_stay():
    tokenizer = CharTokenizer.from_text("aaabbbccd", vocab_size=3)
    assert tokenizer.characters == "ab" + UNKNOWN
    assert tokenizer.decode(tokenizer.encode("abcd")) == "ab" + 2 * UNKNOWN


def test_vocabulary_is_sorted_by_code_point():
    assert CharTokenizer.from_text("ba\nc😀é").characters == "\nabcé😀"


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_ids_take_no_more_room_than_they_need(size, dtype):
    tokenizer = CharTokenizer("".join(chr(i) for i in range(size)))
    assert tokenizer.encode(chr(size - 1)).dtype == dtype
    assert tokenizer.encode(chr(size - 1)).tolist() == [size - 1]


def test_vocabularies_that_cannot_be():
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer("")
    with pytest.raises(ValueError, match="'a' twice"):
        CharTokenizer("aba")
    with pytest.raises(ValueError, match="expected the unknown character to be in the vocabulary, got '\\?'"):
        CharTokenizer("ab", unknown="?")


def test_json_names_the_type():
    assert json.loads(CharTokenizer("ab").to_json()) == {"type": "char", "characters": "ab"}
    assert json.loads(CharTokenizer("ab", "b").to_json()) == {"type": "char", "characters": "ab", "unknown": "b"}
    assert json.loads(ByteTokenizer().to_json()) == {"type": "byte"}


# ------------------------------------------------------------------------------------------------------------ words


def test_words_and_all_that_stands_between_them():
    text = "To be,\n or not to_be 9"
    tokenizer = WordTokenizer.from_text(text)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert pieces == ["To", " ", "be", ",", "\n", " ", "or", " ", "not", " ", "to_be", " ", "9"]


def test_unknown_words_are_one_token():
    tokenizer = WordTokenizer.from_text("a a a b b c", vocab_size=4)  # the unknown, the space, a, b
    assert tokenizer.words == (UNKNOWN, " ", "a", "b")
    assert tokenizer.decode(tokenizer.encode("a b c dd")) == f"a b {UNKNOWN} {UNKNOWN}"
    assert WordTokenizer.from_text("a a b", min_frequency=2).words == (UNKNOWN, " ", "a")


def test_word_lists_that_cannot_be():
    with pytest.raises(ValueError, match="as the first word, got 'a'"):
        WordTokenizer(["a"])
    with pytest.raises(ValueError, match="got 'a' twice"):
        WordTokenizer([UNKNOWN, "a", "a"])


# ------------------------------------------------------------------------------------------------------- byte pairs


def test_byte_pairs_are_joined_up_to_the_size(text):
    tokenizer = BpeTokenizer.from_text(text, vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert BpeTokenizer.from_text(text, vocab_size=10).vocab_size == 256
    assert tokenizer.decode(tokenizer.encode("never seen: é中👩🏽")) == "never seen: é中👩🏽"


def test_the_same_text_gives_the_same_byte_pairs(text):
    assert BpeTokenizer.from_text(text) == BpeTokenizer.from_text(text)


def test_pairs_that_are_too_rare_are_not_joined():
    assert BpeTokenizer.from_text("abab", min_frequency=3).vocab_size == 256
    assert BpeTokenizer.from_text("ab ab ab", min_frequency=3).vocab_size > 256


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="run: pip install tokenizers"):
        BpeTokenizer.from_text("ab")


def test_the_trainer_never_sees_a_long_word(monkeypatch):
    """Its time is quadratic in the length of a word, and a text without spaces is a single one."""
    sizes = []
    cut = charrnn.data.tokenizer.cut_between_words
    monkeypatch.setattr(
        charrnn.data.tokenizer, "cut_between_words", lambda pieces, size: [sizes.append(size), *cut(pieces, size)][1:]
    )
    text = "".join(random.Random(0).choices("ACGT", k=20_000))
    tokenizer = BpeTokenizer.from_text(text, vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert sizes
    assert max(sizes) <= 1 << 12


# ------------------------------------------------------------------------------------------------------------ bytes


@given(st.binary() | st.text().map(str.encode), st.integers(1, 5))
def test_any_bytes_round_trip(data, block):
    tokenizer = ByteTokenizer()
    tokens = np.frombuffer(data, np.uint8)
    assert tokenizer.decode(tokens) == data.decode("utf-8", "replace")  # what a person can read
    tokenizer.errors = "surrogateescape"
    text = tokenizer.decode(tokens)
    assert tokenizer.encode(text).tobytes() == data
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.push([token]) for token in data) + decoder.flush() == text
    begun = data[next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data))) :]
    counted = count_characters(tokenizer, tokens, block)
    assert 0 <= len(begun.decode("utf-8", "surrogateescape")) - counted <= 2  # the last character may lack bytes
    whole = bytes([97]) + data + bytes([97])
    assert count_characters(tokenizer, np.frombuffer(whole, np.uint8), block) == len(text) + 2


# ------------------------------------------------------------------------------------------------- spelling


@given(texts, st.integers(2, 8))
def test_unknown_words_are_spelled_in_a_code_that_can_be_read(text, vocab_size):
    """Kraft: over all words that are as long as one, 2 to the minus bits add up to no more than 1."""
    tokenizer = WordTokenizer.from_text(text, vocab_size)
    end, escape, bits = tokenizer._code
    assert 2**-end + 2**-escape + sum(2**-value for value in bits.values()) == pytest.approx(1)
    spelled = tokenizer.spelling(text)
    unknown = [word for word in re.findall(r"\w+|\W", text) if word == UNKNOWN or word not in tokenizer.words]
    assert spelled["characters"].tolist() == [len(word) for word in unknown]
    assert len(spelled) == (tokenizer.encode(text) == tokenizer.unknown).sum()
    for word, cost in zip(unknown, spelled["bits"].tolist(), strict=True):
        letters = sum(bits[letter] if letter in bits else escape + 8 * len(letter.encode()) for letter in word)
        assert cost == pytest.approx(end + letters, rel=1e-6)


def test_unknown_characters_are_spelled_by_their_bytes():
    tokenizer = CharTokenizer("a" + UNKNOWN, UNKNOWN)
    assert tokenizer.spelling("abé中a😀").tolist() == [(1, 8), (1, 16), (1, 24), (1, 32)]
    assert tokenizer.spelling("aa").tolist() == []
    assert BpeTokenizer.from_text("ab").spelling("abc").tolist() == []
