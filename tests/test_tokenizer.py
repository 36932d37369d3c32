import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.tokenizer import CharTokenizer, UnknownCharacterError, tokenizer_from_json

any_text = st.text(alphabet=st.characters(exclude_categories=()), min_size=1)  # lone surrogates and NUL included


@given(any_text)
def test_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) == len(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokens.max() < tokenizer.vocab_size


@given(any_text)
def test_json_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    saved = tokenizer.to_json()
    assert saved.isascii()
    assert tokenizer_from_json(saved) == tokenizer


@given(any_text, st.characters(exclude_categories=()))
def test_an_unknown_character_is_named_with_its_position(text, character):
    tokenizer = CharTokenizer.from_text(text.replace(character, "") or chr(97 + (character == "a")))
    known = tokenizer.characters[0]
    with pytest.raises(UnknownCharacterError, match="at position 3") as caught:
        tokenizer.encode(known * 3 + character + known)
    assert (caught.value.character, caught.value.position) == (character, 3)


def test_vocabulary_is_sorted_by_code_point():
    assert CharTokenizer.from_text("ba\nc😀é").characters == "\nabcé😀"


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_ids_take_no_more_room_than_they_need(size, dtype):
    tokenizer = CharTokenizer("".join(chr(i) for i in range(size)))
    assert tokenizer.encode(chr(size - 1)).dtype == dtype


def test_empty_text():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.decode(tokenizer.encode("")) == ""


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(IndexError, match="from 0 to 1, got 0 to 2"):
        CharTokenizer("ab").decode([0, 2])
    with pytest.raises(IndexError, match="got -1"):
        CharTokenizer("ab").decode([-1])


def test_vocabularies_that_cannot_be():
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer("")
    with pytest.raises(ValueError, match="'a' twice"):
        CharTokenizer("aba")


@pytest.mark.parametrize(
    "text", ["", "3", "{}", '{"type": "bpe"}', '{"type": "char"}', '{"type": "char", "x": 1}', "[1]"]
)
def test_json_that_is_no_tokenizer(text):
    with pytest.raises(ValueError, match="expected a tokenizer of type char"):
        tokenizer_from_json(text)


def test_json_says_what_it_is():
    assert json.loads(CharTokenizer("ab").to_json()) == {"type": "char", "characters": "ab"}
