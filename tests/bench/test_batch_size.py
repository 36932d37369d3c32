import json
from types import SimpleNamespace

import pytest

from charrnn.bench import batch_size
from charrnn.bench.batch_size import best_of, conclusion, measure, sized, sweep
from charrnn.bench.recorder import Recorder
from charrnn.cli.main import main
from charrnn.config import RunConfig
from charrnn.errors import ConfigError, DivergedError, MeasurementError
from charrnn.training.events import Evaluated, Stepped
from charrnn.training.trainer import Progress

MADE_UP = {
    16: {"speed": 1000.0, "steps": 40, "val_loss": 2.0, "peak_bytes": 10**8},
    64: {"speed": 3000.0, "steps": 30, "val_loss": 1.75, "peak_bytes": None},
    256: {"speed": 4000.0, "steps": 10, "val_loss": 2.5, "peak_bytes": 3 * 10**8},
}


def made_up_row(size, **changes):
    return {"batch_size": size, "learning_rate": 1e-3, **MADE_UP[size], **changes}


@pytest.fixture
def apart(monkeypatch):
    """Stands in for the other process: made-up results by batch size, too much for any other."""
    seen = []

    def measure_apart(module, config):
        seen.append(config["training"])
        if (size := config["training"]["batch_size"]) in MADE_UP:
            return MADE_UP[size]
        raise MeasurementError("killed by the system, most likely out of memory")

    monkeypatch.setattr(batch_size, "measure_apart", measure_apart)
    return seen


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_only_what_is_asked_for_follows_the_batch_size(tiny, scaling, factor):
    config = sized(tiny, 16, 3.0, scaling)  # four times its own
    before, after = tiny.training, config.training
    assert after.batch_size == 16
    assert after.learning_rate == pytest.approx(before.learning_rate * factor)
    assert after.muon_learning_rate == pytest.approx(before.muon_learning_rate * factor)
    assert (after.max_seconds, after.max_steps, after.max_epochs) == (3.0, None, None)
    changed = {"batch_size", "learning_rate", "muon_learning_rate", "max_seconds", "max_steps", "eval_interval"}
    rest = set(type(after).model_fields) - changed
    assert all(getattr(after, name) == getattr(before, name) for name in rest)


def test_a_size_is_trained_and_evaluated_once(tiny):
    config = sized(tiny, 4, 0.2)
    result = measure(config.model_dump())
    assert result["steps"] > 0
    assert result["speed"] > 0
    assert 0 < result["val_loss"] < 3
    assert result["peak_bytes"] is None or result["peak_bytes"] > 10**7


def test_the_recorder_takes_the_evaluation_for_no_training():
    trainer = SimpleNamespace(dataset=SimpleNamespace(epoch_tokens=1000), progress=Progress(seconds=9.0))
    recorder = Recorder(trainer)
    for event in (Stepped(1, 0.5, 2.0, 0.5), Stepped(2, 1.0, 4.0, 1.0), Evaluated(2, 1.0, 9.0, 1.5, True)):
        recorder(event)
    assert (recorder.tokens, recorder.seconds, trainer.progress.seconds) == (1000, 4.0, 4.0)
    assert recorder.curve == {"characters": [1000], "seconds": [4.0], "val_loss": [1.5]}


@pytest.mark.filterwarnings("ignore:the training split")
def test_what_cannot_be_trained_is_skipped_with_its_reason(tiny, monkeypatch):
    long = sized(tiny, 1000, 1.0)
    assert measure(long.model_dump()) == {"skipped": "the training split is too short: room for 269 streams"}

    def failing(error):
        def start(config):
            raise error

        monkeypatch.setattr(batch_size.Run, "start", start)
        return measure(sized(tiny, 4, 1.0).model_dump())

    assert failing(RuntimeError("DefaultCPUAllocator: can't allocate memory")) == {"skipped": "out of memory"}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert failing(MemoryError()) == {"skipped": "out of memory"}
    assert failing(DivergedError("it has diverged")) == {"skipped": "it has diverged"}
    with pytest.raises(RuntimeError, match="another"):
        failing(RuntimeError("another"))


def test_a_sweep_goes_on_after_one_that_was_killed(tiny, apart):
    rows = sweep(tiny, [16, 128, 256], seconds=2)
    assert [training["batch_size"] for training in apart] == [16, 128, 256]
    assert all(training["max_seconds"] == 2 for training in apart)
    assert rows[1]["skipped"] == "killed by the system, most likely out of memory"
    assert rows[2]["val_loss"] == 2.5


def test_standard_input_is_refused():
    with pytest.raises(ConfigError, match="read several times, got standard input"):
        sweep(RunConfig().override({"data": "-"}))


def test_the_fastest_and_the_best_are_named():
    rows = [made_up_row(16), made_up_row(64), made_up_row(256), {"batch_size": 512, "skipped": "too large"}]
    assert best_of(rows) == (256, 64)
    assert conclusion(rows, 10) == (
        "Batch size 256 is the fastest, 4,000 characters per second; the best after 10 s is 64, 1.7500 nats per token."
    )
    assert conclusion(rows[:2], 10) == (
        "Batch size 64 is the fastest, 3,000 characters per second, and the best after 10 s: 1.7500 nats per token."
    )
    blind = [made_up_row(16, val_loss=None)]
    assert best_of(blind) == (16, None)
    assert "without a validation split" in conclusion(blind, 10)
    assert best_of(rows[3:]) == (None, None)
    assert conclusion(rows[3:], 10) == "No batch size could be trained."


def test_the_command_shows_a_row_for_each_and_says_how_the_rate_went(apart, text_file, capfd, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("training: {learning_rate: 0.004, batch_size: 16}")
    flags = ["--data", str(text_file), "--hidden-size", "8", "--sizes", "16", "64", "128", "--seconds", "2"]
    assert main(["bench", "batch-size", str(config), *flags, "--scale", "sqrt"]) == 0
    out, err = capfd.readouterr()
    for expected in ("0.004", "0.008", "1,000", "100 MB", "-", "1.7500", "scaled with the root"):
        assert expected in out
    assert "batch size 128 skipped: killed by the system" in err
    assert main(["bench", "batch-size", *flags, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["fastest"], result["best"], result["scale"]) == (64, 64, "none")
    assert [row["learning_rate"] for row in result["sizes"]] == [2e-3] * 3


def test_settings_are_checked_as_those_of_train(capfd):
    assert main(["bench", "batch-size", "--hidden-size", "0"]) == 2
    assert "--hidden-size): expected a value greater than or equal to 1" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "batch-size", "--max-steps", "3"])  # the time is what is equal
