import io
import json
from dataclasses import replace

import pytest
import torch

from charrnn.training.callbacks import CheckpointSaver, MetricsFile, ProgressBar, TensorBoardWriter, read_metrics
from charrnn.training.events import CheckpointDue, Evaluated, Finished, Logged, Stepped
from charrnn.training.run import Run
from tests.conftest import failing_stream

LOGGED = Logged(10, 0.5, 1.0, loss=2.5, grad_norm=0.3, learning_rate=1e-3, tokens_per_second=1000.0)
EVALUATED = Evaluated(20, 1.0, 2.0, loss=2.25, best=True)
FINISHED = Finished(30, 1.5, 3.0, best_loss=2.25, stopped=False)


def test_the_progress_bar_shows_share_and_losses():
    shown = io.StringIO()
    bar = ProgressBar(file=shown)
    for event in (
        Stepped(10, 0.5, 1.0, 0.5),
        LOGGED,
        replace(EVALUATED, bpc=3.246),
        Stepped(20, 1.0, 2.0, 1.0),
        FINISHED,
    ):
        bar(event)
    text = shown.getvalue()
    assert "50%" in text
    assert "100%" in text
    assert "loss 2.5000" in text
    assert "val 2.2500" in text
    assert "bpc 3.246" in text


@pytest.mark.parametrize("failure", ["nobody reads", "no space", "closed", "none"])
def test_a_progress_bar_that_cannot_be_drawn_stops_nothing(monkeypatch, failure):
    with failing_stream(failure) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        for bar in (ProgressBar(), ProgressBar(file=stream)):
            for event in (Stepped(10, 0.5, 1.0, 0.5), LOGGED, EVALUATED, FINISHED):
                bar(event)
            bar.close()
        monkeypatch.undo()


def test_metrics_are_one_line_per_event(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for event in (Stepped(9, 0.4, 0.9, 0.4), LOGGED, EVALUATED, CheckpointDue(20, 1.0, 2.0), FINISHED):
        metrics(event)
    records = read_metrics(tmp_path)
    assert [record["event"] for record in records] == ["logged", "evaluated", "finished"]
    assert records[0] == {"event": "logged", **vars(LOGGED)}


def test_resuming_removes_later_lines_and_lines_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"event": "logged", "step": step}) for step in (5, 10, 15)]
    path.write_text("\n".join(lines) + '\n{"event": "lo')
    assert [record["step"] for record in read_metrics(path)] == [5, 10, 15]
    MetricsFile(path, step=10)(FINISHED)
    assert [record["step"] for record in read_metrics(path)] == [5, 10, 30]


def test_checkpoints_best_when_better_last_when_due(tmp_path):
    saved = []
    saver = CheckpointSaver(tmp_path, lambda *args: saved.append(args))
    for event in (
        CheckpointDue(0, 0, 0),
        EVALUATED,
        CheckpointDue(20, 1, 2),
        CheckpointDue(25, 1, 2),
        Evaluated(30, 1, 3, loss=2.5, best=False),
        CheckpointDue(30, 1, 3),
    ):
        saver(event)
    best, last = tmp_path / "best", tmp_path / "last"
    assert saved == [(last, True, None), (best, False, 2.25), (last, True, 2.25), (last, True, None), (last, True, 2.5)]


def read_tensorboard(folder):
    """Read everything in a folder with TensorBoard itself."""
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    from tensorboard.backend.event_processing import event_accumulator

    everything = dict.fromkeys(event_accumulator.DEFAULT_SIZE_GUIDANCE, 0)
    return event_accumulator.EventAccumulator(str(folder), everything).Reload()


def scalars(written, tag):
    return [(scalar.step, scalar.value) for scalar in written.Scalars(tag)]


def test_tensorboard_scalars(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    writer = TensorBoardWriter(tmp_path)
    for event in (LOGGED, replace(EVALUATED, bpc=3.5), FINISHED):
        writer(event)
    written = read_tensorboard(tmp_path)
    assert scalars(written, "bpc") == [(20, 3.5)]
    assert scalars(written, "loss/train") == [(10, 2.5)]
    assert scalars(written, "loss/val") == [(20, 2.25)]
    assert scalars(written, "grad_norm") == [(10, pytest.approx(0.3))]
    assert scalars(written, "epoch") == [(10, 0.5)]
    assert scalars(written, "learning_rate") == [(10, pytest.approx(1e-3))]
    assert scalars(written, "tokens_per_second") == [(10, 1000.0)]
    assert written.Tags()["histograms"] == written.Tags()["tensors"] == []


@pytest.mark.parametrize(("event", "tag"), [(LOGGED, "loss/train"), (EVALUATED, "loss/val")])
def test_tensorboard_loses_nothing_if_a_run_is_killed(tmp_path, event, tag):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    writer = TensorBoardWriter(tmp_path)
    writer(event)
    assert scalars(read_tensorboard(tmp_path), tag) == [(event.step, event.loss)]
    writer(FINISHED)


def test_tensorboard_samples_and_weights(tiny, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    generator = Run.start(tiny.override({"prompt": "ab"})).generator
    writer = TensorBoardWriter(tmp_path, generator)
    writer(EVALUATED)
    written = read_tensorboard(tmp_path)  # on disk before the run is over
    (sample,) = written.Tensors("sample/text_summary")
    settings = generator.config.generation.model_dump() | {"length": 200, "seed": 0}
    text = sample.tensor_proto.string_val[0].decode()
    assert text.startswith("    ab")
    assert text.replace("\n    ", "\n")[4:] == generator.generate(**settings)
    tags = {f"weights/{name}" for name, _ in generator.model.named_parameters()}
    assert set(written.Tags()["histograms"]) == tags
    (histogram,) = written.Histograms("weights/head.bias")
    bias = generator.model.head.bias
    assert histogram.step == 20
    assert histogram.histogram_value.num == bias.numel()
    assert histogram.histogram_value.sum == pytest.approx(bias.sum().item(), abs=1e-5)
    writer(FINISHED)


def test_tensorboard_leaves_the_training_as_it_is(tiny, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    weights = []
    for watched in (False, True):
        run = Run.start(tiny.override({"dropout": 0.5}))
        callbacks = [TensorBoardWriter(tmp_path, run.generator)] if watched else []
        seen = []
        for event in run.trainer:
            random, backend, mode = torch.get_rng_state(), run.generator.model.backend, run.generator.model.training
            for callback in callbacks:
                callback(event)
            seen.append(type(event))
            assert torch.equal(torch.get_rng_state(), random)
            assert (run.generator.model.backend, run.generator.model.training) == (backend, mode)
        assert Evaluated in seen
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.generator.model.parameters()]))
    assert torch.equal(*weights)


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    first = TensorBoardWriter(tmp_path)
    for step in (5, 10, 15):  # stopped at 15, while the last checkpoint is of step 10
        first(replace(LOGGED, step=step, loss=1.0))
    first._writer.close()
    second = TensorBoardWriter(tmp_path, step=10)
    for event in (replace(LOGGED, step=15, loss=2.0), FINISHED):
        second(event)
    assert scalars(read_tensorboard(tmp_path), "loss/train") == [(5, 1.0), (10, 1.0), (15, 2.0)]


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="run: pip install tensorboard"):
        TensorBoardWriter(tmp_path)
