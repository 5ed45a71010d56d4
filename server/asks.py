"""What a front end asks of the supervisor for a caller, and how a refusal crosses the control socket."""

from collections.abc import Awaitable, Callable

from scheduler.errors import RequestError, Unavailable, UnknownModel
from server import control
from server.administration import Administration, CannotLoad, CannotUnload

LOAD, UNLOAD = "load", "unload"
# By name, what the other side may raise and this side raises again.
_REFUSALS: dict[str, Callable[[str], RequestError]] = {
    "UnknownModel": UnknownModel,
    "CannotLoad": CannotLoad,
    "CannotUnload": CannotUnload,
}


async def answer(administration: Administration, message: control.Message) -> control.Message:
    """In the supervisor: does what was asked; the answer is empty, or says what it was refused with."""
    act: Callable[[str, int | None, str], Awaitable[None]] = (
        administration.load_model if message["what"] == LOAD else administration.unload_model
    )
    try:
        await act(message["model"], None, message["author"])
    except RequestError as error:
        return {"refusal": type(error).__name__, "text": str(error)}
    return {}


def check(answered: control.Message) -> None:
    """In the front end. Raises what the answer says."""
    if "refusal" not in answered:
        return
    make = _REFUSALS.get(answered["refusal"])
    if make is None:
        raise Unavailable(answered["text"], reason=answered["refusal"], retry_after_s=1.0)
    raise make(answered["text"])
