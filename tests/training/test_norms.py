"""Batch norms over the images of several processes."""

import copy
import json
from pathlib import Path

import timm
import torch
from torch import nn

from mobilenext.models import MobileNeXt
from mobilenext.runtime.distributed import Process
from mobilenext.training.norms import SynchronizedBatchNorm, synchronize
from tests.commands import run_command

FOUR = Process(torch.device("cpu"), 0, 4)


def test_norms_of_neighbours_are_those_of_their_images(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics, of pairs and of all four processes."""
    done = run_command("tests/norms_in_processes.py", cwd=tmp_path, processes=4)
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"2", "4"} < set(apart)
    assert len(apart) == 6
    assert max(apart.values()) < 1e-12


def test_names_outputs_and_copies_stay() -> None:
    network = MobileNeXt(width_mult=0.35, num_classes=3).eval()
    pixels = torch.rand(2, 3, 32, 32)
    expected, names = network(pixels), list(network.state_dict())
    same = synchronize(network, FOUR, 4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in same.modules()) == 0
    assert sum(isinstance(m, SynchronizedBatchNorm) for m in same.modules()) > 20
    assert list(same.state_dict()) == names
    assert torch.equal(same.eval()(pixels), expected)
    assert torch.equal(copy.deepcopy(same)(pixels), expected)  # as averages are made


def test_alone_norms_stay_as_they_are() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    assert synchronize(network, Process(torch.device("cpu")), 1) is network
    assert type(network[0]) is nn.BatchNorm2d


def test_activations_inside_of_norms_stay() -> None:
    """timm's norms of many networks have theirs inside; torch's converter drops it."""
    network = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    pixels = torch.rand(2, 3, 64, 64)
    expected = network(pixels)
    same = synchronize(network, FOUR, 4)
    assert sum(isinstance(m, SynchronizedBatchNorm) for m in same.modules()) > 20
    assert torch.equal(same(pixels), expected)
