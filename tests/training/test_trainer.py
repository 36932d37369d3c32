import contextlib
import itertools
import math
import os
import signal
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from charrnn.config import RunConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.streams import CharDataset
from charrnn.errors import ConfigError, DivergedError
from charrnn.models.build import MODELS, build_model
from charrnn.models.recurrent import CharGRU, CharLSTM
from charrnn.models.state import flatten_state
from charrnn.training import distributed, stopwatch
from charrnn.training.evaluation import evaluate
from charrnn.training.events import CheckpointDue, Evaluated, Finished, Logged, Stepped
from charrnn.training.trainer import Trainer


def make_trainer(config: RunConfig, **overrides) -> Trainer:
    config = config.override(overrides)
    corpus = load_corpus(config.data.name)
    splits = corpus.split(config.data.train_frac, config.data.val_frac)
    model = build_model(config.model, corpus.tokenizer.vocab_size, config.device.seed)
    return Trainer(model, splits.train, splits.val, config.training, config.device, config.logging.log_interval)


def weights(trainer):
    return parameters(trainer.model)


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def events_of(trainer, kind):
    return [event for event in trainer if isinstance(event, kind)]


# ------------------------------------------------------------------------------------------- stopping and resuming


needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
REGULARISED = {"layer_norm": True, "input_dropout": 0.1, "output_dropout": 0.1, "variational_dropout": True}


@pytest.mark.parametrize(
    "options",
    [
        *({"model_type": kind} for kind in MODELS),
        {"backend": "fused"},
        {"backend": "fused", **REGULARISED},
        pytest.param({"backend": "numba"}, marks=needs_numba),
    ],
    ids=[*MODELS, "fused", "layer norm", "numba"],
)
@pytest.mark.parametrize("left_at", [1, 68])
def test_resuming_equals_never_having_stopped(tiny, options, left_at):
    """Weights, the best loss and the next batch, bit for bit, across epochs (68 steps each) and with dropout."""
    assert_resumes(tiny, {"max_steps": 100, "dropout": 0.3, **options}, left_at)


RECIPES = {
    **{name: {"optimizer": name} for name in ("adam", "muon", "rmsprop", "sgd")},
    **{name: {"schedule": name} for name in ("onecycle", "step", "constant")},
    "sgd without momentum": {"optimizer": "sgd", "beta1": 0, "grad_clip_mode": "value", "grad_clip": 0.1},
    "plateau": {"schedule": "plateau", "decay_patience": 1, "eval_interval": 3, "min_delta": 0.05},
    "early stopping": {"patience": 3, "min_delta": 0.2, "eval_interval": 3, "max_steps": 400},
    "growing windows": {"seq_length_start": 2, "seq_length_warmup_epochs": 0.4, "optimizer": "muon"},
    "moving average": {"ema_decay": 0.9, "eval_interval": 10},
    "micro-batches, smoothing": {
        "micro_batches": 2,
        "label_smoothing": 0.1,
        "optimizer": "muon",
        "ema_decay": 0.5,
    },
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_resuming_equals_never_having_stopped_with_every_recipe(tiny, recipe):
    assert_resumes(tiny, {"max_steps": 30, "decay_every": 0.1, "decay_after": 0.1, "dropout": 0.3, **recipe}, 11)


def assert_resumes(config, settings, left_at):
    settings = {"save_interval": 1, **settings}
    whole = make_trainer(config, **settings)
    rates = [event.learning_rate for event in events_of(whole, Logged)]

    first = make_trainer(config, **settings)
    next(event for event in first if isinstance(event, CheckpointDue) and event.step == left_at)
    torch.rand(7)  # random numbers that the caller draws change nothing
    second = make_trainer(config, **settings, seed=99)
    second._device_config = first._device_config
    second.dataset = first.dataset
    second.model.load_state_dict(first.evaluated_model.state_dict())
    second.load_state_dict(vars(first.progress), first.state_dict())
    second.fit()

    assert torch.equal(weights(second), weights(whole))
    assert torch.equal(parameters(second.evaluated_model), parameters(whole.evaluated_model))
    assert second._rate == rates[-1]
    assert second.progress.history == whole.progress.history
    assert second.progress.best_loss == whole.progress.best_loss
    assert (second.progress.step, second.progress.position) == (whole.progress.step, whole.progress.position)
    assert whole.progress.step > left_at


def test_breaking_out_and_iterating_again_equals_one_loop(tiny):
    whole, parts = make_trainer(tiny), make_trainer(tiny)
    whole.fit()
    for stop_at in (3, 7):
        for event in parts:
            if isinstance(event, Stepped) and event.step == stop_at:
                break
    parts.fit()
    assert torch.equal(weights(parts), weights(whole))


def test_the_same_seed_trains_the_same_weights_whatever_the_random_state(tiny):
    trained = []
    for seed, training in ((1, True), (1, False), (2, True)):
        torch.rand(3)
        trainer = make_trainer(tiny, seed=seed)
        trainer.model.train(training)  # a model that was loaded is in evaluation mode
        trainer.fit()
        trained.append(weights(trainer))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_each_step_of_each_rank_drops_other_units(tiny, monkeypatch):
    monkeypatch.setattr(distributed, "local_rows", lambda rows: slice(0, rows))
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        trainer = make_trainer(tiny)
        trainer.model.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(1).item()))
        trainer.fit()
    assert len(set(drawn)) >= 24


