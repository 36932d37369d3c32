import io
import json

import pytest

from charrnn.monitors import CheckpointSaver, MetricsFile, ProgressBar, TensorBoardWriter, read_metrics
from charrnn.training import Evaluated, Finished, Logged, SaveDue, Stepped

LOGGED = Logged(10, 0.5, 1.0, loss=2.5, grad_norm=0.3, learning_rate=1e-3, tokens_per_second=1000.0)
EVALUATED = Evaluated(20, 1.0, 2.0, loss=2.25, best=True)
FINISHED = Finished(30, 1.5, 3.0, best_loss=2.25, stopped=False)


def test_the_progress_bar_shows_share_and_losses():
    shown = io.StringIO()
    bar = ProgressBar(file=shown)
    for event in (Stepped(10, 0.5, 1.0, 0.5), LOGGED, EVALUATED, Stepped(20, 1.0, 2.0, 1.0), FINISHED):
        bar(event)
    text = shown.getvalue()
    assert "50%" in text
    assert "100%" in text
    assert "loss 2.5000" in text
    assert "val 2.2500" in text


def test_metrics_are_a_line_an_event(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for event in (Stepped(9, 0.4, 0.9, 0.4), LOGGED, EVALUATED, SaveDue(20, 1.0, 2.0), FINISHED):
        metrics(event)
    records = read_metrics(tmp_path)
    assert [record["event"] for record in records] == ["logged", "evaluated", "finished"]
    assert records[0] == {"event": "logged", **vars(LOGGED)}


def test_resuming_drops_what_comes_again_and_lines_cut_short(tmp_path):
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
        SaveDue(0, 0, 0),
        EVALUATED,
        SaveDue(20, 1, 2),
        SaveDue(25, 1, 2),
        Evaluated(30, 1, 3, loss=2.5, best=False),
        SaveDue(30, 1, 3),
    ):
        saver(event)
    best, last = tmp_path / "best", tmp_path / "last"
    assert saved == [(last, True, None), (best, False, 2.25), (last, True, 2.25), (last, True, None), (last, True, 2.5)]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard group is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    for event in (LOGGED, EVALUATED, FINISHED):
        writer(event)
    written = EventAccumulator(str(tmp_path)).Reload()
    assert [(s.step, s.value) for s in written.Scalars("loss/train")] == [(10, 2.5)]
    assert [(s.step, s.value) for s in written.Scalars("loss/val")] == [(20, 2.25)]


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="run: pip install tensorboard"):
        TensorBoardWriter(tmp_path)
