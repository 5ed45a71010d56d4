"""One line of what went wrong, for messages of ours: torch's own run over many."""


def first_line(error: BaseException) -> str:
    """The first line, or the type's name where there is no text."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last line: TorchScript puts its own trace above what the model raised."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
