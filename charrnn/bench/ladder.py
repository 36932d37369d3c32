"""Compare RNN, GRU and LSTM at equal parameters and equal time, over several seeds.

    charrnn bench ladder --seconds 25 --seeds 5 --out ladder.json

Every run has the same number of parameters, the same text and batches, and the same seconds of training. The learning
rate is tuned for each kind by short runs that are used for nothing else. It is constant after its warm-up, so a curve
may be read at any point: over the characters seen it compares the cells step by step, over the seconds it compares
their worth on this machine.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from charrnn.atomic import write_atomically
from charrnn.bench.processes import with_bar
from charrnn.bench.recorder import Recorder
from charrnn.bench.report import Report, Row, Table, add_seconds
from charrnn.config import RunConfig
from charrnn.data.corpus import load_corpus
from charrnn.device import cpu_name
from charrnn.errors import DivergedError
from charrnn.models.build import build_model, count_parameters
from charrnn.training.run import Run

CONFIG_FLAGS = ("data", "threads")
COLUMNS = {
    "kind": "{kind}",
    "units": "{hidden_size:,}",
    "parameters": "{parameters:,}",
    "learning rate": "{learning_rate:g}",
}
EQUAL = {"time": "seconds", "data": "characters"}  # what is equal, and the axis on which the curves are then read
KINDS: dict[str, dict[str, Any]] = {  # settings of each kind, named as on the command line
    "RNN": {"model_type": "rnn"},
    "GRU": {"model_type": "gru"},
    "LSTM": {"model_type": "lstm"},
    "LayerNorm-LSTM": {"model_type": "lstm", "layer_norm": True},
}
SETTINGS: dict[str, Any] = {
    "data": "shakespeare",
    "val_frac": 0.01,  # small, because it is evaluated often
    "num_layers": 1,
    "dropout": 0.0,
    "forget_bias": 0.0,  # with carried state a bias of 1 is worse
    "batch_size": 32,
    "seq_length": 64,
    "grad_clip": 1.0,  # an RNN needs it, and it does not hurt the others
    "warmup_frac": 0.02,
    "hold_frac": 0.98,
    "eval_interval": 50,
    "device": "cpu",
    "precision": "fp32",
    "backend": "auto",
}
FIRST_RATE = 2e-3  # where tuning begins; it goes on by factors of two
WIDEST = 6  # factors to either side
TRIAL = 0.5  # duration of a trial, as a fraction of a run
TRIAL_SEEDS = (101, 102)  # two, because near the largest stable rate a network may fail with one seed and not the next
NEVER = 2**40  # steps
PARAMETERS = 150_000
TOLERANCE = 0.01  # relative difference that is allowed between numbers of parameters


def equal_sizes(parameters: int, vocab_size: int, kinds: Iterable[str] = tuple(KINDS)) -> dict[str, dict[str, int]]:
    """Find for each kind the `hidden_size` whose number of parameters is nearest to `parameters`.

    Args:
        parameters: their number, including embedding and head.
        vocab_size: number of tokens V.
        kinds: keys of `KINDS`.

    Returns:
        For each kind `hidden_size` and `parameters`.

    Raises:
        ValueError: no size comes within 1%.
    """
    sizes = {}
    for kind in kinds:
        low, high = 1, 1 + int(parameters**0.5)  # the recurrent weights alone are hidden_size squared
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _parameters(kind, middle, vocab_size) <= parameters else (low, middle)
        size = min((low, high), key=lambda size: abs(_parameters(kind, size, vocab_size) - parameters))
        count = _parameters(kind, size, vocab_size)
        if abs(count - parameters) > TOLERANCE * parameters:
            raise ValueError(
                f"expected a number of parameters that every kind can have within {TOLERANCE:.0%}, got {parameters:,}: "
                f"{kind} comes as near as {count:,} with hidden_size {size}; ask for more"
            )
        sizes[kind] = {"hidden_size": size, "parameters": count}
    return sizes


def _parameters(kind: str, hidden_size: int, vocab_size: int) -> int:
    with torch.device("meta"):  # counts without allocating
        return count_parameters(build_model(_config(kind, hidden_size).model, vocab_size))


def _config(kind: str, hidden_size: int, **settings: Any) -> RunConfig:
    return RunConfig().override({**SETTINGS, **KINDS[kind], "hidden_size": hidden_size, **settings})


# -------------------------------------------------------------------------------------------------------------- runs


def run(kind: str, hidden_size: int, seed: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Train one network.

    Args:
        kind: one of `KINDS`.
        hidden_size: units H.
        seed: for weights and batches.
        seconds: of training, without evaluations.
        **settings: replace those in `SETTINGS`; max_steps is a budget, too.

    Returns:
        `kind`, `seed`, `hidden_size`, `parameters`, `learning_rate`, `backend` (the fastest here) and `curve`, as in
        `Recorder`.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    trained = Run.start(_config(kind, hidden_size, seed=seed, max_seconds=seconds, **settings))
    recorder = Recorder(trained.trainer)
    trained.fit(recorder)
    return {
        "kind": kind,
        "seed": seed,
        "hidden_size": hidden_size,
        "parameters": count_parameters(trained.generator.model),
        "learning_rate": trained.config.training.learning_rate,
        "backend": trained.trainer.progress.backend,
        "curve": recorder.curve,
    }


def tune(kind: str, hidden_size: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Find the best learning rate of one kind, to a factor of two; both of its neighbours are tried.

    The trials are compared by their loss on the last part of the training text, as long as the validation split, which
    they do not train on. So the validation split does not influence the choice.

    Args:
        kind: one of `KINDS`.
        hidden_size: units H.
        seconds: of each trial.
        **settings: as in `run`.

    Returns:
        `learning_rate`, and `trials` in their order: `learning_rate` and `val_loss`, the mean over `TRIAL_SEEDS`, None
        if one of them diverged.
    """
    data = _config(kind, hidden_size, **settings).data
    settings |= {"train_frac": data.train_frac - data.val_frac, "eval_interval": NEVER}
    losses: dict[int, float] = {}  # by the power of two
    best = 0
    while untried := {best - 1, best, best + 1} - losses.keys() - {-WIDEST - 1, WIDEST + 1}:
        for power in sorted(untried):
            rate = FIRST_RATE * 2.0**power
            try:
                trials = [run(kind, hidden_size, seed, seconds, **settings, learning_rate=rate) for seed in TRIAL_SEEDS]
                losses[power] = float(np.mean([trial["curve"]["val_loss"][-1] for trial in trials]))
            except DivergedError:
                losses[power] = math.inf
        best = min(losses, key=lambda power: losses[power])
    tried = [
        {"learning_rate": FIRST_RATE * 2.0**power, "val_loss": loss if math.isfinite(loss) else None}
        for power, loss in losses.items()
    ]
    return {"learning_rate": FIRST_RATE * 2.0**best, "trials": tried}


