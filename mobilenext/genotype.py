"""Genotypes: which operator joins which states of a cell (DARTS, arXiv 1806.09055).

A leaf that every room may import; loads no torch. A cell has two inputs, states 0 and 1, and
intermediate nodes, states 2, 3, ...; each node adds up what two operators make of earlier states,
and the cell's output is all nodes side by side. A genotype says so for both kinds of cells, by
names, and is written as YAML:

    normal:
    - [sep_conv_3x3, 0]     # the first node: this operator on state 0 ...
    - [sandglass, 1]        # ... plus this one on state 1
    - [skip_connect, 0]     # the second node
    - ...
    reduce:
    - ...
    sandglass: {kernel: 3, ratio: 6, shortcut: true}
"""

import hashlib
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from mobilenext.errors import InputError
from mobilenext.files import printable, read_text

SKIP, NONE = "skip_connect", "none"
OPERATORS = (NONE, "max_pool_3x3", "avg_pool_3x3", SKIP, "sep_conv_3x3", "sep_conv_5x5",
             "dil_conv_3x3", "dil_conv_5x5", "sandglass", "inverted_residual")  # fmt: skip
"""All operators; the first eight are those of DARTS, in its order."""
BLOCKS = OPERATORS[8:]
"""Operators with settings: the paper published neither kernel, ratio nor shortcut of them."""
SPACES = {
    "darts": OPERATORS[:8],
    "darts_sandglass": (*OPERATORS[:8], "sandglass"),
    "darts_inverted_residual": (*OPERATORS[:8], "inverted_residual"),
}
"""Operators of the search spaces, by name."""

NODES, CHANNELS, CELLS, CLASSES = 4, 36, 20, 10
"""Nodes of a cell, and the size of the networks in which DARTS trains its cells on CIFAR-10."""
MOST_NODES = 16
MOST_FILE = 1 << 16
"""Bytes of a genotype's file."""

Edges = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class BlockSettings:
    """Choices of a sandglass block or an inverted residual as an operator.

    Attributes:
        kernel: Of its depthwise convolutions, odd.
        ratio: Reduction in the middle of a sandglass block, expansion of an inverted residual.
        shortcut: Whether it adds its input where the stride is 1.
    """

    kernel: int = 3
    ratio: int = 6
    shortcut: bool = True

    @classmethod
    def of(cls, plain: Any, place: str) -> "BlockSettings":
        """Settings from plain values; those that are missing have their defaults.

        Raises:
            InputError: Another key, or a value out of range; names `place`.
        """
        known = asdict(cls())
        if not isinstance(plain, Mapping) or not set(plain) <= set(known):
            raise InputError(f"{place}: expected some of {', '.join(known)}, got {_shown(plain)}")
        for key, value in plain.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            fits = {
                "kernel": whole and value % 2 == 1 and 1 <= value <= 11,
                "ratio": whole and 1 <= value <= 64,
                "shortcut": isinstance(value, bool),
            }[key]
            expected = {"kernel": "an odd number from 1 to 11", "ratio": "1 to 64",
                        "shortcut": "true or false"}[key]  # fmt: skip
            if not fits:
                raise InputError(f"{place}.{key}: expected {expected}, got {_shown(value)}")
        return cls(**plain)


