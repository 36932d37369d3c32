import itertools
import json
import os

import pytest
import torch

from charrnn.bench import processes, train
from charrnn.bench.baselines import PlainLSTM
from charrnn.cli.main import main
from charrnn.errors import CorpusError, MeasurementError
from charrnn.training.run import Run

SHAPE = (1, 8, 4, 10)
MADE_UP = {  # speed and loss in each round
    "ours": [(300.0, 1.5), (100.0, 1.75), (200.0, 1.6)],
    "plain loop": [(100.0, 2.0)] * 3,
    "plain loop in bf16": [(160.0, 1.9)] * 3,
    "usual windows": [(80.0, 2.25)] * 3,
}


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return PlainLSTM(7, 8, 1)


def test_a_plain_loop_reads_every_character_once_an_epoch(plain):
    windows = []
    plain.register_forward_pre_hook(lambda module, inputs: windows.append(inputs))
    steps = list(itertools.islice(train.plain_loop(plain, torch.arange(401) % 7, SHAPE), 11))
    assert steps == [40] * 11  # an epoch has ten
    assert [state is None for _, state in windows] == [True, *[False] * 9, True]
    streams = torch.cat([tokens for tokens, _ in windows[:10]], dim=1)
    assert torch.equal(streams.flatten(), torch.arange(400) % 7)


@pytest.mark.parametrize("program", train.PLAIN)
def test_a_plain_program_learns(program, plain, monkeypatch):
    losses, dtypes, measured = [], set(), train.F.cross_entropy

    def cross_entropy(logits, targets):
        loss = measured(logits, targets)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(train.F, "cross_entropy", cross_entropy)
    plain.lstm.register_forward_hook(lambda module, inputs, outputs: dtypes.add(outputs[0].dtype))
    steps = train.PLAIN[program](plain, torch.arange(401) % 7, SHAPE)
    next(itertools.islice(steps, 200, None))
    assert losses[-1] < losses[0] / 2
    assert dtypes == {torch.bfloat16 if "bf16" in program else torch.float32}


def test_the_program_in_bf16_has_the_fused_optimizer(plain, monkeypatch):
    fused, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **options: fused.append(options) or adamw(*args, **options))
    for program in train.PLAIN.values():
        next(program(plain, torch.arange(401) % 7, SHAPE))
    assert [options["fused"] for options in fused] == [False, True, False]


def test_usual_windows_start_at_every_character(plain):
    steps = list(itertools.islice(train.usual_windows(plain, torch.arange(31) % 7, (1, 8, 2, 10)), 11))
    assert steps == [20] * 10 + [10]  # 21 windows, one of them left for the last batch


def test_our_steps_are_those_of_the_trainer(text_file):
    config = train._config(str(text_file), SHAPE).override({"precision": "fp32", "backend": "torch"})
    trainer = Run.start(config).trainer
    steps = train.ours(trainer)
    whole = trainer.dataset.epoch_tokens
    epoch = len(trainer.dataset.borders(0))
    assert sum(itertools.islice(steps, epoch)) == whole
    assert trainer.progress.step == epoch


def test_the_rate_is_the_same_for_all(text_file, plain, monkeypatch):
    config = train._config(str(text_file), SHAPE).override({"precision": "fp32", "backend": "torch"})
    trainer = Run.start(config).trainer
    for _ in itertools.islice(train.ours(trainer), 3):
        assert {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups} == {train.RATE}
    assert {group["lr"] for group in train._adamw(plain).param_groups} == {train.RATE}


@pytest.mark.parametrize("contender", MADE_UP)
def test_a_loss_is_that_of_the_trained_network_on_the_validation_split(contender, text_file, monkeypatch):
    if contender not in train.supported(MADE_UP):
        pytest.skip("this processor has no bf16")
    read, evaluate = [], train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda model, tokens: read.append(len(tokens)) or evaluate(model, tokens))
    monkeypatch.setattr(train, "_speed", lambda steps, seconds: sum(itertools.islice(steps, int(seconds))))
    result = train.measure(contender, str(text_file), SHAPE, seconds=100)
    assert result["speed"] == pytest.approx(100 * 40, rel=0.05)
    assert 0.5 < result["val_loss"] < 1.9  # less than the ln 7 of a network that has learned nothing
    assert read == [150]
    if contender == "ours":
        assert result["precision"] in ("fp32", "bf16")
        assert result["backend"] in ("torch", "numba", "fused")


def test_the_time_is_equal_and_a_speed_leaves_the_start_out(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    taken = []
    steps = (taken.append(size) or size for size in [1000] * 4 + [10] * 100)
    assert train._speed(steps, seconds=20) == pytest.approx(10, rel=0.1)
    assert next(clock) == 21  # the time for which it goes on, whatever the speed leaves out
    slow = itertools.chain([1000] * 3, [10] * 9)
    assert train._speed(slow, seconds=0) > 0


def test_too_short_a_text_is_refused(text_file):
    with pytest.raises(CorpusError, match="expected more than 4,000 tokens to train on, got 2,700"):
        train.measure("plain loop", str(text_file), (1, 8, 40, 100), 0.01)


@pytest.fixture
def measured(monkeypatch):
    """Made-up results, and the turns in which they were asked for."""
    turns = []

    def measure_apart(module, contender, data, shape, seconds):
        turns.append(contender)
        speed, loss = MADE_UP[contender][turns.count(contender) - 1]
        chosen = {"precision": "bf16", "backend": "fused"} if contender == "ours" else {}
        return {"speed": speed, "val_loss": loss, **chosen}

    monkeypatch.setattr(processes, "candidate_precisions", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(train, "measure_apart", measure_apart)
    return turns


def test_the_ratios_are_those_of_the_medians_taken_by_turns(measured, text_file):
    (row,) = train.compare(str(text_file), [SHAPE], rounds=3, seconds=1)
    assert measured == list(MADE_UP) * 3
    assert row["ours"] == {"speed": 200, "val_loss": 1.6, "precision": "bf16", "backend": "fused"}
    assert row["times_faster"] == {"plain loop": 2.0, "plain loop in bf16": 1.25, "usual windows": 2.5}


def test_the_command_shows_speed_and_loss(measured, text_file, capfd, monkeypatch):
    monkeypatch.setattr(train.compare, "__defaults__", ("", [SHAPE], 3, 1))
    command = ["bench", "train", "--data", str(text_file), "--rounds", "1", "--seconds", "0.5"]
    assert main([*command, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["shape"] == list(SHAPE)
    measured.clear()
    assert main(command) == 0
    out, _ = capfd.readouterr()
    for expected in ("1x8, 4x10", "bf16", "3.75", "1.500", "1.900", "2.250", "0.5 s of training each"):
        assert expected in out


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
    with pytest.raises(MeasurementError, match=f"^{message}$"):
        processes.measure_apart("measuring")


def test_the_program_calls_its_function_with_what_was_sent(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["-m", '{"a": 2, "b": [3]}'])
    processes.answer(lambda a, b: {"sum": a + b[0]})
    assert capsys.readouterr().out == '{"sum": 5}\n'
