import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
)

from mobilenext.errors import InputError
from mobilenext.runtime.distributed import Process, _rendezvous

TIMEOUT = timedelta(seconds=10)


def start(store: HashStore, order: list[int]) -> list[str]:
    """One start of a job of three: its processes in threads, begun in this order."""
    words: dict[int, str] = {}

    def process(rank: int) -> None:
        words[rank] = _rendezvous(store, rank, 3, TIMEOUT)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [words[rank] for rank in range(3)]


def test_a_restarted_job_meets_apart_from_the_one_before() -> None:
    """Though it finds all that the first one has left in the store."""
    store = HashStore()
    words = [start(store, order) for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0])]
    assert all(len(set(shared)) == 1 for shared in words)
    assert len({shared[0] for shared in words}) == 3


def test_a_rank_0_that_does_not_come() -> None:
    store = HashStore()
    store.set("mobilenext/nonce", "of a job that is dead")
    with pytest.raises(RuntimeError, match=r"Timed out waiting for rank 0 .* rank 2"):
        _rendezvous(store, 2, 3, timedelta(seconds=0.2))


@dataclass(frozen=True)
class InThread(Process):
    """A process of a job whose processes are threads of this one."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    values: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        """See `Process.gather`."""
        self.values[self.rank] = value
        self.barrier.wait(5)
        everyones = [self.values[rank] for rank in range(self.world_size)]
        self.barrier.wait(5)
        return everyones


def job(nodes: list[str], function: Callable[[int], object]) -> list[object]:
    """What `first_on_node` of each rank returns or raises, by the ranks' nodes."""
    barrier, values = threading.Barrier(len(nodes)), {}
    ends: dict[int, object] = {}

    def process(rank: int) -> None:
        first = nodes.index(nodes[rank]) == rank
        here = InThread(
            torch.device("cpu"), rank, len(nodes), is_first_on_node=first, barrier=barrier,
            values=values,
        )  # fmt: skip
        try:
            ends[rank] = here.first_on_node(lambda: function(rank))
        except InputError as error:
            ends[rank] = str(error)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends.get(rank) for rank in range(len(nodes))]


NODES = ["a", "a", "a", "b", "c", "c"]


def test_the_first_of_each_node_comes_before_the_others() -> None:
    began: list[int] = []
    ended: list[int] = []

    def work(rank: int) -> list[int]:
        began.append(rank)
        before = list(ended)
        time.sleep(0.02)
        ended.append(rank)
        return before

    before = job(NODES, work)
    assert sorted(began[:3]) == [0, 3, 4]
    assert all(set(before[rank]) >= {0, 3, 4} for rank in (1, 2, 5))  # type: ignore[arg-type]
    assert sorted(began) == list(range(6))


@pytest.mark.parametrize("failing", range(6))
def test_an_error_of_one_rank_ends_all(failing: int) -> None:
    called: list[int] = []

    def work(rank: int) -> None:
        called.append(rank)
        if rank == failing:
            raise InputError(f"rank {rank} can't")

    assert job(NODES, work) == [f"rank {failing} can't"] * 6
    assert sorted(called) == ([0, 3, 4] if failing in (0, 3, 4) else list(range(6)))


def test_one_process_has_no_turns() -> None:
    assert Process(torch.device("cpu")).first_on_node(lambda: 7) == 7


def test_processes_of_a_machine_walk_once(photo_folder: Path, tmp_path: Path, run) -> None:
    time.sleep(0.05)  # until the folders' times differ from those of the walk
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run("tests/first_on_node.py", photo_folder, processes=2, env=environment)
    found = json.loads(done.stdout)
    assert found["walked"] == [["train", "val"], []]
    assert found["labels"][0] == found["labels"][1]
    assert found["said"] == [["rank 0 can't"] * 2, ["rank 1 can't"] * 2, [None] * 2]
    # where no cache can be written, each walks
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    done = run("tests/first_on_node.py", photo_folder, processes=2, env=environment)
    assert json.loads(done.stdout) == {**found, "walked": [["train", "val"]] * 2}