def test_stop_saves_and_ends_without_evaluating(tiny):
    trainer = make_trainer(tiny, save_interval=1000, eval_interval=1000)
    events = []
    for event in trainer:
        events.append(event)
        if isinstance(event, Stepped) and event.step == 5:
            trainer.stop()
    assert [type(event) for event in events[-3:]] == [Logged, CheckpointDue, Finished]
    assert events[-1].stopped
    assert events[-1].step == 5
    trainer.fit()  # and continues from there
    assert trainer.progress.step == 12


@pytest.mark.parametrize("left_at", [5, 8, 10, 12])
def test_breaking_out_loses_no_event(tiny, left_at):
    """Events due at a step come when the loop continues: evaluations at 5 and 10, saves at 8 and 12."""
    told = []
    trainer = make_trainer(tiny)
    for event in trainer:
        told.append(event)
        if isinstance(event, Stepped) and event.step == left_at:
            break
    told += list(trainer)
    for kind, steps in ((Evaluated, [5, 10, 12]), (CheckpointDue, [0, 4, 8, 12])):
        assert [event.step for event in told if isinstance(event, kind)] == steps


def test_fp16_scales_its_loss_and_resumes_with_that_scale(tiny, monkeypatch):
    """A CPU does not offer fp16, but it can compute a GRU in it, along the same code path as a GPU."""
    monkeypatch.setattr("charrnn.training.trainer.autotune", lambda *_: ("torch", "fp16"))
    whole, parts = (make_trainer(tiny, model_type="gru", max_steps=8, save_interval=1) for _ in range(2))
    whole.fit()
    next(event for event in parts if isinstance(event, CheckpointDue) and event.step == 5)
    resumed = make_trainer(tiny, model_type="gru", max_steps=8)
    resumed.model.load_state_dict(parts.model.state_dict())
    resumed.load_state_dict(vars(parts.progress), parts.state_dict())
    assert resumed.progress.loss_scale["scale"] > 1
    resumed.fit()
    assert torch.equal(weights(resumed), weights(whole))


def test_an_overflow_in_fp16_skips_a_step_and_the_run_goes_on(tiny, monkeypatch):
    monkeypatch.setattr("charrnn.training.trainer.autotune", lambda *_: ("torch", "fp16"))
    trainer, seen = make_trainer(tiny, model_type="gru", max_steps=6), []
    trainer.model.head.bias.register_hook(lambda d: d * math.inf if trainer.progress.step == 2 else d)
    for event in trainer:
        if isinstance(event, Stepped):
            seen.append(weights(trainer))
        elif isinstance(event, Logged):
            assert math.isfinite(event.grad_norm)
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [False, True, False, False, False]


# ------------------------------------------------------------------------------------------------- events


def test_events_come_when_they_are_due(tiny):
    events = list(make_trainer(tiny))
    steps = {
        kind: [event.step for event in events if isinstance(event, kind)]
        for kind in (Stepped, Logged, Evaluated, CheckpointDue)
    }
    assert steps[Stepped] == list(range(1, 13))
    assert steps[Logged] == [3, 6, 9, 12]
    assert steps[Evaluated] == [5, 10, 12]
    assert steps[CheckpointDue] == [0, 4, 8, 12]
    assert isinstance(events[-1], Finished)
    assert not events[-1].stopped


