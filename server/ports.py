"""Finding out in time, and in one line, that a port is taken."""

import socket


class PortInUse(Exception):
    """Somebody else has the port, or this host has no such address."""


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket bound to the port with SO_REUSEPORT, not listening; port 0 picks a free one.

    Raises:
        PortInUse: somebody else has it, with or without SO_REUSEPORT.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT first: with it, a second service would silently share the port with us.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        reservation = socket.socket(family, socket.SOCK_STREAM)
        # Not SO_REUSEADDR: with it on both, the next service's probe could bind as well, until we listen.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind((host, port))
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return reservation
