import json

import pytest
import torch

from charrnn.bench import sample
from charrnn.bench.baselines import PlainLSTM
from charrnn.bench.processes import seconds_to_output
from charrnn.bench.sample import EQUAL_LOOP, a_batch, one_text, plain_loop
from charrnn.cli.main import main
from charrnn.device import candidate_precisions
from charrnn.errors import MeasurementError


@pytest.fixture(scope="module")
def generator():
    return sample.create_model(sample.CharTokenizer(sample.VOCABULARY), num_layers=1, hidden_size=8, seed=1)


def test_each_contender_writes_what_it_is_asked_for(generator):
    plain = PlainLSTM(len(sample.VOCABULARY), 8, 1).eval()
    assert plain_loop(plain, 20) == 20
    dtypes = []
    plain.lstm.register_forward_hook(lambda module, inputs, outputs: dtypes.append(outputs[0].dtype))
    assert plain_loop(plain, 20, 3) == plain_loop(plain, 20, 3, "bf16") == 60
    assert dtypes == [torch.float32] * 20 + [torch.bfloat16] * 20
    assert one_text(generator, 20) == 20
    assert a_batch(generator, 20, 3) == 60


def test_the_command_shows_every_contender(monkeypatch, capsys, tmp_path, generator):
    from charrnn import save_model

    save_model(generator, tmp_path / "m")
    speeds = dict(zip(EQUAL_LOOP, (100.0, 1000.0, 5000.0, 20000.0, 8000.0, 40000.0), strict=True))
    monkeypatch.setattr("charrnn.bench.processes.candidate_precisions", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(sample, "measure_apart", lambda module, contender, **_: speeds[contender])
    monkeypatch.setattr(sample, "seconds_to_output", lambda code: 1.25)
    flags = ["bench", "sample", "--rounds", "1", "--checkpoint", str(tmp_path / "m")]
    assert main([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    times = {row["what"]: (row["times_loop_of_one"], row["times_equal_loop"]) for row in result["speeds"]}
    assert times["loop of one"] == (1, 1)
    assert times["one text"] == (10, 10)
    assert times["loop of a batch"] == (50, 1)
    assert times["a batch"] == (200, 4)
    assert times["a batch in bf16"] == (400, 5)
    assert [row["what"] for row in result["starts"]][1:] == ["import torch", "python"]
    assert {row["seconds"] for row in result["starts"]} == {1.25}
    assert main(flags) == 0
    out, err = capsys.readouterr()
    for expected in ("400.0", "5.0", "x loop of one", "x equal loop"):
        assert expected in out
    assert "as many texts side by side" in err


@pytest.mark.parametrize("contender", EQUAL_LOOP)
def test_every_contender_can_be_measured(contender):
    if "bf16" in contender and "bf16" not in candidate_precisions(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    assert sample.measure(contender, num_layers=1, hidden_size=8, batch_size=2, seconds=0.001) > 0


def test_the_plain_loops_are_of_pytorchs_own_layers(monkeypatch):
    ran = []
    monkeypatch.setattr(sample, "plain_loop", lambda model, length, *rows: ran.append((type(model.lstm), *rows)) or 1)
    for contender in set(EQUAL_LOOP.values()):
        sample.measure(contender, num_layers=1, hidden_size=8, batch_size=2, seconds=1e-9)
    lstm = torch.nn.LSTM
    assert set(ran) == {(lstm,), (lstm, 2), (lstm, 2, "bf16")}


def test_the_first_output_is_waited_for_and_not_the_last():
    assert seconds_to_output("import time; print(1); time.sleep(1); print(2)") < 1 + seconds_to_output("print(1)")
    with pytest.raises(MeasurementError, match="ZeroDivisionError"):
        seconds_to_output("print(1); 1 / 0")
    with pytest.raises(MeasurementError, match="exit code 0"):
        seconds_to_output("")
