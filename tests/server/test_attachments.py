"""When rings are reset, over everything that can happen to a few processes, in any order."""

from collections import Counter
from copy import deepcopy

import pytest

from server.attachments import Aftermath, Attachments


class World:
    """Processes as they behave, beside the bookkeeping: who may still touch the rings of whom.

    `touches`: pairs of places; the process in the first may use the rings that it shares with the second.
    `lives`: places with a process, attached or not. `dirty`: places whose rings are to be reset first.
    """

    def __init__(self, engines: int, frontends: int) -> None:
        self.engines = [f"engine-{index}" for index in range(engines)]
        self.frontends = [f"frontend-{index}" for index in range(frontends)]
        self.attachments = Attachments(self.engines, self.frontends)
        self.attached: set[str] = set()
        self.touches: set[tuple[str, str]] = set()
        self.dirty: set[str] = set()
        self.asked: set[tuple[str, str]] = set()  # who has been asked to let go of whose rings

    @property
    def places(self) -> list[str]:
        return [*self.engines, *self.frontends]

    def others(self, place: str) -> list[str]:
        return self.frontends if place in self.engines else self.engines

    def state(self) -> tuple[frozenset[object], ...]:
        return tuple(frozenset(each) for each in (self.attached, self.touches, self.dirty, self.asked))

    def events(self) -> list[tuple[str, ...]]:
        """What can happen next."""
        attaching = [("attach", place) for place in self.places if self.attachments.may_attach(place)]
        dying = [("die", place) for place in self.places]
        return [*attaching, *dying, *(("let go", *each) for each in sorted(self.asked))]

    def happens(self, event: tuple[str, ...]) -> str:
        """Carries an event out, and checks every reset that follows. Returns what was special about it."""
        match event:
            case ("attach", place):
                assert place not in self.attached
                assert place not in self.dirty
                self.attachments.attach(place)
                self.attached.add(place)
                for other in self.others(place):
                    if other in self.attached:
                        self.touches |= {(place, other), (other, place)}
            case ("die", place):
                return self.dies(place)
            case (_, place, gone):
                self.asked.remove((place, gone))
                self.touches.discard((place, gone))
                self.resets(list(self.attachments.let_go(place, gone)))
        return event[0]

    def dies(self, place: str) -> str:
        was_attached, owed = place in self.attached, any(who == place for who, _ in self.asked)
        self.attached.discard(place)
        self.touches = {(who, whose) for who, whose in self.touches if who != place}
        self.asked = {(who, whose) for who, whose in self.asked if who != place}
        if was_attached:
            self.dirty.add(place)
        aftermath = self.attachments.died(place)
        for other in aftermath.ask:
            assert was_attached
            assert other in self.attached
            self.asked.add((other, place))
        self.resets(list(aftermath.reset))
        return f"died {'attached' if was_attached else 'unattached'}{' and owed' if owed else ''}"

    def resets(self, places: list[str]) -> None:
        for place in places:
            assert place in self.dirty, "reset for nothing, or twice"
            assert place not in self.attached
            assert [who for who, whose in self.touches if whose == place] == []
            self.dirty.discard(place)

    def check(self) -> None:
        """The bookkeeping knows who is attached, and nobody waits for a word that nobody will say."""
        assert {place for place in self.places if self.attachments.is_attached(place)} == self.attached
        for place in self.places:
            assert self.attachments.owes(place) == sum(who == place for who, _ in self.asked)
        for place in self.dirty:
            assert any(whose == place for _, whose in self.asked)
        if not self.dirty:
            for place in self.places:
                assert self.attachments.may_attach(place) == (place not in self.attached)


@pytest.mark.parametrize(("engines", "frontends"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_no_ring_is_reset_while_somebody_may_touch_it(engines: int, frontends: int) -> None:
    """In every state that can be reached; each death of an attached process is followed by one reset."""
    start = World(engines, frontends)
    seen = {start.state()}
    waiting = [start]
    what: Counter[str] = Counter()
    while waiting:
        world = waiting.pop()
        for event in world.events():
            after = deepcopy(world)
            what[after.happens(event)] += 1
            after.check()
            if after.state() not in seen:
                seen.add(after.state())
                waiting.append(after)
    assert what.keys() == {"attach", "let go", "died attached", "died unattached", "died attached and owed"}
    everybody = frozenset[object](start.places)
    assert any(state[0] == everybody and state[1] for state in seen)
    if engines + frontends > 2:
        assert any(len(state[2]) > 1 for state in seen), "two at once"


@pytest.fixture
def three() -> Attachments:
    """Two engines and a front end, attached."""
    attachments = Attachments(["e0", "e1"], ["f"])
    for place in ("e0", "e1", "f"):
        attachments.attach(place)
    return attachments


def test_an_engine_of_several_waits_for_the_front_ends_alone(three: Attachments) -> None:
    """The other engine has nothing to do with its rings."""
    assert three.died("e0") == Aftermath(["f"], [])
    assert three.owes("f") == 1
    assert not three.may_attach("e0")
    assert three.let_go("f", "e0") == ["e0"]
    assert three.may_attach("e0")


def test_a_front_end_waits_for_every_engine(three: Attachments) -> None:
    """For the last of them, and each is asked once."""
    assert three.died("f") == Aftermath(["e0", "e1"], [])
    assert three.let_go("e1", "f") == []
    assert not three.may_attach("f")
    assert three.let_go("e1", "f") == []
    assert three.let_go("e0", "f") == ["f"]


def test_a_death_settles_what_the_dead_one_owed(three: Attachments) -> None:
    """Its own rings are reset at once where nobody is left to touch them."""
    three.died("f")
    assert three.died("e0") == Aftermath([], ["e0"])
    assert three.died("e1") == Aftermath([], ["f", "e1"])


def test_nobody_attaches_to_rings_that_wait_for_a_reset(three: Attachments) -> None:
    """Those of a lost engine are those of every front end as well."""
    three.died("f")
    three.died("e0")
    assert not three.may_attach("e0"), "the partition of the front end is not reset"
    three.let_go("e1", "f")
    three.attach("e0")
    three.attach("f")
    with pytest.raises(AssertionError):
        three.attach("f")