def test_events_are_plain_numbers(tiny):
    trainer = make_trainer(tiny)
    trainer.to_bpc = lambda loss: loss / math.log(2)
    for event in trainer:
        assert all(type(value) in (int, float, bool) for value in vars(event).values()), event


def test_what_is_logged_are_means_since_the_last_time(tiny):
    each, means = (events_of(make_trainer(tiny, log_interval=n), Logged) for n in (1, 3))
    tokens = [window.inputs.numel() for window in make_trainer(tiny).dataset.windows(0)]
    for i, event in enumerate(means):
        part = slice(3 * i, 3 * i + 3)
        loss = np.average([one.loss for one in each[part]], weights=tokens[part])
        assert event.loss == pytest.approx(loss, rel=1e-5)
        assert event.grad_norm == pytest.approx(np.mean([one.grad_norm for one in each[part]]), rel=1e-5)


def test_speed_is_that_of_all_ranks(tiny, monkeypatch):
    monkeypatch.setattr("time.perf_counter", map(float, itertools.count()).__next__)
    monkeypatch.setattr(stopwatch, "BEAT", 10**6)  # its thread would read the clock as well
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda *values: values)
    speeds = []
    for ranks in (1, 2):
        with monkeypatch.context() as patch:
            for event in make_trainer(tiny):
                if isinstance(event, Stepped) and event.step == 3:
                    patch.setattr(distributed, "world_size", lambda ranks=ranks: ranks)
                elif isinstance(event, Logged):
                    speeds.append(event.tokens_per_second)
                    break
    assert speeds[1] == 2 * speeds[0]


def test_progress_climbs_to_one(tiny):
    shares = [event.progress for event in events_of(make_trainer(tiny), Stepped)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1}, 68),
        ({"max_epochs": 0.5}, 35),
        ({"max_seconds": 1e-9}, 1),
        ({"max_steps": 7, "max_epochs": 1}, 7),
    ],
)
def test_budgets(tiny, budget, steps):
    trainer = make_trainer(tiny, **budget)
    trainer.fit()
    assert trainer.progress.step == steps


