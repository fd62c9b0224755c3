"""Control groups of this process: the folders in which Linux says what containers may use."""

from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def own_groups(
    controller: str, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> list[Path]:
    """Folders of this process's groups, of versions 1 and 2, each followed by its ancestors.

    A limit of any of them holds. Folders need not exist: in a container, the process's own group is
    mounted as the root.

    Args:
        controller: What is limited: cpu or memory.
        cgroups: Where the groups are mounted.
        membership: The kernel's list of the process's groups.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mounted in _mounts(cgroups, controllers, controller):
            found += _with_ancestors(mounted, path)
    return found


def _mounts(cgroups: Path, controllers: str, controller: str) -> list[Path]:
    if not controllers:  # version 2, perhaps beside version 1
        return [cgroups, cgroups / "unified"]
    return [cgroups / controllers, cgroups / controller]


def _with_ancestors(mounted: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mounted.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
