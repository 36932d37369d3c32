import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import charrnn.data.corpus
import charrnn.data.files
from charrnn.data.corpus import load_corpus
from charrnn.data.statistics import describe_text, entropy, most_common, token_counts
from charrnn.data.streams import CharDataset, DocumentDataset
from charrnn.data.tokenizer import ByteTokenizer, CharTokenizer
from charrnn.errors import ConfigError, CorpusError
from tests.conftest import killed_at_each_touch

# ------------------------------------------------------------------------------------------------ the token cache


def test_tokens_are_cached_and_memory_mapped(text_file, text, data_dir, monkeypatch):
    first = load_corpus(str(text_file))
    monkeypatch.setattr(CharTokenizer, "encode", None)  # not needed a second time
    second = load_corpus(str(text_file))
    assert isinstance(second.tokens, np.memmap)
    assert np.array_equal(first.tokens, second.tokens)
    assert second.tokenizer == first.tokenizer
    assert second.tokenizer.decode(second.tokens) == text


def test_a_changed_text_is_encoded_anew(text_file):
    load_corpus(str(text_file))
    text_file.write_text("another text", encoding="utf-8")
    corpus = load_corpus(str(text_file))
    assert corpus.tokenizer.decode(corpus.tokens) == "another text"


@given(st.data())
def test_any_damage_to_the_cache_is_noticed(data):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = folder / "words.txt"
        path.write_text("to be or not to be", encoding="utf-8")
        load_corpus(str(path), data_dir=folder)
        damaged = data.draw(st.sampled_from(sorted((folder / ".cache").iterdir())))
        content = bytearray(damaged.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] ^= data.draw(st.integers(1, 255))
        else:
            del content[position:]
        damaged.write_bytes(content)
        corpus = load_corpus(str(path), data_dir=folder)
        assert corpus.tokenizer.decode(corpus.tokens) == "to be or not to be"


@pytest.mark.skipif(os.name != "posix", reason="a folder is made unwritable by turning it into a file")
def test_a_cache_that_cannot_be_written_is_a_warning(text_file, text, data_dir):
    data_dir.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not keep"):
        corpus = load_corpus(str(text_file))
    assert corpus.tokenizer.decode(corpus.tokens) == text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kill is played in a forked process")
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_cache_survives_a_kill_at_any_touch_of_the_disk(text_file, text, data_dir, kind):
    load_corpus(str(text_file), kind)  # all that is imported late is here
    shutil.rmtree(data_dir)
    ended = []
    for code in killed_at_each_touch(lambda: load_corpus(str(text_file), kind)):
        ended.append(code)
        state = data_dir.with_name("as the kill left it")
        if data_dir.exists():
            shutil.copytree(data_dir, state)
        corpus = load_corpus(str(text_file), kind, data_dir=state)
        assert corpus.tokenizer.decode(corpus.tokens) == text
        shutil.rmtree(state)
        shutil.rmtree(data_dir, ignore_errors=True)  # else the next run would have less to do
    assert ended[-1] == 0
    assert len(ended) > 8


def test_leftovers_of_a_killed_process_are_removed_after_a_day(text_file, data_dir):
    (data_dir / ".cache").mkdir(parents=True)
    for name, age in ((".old.tokens.1", 90_000), (".new.tokens.2", 10)):
        (data_dir / ".cache" / name).write_text("half a file")
        os.utime(data_dir / ".cache" / name, (time.time() - age,) * 2)
    load_corpus(str(text_file))
    assert [path.name for path in (data_dir / ".cache").glob(".*")] == [".new.tokens.2"]


def test_a_text_that_changes_while_it_is_read_is_an_error(text_file, text, data_dir, monkeypatch):
    key = charrnn.data.corpus._key

    def then_change(*arguments):
        text_file.write_text(text.swapcase(), encoding="utf-8")  # as long as before
        return key(*arguments)

    monkeypatch.setattr(charrnn.data.corpus, "_key", then_change)
    with pytest.raises(CorpusError, match="words.txt: the text changed while it was being read; try again"):
        load_corpus(text_file, "byte")
    monkeypatch.undo()
    assert not list(data_dir.rglob("*.tokens"))


def test_equal_tokenizers_share_cached_tokens(text_file, data_dir):
    first = load_corpus(text_file)
    load_corpus(text_file, first.tokenizer)
    load_corpus(text_file, vocab_size=999)
    assert len(list(data_dir.rglob("*.tokens"))) == 1


