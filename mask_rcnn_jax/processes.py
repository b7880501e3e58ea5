"""Communication between the processes of one run. With one process it returns at once."""

import os
import pickle
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.failures import failing_together

_SHARING_PATIENCE = 10.0  # seconds

T = TypeVar("T")


@contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Join the run's other processes for the `with`, before anything else of jax is used; where one fails, all end.

    Without a `coordinator` (HOST:PORT, the same in all) jax finds it, the `count` and this process's `index` from the
    cluster (Slurm, Open MPI, Kubernetes, Cloud TPU). Raises `UserError` where it cannot, or where they do not come.
    """
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        where = f"by {coordinator}" if coordinator else "of the cluster; name --coordinator, --processes and --process"
        raise UserError(f"the processes of this run cannot be joined {where} ({reason})") from error
    with failing_together():
        _check_devices()
        _connect()
        yield


def _check_devices() -> None:
    counts = Counter(device.process_index for device in jax.devices())
    if len({*counts.values()}) > 1:
        shown = ", ".join(f"process {index} has {counts[index]}" for index in sorted(counts))
        raise UserError(f"all processes of a run need the same number of devices ({shown}); hide those beyond it")


def _connect() -> None:
    """Connects all devices, and one device of each process, while every process is here.

    On CPU the first collective of a group of devices connects them, and gives up on whoever comes 30 s late, as a
    process does that reads or compiles for longer than the others; every later collective waits.
    """
    gather(None)
    mesh = Mesh(jax.devices(), ("all",))
    ones = jax.make_array_from_callback((len(jax.devices()),), NamedSharding(mesh, P("all")), lambda _: np.ones(1))
    total = jax.shard_map(lambda one: jax.lax.psum(one, "all"), mesh=mesh, in_specs=P("all"), out_specs=P())
    jax.block_until_ready(jax.jit(total)(ones))


def is_first() -> bool:
    """Return whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def index_and_count() -> tuple[int, int]:
    """Return this process's index, and the number of processes."""
    return jax.process_index(), jax.process_count()


def gather(value: T) -> list[T]:
    """Every process's value, which can be pickled, in their order; all of them call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths.tolist(), strict=True)]


def by_first(action: Callable[[], T]) -> T:
    """Run `action` in the first process and return its result in all; its `UserError` is raised in all."""
    result: Any = None
    if is_first():
        try:
            result = action()
        except UserError as error:
            result = error
    result = gather(result)[0]
    if isinstance(result, UserError):
        raise result
    return result


def check_shared(folder: Path) -> None:
    """Raise `UserError` in all processes where one of them does not see what the first one writes in `folder`."""
    if jax.process_count() == 1:
        return
    token = folder / by_first(lambda: _leave_token(folder))
    seen = gather((_appears(token), socket.gethostname()))
    by_first(lambda: token.unlink(missing_ok=True))
    if lacking := [f"process {index} on {host}" for index, (there, host) in enumerate(seen) if not there]:
        raise UserError(
            f"{folder} is not the same folder for all processes: {', '.join(lacking)} cannot see what the first one"
            " writes there; name a folder on storage that they share"
        )


def _leave_token(folder: Path) -> str:
    file, name = tempfile.mkstemp(prefix=".shared-", dir=folder)
    os.close(file)
    return Path(name).name


def _appears(file: Path) -> bool:
    """Say whether a file that another host has just written is there; network file systems need a moment."""
    deadline = time.monotonic() + _SHARING_PATIENCE
    while not os.path.exists(file) and time.monotonic() < deadline:
        time.sleep(0.1)
        for folder in (file.parent.parent, file.parent):
            if os.path.isdir(folder):
                os.listdir(folder)  # asks the server again
    return os.path.exists(file)