def test_memory_that_is_freed_is_kept_for_the_next_step(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr("charrnn.training.trainer.keep_freed_memory", lambda: asked.append(True))
    next(iter(make_trainer(tiny)))
    assert asked


def test_an_epoch_is_one_pass(tiny):
    trainer = make_trainer(tiny, max_epochs=2, batch_size=3)
    read = []
    original = trainer._loss
    trainer._loss = lambda model, inputs, *rest, **_: read.append(inputs.numel()) or original(model, inputs, *rest)
    trainer.fit()
    dataset = trainer.dataset
    assert sum(read) == 2 * dataset.batch_size * dataset.stream_length


def test_a_backend_is_measured_once_and_kept(tiny, monkeypatch):
    trainer = make_trainer(tiny, backend="auto", precision="auto")
    assert {trainer.model.backend for event in trainer} == {trainer.progress.backend}
    assert trainer.progress.backend in ("torch", "fused")
    assert trainer.model.backend == "torch"  # unchanged
    asked = make_trainer(tiny, backend=trainer.progress.backend, precision=trainer.progress.precision)
    asked.fit()
    assert torch.equal(weights(asked), weights(trainer))  # measuring changed nothing
    monkeypatch.setattr("charrnn.training.trainer.autotune", None)
    resumed = make_trainer(tiny, backend="auto", precision="auto", max_steps=20)
    resumed.load_state_dict(vars(trainer.progress), trainer.state_dict())
    resumed.fit()
    assert resumed.progress.backend == trainer.progress.backend


@pytest.mark.parametrize("asked", [{"backend": "fused"}, {"precision": "fp32"}])
def test_what_is_asked_for_on_resuming_is_all_that_changes(tiny, monkeypatch, asked):
    trainer = make_trainer(tiny, precision="bf16")
    trainer.fit()
    monkeypatch.setattr("charrnn.device.candidate_precisions", lambda device: pytest.fail("measured again"))
    open_settings = {"precision": "auto", "backend": "auto", **asked}
    resumed = make_trainer(tiny, **open_settings, max_steps=20)
    resumed.model.load_state_dict(trainer.model.state_dict())
    resumed.load_state_dict(vars(trainer.progress), trainer.state_dict())
    assert all(tensor.dtype == torch.float32 for tensor in flatten_state(resumed._state).values())
    if "backend" in asked:
        resumed.fit()
        assert (resumed.progress.backend, resumed.progress.precision) == ("fused", "bf16")
    else:
        monkeypatch.undo()
        resumed.fit()
        assert (resumed.progress.backend, resumed.progress.precision) == ("torch", "fp32")
    assert resumed.progress.step == 20


def test_another_kind_of_device_chooses_anew(tiny):
    trainer = make_trainer(tiny, precision="bf16")
    trainer.fit()
    resumed = make_trainer(tiny, precision="auto", backend="fused", max_steps=20)
    resumed.load_state_dict(vars(trainer.progress) | {"device": "cuda", "backend": "reference"}, trainer.state_dict())
    resumed.fit()
    assert (resumed.progress.device, resumed.progress.backend) == ("cpu", "fused")


def test_a_backend_that_the_model_has_not_is_refused(tiny):
    with pytest.raises(
        ConfigError, match=r"--backend\): expected auto, fused or reference for this model here, got 'torch'"
    ):
        make_trainer(tiny, layer_norm=True, backend="torch")


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_the_backend_does_not_change_what_is_learned(tiny, backend):
    ours, other = make_trainer(tiny, max_steps=30), make_trainer(tiny, max_steps=30, backend=backend)
    ours.fit()
    other.fit()
    assert other.progress.best_loss == pytest.approx(ours.progress.best_loss, abs=1e-4)


def test_state_is_carried_within_an_epoch_and_starts_anew_with_it(tiny):
    trainer = make_trainer(tiny, max_epochs=2)
    fresh = []
    original = trainer._loss

    def spy(model, inputs, targets, state=None, **precision):
        fresh.append(state is None)
        return original(model, inputs, targets, state, **precision)

    trainer._loss = spy
    trainer.fit()
    per_epoch = len(trainer.dataset.borders(0))
    assert [i for i, is_fresh in enumerate(fresh) if is_fresh] == [0, per_epoch]


def test_a_run_without_validation_evaluates_nothing(tiny):
    events = list(make_trainer(tiny, train_frac=1.0, val_frac=0.0))
    assert not any(isinstance(event, Evaluated) for event in events)
    assert events[-1].best_loss is None


def test_best_is_the_best_ever(tiny):
    evaluated = events_of(make_trainer(tiny, max_steps=60, learning_rate=0.3), Evaluated)
    best = math.inf
    for event in evaluated:
        assert event.best == (event.loss < best)
        best = min(best, event.loss)
    assert any(not event.best for event in evaluated)  # else the test shows nothing


def test_it_learns(tmp_path, tiny):
    path = tmp_path / "abc.txt"
    path.write_text("abcd" * 500)
    trainer = make_trainer(tiny, data=str(path), max_steps=150, learning_rate=0.02, dropout=0, hidden_size=16)
    assert events_of(trainer, Evaluated)[-1].loss < 0.05


# ------------------------------------------------------------------------------------------------- failures


def test_a_run_that_diverges_stops_before_it_saves(tiny):
    trainer = make_trainer(tiny, save_interval=1, log_interval=1000)
    saved = []

    def damage(event):
        if isinstance(event, CheckpointDue):
            saved.append(event.step)
        elif event.step == 4:
            nn.init.constant_(trainer.model.head.bias, math.nan)

    with pytest.raises(DivergedError, match=r"got nan in the weights by step 4: .* lower learning_rate"):
        trainer.fit(damage)
    assert saved == [0, 1, 2, 3]


def test_a_learning_rate_far_too_high_is_noticed(tiny):
    with pytest.raises(DivergedError, match="learning_rate .now 1e.38"):
        make_trainer(tiny, learning_rate=1e38, max_steps=50).fit()


def test_an_infinite_gradient_is_noticed_before_the_weights_are_saved(tiny):
    trainer = make_trainer(tiny, save_interval=1)
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="got (nan|inf) in the gradient"):
        trainer.fit()
    assert trainer.progress.step == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_is_not_the_best(tiny, monkeypatch, loss):
    trainer = make_trainer(tiny)
    monkeypatch.setattr("charrnn.training.trainer.evaluate", lambda *_, **__: loss)
    with pytest.raises(DivergedError, match=f"got {loss} in the validation loss by step 5"):
        trainer.fit()
    assert trainer.progress.best_loss is None
    assert trainer.progress.history == []