def test_threads_that_fill_the_cache_at_once_do_not_disturb_each_other(text_file, text, data_dir):
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: load_corpus(text_file), range(12)))
    assert all(corpus.tokenizer.decode(corpus.tokens) == text for corpus in corpora)
    assert not list((data_dir / ".cache").glob(".*"))


def test_a_leftover_that_cannot_be_removed_is_no_hindrance(text_file, data_dir, monkeypatch):
    (data_dir / ".cache").mkdir(parents=True)
    (data_dir / ".cache" / ".old").touch()
    os.utime(data_dir / ".cache" / ".old", (0, 0))
    unlink = Path.unlink

    def refuse(path, **options):
        if path.name == ".old":
            raise PermissionError(13, "Permission denied", path)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(load_corpus(text_file).tokens) == 3000
    assert (data_dir / ".cache" / ".old").exists()


def test_half_a_character_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("ab\\ud800c")
    with pytest.raises(
        CorpusError, match="a.txt: expected text, got a lone surrogate, U.D800, at position 2; remove it"
    ):
        load_corpus(tmp_path / "a.txt", encoding="unicode_escape")


def test_a_path_is_never_the_name_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.txt").write_text("mine")
    assert len(load_corpus(Path("copy")).tokens) == 4


def test_any_length_is_prepared_in_bounded_memory():
    load_corpus("copy:length=1000000,symbols=52")
    tracemalloc.start()
    corpus = load_corpus("copy:length=20000000,symbols=52")
    windows = CharDataset(corpus.tokens, 32, 64).windows(0)
    for _ in range(100):
        next(windows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.tokens) == 20_000_000
    assert peak < 8_000_000


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_every_kind_of_token(text_file, text, kind):
    first, second = (load_corpus(str(text_file), kind, vocab_size=400) for _ in range(2))
    assert first.tokenizer.kind == kind
    assert first.tokenizer == second.tokenizer
    assert np.array_equal(first.tokens, second.tokens)
    assert first.tokens.dtype == np.min_scalar_type(first.tokenizer.vocab_size - 1)
    assert first.tokenizer.decode(first.tokens) == text
    assert first.characters == len(text)
    assert first.unknown_share == 0
    if kind != "char":
        assert first.sha256 == load_corpus(str(text_file)).sha256


def test_the_position_of_an_unknown_character_is_that_in_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(charrnn.data.files, "BLOCK", 16)
    (tmp_path / "a.txt").write_text("ab" * 50 + "c" + "ab")
    with pytest.raises(CorpusError, match="a.txt: .* got 'c' .* at position 100;"):
        load_corpus(tmp_path / "a.txt", CharTokenizer("ab"))


def test_too_many_characters_are_said_and_capped(tmp_path):
    (tmp_path / "a.txt").write_text("aaabbbccd", encoding="utf-8")
    for _ in range(2):  # out of the cache, too
        with pytest.warns(UserWarning, match="more than 3 different characters; the rarest became U.FFFD, 33.33% of"):
            corpus = load_corpus(tmp_path / "a.txt", vocab_size=3)
    assert corpus.tokenizer.decode(corpus.tokens) == "aaabbb\ufffd\ufffd\ufffd"
    assert load_corpus(tmp_path / "a.txt").unknown_share == 0
    asked = load_corpus(tmp_path / "a.txt", min_frequency=2)  # no warning about an explicit setting
    assert asked.tokenizer.decode(asked.tokens) == "aaabbbcc\ufffd"
    assert asked.unknown_share == pytest.approx(1 / 9)


@given(st.binary(min_size=1), st.integers(1, 9))
@pytest.mark.filterwarnings("error")
def test_byte_tokens_are_the_bytes_of_any_file(data, block):
    data = b"\xef\xbb\xbf\r\n" + data
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(charrnn.data.files, "BLOCK", block)
        path = Path(folder) / "any.bin"
        path.write_bytes(data)
        for tokenizer in ("byte", ByteTokenizer()):
            corpus = load_corpus(path, tokenizer, data_dir=Path(folder))
            assert corpus.tokens.tobytes() == data
            assert corpus.sha256 == hashlib.sha256(data).hexdigest()
        (Path(folder) / "packed").write_bytes(gzip.compress(data))
        assert load_corpus(Path(folder) / "packed", "byte", Path(folder)).tokens.tobytes() == data
        assert charrnn.data.statistics.describe_text([corpus.tokenizer.decode(corpus.tokens)]).characters > 0


