"""Who cancels too much, and what gRPC is told about connections."""

import pytest

from scheduler.errors import Overloaded
from server.limits import CANCEL_BURST_S, PEERS_KEPT, REFUSED_S, Cancels, channel_options
from server.settings import ServerTable

PEER = "ipv4:10.0.0.1:5000"
PER_S = 10.0
BURST = round(PER_S * CANCEL_BURST_S)


def refused(cancels: Cancels, peer: str, now_s: float) -> float | None:
    """For how long this peer is told to stay away; None: it is not refused."""
    try:
        cancels.check(peer, now_s)
    except Overloaded as error:
        return error.retry_after_s
    return None


def give_up(cancels: Cancels, count: int, now_s: float, peer: str = PEER) -> list[bool]:
    """So many calls of this peer are cancelled at once."""
    return [cancels.note(peer, None, now_s) for _ in range(count)]


def test_burst_is_free_and_what_comes_after_it_is_not() -> None:
    """The first cancel too many starts a second of refusals, of this peer only and of all its ports."""
    cancels = Cancels(PER_S)
    assert not any(give_up(cancels, BURST, 0.0))
    assert not cancels.refusing
    assert give_up(cancels, 2, 0.0) == [True, False]
    assert cancels.refusing
    assert refused(cancels, PEER, 0.25) == refused(cancels, "ipv4:10.0.0.1:5001", 0.25) == REFUSED_S - 0.25
    assert refused(cancels, "ipv4:10.0.0.2:5000", 0.25) is None
    assert refused(cancels, PEER, REFUSED_S) is None
    assert not cancels.refusing


def test_rate_that_is_allowed_may_go_on_for_ever() -> None:
    """Also right after a burst; slightly more may not."""
    for factor, ends in ((1.0, False), (1.2, True)):
        cancels = Cancels(PER_S)
        noted = [cancels.note(PEER, None, number / (PER_S * factor)) for number in range(BURST * 20)]
        assert any(noted) is ends


def test_peer_that_was_refused_starts_where_it_was() -> None:
    """A second later it may cancel as much as sank away in a second, and no new burst."""
    cancels = Cancels(PER_S)
    give_up(cancels, BURST + 1, 0.0)
    assert refused(cancels, PEER, REFUSED_S) is None
    assert give_up(cancels, round(PER_S * REFUSED_S), REFUSED_S).index(True) == PER_S * REFUSED_S - 1


@pytest.mark.parametrize(
    ("remaining_s", "counted"), [(None, True), (0.5, True), (0.005, False), (-1.0, False)]
)
def test_call_that_only_was_late_does_not_count(remaining_s: float | None, counted: bool) -> None:
    """gRPC cancels what has passed its deadline too, and under overload that happens to the honest."""
    cancels = Cancels(PER_S)
    assert any(cancels.note(PEER, remaining_s, 0.0) for _ in range(BURST * 2)) is counted


def test_no_limit() -> None:
    """Nothing is counted."""
    cancels = Cancels(0)
    assert not any(give_up(cancels, 10_000, 0.0))


def test_addresses_kept_are_bounded() -> None:
    """Who cancels goes on being known; who did so longest ago is forgotten."""
    cancels = Cancels(PER_S)
    give_up(cancels, BURST, 0.0, "ipv4:10.9.9.9:1")
    give_up(cancels, BURST, 0.0)
    for number in range(PEERS_KEPT - 1):
        cancels.note(f"ipv6:[::{number:x}]:1", None, 0.0)
    assert len(cancels._levels) == PEERS_KEPT
    assert give_up(cancels, 1, 0.0, "ipv4:10.9.9.9:1") == [False]
    assert give_up(cancels, 1, 0.0) == [False]  # that was the next to be forgotten
    give_up(cancels, BURST, 0.0, "ipv6:[::5]:9")
    assert refused(cancels, "ipv6:[::5]:1", 0.0) is not None
    assert refused(cancels, "ipv6:[::6]:1", 0.0) is None


def options(**settings: float) -> dict[str, int]:
    """By name; no name twice."""
    found = channel_options(ServerTable.model_validate(settings))
    assert len(dict(found)) == len(found)
    return dict(found)


def test_options_are_those_of_the_settings() -> None:
    """In gRPC's names and units."""
    found = options(
        max_message_bytes=4096,
        max_metadata_bytes=2048,
        max_streams_per_connection=7,
        handshake_timeout_s=0.5,
        min_ping_interval_s=0,
        keepalive_s=6,
        max_connection_idle_s=0.25,
        max_connection_age_s=60,
        drain_grace_s=3,
    )
    assert found["grpc.max_receive_message_length"] == found["grpc.max_send_message_length"] == 4096
    assert found["grpc.max_metadata_size"] == found["grpc.absolute_max_metadata_size"] == 2048
    assert found["grpc.max_concurrent_streams"] == 7
    assert found["grpc.server_handshake_timeout_ms"] == 500
    assert found["grpc.http2.min_ping_interval_without_data_ms"] == 1
    assert (found["grpc.keepalive_time_ms"], found["grpc.keepalive_timeout_ms"]) == (6_000, 2_000)
    assert found["grpc.http2.ping_timeout_ms"] == 2_000
    assert found["grpc.max_connection_idle_ms"] == 250
    assert (found["grpc.max_connection_age_ms"], found["grpc.max_connection_age_grace_ms"]) == (60_000, 3_000)


def test_limits_that_are_off() -> None:
    """Are not told to gRPC, to which 0 would be at once."""
    found = options(max_connection_idle_s=0, max_connection_age_s=0)
    assert not [name for name in found if "connection" in name]
