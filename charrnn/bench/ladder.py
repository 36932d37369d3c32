"""Which cell learns most: RNN, GRU and LSTM side by side, at equal parameters and at equal time, over several seeds.

    charrnn bench ladder --seconds 25 --seeds 5 --out ladder.json

Every run is given the same number of parameters, the same text and batches, and the same seconds of training. The
learning rate is tuned for each kind, by short runs that count for nothing else. It is constant after its warm-up, so
that a curve means the same wherever it is read: over the characters seen it compares the cells step by step, over the
seconds it compares what they are worth on this machine.
"""

import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from charrnn.atomic import write_atomically
from charrnn.bench.recorder import Recorder
from charrnn.config import RunConfig
from charrnn.data.corpus import load_corpus
from charrnn.device import cpu_name
from charrnn.errors import DivergedError
from charrnn.models.build import build_model, count_parameters
from charrnn.training.run import Run

KINDS: dict[str, dict[str, Any]] = {  # settings of each kind, named as on the command line
    "RNN": {"model_type": "rnn"},
    "GRU": {"model_type": "gru"},
    "LSTM": {"model_type": "lstm"},
    "LayerNorm-LSTM": {"model_type": "lstm", "layer_norm": True},
}
SETTINGS: dict[str, Any] = {
    "data": "shakespeare",
    "val_frac": 0.01,  # read often, so a small one
    "num_layers": 1,
    "dropout": 0.0,
    "forget_bias": 0.0,  # with the state carried, a bias of 1 holds an LSTM back
    "batch_size": 32,
    "seq_length": 64,
    "grad_clip": 1.0,  # a plain RNN needs it, the others do not mind
    "warmup_frac": 0.02,
    "hold_frac": 0.98,
    "eval_interval": 50,
    "device": "cpu",
    "precision": "fp32",
    "backend": "auto",
}
FIRST_RATE = 2e-3  # of the tuning, which goes from there by factors of two
WIDEST = 6  # factors, to either side
TRIAL = 0.5  # seconds of a trial, in those of a run
TRIAL_SEEDS = (101, 102)  # two, because near the largest stable rate a network may fail with one seed and not the next
NEVER = 2**40  # steps
PARAMETERS = 150_000
TOLERANCE = 0.01  # by which the parameters may differ