def test_byte_tokens_of_a_file_in_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("é\r\n".encode("latin-1"))
    corpus = load_corpus(tmp_path / "a.txt", "byte", encoding="latin-1")
    assert corpus.tokens.tobytes() == "é\n".encode()


@pytest.mark.parametrize("settings", [{"min_frequency": 2}, {"tokenizer": "word", "vocab_size": 5}])
def test_unknown_tokens_count_with_their_full_text(text_file, text, data_dir, settings):
    text_file.write_text(text := text.replace("b", "中") + "é", encoding="utf-8")
    for folder in (data_dir, data_dir, text_file):  # made, out of the cache, and where there can be none
        with pytest.warns(UserWarning, match="could not keep") if folder is text_file else contextlib.nullcontext():
            corpus = load_corpus(text_file, data_dir=folder, **settings)
        assert corpus.unknown_share > 0
        assert corpus.characters == len(text)
        assert corpus.extent(0, 0) == (0, 0, 0)
        half = len(corpus.tokens) // 2
        parts = [corpus.extent(0, half), corpus.extent(half)]
        assert np.sum(parts, axis=0) == pytest.approx([*corpus.extent()])
        spelled = corpus.tokenizer.spelling(text)
        assert corpus.extent().spelling == pytest.approx(float(spelled["bits"].sum()))
    bare = charrnn.data.corpus.Corpus("x", corpus.tokens, corpus.tokenizer, "")
    with pytest.raises(CorpusError, match="x: expected the spelling of its unknown tokens; make it with"):
        bare.extent()


def test_all_tokens_of_a_split_but_the_first_are_predicted(text_file, text):
    corpus = load_corpus(text_file, "word", vocab_size=9)
    parts = [len(corpus.tokenizer.decode(part)) for part in corpus.split()]
    assert sum(parts) < len(text)
    predicted = [corpus.predicted(split) for split in ("train", "val", "test")]
    assert [extent.tokens for extent in predicted] == [len(part) - 1 for part in corpus.split()]
    whole = corpus.predicted()
    assert whole.tokens == len(corpus.tokens) - 1
    assert whole.characters == len(text) - len(text.split()[0])
    assert sum(extent.characters for extent in predicted) < whole.characters


def test_settings_are_checked(text_file):
    with pytest.raises(ConfigError, match="unknown data setting 'vocabsize'"):
        load_corpus(text_file, vocabsize=3)
    with pytest.raises(ConfigError, match=r"data.tokenizer \(--tokenizer\): expected 'char', 'byte', 'word' or 'bpe'"):
        load_corpus(text_file, "syllable")


def test_a_models_tokenizer_is_kept(text_file, text):
    load_corpus(text_file)  # whose cached tokens have other ids
    tokenizer = CharTokenizer("zyxwedcba \n")
    corpus = load_corpus(str(text_file), tokenizer)
    assert corpus.tokenizer == tokenizer
    assert tokenizer.decode(corpus.tokens) == text
    with pytest.raises(CorpusError, match=r"words.txt: expected only characters of the vocabulary, got '.' "):
        load_corpus(str(text_file), CharTokenizer("ab"))


def test_default_data_dir_is_that_of_the_checkout(monkeypatch):
    monkeypatch.undo()
    assert charrnn.data.corpus.default_data_dir() == Path(charrnn.__file__).parents[1] / "data"


def test_a_read_only_checkout_lends_its_texts_and_the_rest_lands_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.undo()
    checkout, own = tmp_path / "course", tmp_path / "own"
    (checkout / "data" / "tinyshakespeare").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    text = "the text that the teacher has fetched\n" * 50
    (checkout / "data" / "tinyshakespeare" / "input.txt").write_text(text, encoding="utf-8")
    entry = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "from": {"url": "https://127.0.0.1/nothing"}}
    monkeypatch.setattr(charrnn.data.corpora, "CHECKOUT", checkout)
    monkeypatch.setattr(charrnn.data.corpora, "is_writable", lambda folder: False)
    monkeypatch.setattr(charrnn.data.corpora, "catalogue", lambda: {"tinyshakespeare": entry})
    monkeypatch.setattr(charrnn.data.corpora.platformdirs, "user_cache_path", lambda program: own)
    assert charrnn.data.corpus.default_data_dir() == own
    corpus = load_corpus("tinyshakespeare")
    assert corpus.tokenizer.decode(corpus.tokens) == text
    assert sorted(path.name for path in (checkout / "data").rglob("*")) == ["input.txt", "tinyshakespeare"]
    assert [path.suffix for path in (own / ".cache").glob("*.tokens")] == [".tokens"]


