import itertools
import platform
import subprocess
import sys

import pytest
import torch

import charrnn.device
from charrnn.config import DeviceConfig
from charrnn.device import (
    autocast,
    autotune,
    candidate_precisions,
    describe_devices,
    is_out_of_memory,
    seeded_step,
    select_device,
)
from charrnn.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert select_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto").type == "cuda"


def test_a_device_that_is_not_here_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device\): expected a device of this machine \(.*cpu\), got 'cuda:1'"):
        select_device("cuda:1")


@pytest.mark.parametrize(
    "name", ["gpu", "xpu", "meta", "CPU", "", "cuda:x", "cuda:", "cuda:-1", "cuda:٣", "cuda:0099", "cuda:999"]
)
def test_a_device_that_there_is_no_such_name_for_is_an_error(name):
    with pytest.raises(ConfigError, match=rf"--device\): expected auto, cpu, cuda, cuda:N or mps, got '{name}'"):
        select_device(name)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("expected a contiguous memory format"), False),
    ],
)
def test_only_a_lack_of_memory_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_explicit_choices_are_not_measured():
    asked = DeviceConfig(precision="bf16", backend="reference")
    assert autotune(asked, CPU, ["torch", "fused", "reference"], run_once=None) == ("reference", "bf16")


@pytest.mark.parametrize("faster", list(itertools.product(["torch", "fused"], ["fp32", "bf16"])))
def test_auto_on_a_cpu_is_the_measured_fastest(monkeypatch, faster):
    monkeypatch.setattr(charrnn.device, "candidate_precisions", lambda device: ["fp32", "bf16"])
    clock = [0.0]
    monkeypatch.setattr(charrnn.device.time, "perf_counter", lambda: clock[0])
    tried = set()

    def run_once(*candidate):
        seconds = 1.0 if candidate == faster else 2.0
        clock[0] += seconds if candidate in tried else 60 / seconds  # the first time it compiles, the fastest longest
        tried.add(candidate)

    assert autotune(DeviceConfig(), CPU, ["torch", "fused", "reference"], run_once) == faster
    assert len(tried) == 4  # not the reference backend


def test_a_cpu_without_bf16_stays_at_fp32(monkeypatch):
    monkeypatch.setattr(charrnn.device, "candidate_precisions", lambda device: ["fp32"])
    assert autotune(DeviceConfig(backend="fused"), CPU, ["fused"], run_once=None) == ("fused", "fp32")


def test_a_gpu_is_not_measured(monkeypatch):
    monkeypatch.setattr(charrnn.device, "candidate_precisions", lambda device: ["fp32", "bf16"])
    assert autotune(DeviceConfig(), torch.device("cuda"), ["torch", "fused"], None) == ("torch", "bf16")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    code = """
import resource, torch
from charrnn.device import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [torch.ones(1 << 24) for _ in range(3)]  # glibc maps blocks of 64 MiB whatever it has learned
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
first = faults()
keep_freed_memory()
faults()
print(first, min(faults() for _ in range(3)))  # a small block between two large ones may keep them apart once
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert after <= 20 < before


def test_mps_stays_at_fp32():
    assert candidate_precisions(torch.device("mps")) == ["fp32"]


def test_autocast():
    a = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


def test_a_steps_random_numbers_depend_on_seed_and_step_alone():
    drawn = {}
    for seed, step in [(1, 1), (1, 2), (2, 1), (1, 1)]:
        torch.rand(3)
        before = torch.get_rng_state()
        with seeded_step(CPU, seed, step):
            values = tuple(torch.rand(4).tolist())
        assert torch.equal(torch.get_rng_state(), before)
        assert drawn.setdefault((seed, step), values) == values
    assert len(set(drawn.values())) == 3


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpus_random_numbers_go_on_after_a_step(kind):
    if not getattr(torch, kind).is_available():
        pytest.skip(f"no {kind} here")
    device, module = torch.device(kind), getattr(torch, kind)
    module.manual_seed(1)
    expected = torch.rand(4, device=device)
    module.manual_seed(1)
    with seeded_step(device, 2, 3):
        torch.rand(4, device=device)
    assert torch.equal(torch.rand(4, device=device), expected)


def test_the_cpu_is_described():
    assert describe_devices()[-1]["device"] == "cpu"
    assert "fp32" in describe_devices()[-1]["precisions"]


def test_the_choice_of_auto_is_described(monkeypatch):
    for candidates, auto in ((["fp32"], "fp32"), (["fp32", "bf16"], "the fastest, measured")):
        monkeypatch.setattr("charrnn.device.candidate_precisions", lambda device, names=candidates: names)
        assert describe_devices()[-1]["precision auto"] == auto


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_has_a_half_precision():
    assert candidate_precisions(torch.device("cuda"))[-1] in ("bf16", "fp16")
