import json
import math
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from charrnn.bench import ladder
from charrnn.cli.main import main
from charrnn.config import ModelConfig
from charrnn.data.corpus import Corpus
from charrnn.data.tokenizer import ByteTokenizer
from charrnn.errors import DivergedError
from charrnn.models.build import build_model, count_parameters
from charrnn.training import trainer

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
    settings = {**TINY, "learning_rate": 2e-3}
    record = ladder.run("GRU", 8, seed=1, seconds=60, max_steps=9, **{**settings, "eval_interval": 4})
    curve = record["curve"]
    assert record["parameters"] == count_parameters(
        build_model(ModelConfig(type="gru", num_layers=1, hidden_size=8), 7)
    )
    assert record["backend"] in ("torch", "numba", "fused")
    assert {len(values) for values in curve.values()} == {3}  # after steps 4, 8 and 9
    assert curve["characters"][0] <= 4 * 4 * 16 < curve["characters"][1] <= 8 * 4 * 16
    assert curve["seconds"] == sorted(curve["seconds"])
    assert all(0 < loss < 3 for loss in curve["val_loss"])
    again = ladder.run("GRU", 8, seed=1, seconds=60, max_steps=9, **settings)
    assert again["curve"]["val_loss"][-1] == curve["val_loss"][-1]
    assert again["learning_rate"] == 2e-3


def test_evaluations_are_no_part_of_the_budget(monkeypatch):
    evaluated, evaluate = [], trainer.evaluate

    def slow(*arguments, **settings):
        time.sleep(0.2)
        evaluated.append(evaluate(*arguments, **settings))
        return evaluated[-1]

    monkeypatch.setattr(trainer, "evaluate", slow)
    settings = {**TINY, "backend": "torch", "eval_interval": 5}
    curve = ladder.run("GRU", 8, seed=1, seconds=0.4, **settings)["curve"]
    assert curve["val_loss"] == evaluated
    assert len(evaluated) >= 3
    assert 0.4 <= curve["seconds"][-1] < 0.4 + 0.2
    assert curve["seconds"] == sorted(curve["seconds"])


# ------------------------------------------------------------------------------------------------------ learning rates


@pytest.fixture
def trials(monkeypatch):
    """Stands in for `run`: the loss is least at the best rate; one above the limit diverges. What it was asked for."""
    best, limit, asked = {"RNN": 5e-4, "GRU": 9e-3}, 0.1, []

    def run(kind, hidden_size, seed, seconds, **settings):
        rate = settings["learning_rate"]
        asked.append((kind, seed, seconds, settings))
        if rate > limit:
            raise DivergedError("diverged")
        curve = {"characters": [1], "seconds": [seconds], "val_loss": [9.0, abs(math.log(rate / best[kind]))]}
        return {"kind": kind, "seed": seed, "learning_rate": rate, "curve": curve}

    monkeypatch.setattr(ladder, "run", run)
    return asked


@pytest.mark.parametrize(("kind", "power"), [("RNN", -2), ("GRU", 2)])
def test_the_rate_is_the_best_of_all_tried_and_lies_between_two_of_them(kind, power, trials):
    tuned = ladder.tune(kind, 8, seconds=3, **TINY)
    assert tuned["learning_rate"] == ladder.FIRST_RATE * 2.0**power
    rates = [trial["learning_rate"] for trial in tuned["trials"]]
    assert len(rates) == len(set(rates)) == len(trials) / len(ladder.TRIAL_SEEDS)
    assert {tuned["learning_rate"] * factor for factor in (0.5, 1, 2)} <= set(rates)
    assert tuned["learning_rate"] == min(tuned["trials"], key=lambda trial: trial["val_loss"])["learning_rate"]


def test_trials_are_runs():
    tuned = ladder.tune("GRU", 8, seconds=0.02, **{**TINY, "backend": "torch"})
    assert all(0 < trial["val_loss"] < 3 for trial in tuned["trials"])


def test_a_rate_that_fails_with_one_seed_is_not_chosen(monkeypatch):
    def run(kind, hidden_size, seed, seconds, learning_rate, **settings):
        fails = learning_rate > ladder.FIRST_RATE and seed == ladder.TRIAL_SEEDS[-1]
        return {"curve": {"val_loss": [4.0 if fails else 2.0 - learning_rate]}}

    monkeypatch.setattr(ladder, "run", run)
    assert ladder.tune("RNN", 8, seconds=3)["learning_rate"] == ladder.FIRST_RATE


