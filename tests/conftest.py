"""Fixtures: a small text, a place for corpora that is not the checkout's, tiny settings."""

import random

import pytest
from hypothesis import settings

import charrnn.corpus
import charrnn.sources
from charrnn.config import RunConfig

settings.register_profile("charrnn", deadline=None)  # how long something takes is measured, never asserted
settings.load_profile("charrnn")

# what makes a run tiny and its arithmetic the same every time
TINY = {
    "hidden_size": 8,
    "num_layers": 2,
    "batch_size": 4,
    "seq_length": 10,
    "max_steps": 12,
    "eval_interval": 5,
    "save_interval": 4,
    "log_interval": 3,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}


@pytest.fixture(scope="session")
def text() -> str:
    """3,000 characters of made-up words."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcde", k=generator.randint(1, 6))) for _ in range(40)]
    return "\n".join(" ".join(generator.choices(words, k=6)) for _ in range(200))[:3000]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """Corpora and the token cache land in a temporary folder."""
    folder = tmp_path / "data"
    for module in (charrnn.corpus, charrnn.sources):
        monkeypatch.setattr(module, "default_data_dir", lambda: folder)
    return folder


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def tiny(text_file) -> RunConfig:
    """A run of twelve steps on the small text."""
    return RunConfig().override({**TINY, "data": str(text_file)})
