"""Measure how well networks recall letters after a delay: an RNN, an RNN with orthogonal initialisation, and an LSTM.

`python -m charrnn.lab.probes.recall --out notebooks/03_recall.json` takes about five minutes on one core.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from charrnn.api import create_model
from charrnn.atomic import write_atomically
from charrnn.config import DeviceConfig, TrainingConfig
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.device import cpu_name
from charrnn.lab.probes.memory import copied_share
from charrnn.models.recurrent import CharModel
from charrnn.training.trainer import Trainer

DELAYS = (2, 5, 10, 20)  # numbers of dots, one lesson each
WIDTH, SYMBOLS = 4, 8  # letters to remember, and the size of their alphabet
KINDS: dict[str, dict[str, Any]] = {
    "LSTM": {"type": "lstm", "forget_bias": 1.0},
    "RNN, orthogonal start": {"type": "rnn", "init": "orthogonal"},
    "RNN": {"type": "rnn"},
}
SEEDS = (1, 2, 3)
RATES = {  # steps of a lesson: the learning rates tried
    250: dict.fromkeys(KINDS, (0.001, 0.003, 0.01, 0.03)),
    500: {"LSTM": (0.01,), "RNN, orthogonal start": (0.001, 0.002, 0.003, 0.005), "RNN": (0.003, 0.005, 0.01)},
}


def copy_lines(delay: int, count: int, seed: int) -> Corpus:
    """Make `count` lines: WIDTH letters, `delay` dots, the same letters."""
    length = count * (2 * WIDTH + delay + 1)
    return load_corpus(f"copy:delay={delay},width={WIDTH},symbols={SYMBOLS},length={length},seed={seed}")


def take_lessons(kind: str, rate: float, seed: int, steps: int = 250) -> tuple[CharModel, dict[int, float]]:
    """Train a network of `KINDS` with 64 units on each delay in turn.

    Returns:
        The network, and for each delay the share of letters that it recalls right after that lesson, on new lines.
    """
    sizes = {"hidden_size": 64, "num_layers": 1, "dropout": 0.0}
    model = create_model(copy_lines(DELAYS[0], 300, seed).tokenizer, seed=seed, **KINDS[kind], **sizes).model
    settings = {"learning_rate": rate, "grad_clip": 1.0, "hold_frac": 0.7, "weight_decay": 0, "max_steps": steps}
    # the fastest backend may differ between runs, and rounds differently
    device, shares = DeviceConfig(device="cpu", precision="fp32", backend="torch", threads=1, seed=seed), {}
    for delay in DELAYS:
        lesson = copy_lines(delay, 40 * steps, seed).tokens
        window = 2 * (2 * WIDTH + delay + 1)  # two lines: one that ends among the dots would cut the gradient
        config = TrainingConfig(batch_size=16, seq_length=window, **settings)
        Trainer(model, lesson, lesson[:0], config, device).fit()
        shares[delay] = copied_share(model, copy_lines(delay, 200, seed=99), delay, WIDTH)
    return model, shares


def shares_by_rate(records: Sequence[Mapping[str, Any]], kind: str, steps: int) -> dict[float, list[list[float]]]:
    """Collect learning rate -> for each seed the shares after each lesson."""
    table: dict[float, list[list[float]]] = {}
    for record in records:
        if (record["kind"], record["steps"]) == (kind, steps):
            table.setdefault(record["learning_rate"], []).append(record["shares"])
    return table


def best_rate(records: Sequence[Mapping[str, Any]], kind: str, steps: int = 250) -> float:
    """Find the learning rate with the highest mean share over all lessons and seeds."""
    table = shares_by_rate(records, kind, steps)
    return max(table, key=lambda rate: sum(map(sum, table[rate])))


def main() -> None:
    """Measure all of `RATES` and write the file for notebook 03."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    records = []
    for steps, tried in RATES.items():
        for kind, rate, seed in ((each, rate, seed) for each in tried for rate in tried[each] for seed in SEEDS):
            _, shares = take_lessons(kind, rate, seed, steps)
            rounded = [round(share, 3) for share in shares.values()]
            records.append({"kind": kind, "learning_rate": rate, "seed": seed, "steps": steps, "shares": rounded})
            print(*records[-1].values(), flush=True)
    write_atomically(out, f"{json.dumps(described(records), indent=1)}\n".encode())


def described(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add the command, the machine and the delays to the records."""
    return {
        "command": "python -m charrnn.lab.probes.recall --out notebooks/03_recall.json",
        "machine": f"{cpu_name()}, 1 thread, {platform.system()}, torch {torch.__version__}",
        "delays": list(DELAYS),
        "records": list(records),
    }


if __name__ == "__main__":
    main()
