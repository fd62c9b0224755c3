"""Genotypes: names, files, random cells."""

import random
from pathlib import Path

import pytest
import yaml

from mobilenext.errors import InputError
from mobilenext.genotype import (
    DARTS_V2,
    SPACES,
    BlockSettings,
    Genotype,
    edges_of,
    genotype_named,
    random_genotype,
    reductions,
    state_name,
    strongest,
    substituted,
)


def test_a_genotype_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "genotype.yaml"
    for space in SPACES:
        for seed in range(5):
            found = random_genotype(seed, space, nodes=1 + seed)
            path.write_text(found.to_yaml("two lines\nof comment"))
            assert genotype_named(str(path)) == found
            assert Genotype.of(yaml.safe_load(found.to_yaml())) == found
    five = Genotype(DARTS_V2.normal, DARTS_V2.reduce, BlockSettings(5, 2, False))
    assert "sandglass" not in five.to_plain()  # no cell has one
    with_block = Genotype(substituted("sandglass", 1).normal, five.reduce, five.sandglass)
    assert with_block.to_plain()["sandglass"] == {"kernel": 5, "ratio": 2, "shortcut": False}
    path.write_text(with_block.to_yaml())
    assert genotype_named(str(path)) == with_block


def test_random_cells_are_a_function_of_their_seed() -> None:
    cells = [random_genotype(seed, "darts_sandglass") for seed in range(200)]
    assert cells == [random_genotype(seed, "darts_sandglass") for seed in range(200)]
    assert len(set(cells)) == 200
    operators = [operator for cell in cells for operator, _ in (*cell.normal, *cell.reduce)]
    counts = [operators.count(name) for name in SPACES["darts_sandglass"]]
    assert counts[0] == 0  # none is no operator of a found cell
    assert min(counts[1:]) > 0.8 * len(operators) / 8
    for cell in cells:
        for node in range(4):
            (_, first), (_, second) = cell.normal[2 * node : 2 * node + 2]
            assert 0 <= first < second < 2 + node
    sources = [cell.normal[6][1] for cell in cells] + [cell.normal[7][1] for cell in cells]
    assert min(sources.count(state) for state in range(5)) > 0.7 * 400 / 5


def test_random_cells_match_parameters() -> None:
    for seed in range(5):
        found = genotype_named(f"random:{seed}:darts_sandglass:2.45M")
        assert abs(found.count_params() - 2.45e6) <= 0.05 * 2.45e6
    assert genotype_named("random:7:3nodes:darts").nodes == 3
    assert genotype_named("random:7") == random_genotype(7)


def test_reduction_cells_lie_at_thirds() -> None:
    assert [reductions(cells) for cells in (3, 5, 8, 20)] == [(1, 2), (1, 3), (2, 5), (6, 13)]


def test_edges_count_with_their_operators() -> None:
    """An edge that counts little loses against a weaker operator on an edge that counts much."""
    operators, rows = ("none", "skip_connect"), [[0.0, 1.0], [0.1, 0.9], [0.3, 0.7]]
    weights = [[[0.5, 0.5], [0.5, 0.5], *rows]] * 2
    assert [source for _, source in strongest(weights, operators).normal[2:]] == [0, 1]
    edges = [[0.5, 0.5, 0.2, 0.3, 0.5]] * 2
    assert [source for _, source in strongest(weights, operators, edges).normal[2:]] == [1, 2]


def test_equal_edges_give_the_first_ones() -> None:
    for nodes in (1, 4):
        rows = [[1 / 8] * 8 for _ in edges_of(nodes)]
        found = strongest([rows, rows], SPACES["darts"])
        assert found.normal == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * nodes


def test_foreign_values_are_refused() -> None:
    """No file, however odd, gives anything but a genotype or one error."""
    values = [None, -1, 2, 1.5, True, "skip_connect", [], {}, ["skip_connect", 0], "x" * 500]
    generator, said = random.Random(0), []
    for _ in range(2000):
        plain = DARTS_V2.to_plain()
        cell = plain[generator.choice(["normal", "reduce"])]
        place = generator.randrange(len(cell))
        if generator.random() < 0.5:
            cell[place] = generator.choice(values)
        else:
            cell[place][generator.randrange(2)] = generator.choice(values)
        try:
            found = Genotype.of(plain)
        except InputError as error:
            said.append(len(str(error)))
        else:
            assert found.nodes == 4
    assert 1000 < len(said) < 2000
    assert max(said) < 400
    with pytest.raises(InputError, match="expected entries normal and reduce"):
        Genotype.of(["normal"])


def test_a_file_of_aliases_is_one_short_error(tmp_path: Path) -> None:
    path = tmp_path / "genotype.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        genotype_named(str(path))
    assert len(str(error.value)) < 400


def test_states_have_the_names_of_pictures() -> None:
    assert [state_name(source) for source in range(4)] == ["c(k-2)", "c(k-1)", "0", "1"]