def ladder(
    seconds: float,
    seeds: Sequence[int],
    parameters: int = PARAMETERS,
    kinds: Sequence[str] = tuple(KINDS),
    **settings: Any,
) -> Row:
    """Tune the learning rate of every kind, then train it from every seed.

    Args:
        seconds: of training in each run, without evaluations; a trial of the tuning has half as many.
        seeds: each kind is trained once from each.
        parameters: number of parameters of every network, within 1%.
        kinds: keys of `KINDS`.
        **settings: replace those in `SETTINGS`; with a `learning_rate`, nothing is tuned.

    Returns:
        `machine`, `versions`, `settings`, `records`, the results of `run`, and `tuning`: for each kind the result of
        `tune`, and the `seconds` of each trial.
    """
    settings = {**SETTINGS, **settings}
    vocab_size = load_corpus(_config(kinds[0], 1, **settings, max_seconds=seconds).data).tokenizer.vocab_size
    sizes = equal_sizes(parameters, vocab_size, kinds)
    tuning = {}
    if "learning_rate" not in settings:
        budget = TRIAL * seconds
        for kind in with_bar(kinds, "tuning"):
            tuning[kind] = {**tune(kind, sizes[kind]["hidden_size"], budget, **settings), "seconds": budget}
    rates = {kind: {"learning_rate": tuned["learning_rate"]} for kind, tuned in tuning.items()}
    runs = [(kind, seed) for seed in seeds for kind in kinds]  # in turns, so that a slow minute slows all kinds
    records = [
        run(kind, sizes[kind]["hidden_size"], seed, seconds, **settings, **rates.get(kind, {}))
        for kind, seed in with_bar(runs, "training")
    ]
    return {
        "machine": {
            "system": platform.platform(),
            "processor": cpu_name(),
            "cpu_count": os.cpu_count(),
            "threads": settings.get("threads") or torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "charrnn": importlib.metadata.version("charrnn"),
        },
        "settings": {**settings, "parameters": parameters, "seconds": seconds, "seeds": list(seeds)},
        "tuning": tuning,
        "records": records,
    }


