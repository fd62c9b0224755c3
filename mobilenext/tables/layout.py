"""Which results stand in which table, and beside which published number."""

from collections.abc import Iterable, Sequence

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
    decimal,
    fraction,
    group_results,
)

NOT_MEASURED = "not measured"
NARROW_SPACE = "\u202f"
LABELS = {"mobilenext": "MobileNeXt", "mobilenetv2": "MobileNetV2"}
LAST_EPOCH = (
    "Ours: top-1 in per cent after the last epoch, mean ± sample standard deviation over the "
    "seeds; the best epoch is chosen on the images that it is measured on."
)


def tables_of(results: Sequence[Result]) -> list[Table]:
    """All tables: the paper's, measured or not, then those of other data and recipes.

    A run stands in a row of the paper only if `Result.of_the_paper` says so; any other one stands
    in tables of its own protocol, where no published number does.

    Raises:
        InputError: Two results contradict each other.
    """
    groups = group_results(results)
    with_paper = [group for group in groups if all(r.of_the_paper for r in group.results)]
    others = [group for group in groups if group not in with_paper]
    tables = []
    for name in ("width_table", "identity_table"):
        rows = published_rows(name)
        protocols = [
            protocol
            for protocol in _protocols(with_paper)
            if any(_find(row, _of(protocol, with_paper)) for row in rows)
        ]
        for protocol in protocols or [None]:
            tables.append(_paper_table(name, rows, protocol, _of(protocol, with_paper)))
    known = [_key(row) for table in ("width_table", "identity_table") for row in
             published_rows(table)]  # fmt: skip
    others += [group for group in with_paper if _key(group.first) not in known]
    for protocol in _protocols(others):
        tables += _own_tables(protocol, _of(protocol, others))
    return tables


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
        marked = sorted(_number(note, notes) for note in row.notes)
        marks = NARROW_SPACE.join(superscript(number) for number in marked)
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
    meanings = tag_meanings()
    return Table(
        name if protocol is None or len(groups) == 0 else f"{name}_{protocol.short}",
        f"{what}, ImageNet at 224 px: {recipe}",
        ("network", "width" if by_width else "identity", *cost, "top-1: paper", *MEASURED),
        tuple(cells),
        (
            *(f"{superscript(number)} {note}" for number, note in enumerate(notes, 1)),
            LAST_EPOCH,
            *(f"[{tag}] {meanings[tag]}." for tag in sorted(tags)),
        ),
    )


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
    columns = ("params, M", "MAdds, M", "top-1", "seeds", "best epoch", "commit")
    notes = (LAST_EPOCH, "Not ImageNet as the paper has it: its numbers don't compare with these.")
    if protocol.of_the_paper:
        notes = notes[:1]
    whole = [group for group in groups if group.first.identity == 1]
    whole.sort(key=lambda group: (-group.first.width, group.first.model))
    tables = []
    if whole:
        rows = tuple(
            (_name(group, groups), decimal(group.first.width), *_own_row(group)) for group in whole
        )
        title = f"Networks: {protocol.describe()}"
        table = Table(f"networks_{protocol.short}", title, ("network", "width", *columns), rows)
        tables.append(_with_notes(table, notes))
    for model, width in sorted({(g.first.model, g.first.width) for g in groups}):
        several = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if {group.first.identity for group in several} == {1.0}:
            continue
        rows = tuple(
            (_name(group, groups), fraction(group.first.identity), *_own_row(group))
            for group in several
        )
        name = f"identity_{model}_{width:g}_{protocol.short}"
        title = f"Identity tensor multipliers at width {decimal(width)}: {protocol.describe()}"
        tables.append(
            _with_notes(Table(name, title, ("network", "identity", *columns), rows), notes)
        )
    return tables


def _own_row(group: Group) -> tuple[str, ...]:
    values = group.first.values
    return (
        f"{values['num_params'] / 1e6:.3f}",
        f"{values['madds'] / 1e6:.1f}",
        mean_and_std(group),
        ", ".join(str(seed) for seed in group.seeds),
        f"{group.best_mean:.2f}",
        ", ".join(group.commits),
    )


def _with_notes(table: Table, notes: tuple[str, ...]) -> Table:
    return Table(table.name, table.title, table.columns, table.rows, notes, table.text_columns)


def _name(group: Group, groups: Iterable[Group]) -> str:
    """The network's name, with its arguments if they are what tells it from another one."""
    label = LABELS.get(group.first.model, group.first.model)
    key = _key(group.first)
    twins = [other for other in groups if _key(other.first) == key]
    return label if len(twins) == 1 else f"{label} {group.first.arguments}"


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


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _number(note: str, notes: list[str]) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _key(one: PublishedRow | Result) -> tuple[str, float, float]:
    return one.model, round(one.width, 6), round(one.identity, 6)


def _find(row: PublishedRow, groups: Iterable[Group]) -> Group | None:
    found = [group for group in groups if _key(group.first) == _key(row)]
    return found[0] if found else None


def _protocols(groups: Iterable[Group]) -> list[Protocol]:
    return sorted({group.first.protocol for group in groups}, key=lambda one: one.describe())


def _of(protocol: Protocol | None, groups: Iterable[Group]) -> list[Group]:
    return [group for group in groups if group.first.protocol == protocol]