def equal_sizes(parameters: int, vocab_size: int, kinds: Iterable[str] = tuple(KINDS)) -> dict[str, dict[str, int]]:
    """For each kind the `hidden_size` whose number of parameters is nearest to `parameters`, and that number.

    Args:
        parameters: to have, embedding and head included.
        vocab_size: tokens V.
        kinds: of `KINDS`.

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
    with torch.device("meta"):  # counted, never made
        return count_parameters(build_model(_config(kind, hidden_size).model, vocab_size))


def _config(kind: str, hidden_size: int, **settings: Any) -> RunConfig:
    return RunConfig().override({**SETTINGS, **KINDS[kind], "hidden_size": hidden_size, **settings})


# -------------------------------------------------------------------------------------------------------------- runs


def run(kind: str, hidden_size: int, seed: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Train one network.

    Args:
        kind: one of `KINDS`.
        hidden_size: units H.
        seed: of weights and batches.
        seconds: of training, evaluations not counted.
        **settings: to use instead of those in `SETTINGS`; max_steps, too, ends it.

    Returns:
        `kind`, `seed`, `hidden_size`, `parameters`, `learning_rate`, `backend` (the fastest here) and `curve`, as in
        `Recorder`.

    Raises:
        DivergedError: the loss is no longer finite.
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
    """Find the learning rate of one kind, to a factor of two: the best, both of whose neighbours have been tried.

    The loss that chooses is that of the last part of the training text, as long as the validation split, which these
    trials do not train on; so the validation split has no part in the choice.

    Args:
        kind: one of `KINDS`.
        hidden_size: units H.
        seconds: of each trial.
        **settings: as in `run`.

    Returns:
        `learning_rate`, and `trials` in their order: `learning_rate` and `val_loss`, the mean over `TRIAL_SEEDS`, None
        where one of them diverged.
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
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    **settings: Any,
) -> dict[str, Any]:
    """Tune the learning rate of every kind, train it from every seed, and say on what and with what.

    Args:
        seconds: of training in each run, evaluations not counted; of a trial of the tuning half as many.
        seeds: one run of each kind for each.
        parameters: of every network, within 1%.
        kinds: of `KINDS`.
        progress: wraps the loops over the kinds and over the runs, as `tqdm` does.
        **settings: to use instead of those in `SETTINGS`; with a `learning_rate` for all kinds nothing is tuned.

    Returns:
        `machine`, `versions`, `settings`, `records`, as `run` gives them, and `tuning`: for each kind what `tune`
        gives, and the `seconds` of each trial.
    """
    settings = {**SETTINGS, **settings}
    vocab_size = load_corpus(_config(kinds[0], 1, **settings, max_seconds=seconds).data).tokenizer.vocab_size
    sizes = equal_sizes(parameters, vocab_size, kinds)
    tuning = {}
    if "learning_rate" not in settings:
        budget = TRIAL * seconds
        for kind in progress(kinds):
            tuning[kind] = {**tune(kind, sizes[kind]["hidden_size"], budget, **settings), "seconds": budget}
    rates = {kind: {"learning_rate": tuned["learning_rate"]} for kind, tuned in tuning.items()}
    runs = [(kind, seed) for seed in seeds for kind in kinds]  # by turns, so that a slow minute hits all kinds alike
    records = [
        run(kind, sizes[kind]["hidden_size"], seed, seconds, **settings, **rates.get(kind, {}))
        for kind, seed in progress(runs)
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
        records: what `run` gives.
        over: `characters` (equal data) or `seconds` (equal time). Runs are read at the same places, by straight lines
            between evaluations, from where all of a kind have begun to where the first of them ends.
        points: at which a curve is read.

    Returns:
        For each kind `x`, `mean`, `low` and `high`, `(points,)` each. The interval is mean ± t s / √n, with s the
        standard deviation over the n seeds and t the 97.5% point of Student's distribution with n - 1 degrees of
        freedom: it supposes that seeds scatter normally. Of one seed there is none: `low` and `high` are NaN.
    """
    summary = {}
    for kind in dict.fromkeys(record["kind"] for record in records):
        curves = [record["curve"] for record in records if record["kind"] == kind]
        x = np.linspace(max(curve[over][0] for curve in curves), min(curve[over][-1] for curve in curves), points)
        losses = np.stack([np.interp(x, curve[over], curve["val_loss"]) for curve in curves])  # (seeds, points)
        summary[kind] = {"x": x, **interval(losses)}
    return summary


def at_the_end(summary: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[float, dict[str, dict[str, float]]]:
    """Where the shortest curve ends, and `mean`, `low` and `high` of every kind there."""
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
    """Every two kinds compared seed by seed, where the shortest of all runs ends.

    Two runs from one seed share their batches, so their difference is tested, not the distance of two means: the
    paired t-test. Several tests at once find a difference by chance more often than one; Holm's correction (1979) of
    the p-values holds the chance of any false finding at what it is for one.

    Args:
        records: what `run` gives.
        over: `seconds` (equal time) or `characters` (equal data).

    Returns:
        For each pair a row: `better` and `worse` (by their mean), `seeds` (how many both have), `difference` (mean of
        how much lower the loss of `better` is), `low` and `high` (its 95% interval, of this pair by itself), `p`, and
        `p_holm`. Of a single seed there are no `low`, `high`, `p` and `p_holm`: they are None.
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
    lower = np.array([losses[second][seed] - losses[first][seed] for seed in seeds])  # by which `first` is
    if lower.mean() < 0:
        return _pair(second, first, losses)
    row = {"better": first, "worse": second, "seeds": len(seeds), "difference": float(lower.mean())}
    if len(seeds) < 2:
        return row | dict.fromkeys(("low", "high", "p", "p_holm"))
    found = interval(lower)
    return row | {"low": float(found["low"]), "high": float(found["high"]), "p": _p_value(lower), "p_holm": None}


def _p_value(differences: np.ndarray) -> float:
    """Of the paired t-test, two-sided."""
    if np.ptp(differences) == 0:  # no scatter at all, which scipy warns of
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times n, the next times n - 1, …, none below one before."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def conclusions(pairs: Sequence[Mapping[str, Any]], at_equal: str = "time", level: float = 0.05) -> list[str]:
    """What rows of `paired` show, a sentence for each, and no more than they show."""
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


# ------------------------------------------------------------------------------------------------------ to keep it


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, f"{json.dumps(_rounded(result), indent=1)}\n".encode())


def _rounded(value: Any) -> Any:
    """Numbers to six digits: what is measured is not known better."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