# ------------------------------------------------------------------------------------------------ splits


@given(st.integers(0, 500), st.floats(0.01, 1), st.floats(0, 0.99))
def test_splits_are_disjoint_and_cover(size, train_frac, val_frac):
    val_frac = min(val_frac, 1 - train_frac)
    corpus = charrnn.data.corpus.Corpus("x", np.arange(size, dtype=np.uint16), CharTokenizer("a"), "")
    splits = corpus.split(train_frac, val_frac)
    assert np.concatenate(splits).tolist() == list(range(size))
    if train_frac + val_frac == 1:
        assert len(splits.test) == 0


def test_ten_percent_to_choose_by_leaves_nothing():
    corpus = charrnn.data.corpus.Corpus("x", np.zeros(1_115_394, dtype=np.uint8), CharTokenizer("a"), "")
    assert [len(tokens) for tokens in corpus.split(0.9, 0.1)] == [1_003_854, 111_540, 0]


# ------------------------------------------------------------------------------------------------ windows


@pytest.mark.filterwarnings("ignore:.*too few for")
@given(st.integers(2, 400), st.integers(1, 20), st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_token_once(size, batch_size, seq_length, epoch, seed):
    tokens = np.arange(size, dtype=np.uint16)
    dataset = CharDataset(tokens, batch_size, seq_length, seed)
    windows = list(dataset.windows(epoch))
    inputs = np.concatenate([window.inputs.numpy() for window in windows], axis=1)
    targets = np.concatenate([window.targets.numpy() for window in windows], axis=1)
    assert inputs.flatten().tolist() == list(range(size - 1 - dataset.trimmed))  # streams are contiguous, in order
    assert (targets == inputs + 1).all()
    assert dataset.trimmed < dataset.batch_size
    assert all(window.inputs.shape[1] <= seq_length for window in windows)
    assert windows[-1].end == dataset.stream_length


@pytest.mark.filterwarnings("ignore:.*too few for")
@given(st.integers(2, 400), st.integers(1, 9), st.integers(1, 30), st.integers(0, 3), st.data())
def test_an_epoch_continues_after_any_window(size, batch_size, seq_length, epoch, data):
    dataset = CharDataset(np.arange(size, dtype=np.uint16), batch_size, seq_length)
    windows = list(dataset.windows(epoch))
    left = data.draw(st.integers(0, len(windows) - 1))
    rest = list(dataset.windows(epoch, windows[left].end))
    assert [w.inputs.tolist() for w in rest] == [w.inputs.tolist() for w in windows[left + 1 :]]


@pytest.mark.parametrize("of_documents", [False, True])
def test_the_rows_of_some_ranks_are_those_of_all(of_documents):
    """Each window holds, and so each rank copies to its device, its own rows alone."""
    tokens = np.random.default_rng(0).integers(0, 9, 500)
    tokens[[0, -1]] = 0
    dataset = DocumentDataset(tokens, 6, 10, 0) if of_documents else CharDataset(tokens, 6, 10)
    ranks = [list(dataset.windows(1, rows=slice(first, first + 2))) for first in (0, 2, 4)]
    for whole, *parts in zip(dataset.windows(1), *ranks, strict=True):
        assert [(part.end, part.full, len(part.inputs.untyped_storage()) < 6 * 8 * 500) for part in parts] == [
            (whole.end, whole.full, True)
        ] * 3
        for field in ("inputs", "targets", "lengths", "begins"):
            if getattr(whole, field) is not None:
                values = [np.asarray(getattr(part, field)) for part in parts]
                np.testing.assert_array_equal(np.concatenate(values), getattr(whole, field))


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("mps", False)])
def test_only_pinned_memory_is_copied_while_python_goes_on(monkeypatch, device, pinned):
    """Pageable memory that is freed before such a copy is done is silently read as something else on MPS."""
    made, copied = set(), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: made.add(self.data_ptr()) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, non_blocking=False: copied.append(non_blocking) or self)
    list(CharDataset(np.arange(100), 2, 10).windows(0, device=device))
    assert any(copied) == bool(made) == pinned


def test_borders_differ_between_epochs_and_are_seeded():
    datasets = [CharDataset(np.zeros(5000, dtype=np.uint8), 2, 50, seed=seed) for seed in (3, 3, 4)]
    firsts, again, others = ([dataset.borders(epoch)[0] for epoch in range(20)] for dataset in datasets)
    assert len(set(firsts)) > 10
    assert firsts == again != others


