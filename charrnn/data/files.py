r"""Files, folders, globs and standard input as a text that comes in pieces.

Every text is read in bounded memory and unpacked if it starts like a gzip, bzip2 or xz file. A byte-order mark at its
start is dropped. All line ends (`\r\n`, `\r`) become newlines.
"""

import atexit
import bz2
import codecs
import contextlib
import fnmatch
import gzip
import hashlib
import io
import lzma
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NoReturn, TextIO

from tqdm.auto import tqdm

from charrnn.config import DataConfig
from charrnn.data.characters import escape_controls
from charrnn.data.tokenizer import END_OF_DOCUMENT, cut_between_words
from charrnn.errors import CorpusError

CHECKOUT = Path(__file__).resolve().parents[2]  # the folder of the project, if the package is imported from one

BLOCK = 1 << 17  # bytes read at a time: small enough to stay in the processor's cache

_TEXT_FILE = re.compile(r"\.txt(\.(gz|bz2|xz))?$", re.IGNORECASE)

Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Source:
    """A text that can be read again and again.

    Attributes:
        name: as the user typed it.
        size: bytes to read, for a progress bar.
        read: yields the text in pieces of any size and reports the number of bytes read to a callback.
        separator: stands between its files if it has several.
        documents: `END_OF_DOCUMENT` stands once before, between and after its documents; none of them is empty.
        raw: the text is the file's raw bytes; invalid UTF-8 comes as the surrogates U+DC80 to U+DCFF (PEP 383).
    """

    name: str
    size: int
    read: Callable[[Advance], Iterator[str]]
    separator: str | None = None
    documents: bool = False
    raw: bool = False

    def pieces(self, doing: str = "reading") -> Iterator[str]:
        """The text in pieces of about `BLOCK` characters, with a progress bar if it takes more than a second.

        Raises:
            CorpusError: it cannot be read or decoded, or an archive is damaged.
        """
        try:
            with byte_bar(f"{doing} {escape_controls(self.name)}", self.size) as bar:
                yield from _join_short(self.read(bar.update))
        except OSError as error:
            raise CorpusError(f"{error.filename or self.name}: could not be read: {error.strerror or error}") from error

    def parts(self, doing: str = "reading", whole_words: bool = False) -> Iterator[list[str]]:
        """The pieces, each split at the ends of documents; optionally no piece cuts a word in two."""
        pieces = self.pieces(doing)
        for piece in cut_between_words(pieces) if whole_words else pieces:
            yield piece.split(END_OF_DOCUMENT) if self.documents else [piece]

    def encode(self, parts: Iterable[str]) -> bytes:
        """Parts of the text as UTF-8, or as the raw bytes; an end of a document is byte FF, which UTF-8 never has.

        Raises:
            UnicodeEncodeError: half a character.
        """
        return b"\xff".join(part.encode("utf-8", "surrogateescape" if self.raw else "strict") for part in parts)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text, as `encode` gives it. The first use reads the text; two equal hashes mean equal texts.

        Raises:
            CorpusError: the text is empty or has half a character.
        """
        digest, characters = hashlib.sha256(), 0
        for parts in self.parts():
            try:
                digest.update(self.encode(parts))
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise CorpusError(
                    f"{self.name}: expected text, got a lone surrogate, U+{ord(half):04X}, at position "
                    f"{characters + ''.join(parts).index(half):,}; remove it, or name another encoding"
                ) from error
            characters += sum(map(len, parts))
        if not characters:
            piped = "nothing came; pipe the text in again, or name a file with --data"
            why = piped if self.name == "-" else "there is nothing in it"
            raise CorpusError(f"{self.name}: expected text, got none: {why}")
        return digest.hexdigest()


def byte_bar(label: str, total: int | None) -> "tqdm[NoReturn]":
    """A progress bar of bytes, drawn in a terminal only, if it takes more than a second."""
    disable = None if sys.stderr else True  # None asks whether it is a terminal
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, delay=1, leave=False, disable=disable)


def _join_short(pieces: Iterator[str]) -> Iterator[str]:
    """Join short pieces, so that each of 100,000 tiny files costs little."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= BLOCK // 4:  # a block of bytes has at least that many characters
            yield "".join(waiting)
            waiting, length = [], 0
    if length:
        yield "".join(waiting)


# ------------------------------------------------------------------------------------------------------ paths, globs


