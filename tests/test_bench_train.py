import itertools
import json
import os

import pytest
import torch

from charrnn.api import Run
from charrnn.bench import processes, train
from charrnn.cli import main
from charrnn.sources import CorpusError

SHAPE = (1, 8, 4, 10)
SPEEDS = {
    "ours": [(300.0, 300.0), (100.0, 100.0), (200.0, 200.0)],
    "plain loop": [(100.0, 100.0)] * 3,
    "usual windows": [(80.0, 1.6)] * 3,
}


def test_a_plain_loop_reads_every_character_once_an_epoch():
    torch.manual_seed(0)
    steps = list(itertools.islice(train.plain_loop(torch.arange(401) % 7, 7, SHAPE), 11))
    assert steps == [(40, 40)] * 11  # an epoch has ten


def test_a_plain_loop_learns(monkeypatch):
    losses, measured = [], train.F.cross_entropy

    def cross_entropy(logits, targets):
        loss = measured(logits, targets)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(train.F, "cross_entropy", cross_entropy)
    torch.manual_seed(0)
    for program in (train.plain_loop, train.usual_windows):
        losses.clear()
        next(itertools.islice(program(torch.arange(401) % 7, 7, SHAPE), 150, None))
        assert losses[-1] < losses[0] / 2


def test_a_usual_window_has_one_character_that_is_new():
    tokens = torch.arange(31) % 7
    steps = list(itertools.islice(train.usual_windows(tokens, 7, (1, 8, 2, 10)), 11))
    assert steps == [(20, 2)] * 10 + [(10, 1)]  # 21 windows, one of them left for the last batch
    windows = train.Windows(torch.arange(31), 10)
    inputs, targets = windows[len(windows) - 1]
    assert inputs.tolist() == list(range(20, 30))
    assert targets.tolist() == list(range(21, 31))


def test_our_steps_are_those_of_the_trainer(text_file):
    config = train._config(str(text_file), SHAPE).override({"precision": "fp32", "backend": "native"})
    run = Run.start(config)
    steps = train.ours(run)
    whole = run.trainer.dataset.batch_size * run.trainer.dataset.stream_length
    epoch = len(run.trainer.dataset.borders(0))
    assert sum(through for through, _ in itertools.islice(steps, epoch)) == whole
    assert run.trainer.progress.step == epoch


@pytest.mark.parametrize("contender", train.CONTENDERS)
def test_the_same_network_is_measured(contender, text_file):
    result = train.measure(contender, str(text_file), SHAPE, seconds=0.01)
    assert result["through"] > 0
    assert result["text"] == pytest.approx(result["through"] / (10 if contender == "usual windows" else 1))
    if contender == "ours":
        assert result["precision"] in ("fp32", "bf16")
        assert result["backend"] in ("native", "compiled", "fused")


def test_our_network_has_as_many_parameters(text_file):
    run = Run.start(train._config(str(text_file), SHAPE))
    plain = train.PlainLSTM(7, 8, 1)
    mine, theirs = (sum(p.numel() for p in model.parameters()) for model in (run.generator.model, plain))
    assert mine == theirs


def test_a_speed_leaves_the_start_out(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    steps = iter([(1000, 1000)] * 4 + [(10, 1)] * 100)
    assert train._speed(steps, seconds=20) == {"through": 9.5, "text": 0.95}


def test_too_short_a_text_is_refused(text_file):
    with pytest.raises(CorpusError, match="expected more than 4,000 tokens to train on, got 2,700"):
        train.measure("plain loop", str(text_file), (1, 8, 40, 100), 0.01)


@pytest.fixture
def measured(monkeypatch):
    """Made-up speeds, and the turns in which they were asked for."""
    turns = []

    def measure_apart(module, contender, data, shape, seconds):
        turns.append(contender)
        through, text = SPEEDS[contender][turns.count(contender) - 1]
        chosen = {"precision": "bf16", "backend": "fused"} if contender == "ours" else {}
        return {"through": through, "text": text, **chosen}

    monkeypatch.setattr(train, "measure_apart", measure_apart)
    return turns


def test_the_ratios_are_those_of_the_medians_taken_by_turns(measured, text_file):
    (row,) = train.compare(str(text_file), [SHAPE], rounds=3, seconds=1)
    assert measured == list(train.CONTENDERS) * 3
    assert row["ours"] == {"through": 200, "text": 200, "precision": "bf16", "backend": "fused"}
    assert row["times_faster"] == {
        "plain loop": {"through": 2.0, "text": 2.0},
        "usual windows": {"through": 2.5, "text": 125.0},
    }


def test_the_command_says_which_number_is_which(measured, text_file, capfd, monkeypatch):
    monkeypatch.setattr(train.compare, "__defaults__", ("", [SHAPE], 3, 1, iter))
    command = ["bench", "train", "--data", str(text_file), "--rounds", "1", "--seconds", "0.5"]
    assert main([*command, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["shape"] == list(SHAPE)
    measured.clear()
    assert main(command) == 0
    out, err = capfd.readouterr()
    for expected in ("1x8, 4x10", "bf16", "3.75", "187.50", "new in"):
        assert expected in out
    assert "a shuffled window has one" in err


# ---------------------------------------------------------------------------------------------- a process of its own


def test_a_measurement_apart_gives_what_it_prints(tmp_path, monkeypatch):
    (tmp_path / "measuring.py").write_text("import json, sys\nprint(json.dumps([sys.argv[1], 2]))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert processes.measure_apart("measuring", size=3, name="é") == [json.dumps({"size": 3, "name": "é"}), 2]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('expected more')", "ValueError: expected more"),
        ("raise SystemExit(3)", "exit code 3"),
        pytest.param(
            "import os; os.kill(os.getpid(), 9)",
            "killed by the system, most likely out of memory",
            marks=pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them"),
        ),
    ],
)
def test_a_measurement_that_fails_says_why(tmp_path, monkeypatch, code, message):
    (tmp_path / "measuring.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(processes.MeasurementError, match=f"^{message}$"):
        processes.measure_apart("measuring")


def test_the_program_calls_its_function_with_what_was_sent(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["-m", '{"a": 2, "b": [3]}'])
    processes.answer(lambda a, b: {"sum": a + b[0]})
    assert capsys.readouterr().out == '{"sum": 5}\n'
