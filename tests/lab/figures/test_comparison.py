"""Figures and experiments of notebook 05; panels/test_ablation.py tests its panel."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import charrnn
from charrnn import lab
from charrnn.config import ModelConfig, TrainingConfig
from charrnn.data.streams import CharDataset
from charrnn.errors import ConfigError
from charrnn.lab.figures.comparison import best_before
from charrnn.models.build import build_model
from charrnn.training.events import Stepped
from charrnn.training.schedules import plateau, rate_factor
from tests.conftest import globals_kept

TINY = {"hidden_size": 8, "batch_size": 4, "seq_length": 5, "max_steps": 6, "eval_interval": 3, "log_interval": 2}


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(7, size=400, dtype=np.uint8)


# ----------------------------------------------------------------------------------------------------------- tbptt


@pytest.mark.parametrize(("length", "seq_length"), [(18, 6), (7, 3), (4, 4), (1, 5)])
def test_gradients_are_drawn_within_windows_and_cut_at_every_border(length, seq_length):
    text = "abc \ndefgijklmnopqr"[:length]
    figure = lab.plot_tbptt(text, seq_length)
    axes = figure.figure.axes[0]
    borders = (length - 1) // seq_length
    said = [child.get_text() for child in axes.texts]
    assert said.count("✕") == said.count("detach") == borders
    assert said.count("h") == length
    bent = [note for note in axes.texts if getattr(note, "arrowprops", None) and "linestyle" in note.arrowprops]
    assert len(bent) == length - 1 - borders  # one arrow back to each state in the same window
    assert f"cut at the {borders} borders" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


def test_reach_marks_the_borders_and_says_what_crosses():
    figure = lab.plot_reach("abcdef", 2, {"cut": [0, 0, 0, 0, 1, 2], "uncut": [0.1, 0.2, 0.3, 0.4, 1, 2]})
    lines = figure.figure.axes[0].lines
    assert lines[0].get_ydata().tolist() == [0, 0, 0, 0, 1, 2]
    assert [line.get_xdata()[0] for line in lines[2:]] == [1.5, 3.5]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert "cut: at most 0 before the last window, 2 in it; uncut: at most 0.4 before" in figure.alt


# ------------------------------------------------------------------------------------------------- small experiments


def test_a_small_run_tells_what_a_metrics_file_would(tokens):
    steps = []
    trainer = lab.small_trainer(tokens, tokens[:50], 7, **TINY)
    records = lab.records_of(trainer, lambda event: steps.append(event) if isinstance(event, Stepped) else None)
    assert len(steps) == 6
    assert [record["step"] for record in records if record["event"] == "logged"] == [2, 4, 6]
    assert lab.losses_of(records) == [loss for _, _, loss in trainer.progress.history]
    assert lab.losses_of(records, "logged") == [r["loss"] for r in records if r["event"] == "logged"]
    json.dumps(records)


def test_threads_are_those_of_before_however_a_small_run_ends(tokens):
    during = []

    def diverge(_):
        during.append(torch.get_num_threads())
        raise FloatingPointError("diverged")

    with globals_kept():
        for _ in lab.small_trainer(tokens, tokens[:50], 7, **TINY):
            break
    with globals_kept(), pytest.raises(FloatingPointError):
        lab.small_trainer(tokens, tokens[:50], 7, **TINY).fit(diverge)
    assert during == [lab.SMALL["threads"]] != [torch.get_num_threads()]


def test_small_runs_that_overlap_leave_the_threads_of_others_alone(tokens):
    """A thread that starts during a run has PyTorch's default number, and no run restores the number of another."""
    with globals_kept(), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as new:
        runs = [(pool, iter(lab.small_trainer(tokens, tokens[:50], 7, **TINY))) for pool in (one, other)]
        for pool, events in runs:
            pool.submit(next, events).result()
            assert pool.submit(torch.get_num_threads).result() == lab.SMALL["threads"]
        assert new.submit(torch.get_num_threads).result() == torch.get_num_threads() != lab.SMALL["threads"]
        for pool, events in runs:
            pool.submit(list, events).result()


def test_a_small_run_is_the_same_twice_and_another_from_another_seed(tokens):
    first, again, other = (
        lab.records_of(lab.small_trainer(tokens, tokens[:50], 7, **TINY, seed=seed)) for seed in (1, 1, 2)
    )
    assert lab.losses_of(first) == lab.losses_of(again) != lab.losses_of(other)


def test_a_setting_that_is_unknown_is_named(tokens):
    with pytest.raises(ConfigError, match="optimiser"):
        lab.small_trainer(tokens, tokens[:50], 7, optimiser="adamw")


def test_small_settings_are_settings_of_a_run():
    assert charrnn.RunConfig().override(lab.SMALL).training.max_steps == lab.SMALL["max_steps"]


# --------------------------------------------------------------------------------------------------------- ablation


def test_each_recipe_keeps_what_those_before_it_have():
    ladder = lab.recipes({"a": {"x": 1}, "b": {"y": 2}, "c": {"x": 3}})
    assert ladder == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}


@pytest.mark.parametrize("name", lab.ABLATIONS)
def test_every_recipe_trains(tokens, name):
    trainer = lab.small_trainer(tokens, tokens[:50], 7, **{**lab.recipes()[name], **TINY})
    assert len(lab.losses_of(lab.records_of(trainer))) == 2


