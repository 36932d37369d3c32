import json
import math

import numpy as np
import pytest
import torch

from charrnn.bench import ladder
from charrnn.config import ModelConfig
from charrnn.models import build_model, count_parameters
from charrnn.training import Evaluated, Stepped

KINDS = list(ladder.KINDS)
TINY = {"data": "brackets:length=20000", "batch_size": 4, "seq_length": 16, "threads": 1, "val_frac": 0.05}


def record(kind, seed, losses, times):
    characters = [1000 * (place + 1) for place in range(len(losses))]
    return {"kind": kind, "seed": seed, "curve": {"characters": characters, "seconds": times, "val_loss": losses}}


@pytest.mark.parametrize(("parameters", "vocab_size"), [(150_000, 70), (40_000, 70), (500_000, 2000), (60_000, 5)])
def test_sizes_are_equal_within_one_percent(parameters, vocab_size):
    sizes = ladder.equal_sizes(parameters, vocab_size)
    assert list(sizes) == KINDS
    for kind, size in sizes.items():
        config = ladder._config(kind, size["hidden_size"]).model
        assert size["parameters"] == count_parameters(build_model(config, vocab_size))
        assert abs(size["parameters"] - parameters) <= 0.01 * parameters
        for nearby in (-1, 1):  # no other size is nearer
            other = ladder._parameters(kind, size["hidden_size"] + nearby, vocab_size)
            assert abs(other - parameters) >= abs(size["parameters"] - parameters)


def test_sizes_that_cannot_be_equal_are_refused():
    with pytest.raises(ValueError, match=r"every kind can have within 1%, got 6,000: .* hidden_size .*; ask for more"):
        ladder.equal_sizes(6000, 70)


def test_a_run_is_a_curve_over_characters_and_seconds():
    record = ladder.run("GRU", 8, seed=1, seconds=60, max_steps=9, **{**TINY, "eval_interval": 4})
    curve = record["curve"]
    assert record["parameters"] == count_parameters(
        build_model(ModelConfig(type="gru", num_layers=1, hidden_size=8), 7)
    )
    assert record["backend"] in ("native", "fused")
    assert {len(values) for values in curve.values()} == {3}  # after steps 4, 8 and 9
    assert curve["characters"][0] <= 4 * 4 * 16 < curve["characters"][1] <= 8 * 4 * 16
    assert curve["seconds"] == sorted(curve["seconds"])
    assert all(0 < loss < 3 for loss in curve["val_loss"])
    assert (
        ladder.run("GRU", 8, seed=1, seconds=60, max_steps=9, **TINY)["curve"]["val_loss"][-1] == curve["val_loss"][-1]
    )


def test_evaluations_are_not_training():
    recorder = ladder.Recorder(epoch_length=100)
    events = [Stepped(1, 0.5, 2.0, 0.1), Evaluated(1, 0.5, 5.0, 2.5, True)]
    events += [Stepped(2, 1.0, 7.0, 0.2), Evaluated(2, 1.0, 11.0, 2.25, True)]
    for event in events:
        recorder(event)
    assert recorder.curve == {"characters": [50, 100], "seconds": [2.0, 4.0], "val_loss": [2.5, 2.25]}


def test_the_summary_reads_all_seeds_at_the_same_places():
    records = [
        record("RNN", 1, [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]),
        record("RNN", 2, [3.0, 2.0, 1.0], [2.0, 4.0, 6.0]),
        record("GRU", 1, [2.0, 2.0], [1.0, 2.0]),
    ]
    summary = ladder.summarise(records, "characters", points=3)
    assert summary["RNN"]["x"].tolist() == [1000, 2000, 3000]
    assert summary["RNN"]["mean"].tolist() == [3, 2, 1]
    assert summary["RNN"]["low"].tolist() == summary["RNN"]["high"].tolist() == [3, 2, 1]
    assert np.isnan(summary["GRU"]["low"]).all()
    timed = ladder.summarise(records, "seconds", points=2)["RNN"]
    assert timed["x"].tolist() == [2, 3]  # both have begun, none has ended
    assert timed["mean"].tolist() == [2.5, 1.75]


def test_kinds_are_compared_where_the_shortest_ends():
    long, short = record("RNN", 1, [3.0, 2.0, 1.0], [1.0, 2.0, 4.0]), record("GRU", 1, [2.0, 1.5], [1.0, 3.0])
    end, losses = ladder.at_the_end(ladder.summarise([long, short], "seconds"))
    assert end == 3
    assert losses["GRU"]["mean"] == 1.5
    assert losses["RNN"]["mean"] == pytest.approx(1.5, abs=1e-3)
    assert math.isnan(losses["RNN"]["low"])


def test_an_interval_is_that_of_the_tables():
    found = ladder.interval(np.array([1.0, 2.0, 3.0]))  # s = 1, and t with two degrees of freedom is 4.3027
    assert found["mean"] == 2
    assert found["high"] - 2 == 2 - found["low"] == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_an_interval_holds_the_true_mean_in_95_of_100_cases():
    samples = np.random.default_rng(0).normal(size=(3, 20_000))
    found = ladder.interval(samples)
    assert np.mean((found["low"] < 0) & (found["high"] > 0)) == pytest.approx(0.95, abs=0.005)


def test_the_command_writes_all_there_is_to_know(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "SETTINGS", {**ladder.SETTINGS, **TINY, "eval_interval": 2})
    out = tmp_path / "ladder.json"
    flags = {"seconds": 0.05, "seeds": 2, "parameters": 30000, "threads": 1, "data": TINY["data"], "out": out}
    ladder.main([str(part) for name, value in flags.items() for part in (f"--{name}", value)])
    result = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []
    assert {(record["kind"], record["seed"]) for record in result["records"]} == {(k, s) for k in KINDS for s in (1, 2)}
    assert result["machine"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["seconds"] == 0.05
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS)
    for curve in ladder.summarise(result["records"], "seconds").values():
        assert all(math.isfinite(value) for value in curve["mean"])
