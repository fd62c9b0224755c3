"""Which results stand in which table, and beside which published number."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mobilenext.tables.paper import (
    PublishedNumber,
    PublishedRow,
    published_rows,
    published_table,
    tag_meanings,
)
from mobilenext.tables.render import Table, superscript
from mobilenext.tables.results import (
    Group,
    Protocol,
    Result,
    authors_dropout,
    decimal,
    fraction,
    group_results,
)

NOT_MEASURED = "not measured"
NARROW_SPACE = "\u202f"
LABELS = {
    "mobilenetv2": "MobileNetV2",
    "mobilenext": "MobileNeXt",
    "bottleneck_one": "bottleneck, one depthwise convolution (a)",
    "bottleneck_two": "bottleneck, two depthwise convolutions (b)",
    "thin_ends": "inverted residual, depthwise convolutions at the thin ends (c)",
    "thin_ends_depthwise_stride": "inverted residual, thin ends, stride in the last depthwise (c)",
    "extra_depthwise": "MobileNetV2, another depthwise convolution",
    "first_removed": "MobileNeXt, first depthwise convolution removed",
    "last_removed": "MobileNeXt, last depthwise convolution removed",
    "extra_pointwise": "MobileNeXt, third 1x1 convolution",
    "activation_reduce": "MobileNeXt, activation after the reducing 1x1 too",
    "activation_last": "MobileNeXt, activation after the last depthwise convolution too",
    "activation_all": "MobileNeXt, activation after each convolution",
    "shortcut_thin": "MobileNeXt, shortcuts between thin middles",
    "shortcut_none": "MobileNeXt, no shortcuts",
    "ratio_3": "MobileNeXt, reduction ratio 3",
    "ratio_4": "MobileNeXt, reduction ratio 4",
    "ratio_8": "MobileNeXt, reduction ratio 8",
    "kernel_5": "MobileNeXt, 5x5 depthwise convolutions",
    "kernel_7": "MobileNeXt, 7x7 depthwise convolutions",
    "efficientnet_b0": "EfficientNet-b0",
    "mnext_s": "MobileNeXt-1.0 with squeeze-and-excitation (mnext_s)",
    "mnext_l": "MobileNeXt-1.1 with squeeze-and-excitation (mnext_l)",
    "mobilenext_efficientnet_b0": "EfficientNet-b0 with sandglass blocks",
    "mobilenext_efficientnet_b0_no_se": "the same without squeeze-and-excitation",
}
"""What tables call the networks, in their order there."""

COMPARISONS = {
    "ablation_design": (
        "Where depthwise convolutions and shortcuts sit",
        (
            "bottleneck_one",
            "bottleneck_two",
            "thin_ends",
            "thin_ends_depthwise_stride",
            "mobilenext",
        ),
    ),
    "ablation_activation": (
        "Where activations sit",
        ("mobilenext", "activation_reduce", "activation_last", "activation_all"),
    ),
    "ablation_depthwise": (
        "Which convolutions the block has",
        ("mobilenext", "first_removed", "last_removed", "extra_pointwise"),
    ),
    "ablation_ratio": ("Reduction ratios", ("ratio_3", "ratio_4", "mobilenext", "ratio_8")),
    "ablation_kernel": ("Kernel sizes", ("mobilenext", "kernel_5", "kernel_7")),
    "ablation_shortcut": (
        "Which shortcuts there are",
        ("mobilenext", "shortcut_thin", "shortcut_none"),
    ),
    "ablation_extra_depthwise": (
        "More depthwise convolutions in MobileNetV2",
        ("mobilenetv2", "extra_depthwise", "mobilenext"),
    ),
    "efficientnet_table": (
        "EfficientNet-b0 and sandglass blocks",
        (
            "efficientnet_b0",
            "mnext_s",
            "mnext_l",
            "mobilenext_efficientnet_b0",
            "mobilenext_efficientnet_b0_no_se",
        ),
    ),
}
"""Tables named like the experiments that fill them: titles, and the networks compared."""
PUBLISHED_IN = ("ablation", "activation", "extra_depthwise", "state_of_the_art")
"""Published tables with numbers of those networks; the first that has one counts."""


@dataclass(frozen=True)
class Network:
    """A network of configs/model at width 1.0, and what it costs at 224 px with 1,000 classes."""

    model: str
    arguments: str
    """As `Result.arguments` has them."""
    params: int
    madds: int


LAST_EPOCH = (
    "Ours: top-1 in per cent after the last epoch, mean ± sample standard deviation over the "
    "seeds; the best epoch is chosen on the images that it is measured on."
)


def tables_of(results: Sequence[Result], networks: Sequence[Network] = ()) -> list[Table]:
    """All tables: the paper's, measured or not, those of other data and recipes, then the recipes'.

    A run stands in a row of the paper only if `Result.of_the_paper` says so; any other one stands
    in tables of its own protocol, where no published number does.

    Args:
        results: What has been measured.
        networks: With them comes a table of what they cost, and comparisons without a run.

    Raises:
        InputError: Two results contradict each other.
    """
    groups = group_results(results)
    with_paper = [group for group in groups if all(r.of_the_paper for r in group.results)]
    others = [group for group in groups if group not in with_paper]
    tables = []
    placed: set[int] = set()
    for name in ("width_table", "identity_table"):
        rows = published_rows(name)
        placed |= {id(group) for row in rows for group in with_paper if _stands_in(row, group)}
        protocols = [
            protocol
            for protocol in _protocols(with_paper)
            if any(_find(row, _of(protocol, with_paper)) for row in rows)
        ]
        for protocol in protocols or [None]:
            tables.append(_paper_table(name, rows, protocol, _of(protocol, with_paper)))
    for name in COMPARISONS:
        measured = [protocol for protocol in _protocols(with_paper)
                    if _named(name, networks, _of(protocol, with_paper))]  # fmt: skip
        for protocol in measured or ([None] if networks else []):
            part = _named(name, networks, _of(protocol, with_paper))
            placed |= {id(group) for group in part.values()}
            tables.append(_comparison(name, protocol, part, networks))
    if networks:
        tables.append(_complexity(networks))
    others += [group for group in with_paper if id(group) not in placed]
    for protocol in _protocols(others):
        tables += _own_tables(protocol, _of(protocol, others))
    return tables + _recipe_tables(groups)


def _paper_table(
    name: str, rows: list[PublishedRow], protocol: Protocol | None, groups: list[Group]
) -> Table:
    """A table of the paper beside what one protocol gave."""
    by_width = name == "width_table"
    notes: list[str] = []
    tags: set[str] = set()
    cells = []
    for row in rows:
        group = _find(row, groups)
        marks = _marks([*row.notes, *_conditions(group, groups)], notes)
        knob = decimal(row.width) if by_width else fraction(row.identity)
        published = row.numbers["top1"]
        numbers = [_published(row.numbers.get("latency"), tags, "latency")]
        if by_width:
            params, madds = _cost(row, group, tags)
            numbers = [_published(row.numbers.get("params"), tags), params]
            numbers += [_published(row.numbers.get("madds"), tags, "madds"), madds]
        cells.append(
            (
                f"{LABELS[row.model]}{marks}",
                knob,
                *numbers,
                _published(published, tags),
                *_measured(group, published.value),
            )
        )
    what = "Width multipliers" if by_width else "Identity tensor multipliers at width 1.0"
    recipe = "no run yet" if protocol is None else protocol.describe()
    cost = ("latency, ms: paper",)
    if by_width:
        cost = ("params, M: paper", "ours", "MAdds, M: paper", "ours")
    return Table(
        name if protocol is None or len(groups) == 0 else f"{name}_{protocol.short}",
        f"{what}, ImageNet at 224 px: {recipe}",
        ("network", "width" if by_width else "identity", *cost, "top-1: paper", *MEASURED),
        tuple(cells),
        _footnotes(notes, tags, LAST_EPOCH),
    )


def _named(name: str, networks: Sequence[Network], groups: list[Group]) -> dict[str, Group]:
    """Groups of a comparison's networks at width 1.0, by the networks' names.

    A network built with other arguments than its config has does not count as it, where that is
    known.
    """
    arguments = {network.model: network.arguments for network in networks}
    return {
        group.first.model: group
        for group in groups
        if group.first.model in COMPARISONS[name][1]
        and (group.first.width, group.first.identity) == (1, 1)
        and arguments.get(group.first.model, group.first.arguments) == group.first.arguments
    }


def _comparison(
    name: str, protocol: Protocol | None, groups: dict[str, Group], networks: Sequence[Network]
) -> Table:
    """Networks of an ablation beside what was published of them."""
    title, models = COMPARISONS[name]
    notes: list[str] = []
    tags: set[str] = set()
    costs = {network.model: network for network in networks}
    rows = []
    for model in models:
        numbers, about = _published_of(model)
        group, network = groups.get(model), costs.get(model)
        marks = _marks([*about, *_conditions(group, groups.values())], notes)
        ours = ("", "")
        if network is not None:
            ours = _millions(network.params, network.madds)
        elif group is not None:
            ours = _millions(group.first.values["num_params"], group.first.values["madds"])
        top1 = numbers.get("top1")
        rows.append(
            (
                f"{LABELS[model]}{marks}",
                _published(numbers.get("params"), tags),
                ours[0],
                _published(numbers.get("madds"), tags, "madds"),
                ours[1],
                _published(top1, tags),
                *_measured(group, None if top1 is None else top1.value),
            )
        )
    recipe = "no run yet" if protocol is None else protocol.describe()
    cost = ("params, M: published", "ours", "MAdds, M: published", "ours", "top-1: published")
    return Table(
        name if protocol is None else f"{name}_{protocol.short}",
        f"{title}, width 1.0, ImageNet at 224 px: {recipe}",
        ("network", *cost, *MEASURED),
        tuple(rows),
        _footnotes(notes, tags, LAST_EPOCH),
    )


def _complexity(networks: Sequence[Network]) -> Table:
    """What each network costs, beside what was published."""
    tags: set[str] = set()
    order = list(LABELS)
    rows = []
    for network in sorted(networks, key=lambda one: order.index(one.model)):
        numbers, _ = _published_of(network.model)
        params, madds = _millions(network.params, network.madds)
        published = [
            _published(number, tags, unit) if number else "–"
            for number, unit in ((numbers.get("params"), ""), (numbers.get("madds"), "madds"))
        ]
        rows.append(
            (LABELS[network.model], network.model, published[0], params, published[1], madds)
        )
    return Table(
        "complexity",
        "What the networks cost at width 1.0, 224 px and 1,000 classes",
        ("network", "name", "params, M: published", "ours", "MAdds, M: published", "ours"),
        tuple(rows),
        _footnotes(
            [],
            tags,
            "MAdds: multiply-adds of convolutions and linear layers. The published parameters of "
            "mnext_s and mnext_l include 2,560 that their code never uses; ours do not.",
        ),
        text_columns=2,
    )


def _published_of(model: str) -> tuple[dict[str, PublishedNumber], tuple[str, ...]]:
    """Published numbers of a network at width 1.0, and notes on them."""
    for row in published_rows("width_table"):
        if (row.model, row.width) == (model, 1):
            return row.numbers, row.notes
    for table in PUBLISHED_IN:
        for named in published_table(table):
            if named.model == model:
                return named.numbers, named.notes
    return {}, ()


def _millions(params: int, madds: int) -> tuple[str, str]:
    return f"{params / 1e6:.3f}", f"{madds / 1e6:.1f}"


ACCURACY = ("top-1", "seeds", "best epoch", "commit")
MEASURED = ("ours", "difference", "seeds", "best epoch", "commit")


def _measured(group: Group | None, published: float | None) -> tuple[str, ...]:
    if group is None:
        return (NOT_MEASURED, "", "", "", "")
    difference = "" if published is None else _signed(group.mean - published)
    return (
        mean_and_std(group),
        difference,
        ", ".join(str(seed) for seed in group.seeds),
        f"{group.best_mean:.2f}",
        ", ".join(group.commits),
    )


def mean_and_std(group: Group) -> str:
    """Top-1 in per cent, with the standard deviation if there are several seeds."""
    return f"{group.mean:.2f}" + ("" if group.std is None else f" ± {group.std:.2f}")


def _own_tables(protocol: Protocol, groups: list[Group]) -> list[Table]:
    """Tables of runs beside which no published number may stand."""
    costs = ("params, M", "MAdds, M")
    whole = [group for group in groups if group.first.identity == 1]
    order = list(LABELS)
    whole.sort(
        key=lambda group: (
            -group.first.width,
            order.index(group.first.model) if group.first.model in order else len(order),
            group.first.model,
        )
    )
    tables = []
    if whole:
        notes: list[str] = []
        rows = tuple(
            (
                _name(group, groups) + _marks(_conditions(group, whole), notes),
                decimal(group.first.width),
                *_own_row(group),
            )
            for group in whole
        )
        title = f"Networks: {protocol.describe()}"
        columns = ("network", "width", *costs, *ACCURACY)
        footnotes = _footnotes(notes, set(), *_own_notes(protocol))
        tables.append(Table(f"networks_{protocol.short}", title, columns, rows, footnotes))
    for model, width in sorted({(g.first.model, g.first.width) for g in groups}):
        several = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if {group.first.identity for group in several} == {1.0}:
            continue
        notes = []
        rows = tuple(
            (
                _name(group, groups) + _marks(_conditions(group, several), notes),
                fraction(group.first.identity),
                *_own_row(group),
            )
            for group in several
        )
        name = f"identity_{model}_{width:g}_{protocol.short}"
        title = f"Identity tensor multipliers at width {decimal(width)}: {protocol.describe()}"
        columns = ("network", "identity", *costs, *ACCURACY)
        footnotes = _footnotes(notes, set(), *_own_notes(protocol))
        tables.append(Table(name, title, columns, rows, footnotes))
    return tables


def _recipe_tables(groups: list[Group]) -> list[Table]:
    """Networks that several recipes trained on the same images for as many epochs."""
    trained = {(_subject(group), group.first.protocol) for group in groups}
    recipes = Counter(subject for subject, _ in trained)
    compared = [group for group in groups if recipes[_subject(group)] > 1]
    compared.sort(key=lambda group: (_subject(group), group.first.protocol.recipe))
    tables = []
    for task, same in itertools.groupby(compared, lambda group: group.first.protocol.task):
        part = list(same)
        notes: list[str] = []
        rows = tuple(
            (
                LABELS.get(group.first.model, group.first.model)
                + _marks(_conditions(group, part), notes),
                _with_arguments(group.first),
                decimal(group.first.width),
                fraction(group.first.identity),
                *_accuracy(group),
            )
            for group in part
        )
        slug = re.sub(r"[^a-z0-9]+", "_", task.lower())
        columns = ("network", "recipe", "width", "identity", *ACCURACY)
        footnotes = _footnotes(notes, set(), *_own_notes(part[0].first.protocol))
        tables.append(Table(f"recipes_{slug}", f"Recipes: {task}", columns, rows, footnotes, 2))
    return tables


def _subject(group: Group) -> tuple[str, tuple[str, float, float]]:
    """What a recipe was tried on: the task, and the network."""
    return group.first.protocol.task, _key(group.first)


def _with_arguments(result: Result) -> str:
    """A recipe with the arguments of the network, such as dropout, that go with it."""
    arguments = json.loads(result.arguments)
    told = [f"{name} {value}" for name, value in arguments.items() if name != "_target_"]
    return ", ".join([*told, result.protocol.recipe])


def _own_notes(protocol: Protocol) -> tuple[str, ...]:
    notes = (LAST_EPOCH, "Not ImageNet as the paper has it: its numbers don't compare with these.")
    return notes[:1] if protocol.of_the_paper else notes


def _own_row(group: Group) -> tuple[str, ...]:
    values = group.first.values
    return (
        f"{values['num_params'] / 1e6:.3f}",
        f"{values['madds'] / 1e6:.1f}",
        *_accuracy(group),
    )


def _accuracy(group: Group) -> tuple[str, ...]:
    """The cells of `ACCURACY`."""
    return (
        mean_and_std(group),
        ", ".join(str(seed) for seed in group.seeds),
        f"{group.best_mean:.2f}",
        ", ".join(group.commits),
    )


def _name(group: Group, groups: Iterable[Group]) -> str:
    """The network's name, with the arguments that set it apart from other rows or its authors'."""
    own = json.loads(group.first.arguments)
    key = _key(group.first)
    twins = [json.loads(other.first.arguments) for other in groups if _key(other.first) == key]
    shown = {name for twin in twins for name in {*own, *twin} if twin.get(name) != own.get(name)}
    if group.first.dropout != authors_dropout(group.first.model):
        shown.add("dropout")
    parts = [f"{name} {_plain(own[name])}" for name in sorted(shown & own.keys())]
    return ", ".join([LABELS.get(group.first.model, group.first.model), *parts])


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _cost(row: PublishedRow, group: Group | None, tags: set[str]) -> tuple[str, str]:
    """Parameters and MAdds in millions: the run's, or those counted of the same network."""
    if group is not None:
        values = group.first.values
        return f"{values['num_params'] / 1e6:.3f}", f"{values['madds'] / 1e6:.1f}"
    for counted in published_table("counts"):
        if counted.name == f"{row.model} {row.width}":
            params, madds = counted.numbers["params"], counted.numbers["madds"]
            tags.add(params.tag)
            return f"{params.value:.3f} [{params.tag}]", f"{madds.value:.1f} [{madds.tag}]"
    return "", ""


