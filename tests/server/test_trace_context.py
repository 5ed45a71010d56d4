"""What of a caller's trace context is taken, and what is ignored."""

import pytest

from server.telemetry.trace_context import (
    MAX_STATE_CHARACTERS,
    Parent,
    origin_of,
    parse_traceparent,
    parse_tracestate,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
METHOD = "a.Service/Method"


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),  # flags that mean something else
        (f"00-{TRACE}-{SPAN}-fe", False),
        (f"01-{TRACE}-{SPAN}-01", True),  # a later version
        (f"cc-{TRACE}-{SPAN}-01-what the future will be like", True),
        (f"cc-{TRACE}-{SPAN}-00-", False),
    ],
)
def test_valid_traceparent_is_taken(text: str, sampled: bool) -> None:
    """Ids as numbers, and the flag."""
    assert parse_traceparent(text) == Parent(int(TRACE, 16), int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",  # the version that is none
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0G",
        f"00-{TRACE}-{SPAN}-001",
        f"{GOOD}-",  # version 00 has nothing to add
        f"{GOOD}-more",
        f"{GOOD}\n",
        f" {GOOD}",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}",
        GOOD.replace("4bf9", "٤bf9"),  # a digit, but not one of these
    ],
)
def test_invalid_traceparent_is_none(text: str) -> None:
    """As the standard lists them."""
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("foo=1", [("foo", "1")]),
        ("foo=1,bar=2", [("foo", "1"), ("bar", "2")]),
        ("foo=1 \t, \tbar=2,,", [("foo", "1"), ("bar", "2")]),
        ("fw529a3039@dt=FfFf;1", [("fw529a3039@dt", "FfFf;1")]),
        ("0a@b=1", [("0a@b", "1")]),
        ("a-b_c*d/e= x", [("a-b_c*d/e", " x")]),
        (f"{'z' * 256}=1", [("z" * 256, "1")]),
        (f"{'t' * 241}@{'v' * 14}=1", [(f"{'t' * 241}@{'v' * 14}", "1")]),
        (f"a={'v' * 256}", [("a", "v" * 256)]),
        (",".join(f"k{i}=1" for i in range(32)), [(f"k{i}", "1") for i in range(32)]),
    ],
)
def test_valid_tracestate_is_taken(text: str, pairs: list[tuple[str, str]]) -> None:
    """In its order, without what is empty."""
    assert parse_tracestate(text) == pairs


@pytest.mark.parametrize(
    "text",
    [
        "foo",
        "foo=",
        "=1",
        "foo =1",
        "Foo=1",
        "1foo=1",
        "foo=1=2",
        "foo@=1",
        "@foo=1",
        "foo@@bar=1",
        "foo@1bar=1",
        "foo=1,foo=2",
        "good=1,b\u00e4d=1",
        "foo=\u00e4",
        "foo=\x00",
        f"{'z' * 257}=1",
        f"{'t' * 242}@v=1",
        f"t@{'v' * 15}=1",
        f"a={'v' * 257}",
        ",".join(f"k{i}=1" for i in range(33)),
    ],
)
def test_invalid_tracestate_is_dropped_whole(text: str) -> None:
    """Also where only one of its members is."""
    assert parse_tracestate(text) == []


def test_metadata_gives_parent_and_state() -> None:
    """Among other metadata, binary ones too; several tracestates are one."""
    origin = origin_of(
        METHOD,
        [
            ("user-agent", "x"),
            ("traceparent", GOOD),
            ("tracestate", "a=1"),
            ("k-bin", b"\x00"),
            ("tracestate", "b=2"),
        ],
    )
    assert (origin.method, origin.tracestate) == (METHOD, "a=1,b=2")
    assert origin.parent == Parent(int(TRACE, 16), int(SPAN, 16), True)
    assert origin.fields() == {"trace_id": TRACE}


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("tracestate", "a=1")],
        [("traceparent", GOOD), ("traceparent", GOOD)],
        [("traceparent", "nonsense"), ("tracestate", "a=1")],
        [("traceparent", GOOD.encode())],
    ],
)
def test_without_one_valid_traceparent_there_is_no_trace(metadata: list[tuple[str, str | bytes]]) -> None:
    """Whatever else is there."""
    origin = origin_of(METHOD, metadata)
    assert origin.parent is None
    assert origin.fields() == {}


def test_endless_tracestate_is_dropped_and_its_parent_kept() -> None:
    """512 characters have to be kept."""
    long = "a=" + "v" * 200 + ",b=" + "v" * 200 + ",c=" + "v" * 110
    assert origin_of(METHOD, [("traceparent", GOOD), ("tracestate", long)]).tracestate == long
    endless = [("traceparent", GOOD), ("tracestate", "a=" + "v" * MAX_STATE_CHARACTERS)]
    assert origin_of(METHOD, endless).tracestate == ""
    assert origin_of(METHOD, endless).parent is not None
