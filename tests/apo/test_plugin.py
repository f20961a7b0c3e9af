"""What loading the plugin changes in the process that trains."""

import os
import subprocess
import sys

from tests.apo.cases import ROOT

TRAINS = """
import sys
import torch

if sys.argv[1] == "loaded":
    from swift.utils import import_external_file
    import_external_file("apo/plugin.py")
else:
    import apo.plugin

weight = torch.ones(1_000_000, requires_grad=True)
(weight * 1e-20 * 1e-20).sum().backward()  # gradients of 1e-40
print(torch.get_num_threads(), weight.grad.count_nonzero().item())
"""


def gradients(how: str) -> list[str]:
    """[threads, gradients that are not zero] with the plugin "loaded" by ms-swift or "imported"."""
    words = [sys.executable, "-c", TRAINS, how]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-2:]


def test_tiny_gradients_are_zero_and_not_slow():
    """In all threads: those that torch starts have it from the one that loads the plugin."""
    assert gradients("loaded") == ["2", "0"]


def test_who_imports_the_plugin_keeps_exact_small_numbers():
    assert gradients("imported") == ["2", "1000000"]