def test_a_short_split_uses_fewer_streams_and_says_so():
    with pytest.warns(UserWarning, match="words: 101 tokens are too few for 50 streams of 20; using 5"):
        dataset = CharDataset(np.zeros(101, dtype=np.uint8), 50, 20, name="words")
    assert dataset.batch_size == 5


@pytest.mark.parametrize("size", [0, 1])
def test_a_split_too_short_for_anything(size):
    with pytest.raises(CorpusError, match=f"words: expected at least 2 tokens, got {size}"):
        CharDataset(np.zeros(size, dtype=np.uint8), 1, 1, name="words")


# ------------------------------------------------------------------------------------------------ statistics


def test_entropy():
    assert entropy(np.array([0, 1, 2, 3], dtype=np.uint8)) == pytest.approx(2)
    assert f"{entropy(np.array([5, 5], dtype=np.uint8)):.4f}" == "0.0000"  # no minus


def test_equal_corpora_are_the_same_text_in_the_same_tokens(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abbccc")
    corpus = load_corpus(str(path))
    assert corpus == load_corpus(str(path))
    assert corpus != load_corpus(str(path), "byte")
    path.write_text("abbccca")
    assert corpus != load_corpus(str(path))


def _loaded(path, tokenizer="char"):
    corpus = load_corpus(path, tokenizer)
    return corpus.tokens, corpus.tokenizer


def test_commonest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abbccc")
    assert most_common(*_loaded(path), 2) == [("c", 3), ("b", 2)]
    assert most_common(*_loaded(path, "byte"), 9) == [
        ("c", 3),
        ("b", 2),
        ("a", 1),
    ]  # no byte that never occurs


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_token_counts(tokens, block):
    counts = token_counts(np.array(tokens, dtype=np.uint8), 10, block)
    assert counts.tolist() == [tokens.count(token) for token in range(10)]


@given(st.lists(st.text(alphabet="ab \n\té中", min_size=1)))
def test_the_size_of_a_text_in_pieces_is_that_of_the_whole(pieces):
    text = "".join(pieces)
    shape = describe_text(pieces)
    lines = text.removesuffix("\n").split("\n") if text else []
    assert shape.characters == len(text)
    assert shape.bytes == len(text.encode())
    assert shape.words == len(text.split())
    assert shape.lines == len(lines)
    assert shape.longest_line == max(map(len, lines), default=0)


# ------------------------------------------------------------------------------------------------- growing windows

growths = st.sampled_from([0.1, 0.5, 2.5])


@pytest.mark.filterwarnings("ignore:.*too few for")
@given(
    st.integers(2, 400),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 40),
    growths,
    st.integers(0, 3),
    st.data(),
)
def test_growing_windows_visit_every_token_once_and_continue_after_any_window(
    size, batch_size, seq_length, seq_length_start, seq_length_warmup_epochs, epoch, data
):
    dataset = CharDataset(
        np.arange(size, dtype=np.uint16), batch_size, seq_length, 1, "x", seq_length_start, seq_length_warmup_epochs
    )
    windows = list(dataset.windows(epoch))
    inputs = np.concatenate([window.inputs.numpy() for window in windows], axis=1)
    assert inputs.flatten().tolist() == list(range(size - 1 - dataset.trimmed))
    assert all(window.inputs.shape[1] <= window.full <= seq_length for window in windows)
    assert all(window.inputs.shape[1] == window.full for window in windows[1:-1])
    left = data.draw(st.integers(0, len(windows) - 1))
    rest = list(dataset.windows(epoch, windows[left].end))
    assert [(w.end, w.full) for w in rest] == [(w.end, w.full) for w in windows[left + 1 :]]


def test_windows_double_until_they_are_full():
    dataset = CharDataset(np.zeros(4001, dtype=np.uint8), 2, 32, seq_length_start=8, seq_length_warmup_epochs=0.5)
    lengths = [dataset.length_at(epoch) for epoch in (0, 0.24, 0.25, 0.49, 0.5, 3)]
    assert lengths == [8, 8, 16, 16, 32, 32]
    dataset = CharDataset(
        np.zeros(4001, dtype=np.uint8), 2, 20, seq_length_start=3, seq_length_warmup_epochs=0.3
    )  # no power of 2 times 3
    assert [dataset.length_at(epoch) for epoch in (0, 0.11, 0.21, 0.29, 0.3)] == [3, 6, 12, 12, 20]
    assert CharDataset(np.zeros(99, dtype=np.uint8), 2, 5, seq_length_start=9).length_at(0) == 5
