"""A network's cost, stage by stage, beside the paper's numbers."""

from dataclasses import dataclass
from typing import Any

from mobilenext.config import ModelConfig
from mobilenext.config.fields import MISSING, check, check_multipliers, parse_number
from mobilenext.config.targets import build
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.runtime.distributed import Process
from mobilenext.tables import PublishedRow, published_rows, tag_meanings
from mobilenext.training.progress import say


@dataclass
class SummaryConfig:
    """Job `summary`."""

    width: float = 1.0
    """Width multiplier."""
    identity: Any = 1.0
    """Identity tensor multiplier, also as a fraction such as 1/6."""
    num_classes: int = 1000
    image_size: int = 224
    """Height and width in pixels."""
    strides: list[int] = MISSING
    """Strides of the network's five downsampling layers, the stem first: 1 or 2 each."""
    genotype: str = "darts_v2"
    """Cells of model=darts; see `train.py --help`."""
    model: ModelConfig = MISSING

    def __post_init__(self) -> None:
        self.identity = parse_number(self.identity)
        check_multipliers(self.width, self.identity)
        cells = "genotype" in self.model.network
        expected = f"model=darts beside it; model={self.model.name} has no cells"
        check(cells or self.genotype == "darts_v2", "genotype", expected, self.genotype)
        for key in ("num_classes", "image_size"):
            check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))


def summary(config: SummaryConfig, process: Process) -> dict[str, Any]:
    """Print a network's parameters, MAdds and activations; writes nothing.

    Args:
        config: The job's config.
        process: This process.

    Returns:
        num_params, madds and activations of one image.
    """
    network = build(config.model.network, num_classes=config.num_classes)
    cost = measure_complexity(network, config.image_size)
    say(render(config, cost), process)
    return {"num_params": cost.params, "madds": cost.madds, "activations": cost.activations}


def render(config: SummaryConfig, cost: Complexity) -> str:
    """The tables as text."""
    lines = [
        f"{config.model.name}, width {config.width:g}, identity tensor multiplier "
        f"{config.identity:.3g}, {config.num_classes} classes, {config.image_size} px",
        "",
        f"{'stage':<16}{'output':>16}{'params':>14}{'MAdds':>16}{'activations':>14}",
    ]
    for stage in cost.stages:
        shape = " x ".join(str(size) for size in stage.output_shape)
        lines.append(
            f"{stage.name:<16}{shape:>16}{stage.params:>14,}{stage.madds:>16,}"
            f"{stage.activations:>14,}"
        )
    lines += [
        f"{'total':<16}{'':>16}{cost.params:>14,}{cost.madds:>16,}{cost.activations:>14,}",
        "",
        "MAdds: multiply-adds of convolutions and linear layers. Activations: their outputs.",
    ]
    rows = [
        row
        for table in ("width_table", "identity_table")
        for row in published_rows(table)
        if row.model == config.model.name
        and abs(row.width - config.width) < 1e-9
        and (table == "width_table" or abs(row.identity - config.identity) < 1e-9)
    ]
    comparable = config.num_classes == 1000 and config.image_size == 224
    if rows and comparable:
        lines += ["", *_published(rows, cost, config.identity)]
    elif rows:
        lines += ["", "The paper's numbers are for 1000 classes and 224 px."]
    else:
        lines += ["", "The paper has no row for this network."]
    return "\n".join(lines)


def _published(rows: list[PublishedRow], cost: Complexity, identity: float) -> list[str]:
    """Published and computed numbers, tags and sources explained."""
    computed = {"params": f"{cost.params / 1e6:.3f} M", "madds": f"{cost.madds / 1e6:.1f} M"}
    units = {"params": " M", "madds": " M", "top1": " %", "latency": " ms"}
    lines = [f"{'':<34}{'published':>16}{'computed here':>16}"]
    tags: set[str] = set()
    for row in rows:
        for column, number in row.numbers.items():
            if column == "top1" and row.table == "width_table" and identity != row.identity:
                continue
            tags.add(number.tag)
            name = f"{column} ({row.table.replace('_', ' ')})"
            published = f"{number.value:g}{units[column]} [{number.tag}]"
            ours = computed.get(column, "-")
            lines.append(f"{name:<34}{published:>16}{ours:>16}  {number.source}")
    meanings = tag_meanings()
    lines += [f"[{tag}] {meanings[tag]}" for tag in sorted(tags)]
    lines.append(
        "Published and computed cost differ in places: no reading of the paper's table of layers "
        "gives all of its counts."
    )
    return lines
