"""What loading the plugin changes in the process that trains."""

import os
import subprocess
import sys

from tests.apo.cases import ROOT

TRAINS = """
import torch
import apo.plugin

weight = torch.ones(1_000_000, requires_grad=True)
(weight * 1e-20 * 1e-20).sum().backward()  # gradients of 1e-40
print(torch.get_num_threads(), weight.grad.count_nonzero().item())
"""


def test_tiny_gradients_are_zero_and_not_slow():
    """In all threads: those that torch starts have it from the one that loads the plugin."""
    words = [sys.executable, "-c", TRAINS]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["2", "0"]