def open_path(config: DataConfig) -> Source | None:
    """The text of a file, folder, glob or named pipe, or of standard input for `-`; None if there is no such path.

    Raises:
        CorpusError: standard input is closed, or the folder or glob has no files.
    """
    name, path = config.name, os.path.expanduser(config.name)
    if name == "-":
        if sys.stdin is None:
            raise CorpusError("-: expected text on standard input, but it is closed; name a file instead")
        return _open_pipe(config, sys.stdin)
    if os.path.isfile(path):
        return _open_files(config, [path], several=False)
    if os.path.isdir(path):
        found = [file for file in _find_files(path, ["**", "*"]) if _TEXT_FILE.search(file)]
        expected = "expected .txt files (or .txt.gz, .bz2, .xz) in this folder (others: name a glob)"
    elif os.path.exists(path):  # such as /dev/stdin
        return _open_pipe(config, path)
    elif is_glob(path):
        found, expected = _find_files("", Path(path).parts), "expected files that match"
    else:
        return None
    if not found:
        raise CorpusError(f"{name}: {expected}, got none")
    return _open_files(config, found)


def is_glob(path: str) -> bool:
    """Return whether a path has a wildcard."""
    return any(character in path for character in "*?[")


def _find_files(folder: str, pattern: Sequence[str]) -> list[str]:
    """The files below `folder` that match the parts of a glob, sorted, each once even if several links lead to it.

    Raises:
        CorpusError: a folder cannot be listed, or a link leads nowhere: part of the text would be missing.
    """
    parts = [*pattern, "*"] if pattern[-1] == "**" else pattern
    files = {os.path.realpath(path): path for path in reversed(list(_search(folder, parts, set())))}
    return sorted(files.values(), key=lambda path: path.replace(os.sep, "/"))  # the same order on every system


def _search(path: str, parts: Sequence[str], seen: set[tuple[str, int]]) -> Iterator[str]:
    """The matching files below `path`. A folder is searched once for the same parts, so circular links end."""
    if not parts:
        if os.path.islink(path) and not os.path.exists(path):
            raise CorpusError(f"{path!r}: expected a file, got a broken link; remove it, or use a glob that skips it")
        if os.path.isfile(path):
            yield path
        return
    place = (os.path.realpath(path), len(parts))
    if place in seen:
        return
    seen.add(place)
    part, *rest = parts
    if not is_glob(part):
        yield from _search(os.path.join(path, part), rest, seen)
        return
    if part == "**":
        yield from _search(path, rest, seen)
    for name in _list_folder(path):
        inner = os.path.join(path, name)
        if name.startswith(".") and not part.startswith("."):
            continue
        if part == "**" and os.path.isdir(inner):
            yield from _search(inner, parts, seen)
        elif part != "**" and fnmatch.fnmatch(name, part):
            yield from _search(inner, rest, seen)


