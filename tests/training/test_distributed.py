"""Two processes on one machine that train one model."""

import contextlib
import io
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import charrnn
from charrnn.bench.devices import compare
from charrnn.cli.main import main
from charrnn.config import ModelConfig, dump_config
from charrnn.errors import ConfigError
from charrnn.kernels.availability import numba_available
from charrnn.training import distributed
from charrnn.training.callbacks import read_metrics
from charrnn.training.run import Run
from charrnn.training.trainer import Trainer
from tests.conftest import TINY, started

together = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
SETTINGS = {"batch_size": 4, "save_interval": 6, "eval_interval": 6, "log_interval": 3, "schedule": "constant"}


def run(folder, *arguments, expected=0, target=main):
    """The output of two ranks of `charrnn train`, started as by torchrun, but without loading PyTorch twice.

    `target` is called in each rank with the arguments of the command line.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    arguments = ("train", *map(str, arguments))
    ranks = [context().Process(target=one_rank, args=(rank, port, logs[rank], target, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()  # in case it waits for the other forever
        process.join()
    said = "".join(log.read_text(encoding="utf-8") for log in logs)
    assert [process.exitcode for process in ranks] == [expected, expected], said
    return said


def context():
    """A start method for processes; on most systems they fork from one that has loaded PyTorch."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["charrnn.cli.main"])
    return forkserver


def one_rank(rank, port, log, target, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = target(arguments)
    sys.exit(code)


def config_file(tiny, tmp_path, **settings):
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(tiny.override({**SETTINGS, **settings})), encoding="utf-8")
    return path


def load(path):
    return safetensors.torch.load_file(path / "model.safetensors")


@together
def test_two_ranks_make_the_steps_of_one(tiny, tmp_path):
    """The same weights, state, losses and evaluations as one process with the same batch_size."""
    config = config_file(tiny, tmp_path, dropout=0, max_steps=12, optimizer="muon", micro_batches=2)
    output = run(tmp_path, config, "--out", tmp_path / "two")
    assert output.count("2 processes") == 1  # only rank 0 writes
    one = Run.start(tiny.override({**SETTINGS, "dropout": 0, "max_steps": 12, "optimizer": "muon"}), tmp_path / "one")
    one.fit()
    ours, theirs = load(tmp_path / "one" / "last"), load(tmp_path / "two" / "last")
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in ours)
    resumed = Run.resume(tmp_path / "two", {"max_steps": 20})  # by one process: the state is that of all streams
    state, whole = (r.trainer.state_dict()["state.0.1"] for r in (resumed, one))
    assert torch.allclose(state, whole, atol=1e-4)
    losses = [[r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@together
def test_two_ranks_resume_as_if_never_stopped(tiny, tmp_path):
    config = config_file(tiny, tmp_path, dropout=0.3, ema_decay=0.9)
    run(tmp_path, config, "--out", tmp_path / "whole", "--max-steps", 12)
    run(tmp_path, config, "--out", tmp_path / "parts", "--max-steps", 6)
    run(tmp_path, "--resume", tmp_path / "parts", "--max-steps", 12)
    for file in ("model", "optimizer"):
        whole, parts = (
            safetensors.torch.load_file(tmp_path / name / "last" / f"{file}.safetensors") for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


@together
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are found in /proc")
def test_when_a_rank_of_torchrun_dies_all_end_and_the_last_checkpoint_is_whole(tiny, tmp_path):
    config = config_file(tiny, tmp_path, max_steps=10**6, save_interval=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "charrnn", "train", str(config), "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with started(command, env=environment, text=True) as process:
        wait_until(lambda: process.poll() is not None or steps_saved(tmp_path / "run") > 0)
        os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
    # rank 0 notices, or torchrun ends it first
    assert re.search("charrnn: error: rank 0: expected 2 processes .* another one has ended|Signal 9", errors), errors
    assert Run.resume(tmp_path / "run").trainer.progress.step > 0


def steps_saved(directory):
    with contextlib.suppress(OSError):
        return int(re.search(r'"step": (\d+)', (directory / "last" / "training_state.json").read_text()).group(1))
    return 0


def child_of_rank(parent, rank):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    (found,) = (int(pid) for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())
    return found


@together
def test_streams_that_cannot_be_shared_out_are_refused(tiny, tmp_path):
    said = run(tmp_path, config_file(tiny, tmp_path, batch_size=5), "--out", tmp_path / "run", expected=2)
    assert "expected a multiple of the 2 processes, got 5" in said
    assert not (tmp_path / "run").exists()


@together
def test_a_script_joins_its_processes_and_leaves_them_and_one_reads_standard_input(tmp_path):
    """Two runs in one script on a piped text: all ranks get the same model, the best of each run."""
    run(tmp_path, str(tmp_path), target=script)


def script(arguments):
    (_, folder), rank = arguments, os.environ["RANK"]
    text = "the quick brown fox jumps over the lazy dog\n" * 40
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode() if rank == "0" else b"what is left"))
    weights = []
    for name in ("one", "two"):
        settings = TINY | {"eval_interval": 2, "learning_rate": 1.0, "out": f"{folder}/{name}"}
        generator = charrnn.train("-", **settings)
        assert not torch.distributed.is_initialized()
        weights.append(generator.model.state_dict())
    best = safetensors.torch.load_file(f"{folder}/two/best/model.safetensors")
    assert all(torch.equal(weight, best[name]) for each in weights for name, weight in each.items())
    return 0


@together
def test_ranks_that_read_different_texts_are_refused(tiny, tmp_path):
    for rank in (0, 1):
        (tmp_path / f"text{rank}").write_text("abc " * 100 + str(rank), encoding="utf-8")
    config = config_file(tiny, tmp_path)
    said = run(tmp_path, config, "--data", tmp_path / "text", target=main_on_a_text_of_its_own, expected=1)
    assert said.count("expected the same text and vocabulary in all 2 processes, got different ones") == 2


def main_on_a_text_of_its_own(arguments):
    return main([*arguments[:-1], arguments[-1] + os.environ["RANK"]])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: expected a whole number .*, got ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number .*, got 'two'"),
        ({"WORLD_SIZE": "2"}, "got WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT; .* or unset WORLD_SIZE"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "x"},
            "WORLD_SIZE: expected 2 processes",
        ),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_named(monkeypatch, text_file, variables, message):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ConfigError, ConnectionError), match=message):
        charrnn.train(text_file)


