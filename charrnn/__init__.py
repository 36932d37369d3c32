"""Character-level recurrent language models: a course in notebooks, and the library behind it."""

from charrnn.api import (
    Evaluation,
    Run,
    create_model,
    evaluate,
    get_model_info,
    load_model,
    save_model,
    train,
)
from charrnn.checkpoint import CheckpointError
from charrnn.config import ConfigError, RunConfig, load_config
from charrnn.corpus import CharDataset, Corpus, load_corpus
from charrnn.models import CharGRU, CharLSTM, CharModel, CharRNN, count_parameters
from charrnn.monitors import ProgressBar
from charrnn.sampling import TextGenerator
from charrnn.sources import CorpusError, corpus_names
from charrnn.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, UnknownCharacterError, WordTokenizer
from charrnn.training import DivergedError, Trainer

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharDataset",
    "CharGRU",
    "CharLSTM",
    "CharModel",
    "CharRNN",
    "CharTokenizer",
    "CheckpointError",
    "ConfigError",
    "Corpus",
    "CorpusError",
    "DivergedError",
    "Evaluation",
    "ProgressBar",
    "Run",
    "RunConfig",
    "TextGenerator",
    "Trainer",
    "UnknownCharacterError",
    "WordTokenizer",
    "corpus_names",
    "count_parameters",
    "create_model",
    "evaluate",
    "get_model_info",
    "load_config",
    "load_corpus",
    "load_model",
    "save_model",
    "train",
]
