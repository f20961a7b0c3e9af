import sys

import pytest


@pytest.fixture(autouse=True)
def exact_small_numbers():
    """A training inside this process lets tiny numbers be zero (apo/plugin.py); the next test starts without that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
