import json

import pytest

from charrnn.bench import sample
from charrnn.bench.processes import MeasurementError, seconds_to_output
from charrnn.bench.sample import a_batch, one_text, plain_loop
from charrnn.cli import main


@pytest.fixture(scope="module")
def generator():
    return sample.create_model(sample.CharTokenizer(sample.VOCABULARY), num_layers=1, hidden_size=8, seed=1)


def test_each_contender_writes_what_it_is_asked_for(generator):
    assert plain_loop(generator, 20) == 20
    assert one_text(generator, 20) == 20
    assert a_batch(generator, 20, 3) == 60


def test_the_command_shows_every_contender(monkeypatch, capsys, tmp_path, generator):
    from charrnn import save_model

    save_model(generator, tmp_path / "m")
    speeds = {"plain loop": 100.0, "one text": 1000.0, "a batch": 20000.0, "a batch in bf16": 40000.0}
    monkeypatch.setattr(sample, "measure_apart", lambda module, contender, **_: speeds[contender])
    monkeypatch.setattr(sample, "seconds_to_output", lambda code: 1.25)
    flags = ["bench", "sample", "--rounds", "1", "--checkpoint", str(tmp_path / "m")]
    assert main([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    times = {row["what"]: row["times_faster"] for row in result["speeds"]}
    assert times["plain loop"] == 1
    assert times["one text"] == 10
    assert times["a batch"] == 200
    assert [row["what"] for row in result["starts"]][1:] == ["import torch", "python"]
    assert {row["seconds"] for row in result["starts"]} == {1.25}
    assert main(flags) == 0
    assert "200.0" in capsys.readouterr().out


def test_a_measurement_of_its_own_process():
    speed = sample.measure("one text", num_layers=1, hidden_size=8, batch_size=2, seconds=0.01)
    assert speed > 0


def test_the_first_output_is_waited_for_and_not_the_last():
    assert seconds_to_output("import time; print(1); time.sleep(1); print(2)") < 1 + seconds_to_output("print(1)")
    with pytest.raises(MeasurementError, match="ZeroDivisionError"):
        seconds_to_output("print(1); 1 / 0")
    with pytest.raises(MeasurementError, match="exit code 0"):
        seconds_to_output("")
