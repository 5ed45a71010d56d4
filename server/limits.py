"""What one peer may ask of a front end before it is slowed down, refused or cut off.

Message size, requests in flight on an RPC stream and RPCs in all have limits elsewhere; these are about
connections, and about calls that are made only to be cancelled.
"""

from collections import OrderedDict

from scheduler.errors import Overloaded
from server.settings import ServerTable

# Of the time between two looks whether a silent peer is still there, what it has to answer.
KEEPALIVE_ANSWER_PART = 1 / 3
# Pings that come too soon before the connection is closed.
PING_STRIKES = 2
# A peer may cancel this many seconds' worth at once: all it has in flight, several times over.
CANCEL_BURST_S = 5.0
REFUSED_S = 1.0
# Addresses that are remembered; the one that has cancelled nothing for longest is forgotten first.
PEERS_KEPT = 4096
# gRPC cancels a call at its deadline too. One that ends so close before it was not given up, but late.
AT_DEADLINE_S = 0.01

ChannelOptions = list[tuple[str, int]]


def channel_options(server: ServerTable) -> ChannelOptions:
    """The options of the gRPC server; a setting of 0 seconds leaves its limit out."""
    options: ChannelOptions = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", server.max_message_bytes),
        ("grpc.max_send_message_length", server.max_message_bytes),
        # Between these two gRPC would refuse a growing part of the calls.
        ("grpc.max_metadata_size", server.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", server.max_metadata_bytes),
        ("grpc.max_concurrent_streams", server.max_streams_per_connection),
        ("grpc.server_handshake_timeout_ms", _ms(server.handshake_timeout_s)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(server.min_ping_interval_s)),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        ("grpc.keepalive_time_ms", _ms(server.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(server.keepalive_s * KEEPALIVE_ANSWER_PART)),
        ("grpc.http2.ping_timeout_ms", _ms(server.keepalive_s * KEEPALIVE_ANSWER_PART)),
        # Also without a call: else gRPC would take every ping of an idle client for abuse.
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if server.max_connection_idle_s:
        options.append(("grpc.max_connection_idle_ms", _ms(server.max_connection_idle_s)))
    if server.max_connection_age_s:
        # What is in flight when a connection is told to end may take as long as in a drain.
        options.append(("grpc.max_connection_age_ms", _ms(server.max_connection_age_s)))
        options.append(("grpc.max_connection_age_grace_ms", _ms(server.drain_grace_s)))
    return options


class Cancels:
    """Counts the calls that each peer gives up, and refuses a peer for a while that does little else.

    A level per peer rises by one with each cancel and sinks by `per_s` in a second; over `CANCEL_BURST_S`
    times that, the peer is refused for `REFUSED_S`. A peer is an address without its port: another connection
    is no way around it. Belongs to one front end's event loop.
    """

    def __init__(self, per_s: float) -> None:
        """`per_s` 0: nothing is counted."""
        self.per_s = per_s
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when it was that
        self._refused: dict[str, float] = {}  # until when

    @property
    def refusing(self) -> bool:
        """Whether any peer is refused: what every call looks at, so that `check` is seldom needed."""
        return bool(self._refused)

    def note(self, peer: str, remaining_s: float | None, now_s: float) -> bool:
        """One more call of this peer was cancelled, so long before its deadline.

        Returns whether the peer is refused from now on.
        """
        if not self.per_s or (remaining_s is not None and remaining_s < AT_DEADLINE_S):
            return False
        host = _host(peer)
        level, at_s = self._levels.pop(host, (0.0, now_s))
        level = max(0.0, level - (now_s - at_s) * self.per_s) + 1.0
        self._levels[host] = level, now_s
        if len(self._levels) > PEERS_KEPT:
            self._levels.popitem(last=False)
        if level <= self.per_s * CANCEL_BURST_S or host in self._refused or len(self._refused) >= PEERS_KEPT:
            return False
        self._refused[host] = now_s + REFUSED_S
        return True

    def check(self, peer: str, now_s: float) -> None:
        """Raises Overloaded while this peer is refused."""
        host = _host(peer)
        until_s = self._refused.get(host)
        if until_s is None:
            return
        if now_s >= until_s:
            self._refused = {other: end_s for other, end_s in self._refused.items() if now_s < end_s}
            return
        raise Overloaded(
            "cancels",
            f"this address cancels more than {self.per_s:g} calls a second",
            retry_after_s=until_s - now_s,
        )


def _host(peer: str) -> str:
    """Of "ipv4:10.0.0.1:5000" or "ipv6:[::1]:5000", as gRPC writes them, all but the port."""
    return peer.rpartition(":")[0] or peer


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