def test_ranks_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distributed.check_device(torch.device("cuda"))
    with pytest.raises(
        ConfigError, match="expected cuda with several processes .one GPU each., got cuda:0, one GPU for all"
    ):
        distributed.check_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="expected a GPU for each process, got 2 here"):
        distributed.check_device(torch.device("cuda"))


@together
@pytest.mark.skipif(not numba_available(), reason="numba is not installed")
def test_threads_are_as_asked_for_through_a_whole_run(tiny, tmp_path):
    config = config_file(tiny, tmp_path, max_steps=6, backend="auto", threads=1)
    run(tmp_path, config, "--out", tmp_path / "run", target=main_on_one_thread)


@pytest.mark.skipif(not numba_available(), reason="numba is not installed")
def test_threads_are_as_asked_for_in_a_benchmark():
    process = context().Process(target=benchmark_on_one_thread)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def main_on_one_thread(arguments):
    watch_threads(expected=lambda trainer: 1)
    return main(arguments)


def benchmark_on_one_thread():
    watch_threads(expected=lambda trainer: trainer._device_config.threads)
    torch.set_num_threads(1)
    compare(ModelConfig(hidden_size=8, num_layers=1), batch_size=2, seq_length=5, rounds=1, steps=1)
    assert torch.get_num_threads() == 1


def watch_threads(expected):
    """Fail if an update of a trainer begins or ends with another number of threads."""
    os.environ["NUMBA_NUM_THREADS"] = "3"  # the number that its threads, once launched, would set for PyTorch
    update = Trainer._update

    def watched(self, window):
        assert torch.get_num_threads() == expected(self)
        update(self, window)
        assert torch.get_num_threads() == expected(self)

    Trainer._update = watched


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_process_has_nothing_to_agree_on():
    with distributed.process_group():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.broadcast("x") == "x"
        assert distributed.all_reduce_max(1.0, 2.0) == (1.0, 2.0)
        assert distributed.all_reduce_mean(1.0) == (1.0,)
        assert distributed.local_rows(7) == slice(0, 7)
        model = torch.nn.Linear(1, 1)
        assert distributed.wrap_ddp(model, torch.device("cpu")) is model
