"""The check of the books finds what it is for."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos.books import imbalances

SLOTS = 8
BALANCED: Mapping[str, Any] = {
    "frontends": [
        {
            "name": "frontend-0",
            "admitted": 5,
            "ended": {"result": 3, "cancelled": 1, "lost": 1},
            "open": 0,
            "undelivered": 0,
            "slots_free": SLOTS,
            "corrupt": 0,
        }
    ],
    "engines": [
        {
            "name": "engine-0",
            "taken": 4,
            "completed": 3,
            "lost": 1,
            "waiting": 0,
            "corrupt": 0,
            "models": [{"name": "doubler", "queued": {"real_time_trading": 0}}],
        }
    ],
}


def test_balanced_books_have_no_problems() -> None:
    """Nor has a service without anything."""
    assert imbalances(BALANCED, SLOTS) == []
    assert imbalances({"frontends": [], "engines": []}, SLOTS) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("frontends", 0, "open"), 1, "frontend-0: open is 1, expected 0"),
        (("frontends", 0, "admitted"), 6, "frontend-0: admitted is 6, expected 5"),
        (("frontends", 0, "ended", "lost"), 0, "frontend-0: admitted is 5, expected 4"),
        (("frontends", 0, "slots_free"), 7, "frontend-0: slots_free is 7, expected 8"),
        (("frontends", 0, "undelivered"), 1, "frontend-0: undelivered is 1, expected 0"),
        (("frontends", 0, "corrupt"), 1, "frontend-0: corrupt is 1, expected 0"),
        (("engines", 0, "waiting"), 2, "engine-0: waiting is 2, expected 0"),
        (("engines", 0, "lost"), 0, "engine-0: taken is 4, expected 3"),
        (("engines", 0, "corrupt"), 3, "engine-0: corrupt is 3, expected 0"),
        (
            ("engines", 0, "models", 0, "queued", "real_time_trading"),
            1,
            "engine-0: 1 of real_time_trading queued for doubler",
        ),
    ],
)
def test_what_does_not_add_up_is_named(path: tuple[Any, ...], value: int, problem: str) -> None:
    """One number at a time."""
    books = copy.deepcopy(dict(BALANCED))
    place: Any = books
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert imbalances(books, SLOTS) == [problem]
