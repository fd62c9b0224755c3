import threading
from datetime import timedelta

import pytest
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
)

from mobilenext.runtime.distributed import _rendezvous

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
