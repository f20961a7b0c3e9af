"""Two ranks end with exit code 0 although gloo's threads are late."""

import os
import subprocess
import sys

import pytest

from scripts.plan import free_port
from tests.apo.cases import ROOT

RANK = """
import atexit, sys
import torch
import torch.distributed as dist
from apo.gloo import wait_for_gloo

atexit.register(wait_for_gloo)
rank, port = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
for step in range(20):
    tensor = torch.ones(1000) * step
    dist.all_reduce(tensor)
    dist.barrier()
"""


@pytest.mark.slow
def test_ranks_that_share_a_core_end_well():
    """Without the wait, about every second of these pairs of ranks aborts."""
    core = {min(os.sched_getaffinity(0))}
    for _ in range(6):
        port = str(free_port())
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, rank, port],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
            for rank in "01"
        ]
        ends = [(rank.communicate(timeout=120)[1], rank.returncode) for rank in ranks]
        assert [code for _, code in ends] == [0, 0], ends