# ------------------------------------------------------------------------------------------------- rates and weights


def test_each_token_weighs_the_same(tiny):
    """The gradient of a shortened window is that of its summed loss divided by the size of a full window."""
    tiny = tiny.override({"dropout": 0.0})
    trainer = make_trainer(tiny, grad_clip=1e9, max_steps=1)
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))
    model = build_model(tiny.model, trainer.model.vocab_size, tiny.device.seed)
    window = next(trainer.dataset.windows(0))
    assert window.inputs.shape[1] < tiny.training.seq_length
    trainer.fit()
    logits, _ = model(window.inputs)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), window.targets.flatten(), reduction="sum")
    (loss / (tiny.training.batch_size * tiny.training.seq_length)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())  # the next step starts from zero


def test_gradients_are_clipped_by_their_whole_norm(tiny):
    trainer = make_trainer(tiny, grad_clip=1e-3, max_steps=3, log_interval=1)
    norms = []
    original = trainer.optimizers[0].step

    def spy(*args, **kwargs):
        norms.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item())
        return original(*args, **kwargs)

    trainer.optimizers[0].step = spy
    logged = events_of(trainer, Logged)
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)
    assert all(event.grad_norm > 1e-3 for event in logged)  # reported before clipping


# ------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CharLSTM(5, 8, 2, dropout=0.5)


def tokens_of(size):
    return np.random.default_rng(0).integers(0, 5, size).astype(np.uint8)


@given(st.integers(2, 700), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_evaluation_is_that_of_one_pass(size, streams):
    torch.manual_seed(0)
    model, tokens = CharLSTM(5, 8, forget_bias=0.0), tokens_of(size)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(tokens[:-1].astype(np.int64)).unsqueeze(0))
    targets = torch.from_numpy(tokens[1:].astype(np.int64))
    expected = nn.functional.cross_entropy(logits[0], targets).item()
    assert evaluate(model, tokens, streams=1) == pytest.approx(expected, rel=1e-5)
    streams = min(streams, size - 1)
    if (size - 1) / streams > 60:  # enough text before each stream to prime its state
        assert evaluate(model, tokens, streams=streams) == pytest.approx(expected, rel=1e-4)


def test_evaluation_covers_every_token(model):
    """An improbable token raises the loss wherever it stands, the last place included."""
    tokens = np.zeros(5001, dtype=np.uint8)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, -10.0, -50.0, -50.0, -50.0])
    base = evaluate(model, tokens)
    for place in (1, 2499, 2500, 2501, 5000):
        changed = tokens.copy()
        changed[place] = 1
        assert evaluate(model, changed) - base == pytest.approx(10 / 5000, rel=1e-3)


