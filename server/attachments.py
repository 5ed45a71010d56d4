"""Who may touch which rings, and when they can be reset: the bookkeeping of the supervisor, without any I/O.

A place is where a front end or an engine lives, one process after the other. Between each front end and
each engine are rings that both touch while they are attached. So when a process dies, every attached process
of the other kind still has something in the rings of that place: it owes a word that it has let go of them.
A death settles whatever the dead one owed. Once nobody owes it any more, the rings of the place are reset,
and its next process may attach.

    a front end died   each attached engine drops what that one queued, ends its batches, and lets go
    an engine died     each attached front end ends what it had there, pushes no more, and lets go
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What to do after a death, in this order.

    Attributes:
        ask: places whose processes have to let go of the rings of the dead one's.
        reset: places whose rings nobody can touch any more.
    """

    ask: Sequence[str]
    reset: Sequence[str]


class Attachments:
    """Front ends and engines by the names of their places."""

    def __init__(self, engines: Sequence[str], frontends: Sequence[str]) -> None:
        self._others = dict.fromkeys(engines, frontends) | dict.fromkeys(frontends, engines)
        self._attached: set[str] = set()
        # By place that waits for its reset: those who have not let go of its rings. Never an empty set.
        self._owing: dict[str, set[str]] = {}

    def is_attached(self, place: str) -> bool:
        """Whether the process in this place may touch its rings."""
        return place in self._attached

    def may_attach(self, place: str) -> bool:
        """Whether the rings of this place are clean, and those to which they lead wait for no reset.

        Those are the same rings: a reset must not find somebody new in them.
        """
        return not (
            place in self._attached
            or place in self._owing
            or any(other in self._owing for other in self._others[place])
        )

    def attach(self, place: str) -> None:
        """Its process has been told that it may touch its rings."""
        assert self.may_attach(place), place
        self._attached.add(place)

    def died(self, place: str) -> Aftermath:
        """The process in this place is gone, attached or not."""
        reset = [gone for gone in list(self._owing) if self._settle(place, gone)]
        if place not in self._attached:
            return Aftermath((), reset)
        self._attached.discard(place)
        ask = [other for other in self._others[place] if other in self._attached]
        if ask:
            self._owing[place] = set(ask)
        else:
            reset.append(place)
        return Aftermath(ask, reset)

    def let_go(self, place: str, gone: str) -> Sequence[str]:
        """The process in `place` has let go of the rings of `gone`; the places to reset now."""
        return [gone] if self._settle(place, gone) else []

    def owes(self, place: str) -> int:
        """For how many others' rings the word of this place is awaited."""
        return sum(place in owing for owing in self._owing.values())

    def _settle(self, place: str, gone: str) -> bool:
        """Whether that was the last who owed it."""
        owing = self._owing.get(gone, set())
        if place not in owing:
            return False
        owing.discard(place)
        if owing:
            return False
        del self._owing[gone]
        return True