def test_a_rate_that_diverges_is_not_chosen_and_the_search_ends(monkeypatch, trials):
    monkeypatch.setattr(ladder, "FIRST_RATE", 0.09)
    tuned = ladder.tune("GRU", 8, seconds=3, **TINY)
    assert tuned["trials"][2] == {"learning_rate": 0.18, "val_loss": None}
    assert tuned["learning_rate"] < 0.09
    monkeypatch.setattr(ladder, "FIRST_RATE", 1e6)  # all diverge
    assert len(ladder.tune("GRU", 8, seconds=3, **TINY)["trials"]) <= 2 * ladder.WIDEST + 1


def test_what_chooses_a_rate_is_not_what_the_kinds_are_compared_by(trials):
    result = ladder.ladder(4.0, [1, 2], 30_000, ["RNN", "GRU"], **TINY)
    corpus = Corpus("", np.arange(20_000), ByteTokenizer(), "")
    final, tuning = (
        corpus.split(settings.get("train_frac", 0.9), settings["val_frac"])
        for settings in (trials[-1][3], trials[0][3])
    )
    assert set(tuning.val) <= set(final.train)
    assert not set(tuning.val) & (set(final.val) | set(tuning.train))
    assert len(tuning.val) == len(final.val) == 1000
    assert {(seed, seconds) for _, seed, seconds, _ in trials} == {
        *((seed, 2.0) for seed in ladder.TRIAL_SEEDS),
        (1, 4.0),
        (2, 4.0),
    }
    assert {kind: tuned["seconds"] for kind, tuned in result["tuning"].items()} == {"RNN": 2.0, "GRU": 2.0}
    rates = sum(len(tuned["trials"]) for tuned in result["tuning"].values())
    assert len(trials) == 4 + rates * len(ladder.TRIAL_SEEDS)
    for record in result["records"]:
        assert record["learning_rate"] == result["tuning"][record["kind"]]["learning_rate"]


def test_a_rate_that_is_given_is_not_tuned(trials):
    result = ladder.ladder(4.0, [1], 30_000, ["RNN", "GRU"], **TINY, learning_rate=5e-3)
    assert result["tuning"] == {}
    assert [record["learning_rate"] for record in result["records"]] == [5e-3] * 2


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


# ---------------------------------------------------------------------------------------------------- paired tests

SCATTER = [0.02, -0.01, 0.0, 0.01, -0.02]  # of the losses, by seed, the same for all kinds
UNEVEN = [0.01, -0.005, 0.0, 0.002, -0.007]  # of the differences


def made_up(**final):
    """Five runs of each kind that end at these losses: a number and how much of `UNEVEN` is added to it."""
    return [
        record(kind, seed, [3.0, loss + SCATTER[seed] + share * UNEVEN[seed]], [1.0, 2.0])
        for seed in range(5)
        for kind, (loss, share) in final.items()
    ]


def test_a_pair_is_compared_seed_by_seed():
    (pair,) = ladder.paired(made_up(RNN=(2.1, 1.0), LSTM=(2.0, 0.0)))
    differences = 0.1 + np.array(UNEVEN)
    assert (pair["better"], pair["worse"], pair["seeds"]) == ("LSTM", "RNN", 5)
    assert pair["difference"] == pytest.approx(differences.mean())
    expected = stats.ttest_rel(differences, np.zeros(5))
    assert pair["p"] == pair["p_holm"] == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (pair["low"], pair["high"]) == (pytest.approx(low), pytest.approx(high))


def test_seeds_that_scatter_together_hide_no_difference():
    records = made_up(RNN=(2.01, 0.1), LSTM=(2.0, 0.0))  # a difference smaller than what lies between two seeds
    (pair,) = ladder.paired(records)
    assert pair["p"] < 0.001
    losses = {kind: [r["curve"]["val_loss"][-1] for r in records if r["kind"] == kind] for kind in ("RNN", "LSTM")}
    assert stats.ttest_ind(losses["RNN"], losses["LSTM"]).pvalue > 0.05


def test_pairs_are_read_at_equal_time_or_equal_data():
    slow = [record("GRU", seed, [3.0, 2.0 + SCATTER[seed]], [2.0, 4.0]) for seed in range(2)]
    fast = [record("RNN", seed, [3.0, 2.2, 1.9 - UNEVEN[seed]], [1.0, 2.0, 3.0]) for seed in range(2)]
    at = {over: ladder.paired(slow + fast, over)[0] for over in ("seconds", "characters")}
    assert (at["seconds"]["better"], at["characters"]["better"]) == ("RNN", "GRU")
    assert at["characters"]["difference"] == pytest.approx(0.195)  # 2.2 less the mean of 2.02 and 1.99
    # after 3 s: 1.9 and half way from 3 to 2
    assert at["seconds"]["difference"] == pytest.approx(2.5025 - 1.8975)


def test_holms_correction_is_that_of_his_paper():
    assert ladder.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ladder.holm([0.9, 0.6]) == [1.0, 1.0]
    assert ladder.holm([]) == []


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_p_values_keep_their_order_and_lie_between_p_and_n_p(p_values):
    corrected = ladder.holm(p_values)
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)
    assert all(p <= c <= min(1, len(p_values) * p) for p, c in zip(p_values, corrected, strict=True))