def test_evaluation_does_not_depend_on_training_settings(tiny):
    losses = []
    for batch_size, seq_length in ((4, 10), (7, 3)):
        trainer = make_trainer(tiny, batch_size=batch_size, seq_length=seq_length, learning_rate=1e-30, max_steps=1)
        losses.append(events_of(trainer, Evaluated)[-1].loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_has_no_dropout_and_restores_the_mode(model, training):
    model.train(training)
    assert evaluate(model, tokens_of(300)) == evaluate(model, tokens_of(300))
    assert model.training is training
    with pytest.raises(IndexError):
        evaluate(model, np.full(300, 200, dtype=np.uint8))
    assert model.training is training


def test_evaluation_needs_two_tokens(model):
    with pytest.raises(ValueError, match="expected at least 2 tokens to evaluate on, got 1"):
        evaluate(model, tokens_of(1))


def test_a_dataset_of_one_window_trains(tiny, tmp_path):
    path = tmp_path / "ab.txt"
    path.write_text("ab" * 12)
    with pytest.warns(UserWarning, match="too few"):
        trainer = make_trainer(tiny, data=str(path))
    trainer.fit()
    assert trainer.progress.step == 12
    assert isinstance(trainer.dataset, CharDataset)


def test_evaluate_never_makes_more_logits_than_it_says(tiny):
    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.vocab_size, self.largest = CharGRU(5000, 3), 5000, 0

        def forward(self, tokens, state):
            self.largest = max(self.largest, tokens.numel())
            return self.model(tokens, state)

    model = Watched()
    evaluate(model, np.zeros(30_000, dtype=np.uint16), warmup=512)
    assert model.largest * 5000 <= 2**24


# ------------------------------------------------------------------------------------------------ options of a step


def test_a_step_in_micro_batches_is_the_step(tiny):
    """Gradients, loss and state of three micro-batches (4, 3 and 3 streams) are those of the whole, in each window."""
    runs = [
        make_trainer(tiny, dropout=0, batch_size=10, max_steps=12, precision="fp32", micro_batches=n) for n in (1, 3)
    ]
    losses = [[event.loss for event in events_of(trainer, Logged)] for trainer in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(weights(runs[0]), weights(runs[1]), atol=1e-5)
    states = [flatten_state(trainer._state) for trainer in runs]
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-4) for key in states[0])


def test_more_micro_batches_than_streams_are_as_many_as_streams(tiny):
    make_trainer(tiny, batch_size=2, micro_batches=5, max_steps=2).fit()


def test_label_smoothing_is_that_of_torch_and_never_reported(tiny):
    smooth = make_trainer(tiny, dropout=0, label_smoothing=0.3, max_steps=1)
    smooth.progress.precision = "fp32"
    window = next(smooth.dataset.windows(0))
    objective, loss, _ = smooth._loss(smooth.model, window.inputs, window.targets)
    logits = smooth.model(window.inputs)[0].flatten(0, 1)
    theirs = nn.functional.cross_entropy(logits, window.targets.flatten(), label_smoothing=0.3)
    assert objective.item() / logits.shape[0] == pytest.approx(theirs.item())
    loss = loss / logits.shape[0]
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, window.targets.flatten()).item())
    smooth = make_trainer(tiny, dropout=0, label_smoothing=0.3, max_steps=1, log_interval=1, precision="fp32")
    assert events_of(smooth, Logged)[0].loss == pytest.approx(loss.item(), rel=1e-5)


def test_early_stopping_stops(tiny):
    """A tiny rate lowers the loss, but not by min_delta: the third evaluation after the first ends the run."""
    trainer = make_trainer(
        tiny, patience=3, min_delta=1e-2, learning_rate=1e-5, eval_interval=5, max_steps=1000, log_interval=1
    )
    events = list(trainer)
    losses = [event.loss for event in events if isinstance(event, Evaluated)]
    assert losses == sorted(losses, reverse=True)
    assert trainer.progress.step == 20
    assert events[-1] == Finished(20, trainer.epoch, trainer.progress.seconds, trainer.progress.best_loss, False, True)
    assert isinstance(events[-2], CheckpointDue)
    assert trainer.share_used() < 1
    assert [type(event) for event in trainer] == [Finished]  # nothing is left to do


def test_patience_is_not_lost_where_the_loss_falls(tiny):
    trainer = make_trainer(tiny, patience=2, eval_interval=10, max_steps=60)
    assert events_of(trainer, Finished)[0].early is False
    assert trainer.progress.step == 60


def test_the_moving_average_of_the_weights_is_evaluated(tiny):
    settings = {"dropout": 0, "max_steps": 30, "eval_interval": 30}
    trainer = make_trainer(tiny, ema_decay=0.9, precision="bf16", **settings)  # evaluations use fp32
    mean = parameters(trainer.ema_model)
    for event in trainer:
        if isinstance(event, Stepped):
            kept = min(0.9, (1 + event.step) / (10 + event.step))
            mean = kept * mean + (1 - kept) * weights(trainer)
        elif isinstance(event, Evaluated):
            assert event.loss == evaluate(trainer.ema_model, trainer.val)
    assert torch.allclose(parameters(trainer.ema_model), mean, atol=1e-6)
    assert (weights(trainer) - mean).abs().max() > 1e-4


