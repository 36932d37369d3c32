r"""A text, wherever it comes from, in pieces: named corpora, files, folders, globs, standard input.

What every text has in common: it is read in bounded memory, unpacked if its first bytes are those of gzip, bzip2 or xz,
a byte-order mark at its start is dropped, and lines end in newline alone, whatever the file has (`\r\n`, `\r`).
"""

import atexit
import bz2
import codecs
import contextlib
import fnmatch
import gzip
import io
import lzma
import os
import re
import secrets
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from tqdm.auto import tqdm

from charrnn.atomic import rename
from charrnn.config import DataConfig
from charrnn.data.characters import escape_controls
from charrnn.data.tokenizer import END_OF_DOCUMENT
from charrnn.errors import CorpusError

CHECKOUT = Path(__file__).resolve().parents[2]  # if the package is imported from one

BLOCK = 1 << 17  # bytes read at a time: small enough to stay in the processor's cache

Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Source:
    """A text that can be read again and again.

    Attributes:
        name: what the user called it.
        size: bytes to read, for a progress bar.
        read: yields the text in pieces of any size, telling a callback how many bytes it read.
        separator: what stands between its files, if it has several.
        raw: whether it is bytes as they are; those that are no UTF-8 come as surrogates, U+DC80 to U+DCFF (PEP 383).
        documents: whether `END_OF_DOCUMENT` stands once before, between and after its documents, none of them empty.
    """

    name: str
    size: int
    read: Callable[[Advance], Iterator[str]]
    separator: str | None = None
    documents: bool = False
    raw: bool = False

    def encode(self, text: str) -> bytes:
        """A piece of it in UTF-8, or as the bytes that it was.

        Raises:
            UnicodeEncodeError: half a character.
        """
        return text.encode("utf-8", "surrogateescape" if self.raw else "strict")

    def pieces(self, doing: str = "reading") -> Iterator[str]:
        """The text in pieces, none much shorter than `BLOCK`; a progress bar if it takes more than a second.

        Raises:
            CorpusError: it cannot be read, or is not what it should be: bytes that are no text, a damaged archive.
        """
        options = {"unit": "B", "unit_scale": True, "delay": 1, "leave": False, "disable": _bar_disabled()}
        try:
            with tqdm(total=self.size, desc=f"{doing} {escape_controls(self.name)}", **options) as bar:
                yield from _joined(self.read(bar.update))
        except OSError as error:
            raise CorpusError(f"{error.filename or self.name}: could not be read: {error.strerror or error}") from error


def _bar_disabled() -> bool | None:
    """For tqdm: None draws a bar in a terminal only; without standard error there is nothing to ask."""
    return None if sys.stderr else True


def _joined(pieces: Iterator[str]) -> Iterator[str]:
    """The same text with short pieces put together: 100,000 tiny files are to cost little each."""
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


# -------------------------------------------------------------------------------------------------------------- files


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


_TEXT_FILE = re.compile(r"\.txt(\.(gz|bz2|xz))?$", re.IGNORECASE)


def _matching(folder: str, pattern: Sequence[str]) -> list[str]:
    """The files below `folder` that match the parts of a glob, each once, whichever links lead to it."""
    parts = [*pattern, "*"] if pattern[-1] == "**" else pattern
    files = {os.path.realpath(path): path for path in reversed(list(_search(folder, parts, set())))}
    return sorted(files.values(), key=lambda path: path.replace(os.sep, "/"))  # the same order on every system


def _search(path: str, parts: Sequence[str], seen: set[tuple[str, int]]) -> Iterator[str]:
    """The files below `path` that match; a folder is searched once for the same parts, so links in a circle end.

    Raises:
        CorpusError: a folder cannot be listed, or a link leads nowhere: the text would lack a part of it.
    """
    if not parts:
        if os.path.islink(path) and not os.path.exists(path):
            raise CorpusError(f"{path!r}: expected a file, got a link to nothing; remove it, or name others by a glob")
        if os.path.isfile(path):
            yield path
        return
    place = (os.path.realpath(path), len(parts))
    if place in seen:
        return
    seen.add(place)
    part, *rest = parts
    if not _is_glob(part):
        yield from _search(os.path.join(path, part), rest, seen)
        return
    if part == "**":
        yield from _search(path, rest, seen)
    for name in _listed(path):
        inner = os.path.join(path, name)
        if name.startswith(".") and not part.startswith("."):
            continue
        if part == "**" and os.path.isdir(inner):
            yield from _search(inner, parts, seen)
        elif part != "**" and fnmatch.fnmatch(name, part):
            yield from _search(inner, rest, seen)


