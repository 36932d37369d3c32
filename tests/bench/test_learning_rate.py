import json
import math

import numpy as np
import pytest
import torch

from charrnn.bench import learning_rate
from charrnn.bench.learning_rate import range_test, smooth, suggest
from charrnn.cli.main import main
from charrnn.training.run import Run
from tests.conftest import TINY

FLAGS = [
    part for name, value in TINY.items() if name != "max_steps" for part in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture
def run(tiny):
    return Run.start(tiny.override({"learning_rate": 0.01}))


def test_the_rate_grows_by_the_same_factor_at_each_step(run):
    result = range_test(run, 1e-4, 1e-1, steps=31)
    rates = np.array(result["rates"])
    assert (rates[0], rates[-1]) == (pytest.approx(1e-4), pytest.approx(1e-1))
    assert np.allclose(rates[1:] / rates[:-1], 1000 ** (1 / 30))
    assert result["losses"][0] == pytest.approx(math.log(7), abs=0.3)
    assert result["losses"][-1] < result["losses"][0]
    assert 1e-4 <= result["suggested"] <= 1e-1


def test_the_run_is_left_as_it_was(run):
    before = {name: value.clone() for name, value in run.generator.model.state_dict().items()}
    random = torch.get_rng_state()
    first = range_test(run, 1e-3, 1.0, steps=5)
    after = run.generator.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert run.trainer.progress.step == 0
    assert range_test(run, 1e-3, 1.0, steps=5) == first


def test_every_optimizer_gets_the_rate_that_is_told(run, monkeypatch):
    given, build = [], learning_rate.build_optimizers

    def building(model, config):
        (optimizer,) = build(model, config)
        step = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda: given.append(optimizer.param_groups[0]["lr"]) or step())
        return [optimizer]

    monkeypatch.setattr(learning_rate, "build_optimizers", building)
    result = range_test(run, 1e-4, 1e-1, steps=4)
    assert given == pytest.approx(result["rates"])


def test_other_groups_stay_in_proportion(tiny, monkeypatch):
    made, build = [], learning_rate.build_optimizers
    monkeypatch.setattr(learning_rate, "build_optimizers", lambda *args: made.extend(build(*args)) or made)
    run = Run.start(tiny.override({"optimizer": "muon", "learning_rate": 0.002, "muon_learning_rate": 0.02}))
    range_test(run, 1e-4, 1e-2, steps=3)
    assert sorted(optimizer.param_groups[0]["lr"] for optimizer in made) == pytest.approx([1e-2, 1e-1])


@pytest.mark.parametrize(("bad", "kept"), [(9.0, 4), (math.nan, 4), (7.9, 6)])
def test_it_ends_when_the_loss_has_climbed_away(run, monkeypatch, bad, kept):
    losses = iter([3.0, 2.5, 2.0, 2.1, bad, 2.0])
    monkeypatch.setattr(learning_rate.F, "cross_entropy", lambda logits, _: logits.sum() * 0 + next(losses))
    assert len(range_test(run, 1e-4, 1e-1, steps=6)["losses"]) == kept


def test_the_steepest_fall_is_found():
    rates = np.geomspace(1e-5, 1, 101)
    losses = 4 - 2 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # falls most steeply at 1e-3
    losses[90:] += np.linspace(0, 6, 11)  # and climbs away
    assert suggest(rates, losses) == pytest.approx(1e-3, rel=0.01)
    noisy = losses + np.random.default_rng(0).normal(0, 0.02, len(losses))
    assert suggest(rates, smooth(noisy)) == pytest.approx(1e-3, rel=0.6)
    assert suggest(rates, np.linspace(1, 2, 101)) is None


def test_smoothing_keeps_a_straight_line_and_levels_noise():
    line = np.linspace(5, 1, 100)
    assert smooth(line.tolist())[5:-5] == pytest.approx(line[5:-5].tolist())
    noise = np.random.default_rng(0).normal(size=100)
    assert np.std(smooth(noise.tolist())) < 0.5 * np.std(noise)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 10), "--low: expected a rate above 0 and below --high, 1, got 0"),
        ((0.1, 0.1, 10), "expected a rate above 0 and below --high, 0.1, got 0.1"),
        ((0.1, 1.0, 1), "--steps: expected at least 2, got 1"),
    ],
)
def test_wrong_ranges_are_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        range_test(run, *arguments)


def test_the_command(text_file, tmp_path, capfd):
    command = ["bench", "learning-rate", "--data", str(text_file), *FLAGS, "--low", "1e-3", "--high", "0.1"]
    assert main([*command, "--steps", "30", "--out", str(tmp_path / "lr.png")]) == 0
    out, _ = capfd.readouterr()
    assert "Suggested learning rate: 0.0" in out
    assert out.count("0.00") >= 3
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--steps", "4", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["losses"]) == 4
    for flags, message in (
        (["--low", "2"], "--low: expected a rate above 0 and below --high, 0.1, got 2"),
        (["--steps", "1"], "--steps: expected at least 2, got 1"),
    ):
        assert main([*command, *flags]) == 2
        assert message in capfd.readouterr().err
