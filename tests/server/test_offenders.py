"""Inputs that made a model fail, and how long they are kept out."""

import hashlib

import pytest

from scheduler.errors import ModelFailed
from server.offenders import ENTRIES, FAILURES, REFUSAL_NS, WINDOW_NS, Offenders

S = 1_000_000_000
BAD = [b"bad window" * 1200, b"\x01"]
GOOD = [b"good window" * 1200, b"\x01"]
# What is looked at before hashing is the same as of BAD.
ALIKE = [b"another start" + BAD[0][13:], BAD[1]]


def refused(table: Offenders, payloads: list[bytes], now_ns: int, model: int = 0) -> bool:
    """Whether this input is turned away."""
    try:
        table.check(model, payloads, now_ns)
    except ModelFailed:
        return True
    return False


def offend(table: Offenders, payloads: list[bytes], now_ns: int = 0, model: int = 0) -> None:
    """As many failures as it takes, all at once."""
    for _ in range(FAILURES):
        table.failed(model, payloads, now_ns)


def test_one_failure_may_be_an_accident() -> None:
    """The second is not."""
    table = Offenders()
    assert not refused(table, BAD, 0)
    table.failed(0, BAD, 0)
    assert not refused(table, BAD, 1)
    table.failed(0, BAD, 1)
    assert refused(table, BAD, 1)


