"""What a front end asks of the supervisor, and how a refusal comes back across the control socket."""

import json

import pytest

from scheduler.errors import Overloaded, RequestError, Unavailable, UnknownModel
from server import asks, control
from server.administration import CannotLoad, CannotUnload
from server.status import code_of, to_status
from tests.server.admin_world import Scripted


class Refusing(Scripted):
    """Refuses everything with this."""

    def __init__(self, error: RequestError) -> None:
        super().__init__()
        self._error = error

    async def load_model(self, name: str, version: int | None, author: str) -> None:
        raise self._error


def asking(what: str, model: str = "pair") -> control.Message:
    """As a front end sends it."""
    return {"type": "ask", "number": 3, "what": what, "model": model, "author": "tester"}


async def crossed(administration: Scripted, message: control.Message) -> control.Message:
    """The answer as it arrives on the other side."""
    answer: control.Message = json.loads(json.dumps(await asks.answer(administration, message)))
    return {**answer, "type": "answer", "number": message["number"]}


async def test_models_are_loaded_and_unloaded() -> None:
    """As a whole: this protocol names no versions. Who asks is passed on."""
    administration = Scripted()
    administration.loaded["slow"] = (3,)  # the last model stays
    for what in (asks.LOAD, asks.UNLOAD):
        asks.check(await crossed(administration, asking(what)))
    assert administration.calls == [("load", "pair", None, "tester"), ("unload", "pair", None, "tester")]


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("no model 'pair'; models are none"),
        UnknownModel("no version 3 of pair", reason="VERSION_NOT_FOUND"),
        CannotLoad("pair/1/model.pt: is missing"),
        CannotUnload("version 1 of pair is its stable version, by its manifest"),
        Unavailable("the server is draining", reason="DRAINING", retry_after_s=1.0),
    ],
)
async def test_a_refusal_is_the_same_on_both_sides(error: RequestError) -> None:
    """To whoever called the front end it looks as if the supervisor had answered: code, text and details."""
    answer = await crossed(Refusing(error), asking(asks.LOAD))
    with pytest.raises(type(error)) as raised:
        asks.check(answer)
    assert (code_of(raised.value), to_status(raised.value)) == (code_of(error), to_status(error))


async def test_a_refusal_that_nobody_has_thought_of() -> None:
    """Is no bug of the front end's: the caller is told, and may come back."""
    answer = await crossed(Refusing(Overloaded("x", "no more today", 3.0)), asking(asks.LOAD))
    with pytest.raises(Unavailable, match=r"^no more today$") as raised:
        asks.check(answer)
    assert raised.value.reason == "Overloaded"


async def test_a_bug_is_no_refusal() -> None:
    """It is not told to callers as if it were one of theirs."""
    with pytest.raises(KeyError):
        await asks.answer(Scripted(), {"what": asks.LOAD})
