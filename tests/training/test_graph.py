"""A step as a graph, on CPUs: what is recorded and replayed there is stood in for by a function."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilenext.assembly import network as networks
from mobilenext.errors import InputError
from mobilenext.metrics.classification import SmoothedCrossEntropy
from mobilenext.models import MobileNeXt
from mobilenext.optim import set_learning_rate
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.graph import EAGER_STEPS, GraphedUpdate, Recorded
from mobilenext.training.step import Measured, Update
from tests.composed import composed

CPU = torch.device("cpu")
CUDA = Process(torch.device("cuda", 0))
STEPS = EAGER_STEPS + 3


def stand_in(function: Callable[[], Measured]) -> Recorded:
    """Records a step as CUDA does: nothing is done at first, each replay uses the same memory."""
    kept = Measured(torch.zeros(()), torch.zeros((), dtype=torch.long), torch.tensor(False), 4)

    def replay() -> None:
        done = function()
        for name in ("loss", "correct", "finite"):
            getattr(kept, name).copy_(getattr(done, name))

    return replay, kept


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    source = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 4, (4,), generator=source) for _ in range(STEPS)]
    return [(torch.randn((4, 3, 32, 32), generator=source), one, one) for one in labels]


def trained(graphed: bool) -> tuple[nn.Module, torch.optim.Optimizer, list[Measured]]:
    torch.manual_seed(0)
    network = MobileNeXt(width_mult=0.35, num_classes=4).train()
    groups = [{"params": list(network.parameters())[:10], "lr_scale": 0.5},
              {"params": list(network.parameters())[10:]}]  # fmt: skip
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True, fused=True)
    plain = Update(network, optimizer, Precision("fp32", CPU), micro_batch=2, clip_grad_norm=1.0)
    update = GraphedUpdate(plain, stand_in) if graphed else plain
    measured = []
    for number, batch in enumerate(batches()):
        set_learning_rate(optimizer, 0.05 * (1 + number))
        seed_devices("step", 0, number, 0)
        given = [part.clone() for part in batch]
        measured.append(update(given, SmoothedCrossEntropy(0.1)))
        for part in given:  # the next batch may get this memory
            part.zero_()
    return network, optimizer, measured


def test_graph_and_eager_are_the_same_bits() -> None:
    """Weights, statistics, momentum; rates by group and step, dropout, what each step measures."""
    (one, optimizer, measured), (other, other_optimizer, others) = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, (one, other)), strict=True))
    for a, b in zip(measured, others, strict=True):
        assert (a.images, *map(float, (a.loss, a.correct, a.finite))) == (
            b.images, *map(float, (b.loss, b.correct, b.finite))
        )  # fmt: skip
    state, other_state = optimizer.state_dict(), other_optimizer.state_dict()
    assert state["param_groups"] == other_state["param_groups"]
    assert isinstance(other_state["param_groups"][0]["lr"], float), "as a checkpoint has it"
    for key, entry in state["state"].items():
        assert torch.equal(entry["momentum_buffer"], other_state["state"][key]["momentum_buffer"])


def tensors(network: nn.Module) -> list[Tensor]:
    return list(copy.deepcopy(network).state_dict().values())


FUSED = ("runtime.graph=true", "+optimizer.fused=true", "optimizer.foreach=null")


@pytest.mark.parametrize(
    ("overrides", "process", "message"),
    [
        (FUSED, Process(CPU), "expected a CUDA device, got cpu"),
        (FUSED[:1], CUDA, "expected optimizer.fused=true"),
        ((*FUSED, "nonfinite=skip"), CUDA, "expected nonfinite=stop"),
        ((*FUSED[:2], "optimizer=adamw"), CUDA, "expected optimizer.capturable=true"),
        ((*FUSED, "norm_batch=48", "data.global_batch_size=48"),
         Process(torch.device("cuda", 0), 0, 2), "expected norms of one process"),
    ],
)  # fmt: skip
def test_what_no_graph_can_do_is_refused(
    overrides: tuple[str, ...], process: Process, message: str
) -> None:
    config = composed(*overrides)
    with pytest.raises(InputError, match=f"runtime.graph=true: {message}"):
        networks._as_graph(nn.Linear(1, 1), config, process)
    if process.device.type == "cuda" and process.world_size == 1:
        assert networks._as_graph(nn.Linear(1, 1), composed(*FUSED), process)


def test_auto_is_a_graph_where_it_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    auto = composed("runtime.graph=auto", *FUSED[1:])
    assert networks._as_graph(nn.Linear(1, 1), auto, CUDA)
    assert capsys.readouterr().out == ""
    assert not networks._as_graph(nn.Linear(1, 1), auto, Process(CPU))
    said = "note: runtime.graph=auto: steps are no CUDA graph, which needs a CUDA device, got cpu\n"
    assert capsys.readouterr().out == said
    with pytest.raises(InputError, match=r"runtime\.graph=yes: expected true, false or auto"):
        composed("runtime.graph=yes")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_is_the_same_training() -> None:
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        network = MobileNeXt(width_mult=0.35, num_classes=4).train().cuda()
        rate = torch.tensor(0.1, device="cuda")
        optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, fused=True)
        plain = Update(network, optimizer, Precision("bf16", torch.device("cuda", 0)))
        update = GraphedUpdate(plain) if graphed else plain
        for number, batch in enumerate(batches()):
            seed_devices("step", 0, number, 0)
            optimizer.param_groups[0]["lr"] = 0.1 if graphed else rate
            update([part.cuda() for part in batch], SmoothedCrossEntropy(0.1))
        results.append(tensors(network))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
