"""The tasks of a SLURM step: `srun python train.py` starts each without torchrun.

Every task finds in SLURM's variables which of how many it is, and on which nodes the others are.
"""

import os
import re
import sys

from mobilenext.program import launched_by_torchrun

FIRST_PORT, PORTS = 20000, 10000
"""Ports at which tasks meet: below those that Linux gives to connections, from 32768 on."""

SPECIAL_STEPS = 0xFFFFFFF0
"""Ids from here on are SLURM's own: of a batch script, of salloc's shell. One process runs there,
whatever number of tasks the variables say."""


def in_srun_step() -> bool:
    """Whether srun started this process as one of several tasks, and not torchrun or submitit.

    sbatch's script has the number of its first task too, but is no step of several.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    return (
        {"TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"}.isdisjoint(os.environ)
        and {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"} <= os.environ.keys()
        and step.isdigit()
        and int(step) < SPECIAL_STEPS
        and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    )


def join_srun_tasks() -> None:
    """Say in torchrun's variables who this task is, if it is one of several; once is enough.

    MASTER_ADDR and MASTER_PORT stay as they are where the user has set them.
    """
    if launched_by_torchrun() or not in_srun_step():
        return
    say = os.environ
    job, step = say.get("SLURM_JOB_ID", "0"), say["SLURM_STEP_ID"]
    tasks = say["SLURM_STEP_NUM_TASKS"]
    here = tasks_on(int(say.get("SLURM_NODEID", "0")), say.get("SLURM_STEP_TASKS_PER_NODE", tasks))
    say["RANK"], say["WORLD_SIZE"] = say["SLURM_PROCID"], tasks
    say["LOCAL_RANK"], say["LOCAL_WORLD_SIZE"] = say["SLURM_LOCALID"], str(here)
    # A single node needs no name that leads to it.
    host = "127.0.0.1" if str(here) == tasks else first_host(say["SLURM_STEP_NODELIST"])
    # All tasks have to find it without talking. Two steps that run on one node at the same time
    # rarely get the same: their jobs' numbers are close, and a job has few steps.
    port = FIRST_PORT + (37 * int(job) + int(step)) % PORTS
    host, port = say.setdefault("MASTER_ADDR", host), say.setdefault("MASTER_PORT", str(port))
    if say["RANK"] == "0":
        sys.stderr.write(f"step {job}.{step} of SLURM: its {tasks} tasks meet at {host}:{port}\n")


def first_host(nodes: str) -> str:
    """First host of a list in SLURM's short form: tux07 of tux[07-09,12],other."""
    first = re.match(r"(\[[^\]]*\]|[^,\[])*", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group() if first else nodes)


def tasks_on(node: int, per_node: str) -> int:
    """Tasks on a node, by its number in the step; of 2(x3),1 the node 3 has 1."""
    counts: list[int] = []
    for text in per_node.split(","):
        count, _, times = text.removesuffix(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[min(node, len(counts) - 1)]
