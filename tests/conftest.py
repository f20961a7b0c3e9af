import sys

import pytest


@pytest.fixture(autouse=True)
def exact_small_numbers():
    """A training inside this process lets tiny numbers be zero (apo/plugin.py); the next test starts without that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def pytest_collection_modifyitems(items):
    """Files with slow tests go first: a process that met one at the end would work on while the others have no more."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
