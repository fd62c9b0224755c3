"""Candidates timed in turns: order, ratios, verdicts, on a clock that is made up."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenext.deploy import layer_times
from mobilenext.deploy.engines import FORMAT_OF, for_engine, running, without_shortcuts, write_for
from mobilenext.deploy.graph import FromPixels
from mobilenext.deploy.layer_times import eager_layers, onnxruntime_layers
from mobilenext.deploy.peak_memory import peak_memory
from mobilenext.deploy.timing import Lap, Quartiles, measure, processor_clock
from mobilenext.errors import InputError
from mobilenext.models import MobileNeXt
from tests.models.nontrivial import with_weights

CPU = torch.device("cpu")


class Machine:
    """Candidates that take as long as said, on a machine whose speed drifts."""

    def __init__(self, speeds: list[float]) -> None:
        self.order: list[int] = []
        self.now = 0
        self.runs = [self._candidate(number, ms) for number, ms in enumerate(speeds)]
        self.random = np.random.default_rng(0)

    def _candidate(self, number: int, ms: float) -> Callable[[], float]:
        def run() -> float:
            self.order.append(number)
            return ms

        return run

    def clock(self, run: Callable[[], object], repeats: int) -> Lap:
        self.now += 1
        drift = 1 + 0.5 * np.sin(self.now / 40)  # slower and faster, over many rounds
        value = run()
        assert isinstance(value, float)
        taken = value * drift * (1 + 0.01 * self.random.standard_normal())
        return Lap(2 * taken, taken)


def test_each_round_begins_with_the_next_candidate() -> None:
    machine = Machine([5.0, 5.0, 5.0])
    measure(machine.runs, [0, 0, 0], 4, 1, 1e-9, True, machine.clock)
    rounds = machine.order[6:]  # a warm-up and a trial of each before
    assert rounds == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]


def test_ratios_hold_on_a_machine_that_drifts() -> None:
    machine = Machine([5.0, 10.0, 5.0])
    base, double, same = measure(machine.runs, [0, 0, 0], 60, 2, 1e-9, True, machine.clock)
    assert base.ratio is None
    assert base.is_resolved is None
    assert double.ratio is not None
    assert double.ratio.median == pytest.approx(2, rel=0.02)
    assert double.is_resolved
    assert same.ratio is not None
    assert same.ratio.median == pytest.approx(1, abs=0.02)
    assert not same.is_resolved
    walls = Quartiles.of(double.wall)
    assert walls.q3 / walls.q1 > 1.5, "the times themselves say little"
    assert double.busy_share(1) == pytest.approx(0.5)


def test_rounds_end_where_ratios_are_precise() -> None:
    machine = Machine([5.0, 10.0])
    found = measure(machine.runs, [0, 0], 500, 1, 0.2, True, machine.clock)
    assert 10 <= len(found[0].laps) < 50


def test_fast_candidates_are_repeated() -> None:
    machine = Machine([0.01, 5.0])
    fast, slow = measure(machine.runs, [None, None], 3, 0, 0.1, True, machine.clock)
    assert fast.repeats > 50
    assert slow.repeats == 1
    assert fast.ratio is None
    assert slow.ratio is None


def test_garbage_is_not_collected_meanwhile() -> None:
    states: list[bool] = []
    measure([lambda: states.append(gc.isenabled())], [None], 3, 1, 0.1, True)
    assert states[-1] is False
    assert gc.isenabled()


def test_processor_time_is_of_the_work() -> None:
    lap = processor_clock(lambda: sum(range(200_000)), 3)
    assert lap.cpu is not None
    assert 0 < lap.cpu <= 1.5 * lap.wall + 1


def half() -> MobileNeXt:
    network = MobileNeXt(0.35, 0.5, num_classes=10, depth_mult=0.5, strides=(1, 1, 2, 2, 2))
    return with_weights(network).eval()  # pyright: ignore[reportReturnType]


PIXELS = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize(
    "engine",
    ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("compile", "onnxruntime"))],
)
def test_engines_give_the_networks_answers(engine: str, tmp_path: Path) -> None:
    network = half()
    with torch.no_grad():
        expected = FromPixels(network, (0.5,) * 3, (0.5,) * 3)(PIXELS)
    source = for_engine(network, engine, 32, CPU)
    if engine in FORMAT_OF:
        pytest.importorskip("onnxruntime")
        source = write_for(engine, source, PIXELS.numpy(), tmp_path)
    found = running(engine, source, PIXELS, 1)()
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=2e-5 * float(
        expected.abs().max()))  # fmt: skip


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(_network: object) -> Callable[[object], object]:
        def fail(_images: object) -> object:
            raise RuntimeError("no compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(InputError, match=r"torch\.compile failed \(.*no compiler\); .*g\+\+"):
        running("compile", for_engine(half(), "compile", 32, CPU), PIXELS, 1)


def test_without_shortcuts_all_else_stays() -> None:
    network = half()
    bare = without_shortcuts(network)
    assert bare is not None
    assert bare.state_dict().keys() == network.state_dict().keys()
    with torch.no_grad():
        images = torch.zeros(1, 3, 32, 32)
        assert not torch.equal(bare(images), network(images))
    assert without_shortcuts(torch.nn.Conv2d(3, 3, 1)) is None


def test_layers_are_named_and_each_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "RUNS", 3)
    network = half()
    found = eager_layers(for_engine(network, "eager", 32, CPU), PIXELS)
    names = {one.name: one for one in found}
    assert names["features.1.conv.0"].kind == "Conv2d"
    assert names["features.2"].kind == "SandglassBlock (itself)"
    assert all(one.ms >= 0 for one in found)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.slow
def test_onnxruntime_says_which_module_an_operator_is_of(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = for_engine(half(), "onnxruntime", 32, CPU)
    file = write_for("onnxruntime", source, PIXELS.numpy(), tmp_path)
    found = onnxruntime_layers(file, PIXELS.numpy(), 1)
    convolutions = {one.name for one in found if "Conv" in one.kind}
    modules = {name for name, module in source.network.named_modules()
               if isinstance(module, torch.nn.Conv2d)}  # fmt: skip
    masks = {name for name in convolutions if "mul" in name}  # shortcuts, made convolutions by it
    assert len(masks) <= 5
    assert convolutions - masks == modules
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_peak_memory_grows_with_the_network(tmp_path: Path) -> None:
    """Thirty million weights beside none."""
    found = []
    for width in (1, 30_000_000):
        class_free = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(48, 1), torch.nn.Linear(1, width)
        )
        file = tmp_path / f"{width}.module"
        torch.save(FromPixels(class_free, (0.5,) * 3, (0.5,) * 3), file)
        found.append(peak_memory("eager", file, (1, 3, 4, 4), 1))
    if None in found:
        pytest.skip("this system does not tell a process's peak memory")
    small, large = found
    assert small is not None
    assert large is not None
    assert 60_000_000 < large - small < 1_000_000_000
