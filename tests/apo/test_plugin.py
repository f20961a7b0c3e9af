"""What loading the plugin changes in the process that trains."""

import subprocess
import sys

from tests.apo.cases import ROOT

TRAINS = """
import torch
import apo.plugin

weight = torch.ones(1, requires_grad=True)
(weight * 1e-20 * 1e-20).sum().backward()  # a gradient of 1e-40
print(weight.grad.item())
"""


def test_tiny_gradients_are_zero_and_not_slow():
    done = subprocess.run([sys.executable, "-c", TRAINS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0.0"