@pytest.mark.parametrize("seeds", [1, 3])
def test_recipes_are_drawn_with_their_means(seeds):
    losses = {"plain": [2.5, 2.6, 2.7][:seeds], "better": [2.1, 2.2, 2.3][:seeds]}
    figure = lab.plot_ablation(losses)
    axes = figure.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "better"]
    assert [text.get_text() for text in axes.texts] == [f"{np.mean(values):.3f}" for values in losses.values()]
    assert ("a circle for each seed" in axes.get_title()) == (seeds > 1)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first at the top


# ------------------------------------------------------------------------------------------------ rates, overfitting


def test_schedules_are_drawn_as_they_are():
    config = TrainingConfig(schedule="cosine", warmup_frac=0.1)
    figure = lab.plot_schedules({"cosine": lambda s: rate_factor(config, s, 0, []), "half": lambda _: 0.5})
    cosine, half = (axes.lines[0] for axes in figure.figure.axes)
    assert cosine.get_ydata() == pytest.approx([rate_factor(config, s, 0, []) for s in cosine.get_xdata()])
    assert set(half.get_ydata()) == {0.5}
    assert "cosine begins at 0.1" in figure.alt
    assert "half begins at 0.5, is 0.5 half-way and 0.5 at the end" in figure.alt


def test_a_plateau_marks_where_the_rate_falls():
    losses = [3.0, 2.0, 2.1, 2.2, 1.5, 1.6, 1.6]
    factors = [plateau(losses[:n], 0.5, 2) for n in range(1, 8)]
    figure = lab.plot_plateau(losses, factors)
    assert figure.alt.endswith("falls from 1 to 0.25 of its peak at evaluations 4, 7.")
    assert [line.get_xdata()[0] for line in figure.figure.axes[1].lines[1:]] == [4, 7]
    assert lab.plot_plateau([3.0, 2.0], [1.0, 1.0]).alt.endswith("at evaluations none.")


def test_overfitting_marks_the_lowest_and_the_stop():
    def run(losses):
        return [
            {"event": event, "step": 10 * place, "loss": loss - (event == "logged")}
            for place, loss in enumerate(losses, 1)
            for event in ("logged", "evaluated")
        ]

    runs = {"none": run([3.0, 2.0, 2.5]), "some": run([3.0, 2.4, 2.2])}
    figure = lab.plot_overfitting(runs, {"none": 30, "some": None})
    first, second = figure.figure.axes
    assert first.lines[2].get_xydata().tolist() == [[20, 2.0]]
    assert first.lines[3].get_xdata()[0] == 30
    assert len(second.lines) == 3
    assert (
        "none: training ends at 1.50, validation is lowest, 2.00, at step 20, ends at 2.50, stopped at 30" in figure.alt
    )
    assert figure.alt.endswith("never stopped.")
    assert "stopped" not in lab.plot_overfitting(runs).alt


# ---------------------------------------------------------------------------------------------- differences, speedrun


def test_differences_are_filled_where_they_are_shown():
    pairs = [
        {"better": "A", "worse": "B", "difference": 0.1, "low": -0.1, "high": 0.3, "p_holm": 0.4},
        {"better": "C", "worse": "B", "difference": 0.3, "low": 0.2, "high": 0.4, "p_holm": 0.01},
        {"better": "C", "worse": "A", "difference": 0.2, "low": None, "high": None, "p_holm": None},
    ]
    figure = lab.plot_differences({"at equal time": pairs, "at equal data": pairs[:1]})
    axes = figure.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["C below B", "C below A", "A below B"]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, True, True]
    assert "at equal time: C below B by 0.300 (0.200 to 0.400), C below A by 0.200, A below B" in figure.alt


LOG = [
    {"change": "start", "predicted": None, "measured": 2.0, "kept": True},
    {"change": "worse " * 20, "predicted": 1.8, "measured": 2.2, "kept": False},
    {"change": "better", "predicted": 1.9, "measured": 1.7, "kept": True},
    {"change": "last", "predicted": 1.6, "measured": 1.8, "kept": False},
]


def test_a_speedrun_goes_down_from_what_was_kept():
    assert best_before(LOG) == [None, 2.0, 2.0, 1.7]
    figure = lab.plot_speedrun(LOG, "Title")
    axes = figure.figure.axes[0]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bars == [
        (2.0, pytest.approx(end)) if end > 1.8 or end == 1.7 else (1.7, pytest.approx(end)) for end in (2.2, 1.7, 1.8)
    ]
    assert [bar.get_facecolor()[-1] > 0 for bar in axes.patches] == [False, True, False]  # filled if kept
    assert figure.alt == "4 trials from the top down, 2 of them kept: from 2.000 (start) to 1.700 (better)."
    assert figure.png().startswith(b"\x89PNG")


def test_all_of_a_speedrun_is_inside_the_figure():
    low, high = lab.plot_speedrun(LOG, "Title").figure.axes[0].get_xlim()
    assert low < 1.6  # the lowest prediction
    assert high > 2.2


@pytest.mark.parametrize("carry", [True, False])
def test_windows_are_read_with_the_state_carried_or_from_nothing(carry):
    tokens = np.random.default_rng(0).integers(5, size=200).astype(np.uint8)
    model = build_model(ModelConfig(type="lstm", hidden_size=4, num_layers=1, dropout=0.0), 5, seed=1)
    before = [parameter.clone() for parameter in model.parameters()]
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    lab.train_on_windows(model, CharDataset(tokens, batch_size=2, seq_length=10, seed=1), steps=4, carry=carry)
    assert [state is not None for state in seen] == [False, carry, carry, carry]
    assert not any(tensor.requires_grad for state in seen[1:] if state for layer in state for tensor in layer)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
