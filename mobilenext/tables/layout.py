"""Which results stand in which table, and beside which published number."""

from collections.abc import Sequence
from typing import Any

from mobilenext.tables.comparisons import compared_groups, comparison_table
from mobilenext.tables.costs import Network, complexity_table
from mobilenext.tables.deployed import (
    latency_tables,
    published_latency,
    published_quantization,
    quantization_tables,
)
from mobilenext.tables.detected import detection_tables, published_detection
from mobilenext.tables.labels import labels
from mobilenext.tables.own_tables import own_tables, recipe_tables
from mobilenext.tables.paper import published_rows
from mobilenext.tables.paper_tables import (
    find_group,
    paper_table,
    published_networks,
    stands_in,
)
from mobilenext.tables.render import Table
from mobilenext.tables.results import (
    Group,
    Result,
    group_results,
    groups_of,
    groups_of_task,
    protocols_of,
    tasks_of,
)
from mobilenext.tables.searched import published_search, search_tables


def tables_of(
    results: Sequence[Result],
    networks: Sequence[Network] = (),
    quantized: Sequence[dict[str, Any]] = (),
    timed: Sequence[dict[str, Any]] = (),
    detected: Sequence[dict[str, Any]] = (),
    searches: Sequence[dict[str, Any]] = (),
) -> list[Table]:
    """All tables: those of the runs' own tasks, then the paper's, measured or not.

    A run stands in a row of the paper only if `Result.of_the_paper` says so; any other one stands
    in tables of its own protocol, where no published number does. Runs of one network and task that
    differ in their recipes are compared in a table of the task.

    Args:
        results: Runs to show.
        networks: Networks whose cost is known: comparisons show it, and a table of it comes at the
            end.
        quantized: Results of `scripts/quantize.py`, which stand behind the runs.
        timed: Results of `scripts/latency.py`, the same.
        detected: Results of `scripts/detect.py`, the same.
        searches: Results of `scripts/search.py`, the same. With them stand runs of cells, whose
            genotypes are no rows of the other tables.

    Returns:
        Tables with names of their own; `Table.task` and `Table.measured` tell what they hold.

    Raises:
        InputError: Two results contradict each other, or a network has no label.
    """
    cells = [result for result in results if result.of_cells]
    groups = group_results(result for result in results if not result.of_cells)
    with_paper = [group for group in groups if group.of_the_paper]
    others = [group for group in groups if group not in with_paper]
    published, placed = _published_tables(with_paper, networks)
    others += [group for group in with_paper if id(group) not in placed]
    own = []
    for task in tasks_of(groups):
        part = groups_of_task(task, groups)
        own += recipe_tables(task, part)
        mine = groups_of_task(task, others)
        for protocol in protocols_of(mine):
            own += own_tables(protocol, groups_of(protocol, mine), part)
    own += detection_tables(detected) + search_tables(searches, cells)
    own += quantization_tables(quantized) + latency_tables(timed)
    published += [published_networks()]
    published += [published_detection(detected), published_search(searches, cells)]
    published += [published_quantization(), published_latency()]
    return own + published + ([complexity_table(networks)] if networks else [])


def _published_tables(
    groups: list[Group], networks: Sequence[Network]
) -> tuple[list[Table], set[int]]:
    """The paper's tables with the runs that may stand in them, and the ids of the groups in one."""
    tables = []
    placed: set[int] = set()
    for name in ("width_table", "identity_table"):
        rows = published_rows(name)
        placed |= {id(group) for row in rows for group in groups if stands_in(row, group)}
        protocols = [
            protocol
            for protocol in protocols_of(groups)
            if any(find_group(row, groups_of(protocol, groups)) for row in rows)
        ]
        for protocol in protocols or [None]:
            tables.append(paper_table(name, rows, protocol, groups_of(protocol, groups)))
    for name in labels().comparisons:
        measured = [
            protocol
            for protocol in protocols_of(groups)
            if compared_groups(name, networks, groups_of(protocol, groups))
        ]
        for protocol in measured or [None]:
            part = compared_groups(name, networks, groups_of(protocol, groups))
            placed |= {id(group) for group in part.values()}
            tables.append(comparison_table(name, protocol, part, networks))
    return tables, placed