def _published(number: PublishedNumber | None, tags: set[str], unit: str = "") -> str:
    if number is None:
        return "not recovered"
    tags.add(number.tag)
    whole = unit in ("madds", "latency")
    return (
        f"{number.value:g} [{number.tag}]" if whole else f"{decimal(number.value)} [{number.tag}]"
    )


def _conditions(group: Group | None, groups: Iterable[Group]) -> list[str]:
    """A note on what the runs of a row ran on, if not all runs of the table ran on the same."""
    every = {result.conditions for other in groups for result in other.results}
    if group is None or len(every) < 2:
        return []
    columns = list(zip(*(one.facets() for one in every), strict=True))
    differing = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    seeds: dict[str, list[str]] = {}
    for result in group.results:
        facets = result.conditions.facets()
        words = ", ".join(facets[number] for number in differing)
        seeds.setdefault(words, []).append(str(result.seed))
    if len(seeds) == 1:
        return [f"All seeds: {next(iter(seeds))}."]
    parts = [
        f"seed{'s' if len(which) > 1 else ''} {', '.join(which)}: {words}"
        for words, which in seeds.items()
    ]
    text = "; ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."]


def _marks(about: Iterable[str], notes: list[str]) -> str:
    """Superscripts of a row's notes, which are appended to those of the table if new."""
    numbers = sorted({_number(note, notes) for note in about})
    return NARROW_SPACE.join(superscript(number) for number in numbers)


