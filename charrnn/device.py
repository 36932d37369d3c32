"""Device, precision, CPU threads, and the random numbers of each step."""

import contextlib
import ctypes
import itertools
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from charrnn.config import DEVICE_NAME, DeviceConfig
from charrnn.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

POSSIBLE = {"cpu": ("fp32", "bf16"), "mps": ("fp32",), "cuda": ("fp32", "bf16", "fp16")}


def select_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is CUDA if there is one, else MPS, else the CPU.

    Raises:
        ConfigError: an unknown name, or this machine has no such device.
    """
    expected = "auto, cpu, cuda, cuda:N or mps"
    if re.fullmatch(DEVICE_NAME, name):
        candidates = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        available = [kind for kind, is_here in candidates.items() if is_here]
        if name == "auto":
            return torch.device(available[0])
        device = torch.device(name)
        if device.type in available and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()):
            return device
        expected = f"a device of this machine ({', '.join(available)})"
    raise ConfigError(f"device.device (--device): expected {expected}, got {name!r}")


def candidate_precisions(device: torch.device) -> list[str]:
    """Precisions worth using on `device`, the safest first.

    bf16 has the exponent range of fp32, so it needs no loss scaling. fp16 needs it, and is offered only on a GPU
    without bf16. MPS stays at fp32, because its recurrent kernels are reliable in no other precision. A CPU without
    bf16 instructions would emulate them slowly.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return ["fp32", "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ["fp32", "bf16"]
    return ["fp32"]


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError if `device` cannot compute in `precision`."""
    possible = POSSIBLE[device.type]
    if precision not in ("auto", *possible):
        raise ConfigError(
            f"device.precision (--precision): expected {' or '.join(possible)} on {device.type}, got {precision!r}"
        )


def autotune(
    config: DeviceConfig, device: torch.device, backends: Sequence[str], run_once: Callable[[str, str], None]
) -> tuple[str, str]:
    """The backend and the precision of `config`, where `auto` is the fastest that is safe.

    A GPU is fastest with half precision and the first of `backends`. On a CPU this depends on the processor, the cell
    and the size, so `run_once`, a training step without its update, is timed with each combination. `auto` leaves out
    the reference backend, which is for reading.
    """
    precisions = candidate_precisions(device) if config.precision == "auto" else [config.precision]
    backends = [name for name in backends if name != "reference"] if config.backend == "auto" else [config.backend]
    if device.type != "cpu":
        return backends[0], precisions[-1]
    candidates = list(itertools.product(backends, precisions))
    if len(candidates) == 1:
        return candidates[0]
    seconds: dict[tuple[str, str], list[float]] = {candidate: [] for candidate in candidates}
    for candidate in candidates * 6:  # in turn, so that a slow moment of the machine affects all
        begin = time.perf_counter()
        run_once(*candidate)
        seconds[candidate].append(time.perf_counter() - begin)
    # the median ignores the first call, which also compiles kernels
    return min(candidates, key=lambda candidate: statistics.median(seconds[candidate]))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the memory of the machine or of its GPU was too small; other GPU errors may mention memory too."""
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # of the CPU, of CUDA and MPS, of cuBLAS
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Run the large matrix products of the `with` block in `precision`; parameters and losses stay fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


@contextlib.contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Let this thread compute with that many CPU threads in the `with` block; None changes nothing.

    PyTorch also gives the number that was set last to each thread that starts later. To keep that number, another
    thread, which it does not affect, sets it back at once.
    """
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as other:
        for_new_threads = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(threads)
        other.submit(torch.set_num_threads, for_new_threads).result()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, if the C library is glibc.

    A training step allocates the same blocks as the step before. By default glibc returns large blocks to the system at
    once, and the system clears each page before it hands it out again, which can take as long as the arithmetic.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        # before 2.35 the maximum is 32 MiB; the second setting without the first would return every block at once
        if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
            mallopt(M_TRIM_THRESHOLD, 2**30)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt in malloc.h


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished: a GPU computes while Python continues."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def seeded_step(device: torch.device, seed: int, step: int, rank: int = 0) -> Iterator[None]:
    """Make random numbers on `device` in the `with` block (dropout) a function of `seed`, `step` and `rank` only.

    So a resumed run draws the same numbers. After the block the generators continue as if nothing had been drawn.
    """
    value = int(np.random.SeedSequence([seed, step, rank] if rank else [seed, step]).generate_state(1)[0])
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            stack.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        elif device.type == "mps":
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.mps.manual_seed(value)
        yield


def describe_devices() -> list[dict[str, str]]:
    """The rows of `charrnn devices`: the name, the memory or threads and the precisions of each device."""
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((torch.device("cuda", index), properties.name, f"{properties.total_memory / 2**30:.1f} GiB"))
    if torch.backends.mps.is_available():
        rows.append((torch.device("mps"), platform.processor(), "shared memory"))
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    rows.append((torch.device("cpu"), f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}", threads))
    return [_describe(*row) for row in rows]


def _describe(device: torch.device, name: str, size: str) -> dict[str, str]:
    precisions = candidate_precisions(device)
    # TF32 rounds the factors of fp32 products to 10 bits; PyTorch leaves it off, and so do we: fp32 means fp32
    tf32 = {True: "on", False: "off"}[torch.backends.cuda.matmul.allow_tf32] if device.type == "cuda" else "-"
    auto = "the fastest, measured" if device.type == "cpu" and len(precisions) > 1 else precisions[-1]
    values = (str(device), name, size, ", ".join(precisions), auto, tf32)
    return dict(zip(("device", "name", "size", "precisions", "precision auto", "TF32"), values, strict=True))


def cpu_name() -> str:
    """The processor's name on Linux, else its family."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            return next(line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