def test_refusal_says_how_often_and_how_long() -> None:
    """As the end of the request that it would have had anyway."""
    table = Offenders()
    offend(table, BAD)
    table.failed(0, BAD, 0)
    with pytest.raises(ModelFailed) as error:
        table.check(0, BAD, 7 * S + S // 2)
    assert str(error.value) == "this input failed 3 times, it is refused for 2.5 s more"
    assert error.value.reason == "MODEL_ERROR"


def test_refusal_ends() -> None:
    """After 10 s, to the nanosecond; the failure that counts is the last one."""
    table = Offenders()
    table.failed(0, BAD, 0)
    table.failed(0, BAD, 3 * S)
    assert refused(table, BAD, 3 * S + REFUSAL_NS - 1)
    assert not refused(table, BAD, 3 * S + REFUSAL_NS)


@pytest.mark.parametrize(("after_ns", "again"), [(WINDOW_NS, True), (WINDOW_NS + 1, False)])
def test_another_chance_is_one(after_ns: int, again: bool) -> None:
    """Failing once more within the window is refused at once; after it, counting begins anew."""
    table = Offenders()
    offend(table, BAD)
    table.failed(0, BAD, after_ns)
    assert refused(table, BAD, after_ns) is again


@pytest.mark.parametrize(("apart_ns", "counts"), [(WINDOW_NS, True), (WINDOW_NS + 1, False)])
def test_failures_far_apart_are_not_added_up(apart_ns: int, counts: bool) -> None:
    """More than a minute."""
    table = Offenders()
    table.failed(0, BAD, 0)
    table.failed(0, BAD, apart_ns)
    assert refused(table, BAD, apart_ns) is counts


@pytest.mark.parametrize(
    "other",
    [
        GOOD,
        ALIKE,
        [BAD[0], b"\x02"],
        [BAD[1], BAD[0]],
        [BAD[0][:-1], BAD[0][-1:] + BAD[1]],
        [BAD[0] + BAD[1]],
        [BAD[0]],
    ],
    ids=[
        "unlike",
        "same size and end",
        "another second tensor",
        "another order",
        "cut elsewhere",
        "joined",
        "tensor missing",
    ],
)
def test_other_inputs_are_let_in(other: list[bytes]) -> None:
    """However much they look like the one that is refused."""
    table = Offenders()
    offend(table, BAD)
    assert refused(table, BAD, 1)
    assert not refused(table, other, 1)


def test_tensors_cut_elsewhere_are_another_input() -> None:
    """The same bytes in the same order."""
    table = Offenders()
    offend(table, [BAD[0], b"ab", b"c"])
    assert refused(table, [BAD[0], b"ab", b"c"], 1)
    assert not refused(table, [BAD[0], b"a", b"bc"], 1)


def test_inputs_that_look_alike_are_counted_apart() -> None:
    """One has failed once, the other as often as it takes."""
    table = Offenders()
    table.failed(0, BAD, 0)
    table.failed(0, ALIKE, 0)
    assert not refused(table, BAD, 1)
    table.failed(0, ALIKE, 0)
    assert refused(table, ALIKE, 1)
    assert not refused(table, BAD, 1)


def test_failures_of_two_models_are_counted_apart() -> None:
    """Once each."""
    table = Offenders()
    for model in (3, 4):
        table.failed(model, BAD, 0)
    assert not refused(table, BAD, 1, model=3)
    assert not refused(table, BAD, 1, model=4)


def test_refusal_is_for_one_model() -> None:
    """The same tensors may be fine for another."""
    table = Offenders()
    offend(table, BAD, model=3)
    assert refused(table, BAD, 1, model=3)
    assert not refused(table, BAD, 1, model=4)


@pytest.mark.parametrize("later", [GOOD, ALIKE], ids=["unlike", "alike"])
def test_two_inputs_are_refused_each_for_its_own_time(later: list[bytes]) -> None:
    """The later one's refusal does not make the earlier one's longer."""
    table = Offenders()
    offend(table, BAD, 0)
    offend(table, later, 4 * S)
    assert refused(table, BAD, REFUSAL_NS - 1)
    assert not refused(table, BAD, REFUSAL_NS)
    assert refused(table, later, REFUSAL_NS)


def test_table_is_bounded_and_the_oldest_goes_first() -> None:
    """The oldest is the one that has not failed for longest, not the one that came first."""
    table = Offenders()
    inputs = [[index.to_bytes(100, "big")] for index in range(ENTRIES + 1)]
    for payloads in inputs[:-1]:
        offend(table, payloads)
    table.failed(0, inputs[0], 0)
    assert all(refused(table, payloads, 1) for payloads in inputs[:-1])
    offend(table, inputs[-1])
    assert not refused(table, inputs[1], 1)
    assert all(refused(table, payloads, 1) for payloads in [inputs[0], *inputs[2:]])
    assert len(table._offences) == len(table._suspects) == ENTRIES


def test_failures_that_are_forgotten_do_not_count() -> None:
    """With more inputs failing than the table holds, an input's first failure is gone by its second."""
    table = Offenders()
    for _ in range(2):
        for index in range(ENTRIES + 1):
            table.failed(0, [index.to_bytes(4, "little")], 0)
    assert not any(refused(table, [index.to_bytes(4, "little")], 1) for index in range(ENTRIES + 1))


def test_nothing_is_looked_at_while_nobody_is_refused() -> None:
    """Neither before nor after: the tensors could be missing."""
    table = Offenders()
    table.check(0, [], 0)
    offend(table, BAD, 0)
    table.check(0, [], REFUSAL_NS)


def test_nothing_is_hashed_that_cannot_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is yet, or nobody who looks like it, or nobody any more."""
    table = Offenders()
    hashed: list[object] = []
    real = hashlib.blake2b

    def counting(data: bytes, digest_size: int) -> object:
        hashed.append(data)
        return real(data, digest_size=digest_size)

    table.failed(0, BAD, 0)
    monkeypatch.setattr(hashlib, "blake2b", counting)
    assert not refused(table, BAD, 1)  # has failed once
    assert hashed == []
    table.failed(0, BAD, 1)
    hashed.clear()
    assert not refused(table, GOOD, 2)
    assert not refused(table, BAD, 2, model=1)
    assert hashed == []
    assert refused(table, BAD, 2)
    assert len(hashed) == 1
    assert not refused(table, BAD, 1 + REFUSAL_NS)
    assert len(hashed) == 1
