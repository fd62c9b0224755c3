"""This process among the others of its job, and the few messages that processes exchange."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from mobilenext.errors import InputError, LostProcessError, Preempted, UserError, first_line
from mobilenext.program import launched_by_torchrun
from mobilenext.runtime.cores import own_allowance, share
from mobilenext.runtime.srun import in_srun_step

T = TypeVar("T")

FOREACH_COPY: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

LOST_SIGNS = ("Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "NCCL")
"""In what torch's backends say when another process is gone; they have no type for it."""


MOST_LEFT_OUT = 16
"""Calls of `Agreement.exchange` at most that send nothing, one after the other."""


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes, each with a device of its own."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    timeout: timedelta = timedelta(minutes=30)
    """Time that a collective waits for the other processes."""
    rendezvous_prefix: str = ""
    """Prefix of this start's entries in torchrun's store, which has those of earlier ones too;
    empty where rank 0 has the store, as without torchrun."""
    cpus: int = field(default_factory=lambda: share(own_allowance(), [own_allowance()]))
    """Processor cores for this process: its share of those that the job's processes have here."""
    is_first_on_node: bool = True
    """Whether no process of a lower rank runs on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def require_alone(self, job: str, hint: str = "") -> None:
        """Raise `InputError` if there are other processes.

        Args:
            job: The name of the job that can't have them.
            hint: More for the message.
        """
        if self.world_size > 1:
            alone = "as one task (srun --ntasks=1)" if in_srun_step() else "without torchrun"
            raise InputError(
                f"{job}: expected one process, got {self.world_size}; run it {alone}{hint}"
            )

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 only; what it returns comes back on every rank.

        A `UserError` of rank 0 is raised on every rank, so that no rank is left waiting.

        Args:
            function: Its result has to be picklable.
        """
        if self.world_size == 1:
            return function()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = function()
            except UserError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def first_on_node(self, function: Callable[[], T]) -> T:
        """Call a function on each rank: on the first of each machine, then on the others.

        What the first one leaves on the machine, a cache or a download, the others find. All ranks
        have to call this. A `UserError` of any rank is raised on every rank.

        Args:
            function: It may not wait for other ranks.
        """
        if self.world_size == 1:
            return function()
        result: Any = None
        for turn in (True, False):
            error = None
            if self.is_first_on_node == turn:
                try:
                    result = function()
                except UserError as raised:
                    error = raised
            for raised in self.gather(error):
                if raised is not None:
                    raise raised
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on all ranks; it has to be picklable."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give every rank the running statistics of rank 0."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def broadcast_weights(self, network: nn.Module) -> None:
        """Give every rank the parameters and running statistics of rank 0."""
        if self.world_size > 1:
            for parameter in network.parameters():
                dist.broadcast(parameter.detach(), src=0)
            self.broadcast_buffers(network)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the means of all ranks' tensors, in place, by one message.

        Args:
            tensors: Of one floating-point type.
        """
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self.all_reduce_sum(flat).div_(self.world_size)
        parts = flat.split([tensor.numel() for tensor in tensors])
        means = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
        FOREACH_COPY(tensors, means)

    def average_buffers(self, network: nn.Module) -> None:
        """Give every rank the mean of all ranks' running statistics."""
        if self.world_size == 1:
            return
        # In float64 the mean of equal numbers is that number, for any number of ranks.
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        means = [buffer.to(exact) for buffer in buffers]
        self.average(means)
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean)