def _listed(folder: str) -> list[str]:
    """The names in a folder; none if it is no folder."""
    try:
        return sorted(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CorpusError(f"{folder!r}: expected a folder that can be read, got: {error.strerror}") from error


def _files(config: DataConfig, paths: Sequence[str], expected: str | None = None) -> Source:
    """The files in this order, the separator between them; `expected` says which, unless one was named."""
    if not paths:
        raise CorpusError(f"{config.name}: {expected}, got none")
    several = END_OF_DOCUMENT if config.documents else config.separator
    separator = None if expected is None else several

    def read(advance: Advance) -> Iterator[str]:
        for i, path in enumerate(paths):
            if i:
                yield separator
            with open(path, "rb", buffering=0) as file:
                yield from _decode_as(config, file, path, advance)

    return Source(config.name, sum(map(os.path.getsize, paths)), read, separator, raw=config.raw)


def _piped(config: DataConfig, pipe: TextIO | str) -> Source:
    spool = _SPOOLS.get(pipe) or _spool(pipe, _blocks(pipe))

    def read(advance: Advance) -> Iterator[str]:
        spool.seek(0)
        return _decode_as(config, spool, "standard input", advance)

    return Source(config.name, os.fstat(spool.fileno()).st_size, read, raw=config.raw)


def share_pipe(name: str, share: Callable[[Iterator[bytes]], Iterable[bytes]]) -> None:
    """If `name` is standard input or a named pipe, read it now, through `share`.

    Processes that read the same pipe would each get a part of it: `share` takes the blocks that one of them reads, and
    gives them to all.
    """
    path = os.path.expanduser(name)
    pipe = sys.stdin if name == "-" else path if os.path.exists(path) and Path(path).is_fifo() else None
    if pipe is not None and pipe not in _SPOOLS:
        _spool(pipe, share(_blocks(pipe)))


_SPOOLS: dict[TextIO | str, BinaryIO] = {}  # what has come out of each pipe


def _spool(pipe: TextIO | str, blocks: Iterable[bytes]) -> BinaryIO:
    """What comes out of standard input or a named pipe, in a temporary file: it comes once, and is read often."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (open until the program ends)
    atexit.register(spool.close)
    spool.writelines(blocks)
    spool.flush()
    _SPOOLS[pipe] = spool
    return spool


def _blocks(pipe: TextIO | str) -> Iterator[bytes]:
    with contextlib.nullcontext(pipe.buffer) if not isinstance(pipe, str) else open(pipe, "rb") as stream:
        while block := stream.read(BLOCK):
            yield block


def _decode_as(config: DataConfig, file: BinaryIO, name: str, advance: Advance) -> Iterator[str]:
    encoding = None if config.raw else config.encoding
    return decode_file(file, name, encoding, config.decode_errors, advance)


def decode_file(
    file: BinaryIO,
    name: str,
    encoding: str | None = "utf-8",
    errors: str = "strict",
    advance: Advance = lambda size: None,
) -> Iterator[str]:
    """The text of an open file, unpacked if it is packed, without byte-order mark, lines ending in newline.

    An encoding of None takes its bytes as they are; those that are no UTF-8 become surrogates.

    Raises:
        CorpusError: bytes that are no text in that encoding, or a damaged archive; names the file and the place.
    """
    packing, stream = _unpacked(file)
    if encoding is None:
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    else:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    done, at_start, before = 0, encoding is not None, file.tell()
    try:
        while True:
            block = stream.read(BLOCK)
            if encoding and not done and (other := _what_else(block, encoding)):
                raise CorpusError(f"{name}: expected text in {encoding.upper()}, got {other}")
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
        place = done - len(error.object) + error.start  # the object is the block and what was left of the one before
        raise CorpusError(
            f"{name}: expected text in {encoding.upper()}, got byte 0x{error.object[error.start]:02x} at offset "
            f"{place:,}; save the file as UTF-8, name its encoding (--encoding latin-1), or make such bytes U+FFFD "
            "(--decode-errors replace)"
        ) from error
    except UnicodeError as error:  # UTF-16 without a byte-order mark
        raise CorpusError(f"{name}: expected text in {encoding.upper()}, got something else: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        raise CorpusError(
            f"{name}: expected a whole {packing} file, got a damaged one ({error}); fetch it again"
        ) from error


def _unpacked(file: BinaryIO) -> tuple[str, BinaryIO]:
    """How a file is packed, by its first bytes, and the stream of what is in it."""
    start = file.read(10)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return "gzip", gzip.GzipFile(fileobj=file)
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", start):
        return "bzip2", bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz", lzma.LZMAFile(file)
    return "plain", file


_MAGIC = {  # how files that are often taken for texts begin
    b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx and .epub are, too",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"%PDF-": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3\0": "an SQLite database",
    b"PAR1": "a Parquet table",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
}


def _what_else(start: bytes, encoding: str) -> str | None:
    """What a file is that begins so, and what to do, if it is surely no text in this encoding."""
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


def write_if_possible(path: Path, blocks: Iterable[bytes | memoryview]) -> bool:
    """Write a file whole or not at all. A text can be used without being kept, so a full disk is a warning here."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb") as file:
                for block in blocks:
                    file.write(block)
            rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"could not keep {path} ({error.strerror}); it will be made again next time", stacklevel=2)
        return False
    return True
