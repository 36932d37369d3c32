import json

import pytest
import torch

from charrnn.bench import baselines as usual
from charrnn.bench import data, kernels, sample, train
from charrnn.bench.data import compare, deliver, scale
from charrnn.cli.main import main
from charrnn.config import ModelConfig
from charrnn.data.corpus import load_corpus
from charrnn.errors import CorpusError, MeasurementError
from charrnn.models.build import build_model


def test_the_usual_way_gives_the_same_ids(text_file):
    assert usual.read_ids(text_file).tolist() == load_corpus(text_file).tokens.tolist()


def test_every_measurement_means_the_same_usual_way():
    assert data.Windows is train.Windows is usual.Windows
    assert sample.PlainLSTM is train.PlainLSTM is usual.PlainLSTM


def test_the_plain_network_is_ours():
    mine, plain = build_model(ModelConfig(hidden_size=8, num_layers=2, dropout=0.0), 7), usual.PlainLSTM(7, 8, 2)
    theirs = plain.state_dict()
    assert torch.equal(mine.embedding.weight, plain.embedding.weight)  # one-hot, both
    for name, parameter in mine.state_dict().items():
        _, layer, weight = name.split(".") if name.startswith("layers") else ("", "", "")
        parameter.copy_(theirs[f"lstm.{weight.replace('l0', f'l{layer}')}" if layer else name])
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in plain.parameters())
    tokens = torch.arange(12).view(2, 6) % 7
    assert torch.allclose(mine(tokens)[0], plain(tokens)[0], atol=1e-6)


def test_the_usual_windows_are_shifted_by_one():
    windows = usual.Windows(torch.arange(20), 5)
    assert len(windows) == 15
    inputs, targets = windows[14]
    assert inputs.tolist() == [14, 15, 16, 17, 18]
    assert targets.tolist() == [15, 16, 17, 18, 19]


def test_data_is_compared_and_grown(monkeypatch):
    taken = []
    monkeypatch.setattr(data, "deliver", lambda *arguments: taken.append(deliver(*arguments)))
    rows = compare("counting:length=50000", rounds=1, batches=3)
    assert taken == [7500, 7500]  # by the usual way and by ours
    assert len(rows) == 3
    assert rows[-1]["what"] == "deliver 7,500 tokens in batches of 50 x 50"
    assert all(row["times_faster"] == row["usual_seconds"] / row["seconds"] > 0 for row in rows)
    (growth,) = scale([1_000_000], batches=5)
    assert growth["batches"] == 5
    assert growth["bytes"] == 1_000_000
    assert growth["peak_bytes"] is None or growth["peak_bytes"] >= growth["peak_bytes_at_start"] > 10**7


def test_a_text_too_short_to_measure_on_is_refused():
    with pytest.raises(CorpusError, match="expected a text of at least 12,500 characters to measure on, got 9,000"):
        compare("counting:length=9000", rounds=1, batches=2)


def test_a_measurement_that_fails_says_why(monkeypatch):
    monkeypatch.setattr("charrnn.bench.data.write_text", lambda path, size: path.write_bytes(b"\xff"))
    with pytest.raises(
        MeasurementError, match="expected to prepare 5 bytes, got an error: .*got byte 0xff.*smaller --sizes"
    ):
        scale([5])


def test_bench_data_prints_tables_and_json(capfd, monkeypatch):
    measured = {"what": "deliver", "usual_seconds": 2.0, "seconds": 5e-4, "times_faster": 4000.0}
    grown = {"bytes": 10**9, "prepare_seconds": 8.0, "bytes_per_second": 125e6, "again_seconds": 2.0, "batches": 1000}
    grown |= {"batches_seconds": 0.01, "peak_bytes": 3 * 10**8, "peak_bytes_at_start": None}
    monkeypatch.setattr("charrnn.bench.data.compare", lambda name: [measured])
    monkeypatch.setattr("charrnn.bench.data.scale", lambda sizes: [grown] * len(sizes))
    assert main(["bench", "data", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == {"comparison": [measured], "growth": [grown] * 3}
    assert main(["bench", "data", "--sizes", "1000"]) == 0
    out, _ = capfd.readouterr()
    for expected in ("2 s", "500 µs", "4,000", "1,000 MB", "125 MB/s", "300 MB", "-"):
        assert expected in out


def test_kernels_are_compared(monkeypatch, capfd):
    monkeypatch.setattr("charrnn.bench.kernels.SHAPES", ())
    rows = kernels.compare(shapes=[(2, 8, 3, 5)], rounds=1)
    assert [row["cell"] for row in rows] == list(kernels.CELLS)
    for row in rows:
        for backend in {setting["backend"] for setting in row["settings"]}:
            speeds = [setting["speed"] for setting in row["settings"] if setting["backend"] == backend]
            assert row[backend]["speed"] == max(speeds) > 0
        assert row["reference"]["speed"] > 0
    assert "torch" not in rows[-1]
    asked = []
    monkeypatch.setattr("charrnn.bench.kernels.compare", lambda cells, rounds: asked.append((cells, rounds)) or rows)
    assert main(["bench", "kernels", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == rows
    assert main(["bench", "kernels", "--cells", "gru", "--rounds", "1"]) == 0
    assert asked == [(list(kernels.CELLS), 9), (["gru"], 1)]
    assert "ln-lstm" in capfd.readouterr().out