def test_clipping_by_value_bounds_each_entry_and_reports_the_norm_before(tiny):
    trainer = make_trainer(tiny, grad_clip=1e-4, grad_clip_mode="value", max_steps=1, log_interval=1)
    seen = []
    original = trainer.optimizers[0].step
    trainer.optimizers[0].step = lambda: (
        seen.extend(p.grad.abs().max() for p in trainer.model.parameters()) or original()
    )
    (logged,) = events_of(trainer, Logged)
    assert max(seen).item() == pytest.approx(1e-4)
    assert logged.grad_norm > 1e-2


def test_one_cycle_ends_a_run_at_its_end(tiny):
    rates = [
        event.learning_rate
        for event in events_of(
            make_trainer(tiny, schedule="onecycle", warmup_frac=0.3, max_steps=50, log_interval=1), Logged
        )
    ]
    assert max(rates) == rates[15] == pytest.approx(2e-3)
    assert rates[0] == pytest.approx(2e-3 / 25)
    assert rates[-1] < 2e-3 / 100


@pytest.mark.parametrize("budget", [{"max_steps": 40}, {"max_epochs": 0.5}, {"max_seconds": 0.3}])
def test_the_schedule_follows_whichever_budget_there_is(tiny, budget):
    trainer = make_trainer(tiny, log_interval=1, hold_frac=0, warmup_frac=0, **budget)
    rates = [event.learning_rate for event in events_of(trainer, Logged)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(2e-3)
    assert rates[-1] < 1e-3


def test_muon_has_a_peak_of_its_own_and_the_same_schedule(tiny):
    trainer = make_trainer(tiny, optimizer="muon", learning_rate=0.01, muon_learning_rate=0.03, log_interval=1)
    for event in trainer:
        if isinstance(event, Logged):
            rates = {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
            assert sorted(rates) == pytest.approx([event.learning_rate, 3 * event.learning_rate])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon", "rmsprop", "sgd"])
def test_every_optimizer_learns(tiny, optimizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd" * 500, encoding="utf-8")
    rate = {"sgd": 1.0}.get(optimizer, 0.03)
    trainer = make_trainer(tiny, data=str(path), optimizer=optimizer, learning_rate=rate, max_steps=60, dropout=0)
    assert events_of(trainer, Evaluated)[-1].loss < 0.3  # guessing gives ln 4 = 1.39


# -------------------------------------------------------------------------------------------------- other devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_trains_as_the_cpu_does(tiny, precision):
    assert_same_as_cpu(tiny, "cuda", precision)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device on this machine")
def test_mps_trains_as_the_cpu_does(tiny):
    assert_same_as_cpu(tiny, "mps", "fp32")


def assert_same_as_cpu(config, device, precision):
    settings = {"dropout": 0, "max_steps": 20, "eval_interval": 20, "log_interval": 20}
    runs = [make_trainer(config, device="cpu", precision="fp32", **settings)]
    runs += [make_trainer(config, device=device, precision=precision, **settings)]
    ends = [[(event.loss) for event in trainer if isinstance(event, Logged | Evaluated)] for trainer in runs]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3 if precision == "fp32" else 3e-2)


# ---------------------------------------------------------------------------------------- one iteration at a time


def test_training_leaves_the_random_state_alone(tiny):
    trainer = make_trainer(tiny.override({"dropout": 0.5, "backend": "auto"}))
    before = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_iteration_that_is_still_held_does_not_disturb_the_next(tiny):
    """A traceback in a notebook may keep it alive."""
    trainer = make_trainer(tiny, max_steps=50, backend="reference")
    held = iter(trainer)
    next(held)
    for event in trainer:
        if event.step == 5 and held:
            trainer.stop()
            held = None  # its end must not cancel the stop
    assert (type(event), event.stopped, event.step) == (Finished, True, 5)
    assert trainer.model.backend == "torch"


def test_a_rank_reads_its_own_streams_alone(tiny, monkeypatch):
    monkeypatch.setattr(distributed, "local_rows", lambda rows: slice(1, 3))
    trainer = make_trainer(tiny, max_steps=2)
    read = []
    trainer.model.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    whole = [window.inputs[1:3] for window in itertools.islice(trainer.dataset.windows(0), 2)]
    next(event for event in trainer if event.step == 2)
    assert all(map(torch.equal, read, whole))
    assert read[0].untyped_storage().nbytes() == 2 * 8 * (trainer.dataset.stream_length + 1)


def test_where_a_gradient_overflows_no_optimizer_steps(tiny):
    """In fp16 a loss scaler skips the step; here a gradient of AdamW overflows, and none of Muon."""
    trainer = make_trainer(tiny, optimizer="muon", max_steps=3)
    trainer._scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer.model.head.bias.register_hook(lambda gradient: gradient * (math.inf if trainer.progress.step == 1 else 1))
    seen = []
    for event in trainer:
        if isinstance(event, Stepped):
            memory = {name: tensor.clone() for name, tensor in trainer.state_dict().items() if "optimizer." in name}
            seen.append(({name: p.detach().clone() for name, p in trainer.model.named_parameters()}, memory))
    for one, two, three in zip(*seen, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not any(torch.equal(two[name], three[name]) for name in one)
    assert trainer._scaler.get_scale() == 32


def test_speed_counts_the_work_that_a_gpu_had_queued(tiny, monkeypatch):
    """Queued work ends when the device is synchronized: at a log, and before an evaluation and a save."""
    waits = []
    monkeypatch.setattr("charrnn.training.trainer.synchronize", lambda device: waits.append(time.sleep(0.03)))
    trainer = make_trainer(tiny, max_steps=12, log_interval=1000)
    (logged,) = events_of(trainer, Logged)
    tokens = trainer.progress.position * trainer.dataset.batch_size
    assert len(waits) >= 5
    assert tokens / logged.tokens_per_second >= 0.03 * 5


def test_an_error_in_a_callback_ends_the_iteration(tiny):
    """The error keeps the loop's frame alive, as a notebook keeps the last traceback."""
    trainer = make_trainer(tiny, backend="reference")
    with pytest.raises(ZeroDivisionError) as held:
        trainer.fit(lambda event: 1 / (event.step < 5))
    assert trainer.model.backend == "torch"
    trainer.stop()  # takes effect in the next iteration
    events = list(trainer)
    assert held.tb
    assert (events[-1].step, events[-1].stopped) == (5, True)


def test_a_break_loses_no_event_and_no_mean(tiny):
    """A loop left at every event and taken up again yields the same events as one without a break."""
    whole, parts = make_trainer(tiny), make_trainer(tiny)
    expected = [(type(event), event.step) for event in whole]
    losses = [event.loss for event in make_trainer(tiny) if isinstance(event, Logged)]
    told, logged = [], []
    while not told or told[-1][0] is not Finished:
        for event in parts:
            told.append((type(event), event.step))
            logged += [event.loss] if isinstance(event, Logged) else []
            break
    assert told == expected
    assert logged == losses


def test_a_pause_is_not_training_time(tiny):
    """A suspended process (a closed laptop, Ctrl-Z) has as much of its budget left afterwards as before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            stopwatch.BEAT, stopwatch.PAUSE = 0.05, 0.5
            trainer = make_trainer(tiny, max_steps=None, max_seconds=1.0, eval_interval=10**6)
            for event in trainer:
                os.write(writer, b"begun " if event.step == 1 else b"")
            os.write(writer, f"{event.seconds} ".encode())
        os._exit(0)
    try:
        assert os.read(reader, 6) == b"begun "
        begin = time.perf_counter()
        os.kill(child, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(child, signal.SIGCONT)
        seconds = float(os.read(reader, 99))
        assert time.perf_counter() - begin > 2
        assert seconds >= 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_while_one_rank_is_suspended_no_rank_counts_time(tiny, monkeypatch):
    """The others wait for it; here the other rank counts no time, and asks to stop at its fourth step."""
    others = itertools.chain([(0.0, False)] * 3, [(0.0, True)])
    monkeypatch.setattr(distributed, "all_reduce_max", lambda *mine: tuple(map(max, mine, next(others))))
    trainer = make_trainer(tiny, max_steps=None, max_seconds=1e-9, eval_interval=1000)
    trainer.fit()
    assert (trainer.progress.step, trainer.progress.seconds) == (4, 0)
