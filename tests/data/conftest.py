import pytest

from tests.data.collect_server import CANARY, Server, World


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A World with its server running and the canary as key."""
    monkeypatch.setenv("CANARY_KEY", CANARY)
    server = Server()
    try:
        yield World(tmp_path, server)
    finally:
        server.close()
