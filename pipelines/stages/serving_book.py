"""Which servers run on this machine: a small file for each, and what it answers itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BUSY = 30.0  # seconds that a server whose process lives may take to answer
PATIENCE = 5.0  # seconds for one on somebody else's cluster


@dataclass(frozen=True)
class Entry:
    """One server."""

    name: str
    host: str
    port: int
    instance: str  # its own, to tell it from another that took its place
    address: str  # of Ray
    pid: int  # of the process that Ray belongs to; 0: it is somebody else's cluster

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def ask(self, path: str, *, token: str | None = None, timeout: float = 5.0) -> tuple[int, Any]:
        """(status, JSON) of a GET; OSError where nobody answers."""
        host = self.url.removeprefix("http://").rpartition(":")[0].strip("[]")
        connection = http.client.HTTPConnection(host, self.port, timeout=timeout)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (http.client.HTTPException, ValueError) as error:
                raise ConnectionError(f"{self.url}: no server of ours answers ({type(error).__name__})") from None

    def alive(self) -> bool:
        """Whether this very server answers."""
        try:
            _, found = self.ask("/healthz")
        except OSError:
            return False
        return isinstance(found, dict) and found.get("instance") == self.instance


def folder() -> Path:
    """Of this user; made where it is not there."""
    place = Path(tempfile.gettempdir()) / f"cortado-serve-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise PermissionError(1, "belongs to somebody else", str(place))
    return place


def write(entry: Entry) -> None:
    file = folder() / f"{entry.name}.json"
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(entry)))
    fresh.replace(file)


def read(name: str) -> Entry | None:
    try:
        return Entry(**json.loads((folder() / f"{name}.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def forget(name: str, instance: str) -> None:
    found = read(name)
    if found is not None and found.instance == instance:
        (folder() / f"{name}.json").unlink(missing_ok=True)


def running(name: str) -> Entry | None:
    """The server of that name, where it answers."""
    found = read(name)
    return found if found is not None and still(found) else None


def still(entry: Entry, patience: float | None = None) -> bool:
    """Whether a server answers; one that is busy, or whose front was killed, is waited for while its process lives."""
    if patience is None:
        patience = BUSY if entry.pid else PATIENCE
    until = time.monotonic() + patience
    while not entry.alive():
        if time.monotonic() > until or (entry.pid and not process_lives(entry.pid)):
            return False
        time.sleep(0.2)
    return True


def process_lives(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not yet asked for its exit code is none."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True


def refused(address: str) -> bool:
    """Whether nobody listens at host:port; what does not answer in time may be busy."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def listed() -> list[Entry]:
    """Every server that was noted, by name."""
    found = (read(file.stem) for file in sorted(folder().glob("*.json")))
    return [entry for entry in found if entry is not None]
