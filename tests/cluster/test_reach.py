"""Nothing, or something else, behind an address: said at once, in one line."""

import http.server
import socket
import threading
import time

import pytest

from cluster.reach import is_here, probe
from tests.ports import free_port


@pytest.fixture
def listener():
    """A port that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_nobody_listens():
    port = free_port()
    with pytest.raises(ConnectionError, match=rf"^no Ray cluster at 127\.0\.0\.1:{port}: connection refused; check"):
        probe(f"127.0.0.1:{port}")


def test_a_name_that_nobody_knows():
    with pytest.raises(ConnectionError, match=r"^no Ray cluster at nowhere\.invalid:6379: .+; check `address`"):
        probe("nowhere.invalid:6379")


def test_something_else_answers(web_server):
    with pytest.raises(ConnectionError, match=rf"^what answers at 127\.0\.0\.1:{web_server} is not the head of a Ray"):
        probe(f"127.0.0.1:{web_server}")


def test_silence_is_waited_for_only_so_long(listener):
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="is not the head of a Ray cluster"):
        probe(f"127.0.0.1:{listener}", patience=1.0)
    assert time.monotonic() - began < 10  # not the 15 of PATIENCE


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("localhost", True), ("203.0.113.7", False)])
def test_this_machine_is_told_from_others(host, here):
    assert is_here(host) == here