# ----------------------------------------------------------------------------------------------------------- summary


def summarise(
    records: Sequence[Mapping[str, Any]], over: str = "characters", points: int = 100
) -> dict[str, dict[str, np.ndarray]]:
    """Mean loss of each kind over its seeds, with a 95% interval.

    Args:
        records: results of `run`.
        over: `characters` (equal data) or `seconds` (equal time). Runs are read at the same points, interpolated
            linearly between evaluations, from where all runs of a kind have begun to where the first of them ends.
        points: number of points of a curve.

    Returns:
        For each kind `x`, `mean`, `low` and `high`, `(points,)` each. The interval is mean ± t s / √n, with s the
        standard deviation over the n seeds and t the 97.5% point of Student's distribution with n - 1 degrees of
        freedom; it assumes a normal distribution over seeds. For a single seed, `low` and `high` are NaN.
    """
    summary = {}
    for kind in dict.fromkeys(record["kind"] for record in records):
        curves = [record["curve"] for record in records if record["kind"] == kind]
        x = np.linspace(max(curve[over][0] for curve in curves), min(curve[over][-1] for curve in curves), points)
        losses = np.stack([np.interp(x, curve[over], curve["val_loss"]) for curve in curves])  # (seeds, points)
        summary[kind] = {"x": x, **interval(losses)}
    return summary