def test_several_pairs_are_corrected_for_their_number():
    pairs = ladder.paired(made_up(RNN=(2.1, 1.0), GRU=(2.0, 0.5), LSTM=(2.0, -1.0)))
    assert [(pair["better"], pair["worse"]) for pair in pairs] == [("GRU", "RNN"), ("LSTM", "RNN"), ("GRU", "LSTM")]
    assert [pair["p_holm"] for pair in pairs] == ladder.holm([pair["p"] for pair in pairs])
    assert all(pair["p_holm"] >= pair["p"] for pair in pairs)


def test_conclusions_say_what_the_data_show_and_no_more():
    pairs = ladder.paired(made_up(RNN=(2.1, 1.0), GRU=(2.0, 0.5), LSTM=(2.0, -1.0)))
    sentences = ladder.conclusions(pairs, "time")
    low, high = (f"{pairs[0][name]:.3f}" for name in ("low", "high"))
    assert sentences[0] == f"At equal time GRU beats RNN by 0.100 nats (95% {low} to {high}, p < 0.001)"
    assert sentences[2] == "At equal time GRU and LSTM: no difference shown with 5 seeds (p = 1.000)"
    assert "p = 0.040" in ladder.conclusions([{**pairs[0], "p_holm": 0.04}], "data")[0]


def test_one_seed_shows_nothing():
    records = [entry for entry in made_up(RNN=(2.1, 0.0), GRU=(2.0, 0.0)) if entry["seed"] == 1]
    pairs = ladder.paired(records)
    assert pairs[0]["difference"] == pytest.approx(0.1)
    assert pairs[0]["p"] is pairs[0]["low"] is None
    assert ladder.conclusions(pairs) == [
        "At equal time GRU and RNN: nothing shown, 1 seed cannot tell a difference from chance"
    ]


@pytest.mark.parametrize(("distance", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_differences_without_any_scatter(distance, p):
    records = [
        record(kind, seed, [loss], [1.0]) for kind, loss in (("RNN", 2 + distance), ("GRU", 2)) for seed in (1, 2)
    ]
    assert ladder.paired(records)[0]["p"] == p


# ---------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_all_there_is_to_know(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ladder, "SETTINGS", {**ladder.SETTINGS, **TINY, "eval_interval": 2, "backend": "fused"})
    tuned = {"learning_rate": 0.004, "trials": [{"learning_rate": rate, "val_loss": 2.0} for rate in (0.004, 0.008)]}
    monkeypatch.setattr(ladder, "tune", lambda *arguments, **settings: tuned)
    out = tmp_path / "ladder.json"
    flags = {"seconds": 0.05, "seeds": 2, "parameters": 30000, "threads": 1, "data": TINY["data"], "out": out}
    arguments = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    assert main(["bench", "ladder", *arguments]) == 0
    result = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []
    assert {(record["kind"], record["seed"]) for record in result["records"]} == {(k, s) for k in KINDS for s in (1, 2)}
    assert result["machine"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["seconds"] == 0.05
    assert len(result["pairs"]["time"]) == len(result["pairs"]["data"]) == 6
    printed, said = capfd.readouterr()
    assert all(kind in printed for kind in KINDS)
    assert "0.004" in printed
    assert {record["learning_rate"] for record in result["records"]} == {0.004}
    assert "tuned by 16 shorter runs" in said
    assert printed.count("At equal time") == printed.count("At equal data") == 6
    for curve in ladder.summarise(result["records"], "seconds").values():
        assert all(math.isfinite(value) for value in curve["mean"])


def test_the_command_prints_json(capfd, monkeypatch):
    asked = []

    def measured(seconds, seeds, parameters, **settings):
        asked.append((seconds, list(seeds), parameters, settings))
        return {"records": made_up(RNN=(2.1, 1.0), LSTM=(2.0, 0.0))}

    monkeypatch.setattr(ladder, "ladder", measured)
    assert main(["bench", "ladder", "--json"]) == 0
    assert asked == [(25, [1, 2, 3, 4, 5], ladder.PARAMETERS, {"data": "shakespeare", "threads": None})]
    assert json.loads(capfd.readouterr().out)["pairs"]["time"][0]["better"] == "LSTM"


def test_without_scipy_it_says_what_to_install(monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "charrnn.bench.ladder")
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main(["bench", "ladder"]) == 1
    assert "bench ladder: expected the libraries of the notebooks" in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_said_before_the_training(tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(["bench", "ladder", "--out", str(tmp_path / "nowhere" / "ladder.json")])
    assert "--out: expected a path in an existing folder, got" in capfd.readouterr().err
