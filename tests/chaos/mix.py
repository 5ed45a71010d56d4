"""Single calls to the models of the zoo, and the account of how they ended.

Every call is checked on its own: it ends, in time, with a status that its kind may have, and an answer is
the right one.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from client import Client, PredictionError
from client.priority import Priority

MODELS = ("doubler", "touchy", "hollow")
OK, CANCELLED_HERE, HANG = "OK", "cancelled here", "HANG"
# Nobody told the client: it gave up by itself. A server that forgets a call looks like this.
SILENT = "DEADLINE_EXCEEDED without a word from the server"
# A call must have ended this long after its deadline.
GRACE_S = 2.0
# float32 logarithms of torch and numpy differ in the last places.
LOG_TOLERANCE = 1e-5
MAX_PROBLEMS = 20

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Call:
    """One call: what it sends and what may become of it.

    Attributes:
        allowed: beside OK; a bad call's own statuses.
        good: whether OK is allowed.
    """

    model: str
    x: Array
    priority: str
    timeout_s: float
    allowed: Set[str]
    good: bool = True

    def right(self, y: Array) -> bool:
        """Whether this is the answer."""
        if self.model == "hollow":
            return bool(np.allclose(y, np.log(self.x), rtol=LOG_TOLERANCE, atol=LOG_TOLERANCE))
        return bool(np.array_equal(y, 2 * self.x))


@dataclass
class Account:
    """What became of many calls."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def problem(self, text: str) -> None:
        """Notes one; the first few are enough to see what is wrong."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def add(self, other: "Account") -> None:
        """Enters what another one has."""
        self.statuses.update(other.statuses)
        for text in other.problems:
            self.problem(text)
        self.slowest_s = max(self.slowest_s, other.slowest_s)

    def to_message(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {"statuses": dict(self.statuses), "problems": self.problems, "slowest_s": self.slowest_s}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Account":
        """From what `to_message` gave."""
        return cls(Counter(message["statuses"]), message["problems"], message["slowest_s"])


async def run(client: Client, call: Call, account: Account, *, unary: bool) -> str:
    """Makes the call and enters its end; returns its status. Cancelling the task is an end too."""
    predict = client.predict_unary if unary else client.predict
    started_s = time.monotonic()
    status = CANCELLED_HERE
    try:
        async with asyncio.timeout(call.timeout_s + GRACE_S):
            answer = await predict(
                {"x": call.x}, model=call.model, priority=call.priority, timeout_s=call.timeout_s
            )
        status = OK
        if not call.good or not call.right(np.asarray(answer["y"], dtype=np.float32)):
            account.problem(f"{call.model} answered {answer['y']} to {call.x}")
    except PredictionError as error:
        status = f"{error.code.name} {error.reason}" if error.reason else error.code.name
        if status == "DEADLINE_EXCEEDED":
            status = SILENT
        if status not in call.allowed:
            account.problem(f"{call.model} ended {status}: {error.message}")
    except TimeoutError:
        status = HANG
        account.problem(f"{call.model}: no end {GRACE_S:g} s after the deadline")
    finally:
        account.statuses[status] += 1
        account.slowest_s = max(account.slowest_s, time.monotonic() - started_s)
    return status


def good_call(rng: random.Random, timeout_s: float, allowed: Set[str] = frozenset()) -> Call:
    """To any model, of any class, one to three rows; a right answer exists."""
    model = rng.choices(MODELS, (3, 1, 1))[0]
    return Call(model, _rows(rng, model), _priority(rng), timeout_s, allowed)


def bad_call(rng: random.Random, timeout_s: float) -> Call:
    """Rows that a model raises on, or that it answers with NaN."""
    model = rng.choice(("touchy", "hollow"))
    x = _rows(rng, model)
    x[rng.randrange(len(x))] = 2000 if model == "touchy" else -1
    # A repeated offender is told MODEL_ERROR, whatever it was the first time.
    return Call(
        model,
        x,
        _priority(rng),
        timeout_s,
        frozenset({"INTERNAL MODEL_ERROR", "INTERNAL NON_FINITE_OUTPUT"}),
        good=False,
    )


def _rows(rng: random.Random, model: str) -> Array:
    shape = (rng.randint(1, 3), 1 if model == "hollow" else 4)
    values = np.random.default_rng(rng.getrandbits(32)).uniform(0.5, 200, shape)
    return values.astype(np.float32)


def _priority(rng: random.Random) -> str:
    return rng.choice(list(Priority)).name.lower()
