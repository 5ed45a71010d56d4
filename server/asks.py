"""What a front end asks of the supervisor for a caller, and how a refusal crosses the control socket."""

from collections.abc import Awaitable, Callable

from scheduler.errors import RequestError, Unavailable, UnknownModel
from server import control
from server.administration import Administration, CannotLoad, CannotUnload
from server.admission import DRAIN_RETRY_S

LOAD, UNLOAD = "load", "unload"
# By name, what the other side may raise and this side raises again, from a text and a reason.
_REFUSALS: dict[str, Callable[[str, str], RequestError]] = {
    "UnknownModel": lambda text, reason: UnknownModel(text, reason=reason),
    "CannotLoad": lambda text, _: CannotLoad(text),
    "CannotUnload": lambda text, _: CannotUnload(text),
}


async def answer(administration: Administration, message: control.Message) -> control.Message:
    """In the supervisor: does what was asked; the answer is empty, or says what it was refused with."""
    act: Callable[[str, int | None, str], Awaitable[None]] = (
        administration.load_model if message["what"] == LOAD else administration.unload_model
    )
    try:
        await act(message["model"], None, message["author"])
    except RequestError as error:
        name = type(error).__name__
        return {"refusal": name, "text": str(error), "reason": getattr(error, "reason", name)}
    return {}


def check(answered: control.Message) -> None:
    """In the front end. Raises what the answer says."""
    if "refusal" not in answered:
        return
    text, reason = answered["text"], answered["reason"]
    make = _REFUSALS.get(answered["refusal"])
    if make is None:
        raise Unavailable(text, reason=reason, retry_after_s=DRAIN_RETRY_S)
    raise make(text, reason)
