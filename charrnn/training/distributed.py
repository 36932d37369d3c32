"""Train one model with several processes: `torchrun --nproc-per-node N -m charrnn train …`.

Each process (a rank) holds the whole model and reads its share of the streams. Gradients are averaged at every step
(torch's DistributedDataParallel), so N ranks make the same steps as one process with the same batch_size. Everything
that decides the course of a run (time, loss, stopping) is agreed on by all ranks, because ranks that disagree wait for
each other forever. Without torchrun there is one rank and nothing to agree on.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from charrnn.errors import ConfigError
from charrnn.models.state import State, map_state


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started for the length of the `with` block; do nothing without torchrun.

    Inside another such block, or in a script that has joined the processes itself, nothing is done either.

    Raises:
        ConfigError: torchrun's environment variables are missing or damaged.
        ConnectionError: another process did not start, or ended early.
    """
    if _is_joined() or not dist.is_available() or _environment("WORLD_SIZE", 1) == 1:
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"rank {rank()}: expected {world_size()} processes to keep running, but another one has ended; the last "
            "checkpoint is complete: continue from it with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def _join() -> None:
    from torch.distributed.distributed_c10d import PrefixStore

    size = _environment("WORLD_SIZE", 1)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE: expected the other variables that torchrun sets, got WORLD_SIZE={size} without "
            f"{', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
        )
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = _rendezvous()
        store = PrefixStore(f"group {next(_group_number)}", store)  # entries of earlier groups are not read
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (ValueError, dist.DistError) as error:
        raise ConnectionError(
            f"WORLD_SIZE: expected {size} processes, but they could not connect ({error}); start them with torchrun, "
            "or unset WORLD_SIZE"
        ) from error


_group_number = itertools.count()


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """The store through which the processes find each other, the rank and the world size; opened once per process."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


def _environment(name: str, default: int) -> int:
    """The number that torchrun sets in an environment variable."""
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(
            f"{name}: expected a whole number in this environment variable, as torchrun sets it, got {value!r}; "
            "start with torchrun, or unset it"
        )
    return int(value)


def rank() -> int:
    """The number of this process; rank 0 writes files and messages."""
    return dist.get_rank() if _is_joined() else 0


def local_rank() -> int:
    """The number of this process on its machine, and of its GPU."""
    return _environment("LOCAL_RANK", 0)


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _is_joined() else 1


def check_device(device: torch.device) -> None:
    """Raise ConfigError if several ranks cannot train on `device`."""
    if world_size() == 1:
        return
    gpus = torch.cuda.device_count()
    if device.type == "mps":
        problem = "cpu or cuda with several processes, got mps; use --device cpu"
    elif device.index is not None:
        problem = f"cuda with several processes (one GPU each), got {device}, one GPU for all; use --device cuda"
    elif device.type == "cuda" and local_rank() >= gpus:
        problem = f"a GPU for each process, got {gpus} here; lower --nproc-per-node, or use --device cpu"
    else:
        return
    raise ConfigError(f"device.device (--device): expected {problem}")


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `model` so that backward averages the gradients over the ranks; with one rank return `model` itself."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def broadcast(value: Any) -> Any:
    """The value of rank 0."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def broadcast_each(values: Iterator[Any]) -> Iterator[Any]:
    """The values of rank 0, one after another; none of them may be None. Other ranks do not read their `values`."""
    while (value := broadcast(next(values, None) if rank() == 0 else None)) is not None:
        yield value


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in order of rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """The maximum of each value over the ranks."""
    return _all_reduce(values, "MAX")


def all_reduce_mean(*values: float) -> tuple[float, ...]:
    """The mean of each value over the ranks."""
    return tuple(value / world_size() for value in _all_reduce(values, "SUM"))


def _all_reduce(values: tuple[float, ...], operation: str) -> tuple[float, ...]:
    """Reduce CPU tensors, which go through gloo: no GPU is waited for."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tuple(tensor.tolist())


def local_rows(rows: int) -> slice:
    """The streams, out of `rows`, that this rank reads; `rows` is a multiple of the number of ranks."""
    share = rows // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def all_gather_rows(state: State) -> State:
    """The state of all streams, from the states of each rank's own; every rank has to call it."""

    def gather(rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    return state if state is None or world_size() == 1 else map_state(gather, state)


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
