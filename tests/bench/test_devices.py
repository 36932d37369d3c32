import json

import numpy as np
import pytest
import torch

from charrnn.bench import devices
from charrnn.bench.devices import Contender, compare, conclusion, settings_here, thread_counts
from charrnn.cli.main import main
from charrnn.config import DeviceConfig, ModelConfig, TrainingConfig
from charrnn.device import candidate_precisions
from charrnn.models.build import build_model

CPU = torch.device("cpu")
MODEL = ModelConfig(hidden_size=8, num_layers=1)
ROWS = [
    {"device": "cpu", "precision": "bf16", "backend": "fused", "threads": 2, "speed": 3000.0},
    {"device": "cpu", "precision": "bf16", "backend": "fused", "threads": 4, "speed": 2500.0},
    {"device": "cpu", "precision": "fp32", "backend": "torch", "threads": 1, "speed": 2000.0},
    {"device": "cpu", "precision": "fp32", "backend": "torch", "threads": 4, "speed": 1000.0},
]


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_thread_counts_double_up_to_all(most, counts):
    assert thread_counts(most) == counts


def test_every_combination_is_a_setting(monkeypatch):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(devices, "devices_here", lambda: [torch.device("cuda:0"), CPU])
    monkeypatch.setattr(devices, "candidate_precisions", lambda device: ["fp32", "bf16"][: 1 + (device != CPU)])
    settings = [(s.device, s.precision, s.backend, s.threads) for s in settings_here(MODEL)]
    gpu = [("cuda:0", precision, backend, None) for precision in ("fp32", "bf16") for backend in ("torch", "fused")]
    backends = [name for name in build_model(MODEL, 5).backends if name != "reference"]  # compiled, where numba is
    cpu = [("cpu", "fp32", backend, threads) for backend in backends for threads in (1, 2)]
    assert settings == gpu + cpu
    layer_norm = settings_here(ModelConfig(hidden_size=8, layer_norm=True))
    assert {setting.backend for setting in layer_norm} == {"fused"}


@pytest.mark.parametrize("device", devices.devices_here(), ids=str)
@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_a_turn_is_so_many_steps_of_a_trainer(device, backend, monkeypatch):
    made, trainer = [], devices.Trainer
    monkeypatch.setattr(devices, "Trainer", lambda *args: made.append(trainer(*args)) or made[0])
    precision = candidate_precisions(device)[-1]
    threads = 1 if device.type == "cpu" else None
    setting = DeviceConfig(device=str(device), precision=precision, backend=backend, threads=threads)
    contender = Contender(MODEL, TrainingConfig(batch_size=2, seq_length=5, max_steps=100), setting)
    assert contender.turn(3) > 0
    assert contender.turn(2) > 0
    assert made[0].progress.step == 5
    assert (made[0].progress.precision, made[0].progress.backend) == (precision, backend)


def test_a_speed_is_characters_by_seconds(monkeypatch):
    clock = iter([10.0, 12.0])
    contender = Contender(MODEL, TrainingConfig(batch_size=2, seq_length=5), DeviceConfig(device="cpu"))
    contender._events = iter([devices.Stepped(step, 0.0, 0.0, 0.0) for step in range(4)])
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(clock))
    assert contender.turn(4) == 4 * 10 / 2


def test_medians_by_turns_the_fastest_first(monkeypatch):
    turns = []
    speeds = {"torch": [99, 1, 5, 2], "fused": [1, 3, 4, 9]}

    class MadeUp:
        def __init__(self, model, training, setting):
            self.setting = setting

        def turn(self, steps):
            turns.append(self.setting.backend)
            return speeds[self.setting.backend].pop(0)

    settings = [DeviceConfig(device="cpu", precision="fp32", backend=b, threads=1) for b in ("torch", "fused")]
    monkeypatch.setattr(devices, "Contender", MadeUp)
    monkeypatch.setattr(devices, "settings_here", lambda model: settings)
    rows = compare(MODEL, rounds=3)
    assert turns == ["torch", "fused"] * 4
    assert [(row["backend"], row["speed"]) for row in rows] == [("fused", 4), ("torch", 2)]


def test_threads_and_random_numbers_are_left_as_they_were():
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    rows = compare(MODEL, batch_size=2, seq_length=4, rounds=1, steps=1)
    assert len(rows) == len(settings_here(MODEL))
    assert all(np.isfinite(row["speed"]) for row in rows)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


def test_the_best_is_named_as_it_is_typed():
    assert conclusion(ROWS) == (
        "Fastest here: --device cpu --precision bf16 --backend fused --threads 2, 3,000 characters per second. On the "
        "CPU 4 threads are 1.25 times as fast as one."
    )
    gpu = {"device": "cuda:0", "precision": "bf16", "backend": "torch", "threads": None, "speed": 9e6}
    assert conclusion([gpu, ROWS[2]]) == (
        "Fastest here: --device cuda:0 --precision bf16 --backend torch, 9,000,000 characters per second."
    )


def test_the_command(capfd, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "compare", lambda *args: asked.append(args) or ROWS)
    monkeypatch.setattr(devices, "together", lambda *args: pytest.fail("three streams are no two halves"))
    assert main(["bench", "devices", "--hidden-size", "16", "--batch-size", "3", "--rounds", "2"]) == 0
    out, _ = capfd.readouterr()
    assert "training 2x16, 3x50" in out
    assert "3,000" in out
    assert "Fastest here: --device cpu" in out.replace("\n", " ")
    model, *rest = asked[0]
    assert (model.hidden_size, model.num_layers, *rest) == (16, 2, 3, 50, 2)
    assert main(["bench", "devices", "--json", "--batch-size", "3"]) == 0
    assert json.loads(capfd.readouterr().out) == ROWS


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_are_measured_beside_one():
    row = devices.together(ModelConfig(hidden_size=8, num_layers=1, residual=True), 2, 5, steps=4)
    assert (row["processes"], row["device"]) == (2, "cpu")
    assert row["speed"] > 0
    said = conclusion([*ROWS, {**row, "threads": 1, "speed": 1500.0}])
    assert said.endswith(
        "2 processes of 1 thread(s) each, by torchrun, are 0.50 times as fast as one process at its best."
    )
