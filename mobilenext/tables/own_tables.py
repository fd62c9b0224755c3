"""Tables of runs beside which no published number may stand, and of their recipes."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mobilenext.tables.cells import (
    ACCURACY,
    LAST_EPOCH,
    accuracy_cells,
    condition_notes,
    footnotes,
    group_cost,
    marks,
)
from mobilenext.tables.labels import authors_dropout, labels
from mobilenext.tables.render import Table
from mobilenext.tables.results import Group, Protocol, Result, decimal, fraction


def own_tables(protocol: Protocol, groups: list[Group]) -> list[Table]:
    """Tables of one protocol's runs: networks by width, then identity tensor multipliers."""
    whole = [group for group in groups if group.first.identity == 1]
    whole.sort(
        key=lambda group: (
            -group.first.width,
            labels().place(group.first.model),
            group.first.model,
        )
    )
    tables = []
    if whole:
        rows = [(group, decimal(group.first.width)) for group in whole]
        name, title = f"networks_{protocol.short}", f"Networks: {protocol.describe()}"
        tables.append(_own_table(name, title, "width", rows, groups))
    for model, width in sorted({(g.first.model, g.first.width) for g in groups}):
        several = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if {group.first.identity for group in several} == {1.0}:
            continue
        rows = [(group, fraction(group.first.identity)) for group in several]
        name = f"identity_{model}_{width:g}_{protocol.short}"
        title = f"Identity tensor multipliers at width {decimal(width)}: {protocol.describe()}"
        tables.append(_own_table(name, title, "identity", rows, groups))
    return tables


def recipe_tables(groups: list[Group]) -> list[Table]:
    """Networks that several recipes trained on the same images for as many epochs."""
    trained = {(_task_and_network(group), group.first.protocol) for group in groups}
    recipes = Counter(both for both, _ in trained)
    compared = [group for group in groups if recipes[_task_and_network(group)] > 1]
    compared.sort(key=lambda group: (_task_and_network(group), group.first.protocol.recipe))
    tables = []
    for task, same in itertools.groupby(compared, lambda group: group.first.protocol.task):
        part = list(same)
        notes: list[str] = []
        rows = tuple(
            (
                labels().label(group.first.model) + marks(condition_notes(group, part), notes),
                _recipe_with_arguments(group.first),
                decimal(group.first.width),
                fraction(group.first.identity),
                *accuracy_cells(group),
            )
            for group in part
        )
        slug = re.sub(r"[^a-z0-9]+", "_", task.lower())
        columns = ("network", "recipe", "width", "identity", *ACCURACY)
        notes_below = footnotes(notes, set(), *_remarks(part[0].first.protocol))
        tables.append(Table(f"recipes_{slug}", f"Recipes: {task}", columns, rows, notes_below, 2))
    return tables


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
            _name(group, groups) + marks(condition_notes(group, part), notes),
            value,
            *group_cost(group),
            *accuracy_cells(group),
        )
        for group, value in shown
    )
    columns = ("network", knob, "params, M", "MAdds, M", *ACCURACY)
    return Table(
        name, title, columns, rows, footnotes(notes, set(), *_remarks(part[0].first.protocol))
    )


def _task_and_network(group: Group) -> tuple[str, tuple[str, float, float]]:
    return group.first.protocol.task, group.first.network_key


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


def _name(group: Group, groups: Iterable[Group]) -> str:
    """The network's name, with the arguments that set it apart from other rows or its authors'."""
    own = json.loads(group.first.arguments)
    key = group.first.network_key
    twins = [json.loads(g.first.arguments) for g in groups if g.first.network_key == key]
    shown = {name for twin in twins for name in {*own, *twin} if twin.get(name) != own.get(name)}
    if group.first.dropout != authors_dropout(group.first.model):
        shown.add("dropout")
    parts = [f"{name} {_argument_text(own[name])}" for name in sorted(shown & own.keys())]
    return ", ".join([labels().label(group.first.model), *parts])


def _argument_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
