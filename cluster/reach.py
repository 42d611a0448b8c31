"""Is there a Ray cluster at this address? Asked before Ray is, which tries for two minutes and says so every second."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

PATIENCE = 15.0  # seconds
PROBE = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # the one call that needs no cluster id


def probe(address: str, patience: float = PATIENCE) -> bool:
    """Whether the cluster at host:port wants Ray's token.

    Raises ConnectionError, one line, when nothing answers there or what answers is not the head of a Ray cluster.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
    except OSError as error:
        reason = (
            f"no answer within {patience:.0f} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        )
        raise ConnectionError(f"no Ray cluster at {address}: {reason.lower()}; {ADVICE}") from None
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # only Ray has the certificates
        return False
    return _ask(address, max(deadline - time.monotonic(), 1.0))


ADVICE = "check `address` in ray_config.yaml and RAY_ADDRESS, or use --set address=local"


def _ask(address: str, patience: float) -> bool:
    """One call without a token, to see what stands behind the port."""
    import grpc  # type: ignore[import-untyped]

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=patience)
            return False
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise ConnectionError(f"what answers at {address} is not the head of a Ray cluster; {ADVICE}") from None


def token_at_hand(address: str) -> bool:
    """Whether this process may show Ray's token there: one was given for this run, or the cluster is this machine's."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return is_here(address.rpartition(":")[0].strip("[]")) and (Path.home() / ".ray" / "auth_token").is_file()


def is_here(host: str) -> bool:
    """Whether `host` is this machine: only then may a socket be bound to it."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(place)
        return True
    except OSError:
        return False
