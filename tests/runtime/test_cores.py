"""A process's share of the cores: affinity sets and quotas of containers."""

from pathlib import Path

import pytest

from mobilenext.runtime import cores
from mobilenext.runtime.cores import Allowance, cpu_quotas, own_allowance, share


def allowed(*cores: int, machine: str = "a", **quotas: float) -> Allowance:
    return Allowance(machine, frozenset(cores), tuple(sorted(quotas.items())))


def shares(*all_of_them: Allowance) -> list[int]:
    return [share(one, all_of_them) for one in all_of_them]


def test_cores_that_all_may_use_are_divided() -> None:
    assert shares(*[allowed(*range(12))] * 4) == [3, 3, 3, 3]


def test_cores_that_are_divided_already_are_not_divided_again() -> None:
    twelve = [allowed(*range(3 * n, 3 * n + 3)) for n in range(4)]
    assert shares(*twelve) == [3, 3, 3, 3]
    by_socket = [allowed(*range(6)), allowed(*range(6)), allowed(*range(6, 12))]
    assert shares(*by_socket) == [3, 3, 6]


def test_other_machines_take_nothing() -> None:
    assert shares(allowed(0, 1), allowed(0, 1, machine="b")) == [2, 2]


def test_a_quota_limits_all_processes_of_its_group_together() -> None:
    assert shares(*[allowed(*range(64), job=8.0)] * 2) == [4, 4]
    assert shares(allowed(*range(64), x=2.5), allowed(*range(64), y=2.5)) == [2, 2]
    assert shares(allowed(*range(4), job=8.0)) == [4]


def test_there_is_always_one() -> None:
    assert shares(*[allowed(0, quota=0.25)] * 8) == [1] * 8


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "250000 100000"}, "0::/", [2.5]),
        ({"cpu.max": "max 100000"}, "0::/", []),
        ({"job/cpu.max": "400000 100000", "job/task/cpu.max": "max 100000"},
         "0::/job/task", [4.0]),
        ({"unified/cpu.max": "100000 100000"}, "0::/", [1.0]),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
         "3:cpuset:/\n1:cpu:/docker/x", [1.5]),
        ({"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1",
          "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/docker/x", []),
        ({"cpu.max": "what"}, "0::/", []),
        ({"cpu.max": "100000 0"}, "0::/", []),
        ({}, "0::/../..", []),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    tmp_path: Path, files: dict[str, str], membership: str, expected: list[float]
) -> None:
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    write(tmp_path / "self", membership)
    found = cpu_quotas(tmp_path / "cgroup", tmp_path / "self")
    assert [quota for _, quota in found] == expected


def test_this_process_has_some() -> None:
    mine = own_allowance()
    assert 1 <= share(mine, [mine]) <= len(mine.cores)


def statistics(folder: Path, *threads: tuple[float, float]) -> Path:
    """A folder as /proc/self/task, by seconds that each thread ran and waited."""
    for number, (ran, waited) in enumerate(threads):
        task = folder / str(number)
        task.mkdir(parents=True, exist_ok=True)
        (task / "schedstat").write_text(f"{ran * 1e9:.0f} {waited * 1e9:.0f} 7\n")
    return folder


@pytest.mark.parametrize(
    ("ran", "waited", "wall", "noticed"),
    [
        (10.0, 12.0, 11.0, True),  # 2 threads on 2 cores with two other programs
        (20.0, 20.0, 11.0, False),  # 4 threads on 2 cores, alone
        (30.0, 1.0, 30.0, False),  # waits for data
        (3.0, 4.0, 4.0, False),  # too early
    ],
)
def test_other_programs_are_noticed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: float, waited: float, wall: float,
    noticed: bool,
) -> None:  # fmt: skip
    clock = [100.0]
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cores.scheduled, "__defaults__", (statistics(tmp_path, (5, 1), (5, 0)),))
    competition = cores.Competition(2)
    assert competition.note() is None
    clock[0] += wall
    statistics(tmp_path, (5 + ran / 2, 1 + waited), (5 + ran / 2, 0))
    said = competition.note()
    assert (said is not None) == noticed
    assert said is None or "waited for a core 55 % of" in said.replace("%", " %")
    assert competition.note() is None


def test_a_kernel_that_does_not_say(tmp_path: Path) -> None:
    assert cores.scheduled(tmp_path / "none") is None
    assert cores.scheduled(statistics(tmp_path, (1.5, 0.5), (2.0, 0.0))) == (3.5, 0.5)