@dataclass(frozen=True)
class Genotype:
    """Two (operator, source state) for each node of a normal and of a reduction cell, in order."""

    normal: Edges
    reduce: Edges
    sandglass: BlockSettings = BlockSettings()
    inverted_residual: BlockSettings = BlockSettings()

    @classmethod
    def of(cls, plain: Any) -> "Genotype":
        """A genotype from plain values, as `to_plain` has them.

        Raises:
            InputError: Something in it is not what it has to be; names the place, for instance
                `genotype.normal[3]`.
        """
        if not isinstance(plain, Mapping) or not {"normal", "reduce"} <= set(plain):
            raise InputError(f"genotype: expected entries normal and reduce, got {_shown(plain)}")
        unknown = sorted(map(str, set(plain) - {"normal", "reduce", *BLOCKS}))
        if unknown:
            expected = ", ".join(("normal", "reduce", *BLOCKS))
            raise InputError(f"genotype: expected entries {expected}, got {_shown(unknown)} too")
        normal, reduce = (_edges(plain[name], f"genotype.{name}") for name in ("normal", "reduce"))
        if len(normal) != len(reduce):
            raise InputError(
                f"genotype: expected as many nodes in both cells, got {len(normal) // 2} in normal "
                f"and {len(reduce) // 2} in reduce"
            )
        blocks = {
            name: BlockSettings.of(plain.get(name, {}), f"genotype.{name}") for name in BLOCKS
        }
        return cls(normal, reduce, **blocks)

    def to_plain(self) -> dict[str, Any]:
        """Plain values; settings of blocks that no cell has are left out."""
        used = {operator for operator, _ in (*self.normal, *self.reduce)}
        return {
            "normal": [list(edge) for edge in self.normal],
            "reduce": [list(edge) for edge in self.reduce],
            **{name: asdict(getattr(self, name)) for name in BLOCKS if name in used},
        }

    def to_yaml(self, comment: str = "") -> str:
        """The text of a genotype's file.

        Args:
            comment: Lines for its head.
        """
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        return head + yaml.safe_dump(self.to_plain(), sort_keys=False, default_flow_style=None)

    @property
    def nodes(self) -> int:
        """Intermediate nodes of a cell."""
        return len(self.normal) // 2

    @property
    def skips(self) -> int:
        """Skip connections of the normal cell: a search that collapses has many."""
        return sum(operator == SKIP for operator, _ in self.normal)

    def count_params(
        self, channels: int = CHANNELS, cells: int = CELLS, classes: int = CLASSES
    ) -> int:
        """Parameters of the network of such cells, without its auxiliary head."""
        stem = 3 * channels
        total, before, last = stem * (27 + 2), stem, stem
        for cell in range(cells):
            reduction = cell in reductions(cells)
            channels *= 1 + reduction
            total += channels * (before + 2) + channels * (last + 2)
            for operator, source in self.reduce if reduction else self.normal:
                total += self._params_of(operator, channels, 2 if reduction and source < 2 else 1)
            before, last = last, channels * self.nodes
        return total + (last + 1) * classes

    def _params_of(self, operator: str, channels: int, stride: int) -> int:
        c, norm = channels, 2 * channels
        if operator == SKIP:
            return c * c + norm if stride == 2 else 0
        if operator == "sandglass":
            hidden, kernel = max(1, c // self.sandglass.ratio), self.sandglass.kernel
            return 2 * c * (kernel**2 + hidden) + 3 * norm + 2 * hidden
        if operator == "inverted_residual":
            hidden, kernel = c * self.inverted_residual.ratio, self.inverted_residual.kernel
            return hidden * (kernel**2 + 2 * c + 4) + norm
        if operator.endswith(("3x3", "5x5")) and "conv" in operator:
            once = int(operator[-1]) ** 2 * c + c * c + norm
            return 2 * once if operator.startswith("sep") else once
        return 0


def reductions(cells: int) -> tuple[int, int]:
    """Places of the two reduction cells among so many, from 0 on."""
    return cells // 3, 2 * cells // 3


def edges_of(nodes: int) -> list[tuple[int, int]]:
    """All (node, source state) of a cell that is searched, in DARTS' order."""
    return [(node, source) for node in range(nodes) for source in range(2 + node)]


def state_name(source: int) -> str:
    """A state's name as pictures have it: the two inputs, then nodes from 0 on."""
    return ("c(k-2)", "c(k-1)")[source] if source < 2 else str(source - 2)


def _edges(plain: Any, place: str) -> Edges:
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        raise InputError(f"{place}: expected a list of [operator, source], got {_shown(plain)}")
    if len(plain) % 2 or not 2 <= len(plain) <= 2 * MOST_NODES:
        raise InputError(
            f"{place}: expected two edges for each of 1 to {MOST_NODES} nodes, got {len(plain)} "
            "edges"
        )
    found = []
    for number, edge in enumerate(plain):
        states = 2 + number // 2
        here = f"{place}[{number}]"
        if not isinstance(edge, Sequence) or isinstance(edge, str) or len(edge) != 2:
            raise InputError(f"{here}: expected [operator, source], got {_shown(edge)}")
        operator, source = edge
        if operator not in OPERATORS:
            raise InputError(
                f"{here}: expected one of {', '.join(OPERATORS)}, got {_shown(operator)}"
            )
        whole = isinstance(source, int) and not isinstance(source, bool)
        if not whole or not 0 <= source < states:
            raise InputError(
                f"{here}: expected a state from 0 to {states - 1} as the source, got "
                f"{_shown(source)}"
            )
        found.append((str(operator), int(source)))
    return tuple(found)


SHORT = reprlib.Repr()
"""Never writes all of a value: aliases in YAML make large ones of little."""
SHORT.maxlevel, SHORT.maxdict, SHORT.maxlist, SHORT.maxstring, SHORT.maxother = 3, 6, 6, 60, 60


def _shown(value: Any) -> str:
    text = SHORT.repr(value)
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def strongest(
    weights: Sequence[Sequence[Sequence[float]]],
    operators: Sequence[str],
    edge_weights: Sequence[Sequence[float]] | None = None,
    sandglass: BlockSettings | None = None,
    inverted_residual: BlockSettings | None = None,
) -> Genotype:
    """DARTS' rule: of each edge the strongest operator but `none`, of each node the two best edges.

    An edge is as good as its operator's weight, times its own weight where edges have one. Equal
    ones: the first.

    Args:
        weights: Softmax over operators of each edge, of normal and reduction cell; the edges in the
            order of `edges_of`.
        operators: Their names.
        edge_weights: Weights of the edges themselves, if they have any.
        sandglass: Settings of that operator.
        inverted_residual: Settings of that operator.
    """
    chosen = []
    for kind, rows in enumerate(weights):
        candidates: dict[int, list[tuple[float, int, str]]] = {}
        nodes = next(nodes for nodes in count(1) if len(edges_of(nodes)) == len(rows))
        for number, (node, source) in enumerate(edges_of(nodes)):
            options = [(w, name) for w, name in zip(rows[number], operators, strict=True)
                       if name != NONE]  # fmt: skip
            strength, name = max(options, key=lambda option: option[0])
            own = 1.0 if edge_weights is None else edge_weights[kind][number]
            candidates.setdefault(node, []).append((-strength * own, source, name))
        best = [
            sorted(sorted(edges)[:2], key=lambda edge: edge[1]) for edges in candidates.values()
        ]
        chosen.append(tuple((name, source) for two in best for _, source, name in two))
    default = BlockSettings()
    normal, reduce = chosen
    return Genotype(normal, reduce, sandglass or default, inverted_residual or default)


DARTS_V2 = Genotype(
    (("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
     ("sep_conv_3x3", 1), (SKIP, 0), (SKIP, 0), ("dil_conv_3x3", 2)),
    (("max_pool_3x3", 0), ("max_pool_3x3", 1), (SKIP, 2), ("max_pool_3x3", 1),
     ("max_pool_3x3", 0), (SKIP, 2), (SKIP, 2), ("max_pool_3x3", 1)),
)  # fmt: skip
"""The cell that DARTS' authors published (github.com/quark0/darts, genotypes.py)."""


def substituted(operator: str, times: int) -> Genotype:
    """DARTS_V2 with an operator in place of the normal cell's first separable convolutions."""
    left, edges = times, []
    for name, source in DARTS_V2.normal:
        takes = name == "sep_conv_3x3" and left > 0
        left -= takes
        edges.append((operator if takes else name, source))
    return Genotype(tuple(edges), DARTS_V2.reduce)


def named_genotypes() -> dict[str, Genotype]:
    """Genotypes by the names that `genotype=` takes."""
    replaced = {
        f"darts_v2_{operator}{times}": substituted(operator, times)
        for operator in BLOCKS
        for times in range(1, 6)
    }
    return {"darts_v2": DARTS_V2, **replaced}


MATCHED = 0.05
"""Share by which a random genotype's parameters may differ from those that are asked for."""
MOST_TRIES = 100_000


def random_genotype(
    seed: int, space: str = "darts", nodes: int = NODES, params: float | None = None
) -> Genotype:
    """A random cell: for each node two different sources and any operators but `none`.

    Args:
        seed: Decides all draws.
        space: A name of `SPACES`.
        nodes: Nodes of a cell.
        params: If given: parameters of a network of 36 channels and 20 cells, to be met within 5 %.

    Raises:
        InputError: No cell of the space has so many parameters.
    """
    operators = [name for name in SPACES[space] if name != NONE]
    for attempt in range(MOST_TRIES):
        draws = _draws(f"{space}:{nodes}:{seed}:{attempt}")
        normal = _random_cell(operators, nodes, draws)
        found = Genotype(normal, _random_cell(operators, nodes, draws))
        if params is None or abs(found.count_params() - params) <= MATCHED * params:
            return found
    assert params is not None
    raise InputError(
        f"genotype: none of {MOST_TRIES:,} random cells of {space} has {params / 1e6:g} M "
        "parameters within 5 % (36 channels, 20 cells)"
    )


def _random_cell(operators: Sequence[str], nodes: int, draws: Iterator[int]) -> Edges:
    edges = []
    for node in range(nodes):
        first = next(draws) % (2 + node)
        second = (first + 1 + next(draws) % (1 + node)) % (2 + node)
        edges += [(operators[next(draws) % len(operators)], source)
                  for source in sorted((first, second))]  # fmt: skip
    return tuple(edges)


def _draws(key: str) -> Iterator[int]:
    """Large integers, a function of the key for good: `random`'s may change with Python."""
    for number in count():
        digest = hashlib.blake2b(f"genotype:{key}:{number}".encode(), digest_size=8).digest()
        yield int.from_bytes(digest, "little")


def genotype_named(text: Any, files: bool = True) -> Genotype:
    """The genotype that `genotype=...` means.

    Args:
        text: A name (darts_v2, darts_v2_sandglass3), `random:SEED` with more parts in any order
            (a space, `3nodes`, `2.45M` parameters), a path of a YAML file, or plain values.
        files: Whether it may be a path, or random: what a checkpoint says of its network may not.

    Raises:
        InputError: It is none of these, or the file is not a genotype.
    """
    if not isinstance(text, str):
        return Genotype.of(text)
    if text in named_genotypes():
        return named_genotypes()[text]
    if files and text.startswith("random:"):
        return _random_named(text)
    path = Path(os.path.expanduser(text))
    if not files or not os.path.lexists(path):
        raise InputError(
            f"genotype={printable(text)}: expected darts_v2, darts_v2_sandglass1 to 5, "
            "darts_v2_inverted_residual1 to 5, random:SEED (random:0:darts_sandglass:2.45M), or a "
            "file that scripts/search.py wrote (genotype.yaml)"
        )
    try:
        plain = yaml.safe_load(read_text(path, MOST_FILE))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, for one
        problem = " ".join(str(error).split())
        raise InputError(f"{printable(path)}: expected a genotype as YAML ({problem})") from error
    try:
        return Genotype.of(plain)
    except InputError as error:
        raise InputError(f"{printable(path)}: {error}") from error


def _random_named(text: str) -> Genotype:
    chosen: dict[str, Any] = {}
    for number, part in enumerate(text.split(":")[1:]):
        if number == 0 and re.fullmatch(r"\d{1,12}", part):
            chosen["seed"] = int(part)
        elif part in SPACES and "space" not in chosen:
            chosen["space"] = part
        elif re.fullmatch(r"\d{1,2}nodes", part) and 1 <= int(part[:-5]) <= MOST_NODES:
            chosen["nodes"] = int(part[:-5])
        elif re.fullmatch(r"\d{1,4}(\.\d{1,6})?M", part):
            chosen["params"] = float(part[:-1]) * 1e6
        else:
            raise InputError(
                f"genotype={printable(text)}: expected random:SEED and, if wanted, :SPACE (one of "
                f"{', '.join(SPACES)}), :3nodes and :2.45M, got {printable(part)!r}"
            )
    return random_genotype(**chosen)
