"""Reserving a port for front ends that share it."""

import socket

import pytest

from server.ports import PortInUse, reserve_port


def shared_listener(port: int) -> socket.socket:
    """As a front end listens."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_front_ends_share_a_reserved_port() -> None:
    """Two can listen while the reservation is held, and clients get through to them."""
    with reserve_port("127.0.0.1", 0) as reservation:
        port = reservation.getsockname()[1]
        with shared_listener(port), shared_listener(port), socket.create_connection(("127.0.0.1", port), 5):
            pass


def test_reservation_itself_takes_no_connection() -> None:
    """It does not listen: before any front end does, a client is refused at once."""
    with reserve_port("127.0.0.1", 0) as reservation, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reservation.getsockname(), 5)


def test_second_service_is_refused() -> None:
    """Though the first one's sockets could be shared."""
    with reserve_port("127.0.0.1", 0) as reservation:
        port = reservation.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"^cannot listen on 127.0.0.1:{port}: Address already in use$"):
            reserve_port("127.0.0.1", port)


def test_port_of_somebody_else() -> None:
    """Who does not share."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        reserve_port("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_address_that_is_not_here(host: str) -> None:
    """Somebody else's, or nobody's."""
    with pytest.raises(PortInUse, match=rf"^cannot listen on {host}:8001: \w"):
        reserve_port(host, 8001)
