"""Tables of runs beside which no published number may stand, and of their recipes."""

import json
import re
from collections import Counter

from mobilenext.program import fraction
from mobilenext.tables.cells import (
    ACCURACY,
    LAST_EPOCH,
    accuracy_cells,
    condition_notes,
    footnotes,
    group_cost,
    marks,
)
from mobilenext.tables.differences import (
    differing_arguments,
    differing_entries,
    few,
    same_network,
)
from mobilenext.tables.labels import labels
from mobilenext.tables.render import Table
from mobilenext.tables.results import Group, Protocol, Result, decimal


def own_tables(protocol: Protocol, groups: list[Group], task: list[Group]) -> list[Table]:
    """Tables of one protocol's runs: networks by width, then identity tensor multipliers.

    A single run that stands in `recipe_tables` gets none.

    Args:
        protocol: The runs' protocol.
        groups: The runs.
        task: All runs of the protocol's task. Titles name the entries in which these runs differ
            from others of the same networks, unless there are many.
    """
    if len(groups) == 1 and groups[0] in _of_several_recipes(task):
        return []  # a row beside others in the table of recipes
    whole = [group for group in groups if group.first.identity == 1]
    whole.sort(
        key=lambda group: (
            -group.first.width,
            labels().place(group.first.model),
            group.first.model,
        )
    )
    results = [group.first for group in task]
    differing = {
        entry
        for group in groups
        for entry in differing_entries(group.first, same_network(group.first, results))
    }
    apart = "".join(f", {entry}" for entry in few(sorted(differing)))
    tables = []
    if whole:
        rows = [(group, decimal(group.first.width)) for group in whole]
        name, title = f"networks_{protocol.short}", f"Networks{apart}: {protocol.describe()}"
        tables.append(_own_table(name, title, "width", rows, groups))
    for model, width in sorted({(g.first.model, g.first.width) for g in groups}):
        several = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if {group.first.identity for group in several} == {1.0}:
            continue
        rows = [(group, fraction(group.first.identity)) for group in several]
        name = f"identity_{model}_{width:g}_{protocol.short}"
        what = f"Identity tensor multipliers at width {decimal(width)}{apart}"
        tables.append(_own_table(name, f"{what}: {protocol.describe()}", "identity", rows, groups))
    return tables


def recipe_tables(task: str, groups: list[Group]) -> list[Table]:
    """The table of networks that several recipes trained for one task; empty if there are none.

    Args:
        task: Data, size of images and epochs, see `Protocol.task`.
        groups: Its runs.
    """
    part = _of_several_recipes(groups)
    if not part:
        return []
    part.sort(key=lambda group: (group.first.network_key, group.first.protocol.recipe))
    results = [group.first for group in part]
    notes: list[str] = []
    rows = []
    for group in part:
        entries = differing_entries(group.first, same_network(group.first, results))
        network = ", ".join([labels().label(group.first.model), *few(entries)])
        rows.append(
            (
                network + marks(condition_notes(group, part), notes),
                _recipe_with_arguments(group.first),
                decimal(group.first.width),
                fraction(group.first.identity),
                *group_cost(group),
                *accuracy_cells(group),
            )
        )
    slug = re.sub(r"[^a-z0-9]+", "_", task.lower())
    columns = ("network", "recipe", "width", "identity", *COST, *ACCURACY)
    below = footnotes(notes, set(), *_remarks(part[0].first.protocol))
    return [Table(f"recipes_{slug}", f"Recipes: {task}", columns, tuple(rows), below, 2, task)]


def _of_several_recipes(groups: list[Group]) -> list[Group]:
    """Those of a task's runs whose network was trained by more than one recipe."""
    trained = {(group.first.network_key, group.first.protocol) for group in groups}
    recipes = Counter(network for network, _ in trained)
    return [group for group in groups if recipes[group.first.network_key] > 1]


COST = ("params, M", "MAdds, M")
"""Columns of `group_cost`."""


def _own_table(
    name: str, title: str, knob: str, shown: list[tuple[Group, str]], groups: list[Group]
) -> Table:
    """A table of runs.

    Args:
        name: The table's.
        title: The table's.
        knob: The multiplier that rows differ in: width or identity.
        shown: Runs, each with its multiplier in words.
        groups: All runs of the protocol, from which names set a row apart.
    """
    notes: list[str] = []
    part = [group for group, _ in shown]
    rows = tuple(
        (
            _name(group.first, [one.first for one in groups])
            + marks(condition_notes(group, part), notes),
            value,
            *group_cost(group),
            *accuracy_cells(group),
        )
        for group, value in shown
    )
    columns = ("network", knob, *COST, *ACCURACY)
    protocol = part[0].first.protocol
    below = footnotes(notes, set(), *_remarks(protocol))
    return Table(name, title, columns, rows, below, task=protocol.task)


def _recipe_with_arguments(result: Result) -> str:
    """A recipe with the arguments of the network, such as dropout, that go with it."""
    arguments = json.loads(result.arguments)
    words = [f"{name} {value}" for name, value in arguments.items() if name != "_target_"]
    return ", ".join([*words, result.protocol.recipe])


def _remarks(protocol: Protocol) -> tuple[str, ...]:
    remarks = (
        LAST_EPOCH,
        "Not ImageNet as the paper has it: its numbers don't compare with these.",
    )
    return remarks[:1] if protocol.of_the_paper else remarks


def _name(result: Result, results: list[Result]) -> str:
    """The network's name, with the arguments that set it apart from other rows or its authors'."""
    arguments = differing_arguments(result, same_network(result, results))
    return ", ".join([labels().label(result.model), *arguments])
