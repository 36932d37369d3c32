"""Texts of many documents: each is read from an empty state, and where it ends is learned."""

import random
from itertools import pairwise

import numpy as np
import pytest

from charrnn.config import ConfigError, RunConfig
from charrnn.corpus import CorpusError, DocumentDataset, find_ends, load_corpus
from charrnn.tokenizer import CharTokenizer, DocumentTokenizer, StreamDecoder, tokenizer_from_json


@pytest.fixture(scope="module")
def names() -> list[str]:
    """500 made-up names of one to twelve letters."""
    generator = random.Random(0)
    return ["".join(generator.choices("aeilmnor", k=generator.randint(1, 12))) for _ in range(500)]


@pytest.fixture
def names_file(tmp_path, names):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def split(names) -> tuple[np.ndarray, int]:
    """The names as tokens, the end token before, between and after them; and its id."""
    tokenizer = DocumentTokenizer(CharTokenizer("aeilmnor"))
    return np.concatenate([[8], *([*tokenizer.encode(name), 8] for name in names)]).astype(np.uint8), 8


def documents_of(corpus) -> list[str]:
    ends = find_ends(corpus.tokens, corpus.end)
    return [corpus.tokenizer.decode(corpus.tokens[a:b]) for a, b in pairwise(ends)]


# ------------------------------------------------------------------------------------------------- text -> tokens


def test_end_token_has_no_text_wherever_its_id_is():
    for end, tokens in ((None, [0, 1]), (0, [1, 2]), (1, [0, 2])):
        tokenizer = DocumentTokenizer(CharTokenizer("ab"), end)
        assert tokenizer.vocab_size == 3
        assert tokenizer.encode("ab").tolist() == tokens
        both = [tokenizer.end, *tokens, tokenizer.end]
        assert tokenizer.decode(both) == StreamDecoder(tokenizer).push(both) == "ab"
        again = tokenizer_from_json(tokenizer.to_json())
        assert (again, again.end, again.kind) == (tokenizer, tokenizer.end, "char")
    assert DocumentTokenizer(CharTokenizer("".join(map(chr, range(256))))).encode("ÿ").dtype == np.uint16


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_lines_of_a_file_become_documents(names, names_file, kind):
    corpus = load_corpus(names_file, kind, documents=True, vocab_size=1000)
    assert documents_of(corpus) == names
    assert corpus.characters == sum(map(len, names))
    assert corpus.end == corpus.tokenizer.end == corpus.tokenizer.vocab_size - 1
    assert load_corpus(names_file, kind, documents=True, vocab_size=1000).tokens.tolist() == corpus.tokens.tolist()


def test_files_of_a_folder_become_documents_with_all_they_hold(tmp_path):
    for name, text in (("b.txt", "two\nlines\n"), ("a.txt", "one"), ("c.txt", ""), ("d.txt", "four")):
        (tmp_path / name).write_text(text)
    whole = load_corpus(tmp_path, documents=True)
    assert documents_of(whole) == ["one", "two\nlines\n", "four"]  # an empty file has nothing to learn from
    assert documents_of(load_corpus(f"{tmp_path}/[ab]*.txt", documents=True)) == ["one", "two\nlines\n"]
    assert load_corpus(tmp_path).end is None
    assert load_corpus(tmp_path).sha256 != whole.sha256


@pytest.mark.parametrize("separator", ["\n", "\n\n", "--", "==="])
def test_separator_is_found_wherever_pieces_are_cut(tmp_path, monkeypatch, separator):
    path = tmp_path / "text.txt"
    documents = ["a-b", "c=\nd", "e" * 9, "-", "f"]
    documents = [document for document in documents if separator not in document]
    text = separator.join(["", *documents[:2], "", *documents[2:], ""])
    path.write_text(text)
    for block in range(1, 9):
        monkeypatch.setattr("charrnn.sources.BLOCK", block)
        corpus = load_corpus(path, documents=True, separator=separator)
        assert documents_of(corpus) == [document for document in text.split(separator) if document]


def test_splits_keep_documents_whole(names, names_file):
    corpus = load_corpus(names_file, documents=True)
    for fractions in ((0.9, 0.05), (0.5, 0.5), (1.0, 0.0), (0.001, 0.3)):
        parts = corpus.split(*fractions)
        assert all(part[0] == part[-1] == corpus.end for part in parts)
        assert sum(len(part) - 1 for part in parts) == len(corpus.tokens) - 1
        assert "".join(map(corpus.tokenizer.decode, parts)) == "".join(names)
        assert abs(len(parts.train) - fractions[0] * len(corpus.tokens)) < 13  # the longest name, its end and one


def test_what_cannot_be_documents_is_said(names_file):
    with pytest.raises(ConfigError, match="expected a --separator with documents"):
        RunConfig().override({"documents": True, "separator": ""})
    with pytest.raises(ConfigError, match="model that was trained on documents"):
        load_corpus(names_file, CharTokenizer("aeilmnor\n"), documents=True)
    names_file.write_text("\n\n")
    with pytest.raises(CorpusError, match="nothing in it"):
        load_corpus(names_file, documents=True)


# ---------------------------------------------------------------------------------------------- tokens -> windows


def read(dataset: DocumentDataset, epoch: int) -> list[list[int]]:
    """The documents that an epoch brings, in the order in which they begin; each as it is read, padding left out."""
    found: list[list[int]] = []
    rows: dict[int, list[int]] = {}
    for window in dataset.windows(epoch):
        for row, (begins, length) in enumerate(zip(window.begins, window.lengths, strict=True)):
            if begins:
                rows[row] = []
                found.append(rows[row])
                assert window.inputs[row, 0] == 8
            inputs, targets = window.inputs[row].tolist(), window.targets[row].tolist()
            assert inputs[1:length] == targets[: max(length, 1) - 1]
            assert targets[length:] == [-100] * (len(targets) - length)
            rows.setdefault(row, []).extend(targets[:length])
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
@pytest.mark.parametrize("seq_length", [1, 5, 50])
def test_epoch_visits_every_token_of_every_document_once(names, split, batch_size, seq_length):
    dataset = DocumentDataset(*split[:1], batch_size, seq_length, split[1], seed=1)
    tokenizer = DocumentTokenizer(CharTokenizer("aeilmnor"))
    orders = [read(dataset, epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert all(document[-1] == 8 and 8 not in document[:-1] for document in order)
        assert sorted(map(tokenizer.decode, order)) == sorted(names)
    assert orders[0] != read(DocumentDataset(*split[:1], batch_size, seq_length, split[1], seed=2), 0)


def test_windows_go_on_from_any_of_their_ends(split):
    dataset = DocumentDataset(split[0], 7, 5, split[1])
    windows = list(dataset.windows(3))
    assert windows[-1].end == dataset.stream_length == len(split[0]) - 1
    for i in (0, 1, len(windows) // 2):
        rest = list(dataset.windows(3, windows[i].end))
        assert [w.end for w in rest] == [w.end for w in windows[i + 1 :]]
        assert all((a.targets == b.targets).all() for a, b in zip(rest, windows[i + 1 :], strict=True))


def test_little_is_padded(split):
    dataset = DocumentDataset(split[0], 10, 50, split[1])
    assert dataset.padding < 0.1
    assert dataset.steps == len(list(dataset.windows(0)))
    assert DocumentDataset(split[0], 1, 50, split[1]).padding == 0