class Agreement:
    """Lets all ranks act on a request of any of them at the same step, without waiting for it.

    The requests of one call travel while the next step is computed, over a gloo group of their
    own, so the device is not waited for either. A single process gets its own requests back at
    once.

    Args:
        process: This process; all of them have to make an `Agreement` at the same place.
        requests: Number of different requests.
        seconds: Least time between two messages, about: among many processes one takes longer than
            a short step. What is requested in between waits for the next.
    """

    def __init__(self, process: Process, requests: int, seconds: float = 0.0) -> None:
        self.alone, self.seconds = process.world_size == 1, seconds
        self.group: Any = (
            None if self.alone else dist.new_group(backend="gloo", timeout=process.timeout)
        )
        # Its last entry: calls to leave out, the most that any rank proposes.
        self.sent = torch.zeros(requests + 1, dtype=torch.int32)
        self.waiting = [False] * requests
        self.work: dist.Work | None = None
        self.calls, self.left_out, self.last_sent = 0, 0, time.monotonic()

    def exchange(self, *requests: bool) -> list[bool]:
        """Send this rank's requests; returns those that any rank made at the call before."""
        if self.alone:
            return list(requests)
        self.waiting = [old or new for old, new in zip(self.waiting, requests, strict=True)]
        self.calls += 1
        if self.calls <= self.left_out:
            return [False] * len(requests)
        agreed = self.agreed()
        self.left_out = int(self.sent[-1])
        self.sent = torch.tensor([*self.waiting, self._proposed()], dtype=torch.int32)
        self.waiting = [False] * len(requests)
        self.work = dist.all_reduce(
            self.sent, op=dist.ReduceOp.MAX, group=self.group, async_op=True
        )
        return agreed

    def _proposed(self) -> int:
        """Calls to leave out so that messages are `seconds` apart, at the pace since the last."""
        now, calls = time.monotonic(), self.calls
        pace = (now - self.last_sent) / calls
        self.calls, self.last_sent = 0, now
        return min(MOST_LEFT_OUT, int(self.seconds / max(pace, 1e-6)))

    def agreed(self) -> list[bool]:
        """Requests that any rank made at the last call; waits until all ranks have made it."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        return self.sent[:-1].bool().tolist()

    def failed(self) -> bool:
        """Whether the last call's requests can't arrive, since another process has ended.

        For other threads: this process's own may wait for its device, and never come to ask.
        """
        work = self.work
        future = None if work is None else work.get_future()
        if future is None or not future.done():
            return False
        try:
            future.value()
        except RuntimeError:
            return True
        return False


@contextmanager
def process_group(device: str, timeout_minutes: float) -> Iterator[Process]:
    """Join the other processes of the job, if there are any, and choose this one's device.

    Args:
        device: auto (CUDA if there is one, else CPU), cpu, cuda, or another torch device type.
        timeout_minutes: How long a process may hang; collectives wait a little longer, so that
            the `Watchdog`, who knows which process it is, comes first.

    Raises:
        InputError: The device is not there, or the processes can't meet.
        LostProcessError: Another process went away inside.
    """
    rank = int(os.environ["RANK"]) if launched_by_torchrun() else 0
    world_size = int(os.environ["WORLD_SIZE"]) if launched_by_torchrun() else 1
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    timeout = timedelta(minutes=1.5 * timeout_minutes + 1)
    if world_size == 1:
        yield Process(chosen, rank, world_size, timeout)
        return
    store, prefix = None, ""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        client = agent_store(timeout)
        prefix = _rendezvous(client, rank, world_size, timeout)
        store = PrefixStore(prefix, client)
    process = Process(chosen, rank, world_size, timeout, prefix)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            timeout=timeout,
            store=store,
            rank=rank if store is not None else -1,
            world_size=world_size if store is not None else -1,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except dist.DistError as error:
        if store is not None:
            raise
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"the {world_size} processes can't meet at {where} ({first_line(error)}); "
            "export MASTER_ADDR, a name of rank 0's machine, and MASTER_PORT, a free port there"
        ) from error
    try:
        mine = own_allowance()
        everyones = process.gather(mine)
        yield replace(
            process,
            cpus=share(mine, everyones),
            is_first_on_node=all(other.machine != mine.machine for other in everyones[:rank]),
        )
    except Preempted:
        dist.destroy_process_group()  # all ranks are here
        raise
    except RuntimeError as error:
        if isinstance(error, UserError) or not any(sign in str(error) for sign in LOST_SIGNS):
            raise
        raise LostProcessError(
            "lost contact with another process of the job: its own message, or what torchrun or "
            f"srun says of it, has the cause ({str(error).splitlines()[0][:200]}). The same "
            "command goes on from the last checkpoint"
        ) from error
    # Only after success: after an error the others may be inside a collective, and taking the
    # group down would bury the message of this rank under theirs.
    dist.destroy_process_group()


def agent_store(timeout: timedelta) -> TCPStore:
    """A connection of its own to the store where the processes meet: torchrun's, or rank 0's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timeout)


def _rendezvous(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A nonce that the processes of this start of the job share, and no earlier ones.

    When torchrun starts a job again, torch 2.14 finds the same store, with the addresses of the
    dead in it, and may take them for those of the living. Restarts can't be counted either: the
    counts of several nodes differ. So rank 0 writes a new nonce and lists the ranks that have
    repeated it; the others repeat the nonce that they read until they are on its list.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("mobilenext/nonce", me)
        others = range(1, world_size)
        heard = [store.get(f"mobilenext/{me}/{other}").decode() for other in others]
        store.set(f"mobilenext/{me}/heard", " ".join(heard))
        return me
    until = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        nonce = store.get("mobilenext/nonce").decode()
        store.set(f"mobilenext/{nonce}/{rank}", me)
        heard = f"mobilenext/{nonce}/heard"
        if store.check([heard]) and me in store.get(heard).decode().split():
            return nonce
        time.sleep(0.05)
    raise RuntimeError(f"Timed out waiting for rank 0 to meet this process, rank {rank}")


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if visible is None else visible.split(",")
    return [name.strip() for name in names[:count]]


def _slurm_shares_out_devices(visible: int) -> bool:
    """Whether each task of a SLURM job sees devices of its own, `visible` of them, from 0 on."""
    signs = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")
    if in_srun_step() and visible == 1:
        return True  # srun may be given --gpus-per-task itself, and need not set a variable then
    in_task = os.environ.get("SUBMITIT_EXECUTOR") == "slurm" or in_srun_step()
    return in_task and any(sign in os.environ for sign in signs)


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of a process.

    Args:
        name: auto (CUDA if there is one, else CPU), cpu, cuda, or another torch device type.
        local_rank: The process's number on its node.

    Raises:
        InputError: The device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"runtime.device={name}: expected auto, cpu, cuda or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if device.index is None and index >= count > 0 and _slurm_shares_out_devices(count):
            index %= count
        if index >= count:
            raise InputError(
                f"runtime.device={name}: process {local_rank} of this node needs CUDA device "
                f"{index}, and there are {count}; start fewer processes or use runtime.device=cpu"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("runtime.device=mps: no Apple GPU here; use runtime.device=cpu")
    return device