def _list_folder(folder: str) -> list[str]:
    """The names in a folder, sorted; none if it is not a folder."""
    try:
        return sorted(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CorpusError(f"{folder!r}: expected a folder that can be read, got: {error.strerror}") from error


def _open_files(config: DataConfig, paths: Sequence[str], several: bool = True) -> Source:
    """The text of these files in order; with `several`, a separator stands between them."""
    between = END_OF_DOCUMENT if config.documents else config.separator

    def read(advance: Advance) -> Iterator[str]:
        for i, path in enumerate(paths):
            if i:
                yield between
            with open(path, "rb", buffering=0) as file:
                yield from _decode_as(config, file, path, advance)

    size = sum(map(os.path.getsize, paths))
    return Source(config.name, size, read, between if several else None, raw=config.raw)


# --------------------------------------------------------------------------------------------------------------- pipes

_SPOOLS: dict[TextIO | str, IO[bytes]] = {}  # what has come out of each pipe


def _open_pipe(config: DataConfig, pipe: TextIO | str) -> Source:
    """The text that comes out of standard input or a named pipe."""
    spool = _SPOOLS.get(pipe) or _spool(pipe, _blocks(pipe))

    def read(advance: Advance) -> Iterator[str]:
        spool.seek(0)
        return _decode_as(config, spool, "standard input", advance)

    return Source(config.name, os.fstat(spool.fileno()).st_size, read, raw=config.raw)


def share_pipe(name: str, share: Callable[[Iterator[bytes]], Iterable[bytes]]) -> None:
    """Read `name` now, through `share`, if it is standard input or a named pipe.

    Several processes that read one pipe would each get a part of it. `share` takes the blocks that one process reads
    and gives them to all.
    """
    path = os.path.expanduser(name)
    pipe = sys.stdin if name == "-" else path if os.path.exists(path) and Path(path).is_fifo() else None
    if pipe is not None and pipe not in _SPOOLS:
        _spool(pipe, share(_blocks(pipe)))


def _spool(pipe: TextIO | str, blocks: Iterable[bytes]) -> IO[bytes]:
    """Keep the blocks of a pipe in a temporary file: they come only once and are read several times."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (open until the program ends)
    atexit.register(spool.close)
    spool.writelines(blocks)
    spool.flush()
    _SPOOLS[pipe] = spool
    return spool


def _blocks(pipe: TextIO | str) -> Iterator[bytes]:
    with open(pipe, "rb") if isinstance(pipe, str) else contextlib.nullcontext(pipe.buffer) as stream:
        while block := stream.read(BLOCK):
            yield block


# ------------------------------------------------------------------------------------------------------------ decoding


def _decode_as(config: DataConfig, file: IO[bytes], name: str, advance: Advance) -> Iterator[str]:
    return decode_file(file, name, None if config.raw else config.encoding, config.decode_errors, advance)


def decode_file(
    file: IO[bytes],
    name: str,
    encoding: str | None = "utf-8",
    errors: str = "strict",
    advance: Advance = lambda size: None,
) -> Iterator[str]:
    """The text of an open file: unpacked, without a byte-order mark, with newlines as line ends.

    With an encoding of None it is the raw bytes, where invalid UTF-8 becomes surrogates.

    Raises:
        CorpusError: invalid bytes in that encoding, or a damaged archive; names the file and the place.
    """
    packing, stream = _unpack(file)
    inner = codecs.getincrementaldecoder(encoding or "utf-8")(errors if encoding else "surrogateescape")
    decoder = io.IncrementalNewlineDecoder(inner, translate=True) if encoding else inner
    expected = f"{name}: expected text in {(encoding or 'bytes').upper()}"
    done, at_start, before = 0, encoding is not None, file.tell()
    try:
        while True:
            block = stream.read(BLOCK)
            if encoding and not done and (other := _recognise(block, encoding)):
                raise CorpusError(f"{expected}, got {other}")
            done += len(block)
            text = decoder.decode(block, final=not block)
            if text:
                yield text.removeprefix("\ufeff") if at_start else text
                at_start = False
            advance(file.tell() - before)
            before = file.tell()
            if not block:
                return
    except UnicodeDecodeError as error:
        place = done - len(error.object) + error.start  # the object is the block and what the one before left over
        raise CorpusError(
            f"{expected}, got byte 0x{error.object[error.start]:02x} at offset {place:,}; save the file as UTF-8, name "
            "its encoding (--encoding latin-1), or make such bytes U+FFFD (--decode-errors replace)"
        ) from error
    except UnicodeError as error:  # UTF-16 without a byte-order mark
        raise CorpusError(f"{expected}, got something else: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        raise CorpusError(
            f"{name}: expected a whole {packing} file, got a damaged one ({error}); fetch it again"
        ) from error


def _unpack(file: IO[bytes]) -> tuple[str, IO[bytes] | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]:
    """The kind of archive, by its first bytes, and a stream of its content."""
    start = file.read(10)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return "gzip", gzip.GzipFile(fileobj=file)
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", start):
        return "bzip2", bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz", lzma.LZMAFile(file)
    return "plain", file


_MAGIC = {  # the first bytes of files that are often taken for texts
    b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx and .epub are, too",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"%PDF-": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3\0": "an SQLite database",
    b"PAR1": "a Parquet table",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}


def _recognise(start: bytes, encoding: str) -> str | None:
    """The kind of a file that cannot be text in this encoding, by its first bytes, and what to do."""
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run: git lfs pull"
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        kind = "a tar archive"
    if kind:
        return f"{kind}; extract its text to a .txt file first"
    if codecs.lookup(encoding).name != "utf-8":
        return None
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16; read it with --encoding utf-16"
    even, odd = start[::2].count(0), start[1::2].count(0)
    least = max(8, len(start) // 20)  # spaces and line ends alone are a tenth of the characters
    for name, zeros, others in (("le", odd, even), ("be", even, odd)):
        if zeros >= least and not others:
            return f"a NUL in every second place, as UTF-16 has; read it with --encoding utf-16-{name}"
    return None