def at_the_end(summary: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[float, dict[str, dict[str, float]]]:
    """Return where the shortest curve ends, and `mean`, `low` and `high` of every kind there."""
    end = min(float(curve["x"][-1]) for curve in summary.values())
    return end, {
        kind: {name: float(np.interp(end, curve["x"], curve[name])) for name in ("mean", "low", "high")}
        for kind, curve in summary.items()
    }


def interval(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of `samples` `(n, ...)` over the first axis, `low` and `high` of its 95% interval (Student's t)."""
    n, mean = len(samples), samples.mean(axis=0)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(samples) if n > 1 else np.nan
    return {"mean": mean, "low": mean - half, "high": mean + half}


# ------------------------------------------------------------------------------------------------------- comparison


def paired(records: Sequence[Mapping[str, Any]], over: str = "seconds") -> list[dict[str, Any]]:
    """Compare every two kinds seed by seed, where the shortest of all runs ends.

    Two runs from one seed share their batches, so the paired t-test is used, on their differences. Several tests at
    once find a difference by chance more often than one test does; Holm's correction of the p-values (1979) keeps the
    probability of any false finding at that of one test.

    Args:
        records: results of `run`.
        over: `seconds` (equal time) or `characters` (equal data).

    Returns:
        For each pair a row: `better` and `worse` (by their mean), `seeds` (how many both have), `difference` (mean
        difference of the losses), `low` and `high` (its 95% interval, for this pair alone), `p`, and `p_holm`. For a
        single seed `low`, `high`, `p` and `p_holm` are None.
    """
    end = min(record["curve"][over][-1] for record in records)
    losses: dict[str, dict[int, float]] = {}
    for record in records:
        curve = record["curve"]
        losses.setdefault(record["kind"], {})[record["seed"]] = float(np.interp(end, curve[over], curve["val_loss"]))
    pairs = [_pair(a, b, losses) for a, b in itertools.combinations(losses, 2) if losses[a].keys() & losses[b].keys()]
    tested = [pair for pair in pairs if pair["p"] is not None]
    for pair, p in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = p
    return pairs


def _pair(first: str, second: str, losses: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    seeds = sorted(losses[first].keys() & losses[second].keys())
    lower = np.array([losses[second][seed] - losses[first][seed] for seed in seeds])  # by how much `first` is lower
    if lower.mean() < 0:
        return _pair(second, first, losses)
    row = {"better": first, "worse": second, "seeds": len(seeds), "difference": float(lower.mean())}
    if len(seeds) < 2:
        return row | dict.fromkeys(("low", "high", "p", "p_holm"))
    found = interval(lower)
    return row | {"low": float(found["low"]), "high": float(found["high"]), "p": _p_value(lower), "p_holm": None}


def _p_value(differences: np.ndarray) -> float:
    """The two-sided p-value of the paired t-test."""
    if np.ptp(differences) == 0:  # scipy warns if there is no scatter
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: the smallest times n, the next times n - 1, …, in the same order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def conclusions(pairs: Sequence[Mapping[str, Any]], at_equal: str = "time", level: float = 0.05) -> list[str]:
    """State in a sentence for each row of `paired` what it shows, and no more."""
    return [_conclusion(pair, at_equal, level) for pair in pairs]


def _conclusion(pair: Mapping[str, Any], at_equal: str, level: float) -> str:
    both = f"At equal {at_equal} {pair['better']} and {pair['worse']}"
    if pair["p"] is None:
        return f"{both}: nothing shown, {pair['seeds']} seed cannot tell a difference from chance"
    p = "p < 0.001" if pair["p_holm"] < 0.001 else f"p = {pair['p_holm']:.3f}"
    if pair["p_holm"] >= level:
        return f"{both}: no difference shown with {pair['seeds']} seeds ({p})"
    return (
        f"At equal {at_equal} {pair['better']} beats {pair['worse']} by {pair['difference']:.3f} nats "
        f"(95% {pair['low']:.3f} to {pair['high']:.3f}, {p})"
    )


# ----------------------------------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench ladder`."""
    add_seconds(parser, 25.0, "seconds of training in each run, without evaluations")
    parser.add_argument("--seeds", type="count", default=5, metavar="N", help="runs of each kind")
    parser.add_argument("--parameters", type="count", default=PARAMETERS, metavar="N", help="size of each network")
    parser.add_argument("--out", type="new_file", metavar="FILE", help="write the complete result to FILE as JSON")


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the kinds."""
    settings: dict[str, Any] = {"data": config.data.name, "threads": config.device.threads}
    result = ladder(arguments.seconds, range(1, arguments.seeds + 1), arguments.parameters, **settings)
    pairs = {at_equal: paired(result["records"], over) for at_equal, over in EQUAL.items()}
    result |= {"pairs": pairs}
    if arguments.out:
        write_atomically(arguments.out, f"{json.dumps(_rounded(result), indent=1)}\n".encode())
    trials = len(TRIAL_SEEDS) * sum(len(tuned["trials"]) for tuned in result.get("tuning", {}).values())
    notes = [
        f"learning rates: tuned by {trials} shorter runs, whose time and validation text are their own",
        "p: paired t-test over the seeds, after Holm's correction for the number of pairs",
    ]
    said = [sentence for at_equal, rows in pairs.items() for sentence in conclusions(rows, at_equal)]
    return Report(result, [_table(result["records"])], notes, said)


def _table(records: Sequence[Row]) -> Table:
    """A row for each kind: its size, and its loss where the shortest run ends."""
    rows = {record["kind"]: dict(record) for record in records}
    columns = dict(COLUMNS)
    for at_equal, over in EQUAL.items():
        end, losses = at_the_end(summarise(records, over))
        columns[f"after {end:,.3g} s" if over == "seconds" else f"after {end:,.0f} characters"] = f"{{{at_equal}}}"
        for kind, loss in losses.items():
            spread = "{low:.3f} to {high:.3f}" if math.isfinite(loss["low"]) else "one seed"
            rows[kind][at_equal] = f"{{mean:.3f}} ({spread})".format(**loss)
    title = "validation loss, nats per character, with the 95% interval of its mean over the seeds"
    return Table(title, list(rows.values()), columns)


def _rounded(value: Any) -> Any:
    """Round all numbers to six digits, as precise as any measurement."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
