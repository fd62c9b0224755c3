"""Agreement of another form of a network with the network."""

import math

import numpy as np
import pytest
import torch

from mobilenext.metrics.agreement import Agreement, compare

CPU = torch.device("cpu")


def answers(*classes: int) -> torch.Tensor:
    return torch.eye(3)[list(classes)]


def test_counts_of_a_paired_comparison() -> None:
    """Five images: both right twice, one lost twice, one won once."""
    agreement = Agreement(CPU)
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected, found = answers(0, 1, 2, 0, 2), answers(0, 1, 0, 1, 1)
    agreement.add(expected[:2], found[:2], labels[:2])
    agreement.add(expected[2:], found[2:], labels[2:])
    result = agreement.result()
    assert result["top1"] == pytest.approx(60)
    assert result["drop"] == pytest.approx(20)
    assert result["agreement"] == pytest.approx(40)
    differences = np.array([0, 0, 1, 1, -1])
    error = 100 * differences.std() / math.sqrt(5)
    assert result["drop_std_error"] == pytest.approx(error)
    assert agreement.expected() == {
        "top1": pytest.approx(80), "count": 5,
        "loss": pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item()),
    }  # fmt: skip


def test_decibels_are_of_the_logits_power() -> None:
    agreement = Agreement(CPU)
    expected = torch.tensor([[3.0, 4.0]])
    agreement.add(expected, expected + torch.tensor([[0.0, 0.5]]), torch.tensor([1]))
    assert agreement.result()["sqnr_db"] == pytest.approx(20)
    same = Agreement(CPU)
    same.add(expected, expected, torch.tensor([1]))
    assert same.result()["sqnr_db"] == 200


def test_each_form_is_compared_with_those_before_it() -> None:
    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    found = compare(
        lambda _: answers(0, 0, 1, 1),
        {"a": lambda _: answers(0, 0, 1, 2), "b": lambda _: answers(0, 0, 2, 2)},
        [(pixels, labels)] * 2,
        CPU,
    )
    assert {key: one.result()["agreement"] for key, one in found.items()} == {
        ("", "a"): 75, ("", "b"): 50, ("a", "b"): 75,
    }  # fmt: skip
    assert found["", "a"].expected()["count"] == 8
