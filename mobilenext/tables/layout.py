"""Which results stand in which table, and beside which published number."""

from collections.abc import Sequence

from mobilenext.tables.comparisons import compared_groups, comparison_table
from mobilenext.tables.costs import Network, complexity_table
from mobilenext.tables.labels import labels
from mobilenext.tables.own_tables import own_tables, recipe_tables
from mobilenext.tables.paper import published_rows
from mobilenext.tables.paper_tables import find_group, paper_table, stands_in
from mobilenext.tables.render import Table
from mobilenext.tables.results import Result, group_results, groups_of, protocols_of


def tables_of(results: Sequence[Result], networks: Sequence[Network] = ()) -> list[Table]:
    """All tables: the paper's, measured or not, those of other data and recipes, then the recipes'.

    A run stands in a row of the paper only if `Result.of_the_paper` says so; any other one stands
    in tables of its own protocol, where no published number does.

    Args:
        results: Runs to show.
        networks: With them comes a table of what they cost, and comparisons without a run.

    Raises:
        InputError: Two results contradict each other, or a network has no label.
    """
    groups = group_results(results)
    with_paper = [group for group in groups if group.of_the_paper]
    others = [group for group in groups if group not in with_paper]
    tables = []
    placed: set[int] = set()
    for name in ("width_table", "identity_table"):
        rows = published_rows(name)
        placed |= {id(group) for row in rows for group in with_paper if stands_in(row, group)}
        protocols = [
            protocol
            for protocol in protocols_of(with_paper)
            if any(find_group(row, groups_of(protocol, with_paper)) for row in rows)
        ]
        for protocol in protocols or [None]:
            tables.append(paper_table(name, rows, protocol, groups_of(protocol, with_paper)))
    for name in labels().comparisons:
        measured = [
            protocol
            for protocol in protocols_of(with_paper)
            if compared_groups(name, networks, groups_of(protocol, with_paper))
        ]
        for protocol in measured or ([None] if networks else []):
            part = compared_groups(name, networks, groups_of(protocol, with_paper))
            placed |= {id(group) for group in part.values()}
            tables.append(comparison_table(name, protocol, part, networks))
    if networks:
        tables.append(complexity_table(networks))
    others += [group for group in with_paper if id(group) not in placed]
    for protocol in protocols_of(others):
        tables += own_tables(protocol, groups_of(protocol, others))
    return tables + recipe_tables(groups)
