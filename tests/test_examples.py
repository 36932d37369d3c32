"""`examples/min_char_rnn.py` is short, runs, and does what the library does."""

import ast
import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from charrnn.config import DeviceConfig, ModelConfig, TrainingConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.models.build import build_model
from charrnn.training.events import Logged
from charrnn.training.trainer import Trainer

PATH = Path(__file__).parents[1] / "examples" / "min_char_rnn.py"

B, T, H, LAYERS, RATE, CLIP = 4, 10, 12, 2, 0.03, 0.2
EPOCH = 5  # windows
STEPS = 8 * EPOCH


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("min_char_rnn", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(example, cell, vocab_size):
    """The model of the example and that of the library, with the same weights."""
    sizes = {"hidden_size": H, "num_layers": LAYERS}
    ours = build_model(ModelConfig(type=cell, embedding_dim=H, dropout=0.0, **sizes), vocab_size, seed=1)
    theirs = example.CharRNN(vocab_size, cell=cell, **sizes)
    names = {name: re.sub(r"layers\.(\d+)\.(\w+)_l0", r"layers.\2_l\1", name) for name in ours.state_dict()}
    theirs.load_state_dict({names[name]: weight for name, weight in ours.state_dict().items()})
    return theirs, ours


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_example_learns_and_writes_what_the_library_does(example, cell, text, monkeypatch):
    """The same losses over eight epochs of the same windows, and then the same greedy text."""
    tokenizer = CharTokenizer.from_text(text)
    tokens = tokenizer.encode(text)[: B * T * EPOCH + 1]
    theirs, ours = pair(example, cell, tokenizer.vocab_size)
    # the example always uses whole windows and a constant rate, and lets no weight decay
    training = TrainingConfig(
        batch_size=B,
        seq_length=T,
        optimizer="adam",
        learning_rate=RATE,
        weight_decay=0.0,
        grad_clip=CLIP,
        schedule="constant",
        warmup_frac=0.0,
        max_steps=STEPS,
    )
    device = DeviceConfig(device="cpu", precision="fp32", backend="torch", threads=1)
    trainer = Trainer(ours, tokens, tokens[:0], training, device, log_interval=1)
    monkeypatch.setattr(trainer.dataset, "borders", lambda epoch: list(range(T, T * EPOCH + 1, T)))
    expected = [event.loss for event in trainer if isinstance(event, Logged)]

    ids = torch.from_numpy(tokens.astype(np.int64))
    losses = list(itertools.islice(example.train(theirs, ids, B, T, RATE, CLIP), STEPS))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] - 0.2  # else the test showed nothing

    prompt = text[:7]
    ids = torch.from_numpy(tokenizer.encode(prompt).astype(np.int64))
    written = tokenizer.decode(example.sample(theirs, ids, 60, temperature=0))
    assert prompt + written == TextGenerator(ours, tokenizer).generate(prompt, length=60, temperature=0)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_sample_of_the_example_follows_the_temperature(example, cell):
    torch.manual_seed(0)
    model = example.CharRNN(5, 8, cell=cell)
    prompt = torch.tensor([1, 2])
    greedy = example.sample(model, prompt, 30, temperature=0)
    assert example.sample(model, prompt, 30, temperature=1e-4) == greedy
    hot = example.sample(model, prompt, 30, temperature=100.0)
    assert len(hot) == 30
    assert set(hot) == set(range(5))


def test_the_example_is_one_short_file_of_plain_pytorch():
    source = PATH.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    nodes = list(ast.walk(ast.parse(source)))
    imports = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imports |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert {name.partition(".")[0] for name in imports} <= {*sys.stdlib_module_names, "torch"}


def test_the_example_runs_as_a_script(text_file):
    command = [sys.executable, str(PATH), str(text_file), "--cell", "gru", "--steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.match(r"--- step 2, loss \d\.\d{3}\n", result.stdout)
    assert len(result.stdout.partition("\n")[2]) == 202
