"""Tables that compare networks at width 1.0, such as the ablations, beside what was published."""

from collections.abc import Sequence

from mobilenext.tables.cells import (
    LAST_EPOCH,
    MEASURED,
    condition_notes,
    cost_cells,
    footnotes,
    group_cost,
    marks,
    measured_cells,
    published_cell,
)
from mobilenext.tables.costs import Network
from mobilenext.tables.labels import labels
from mobilenext.tables.paper import published_of
from mobilenext.tables.render import Table
from mobilenext.tables.results import Group, Protocol


def compared_groups(
    name: str, networks: Sequence[Network], groups: list[Group]
) -> dict[str, Group]:
    """Runs of a comparison's networks at width 1.0, by the networks' names.

    A network built with other arguments than its config has does not count as it, where that is
    known.

    Args:
        name: The comparison's.
        networks: Networks whose arguments are known.
        groups: Runs of any network.
    """
    arguments = {network.model: network.arguments for network in networks}
    return {
        group.first.model: group
        for group in groups
        if group.first.model in labels().comparisons[name].networks
        and (group.first.width, group.first.identity) == (1, 1)
        and arguments.get(group.first.model, group.first.arguments) == group.first.arguments
    }


def comparison_table(
    name: str, protocol: Protocol | None, groups: dict[str, Group], networks: Sequence[Network]
) -> Table:
    """Networks of an ablation beside what was published of them.

    Args:
        name: The comparison's.
        protocol: The runs' protocol; None: there are no runs.
        groups: The runs, by the networks' names.
        networks: Networks whose cost is known.
    """
    comparison = labels().comparisons[name]
    notes: list[str] = []
    tags: set[str] = set()
    costs = {network.model: network for network in networks}
    rows = []
    for model in comparison.networks:
        numbers, remarks = published_of(model)
        group, network = groups.get(model), costs.get(model)
        mark = marks([*remarks, *condition_notes(group, groups.values())], notes)
        ours = ("", "")
        if network is not None:
            ours = cost_cells(network.params, network.madds)
        elif group is not None:
            ours = group_cost(group)
        top1 = numbers.get("top1")
        rows.append(
            (
                f"{labels().label(model)}{mark}",
                published_cell(numbers.get("params"), tags),
                ours[0],
                published_cell(numbers.get("madds"), tags, "madds"),
                ours[1],
                published_cell(top1, tags),
                *measured_cells(group, None if top1 is None else top1.value),
            )
        )
    recipe = "no run yet" if protocol is None else protocol.describe()
    cost = ("params, M: published", "ours", "MAdds, M: published", "ours", "top-1: published")
    return Table(
        name if protocol is None else f"{name}_{protocol.short}",
        f"{comparison.title}, width 1.0, ImageNet at 224 px: {recipe}",
        ("network", *cost, *MEASURED),
        tuple(rows),
        footnotes(notes, tags, LAST_EPOCH),
        measured=bool(groups),
    )