def _footnotes(notes: Sequence[str], tags: set[str], *remarks: str) -> tuple[str, ...]:
    """Numbered notes, remarks on the whole table, and the meanings of all tags in sight."""
    meanings = tag_meanings()
    quoted = {tag for note in notes for tag in re.findall(r"\[(\w+)\]", note)}
    return (
        *(f"{superscript(number)} {note}" for number, note in enumerate(notes, 1)),
        *remarks,
        *(f"[{tag}] {meanings[tag]}." for tag in sorted(tags | quoted)),
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _number(note: str, notes: list[str]) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _key(one: PublishedRow | Result) -> tuple[str, float, float]:
    return one.model, round(one.width, 6), round(one.identity, 6)


def _find(row: PublishedRow, groups: Iterable[Group]) -> Group | None:
    found = [group for group in groups if _stands_in(row, group)]
    return found[0] if found else None


def _stands_in(row: PublishedRow, group: Group) -> bool:
    return group.first.plain and _key(group.first) == _key(row)


def _protocols(groups: Iterable[Group]) -> list[Protocol]:
    return sorted({group.first.protocol for group in groups}, key=lambda one: one.describe())


def _of(protocol: Protocol | None, groups: Iterable[Group]) -> list[Group]:
    return [group for group in groups if group.first.protocol == protocol]
