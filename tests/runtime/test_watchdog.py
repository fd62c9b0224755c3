import pytest

from mobilenext.runtime.watchdog import PHASES, Note, who_hangs


def notes(*pairs: tuple[int, int]) -> dict[int, Note]:
    """By rank, from (sign, number of the phase) after seven steps."""
    return {
        rank: Note(sign, 7, PHASES[phase], 9.0, "node1", 100 + rank)
        for rank, (sign, phase) in enumerate(pairs)
    }


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        # rank 1 gives no sign of life any more
        (
            notes((5, 2), (4, 2)),
            notes((8, 2), (4, 2)),
            "stopped or dead: rank 1 (7 steps done, in ",
        ),
        # rank 0 lives, and waits for its data while the others wait for it
        (notes((5, 1), (5, 2), (5, 2)), notes((8, 1), (8, 2), (8, 2)), "behind the others: rank 0"),
        (
            notes((5, 0), (5, 1)),
            notes((8, 0), (8, 1)),
            "behind the others: rank 0 (7 steps done, e",
        ),
        (notes((5, 2), (5, 2)), notes((8, 2), (8, 2)), "no rank is behind: rank 0"),
        (notes((5, 2)), notes((8, 2)), "rank 1, 2 never began to train"),
    ],
)
def test_the_rank_that_others_wait_for(
    before: dict[int, Note], now: dict[int, Note], named: str
) -> None:
    told = who_hangs(before, now, 3 if len(now) in (1, 3) else 2)
    assert told.startswith(named)


def test_a_long_list_is_cut() -> None:
    stuck = notes(*[(1, 1)] * 8)
    assert who_hangs(stuck, stuck, 8).endswith("process 103 on node1), 4 more")
