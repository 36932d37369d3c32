"""Many processes that train one model: `torchrun --nproc-per-node N -m charrnn train …`.

Each process (a rank) holds the whole model and reads its share of the streams; gradients are averaged at every step
(torch's DistributedDataParallel), so N ranks make the steps that one process would make with the same batch_size. What
decides about the course of a run (time, loss, stopping) is agreed on, for ranks that disagree wait for each other
forever. Without torchrun there is one rank and nothing to agree on.
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
    """Join the processes that torchrun started, for the length of the `with` block; alone without torchrun.

    Inside another such block, or where a script has joined them itself, nothing is done.

    Raises:
        ConfigError: the environment is not what torchrun makes it.
        ConnectionError: another of the processes did not come, or ended in the middle.
    """
    if _together() or not dist.is_available() or _environment("WORLD_SIZE", 1) == 1:
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ConnectionError(
                f"rank {dist.get_rank()}: expected {dist.get_world_size()} processes that go on together, but another "
                "one has ended; what was saved last is whole: go on from it with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _join() -> None:
    size = _environment("WORLD_SIZE", 1)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE: expected the other variables that torchrun sets beside it, got WORLD_SIZE={size} without "
            f"{', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
        )
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = _rendezvous()
        store = dist.PrefixStore(f"joined {next(_joined)} times", store)  # nothing of an earlier group is read
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (ValueError, dist.DistError) as error:
        raise ConnectionError(
            f"WORLD_SIZE: expected {size} processes, but they did not come together ({error}); start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from error


_joined = itertools.count()


@functools.cache
def _rendezvous() -> "tuple[dist.Store, int, int]":
    """Where the processes find each other, kept for the next time: a script may join them again and again."""
    return next(dist.rendezvous("env://"))


def _environment(name: str, default: int) -> int:
    """A number that torchrun sets."""
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(
            f"{name}: expected a whole number in this environment variable, as torchrun sets it, got {value!r}; "
            "start with torchrun, or unset it"
        )
    return int(value)


def rank() -> int:
    """Number of this process, from 0; that one speaks and writes."""
    return dist.get_rank() if _together() else 0


def local_rank() -> int:
    """Number of this process on its machine: that of its GPU."""
    return _environment("LOCAL_RANK", 0)


def check_device(device: torch.device) -> None:
    """Raise ConfigError if the ranks cannot train together on `device`."""
    if world_size() > 1 and device.type == "mps":
        raise ConfigError(
            "device.device (--device): expected cpu or cuda with several processes, got mps; use --device cpu"
        )
    if world_size() > 1 and device.index is not None:
        raise ConfigError(
            f"device.device (--device): expected cuda with several processes, which gives each a GPU of its own, got "
            f"{device}, which is one for all; use --device cuda"
        )
    if world_size() > 1 and device.type == "cuda" and local_rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"device.device (--device): expected a GPU for each process, got {torch.cuda.device_count()} here; lower "
            "--nproc-per-node, or use --device cpu"
        )


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients that are averaged over the ranks after backward; `model` itself if there is one rank."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def broadcast(value: Any) -> Any:
    """The value that rank 0 has."""
    if world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


def broadcast_each(values: Iterator[Any]) -> Iterator[Any]:
    """The values that rank 0 has, none of them None, one after another; other ranks' `values` are not touched."""
    while (value := broadcast(next(values, None) if rank() == 0 else None)) is not None:
        yield value


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """The largest of each value over the ranks."""
    return _reduced(values, dist.ReduceOp.MAX) if world_size() > 1 else values


def all_reduce_mean(*values: float) -> tuple[float, ...]:
    """The mean of each value over the ranks."""
    if world_size() == 1:
        return values
    return tuple(value / world_size() for value in _reduced(values, dist.ReduceOp.SUM))


def local_rows(rows: int) -> slice:
    """Which of `rows` streams are this rank's; `rows` is a multiple of the number of ranks."""
    share = rows // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def all_gather_rows(state: State) -> State:
    """The state of all streams, from that of each rank's; to be called by all of them."""
    return state if state is None or world_size() == 1 else map_state(_gathered, state)


def _gathered(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _reduced(values: tuple[float, ...], operation: Any) -> tuple[float, ...]:
    """Through the processors' group, gloo: on a GPU nothing waits for it."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, operation)
    return tuple(tensor.tolist())


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
