"""The expected ends of a request other than a result.

Each is told to the caller of that one request and disturbs nobody else. `server/status.py` maps them
to gRPC. Anything else that is raised is a bug.
"""


class RequestError(Exception):
    """A request that ends without a result, for a reason its caller should hear."""


class InvalidRequest(RequestError):
    """The request itself is wrong; sending it again unchanged is pointless."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class UnknownModel(RequestError):
    """No such model or version."""

    def __init__(self, message: str, *, reason: str = "MODEL_NOT_FOUND") -> None:
        super().__init__(message)
        self.reason = reason


class ModelNotReady(RequestError):
    """The model is known but is still loading or warming up."""


class Overloaded(RequestError):
    """A bounded resource is used up; `subject` names it."""

    def __init__(self, subject: str, description: str, retry_after_s: float) -> None:
        super().__init__(description)
        self.subject = subject
        self.retry_after_s = retry_after_s


class DeadlineMissed(RequestError):
    """The deadline passed, or cannot be met. `reason`: EXPIRED_IN_QUEUE or DEADLINE_UNREACHABLE."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestCancelled(RequestError):
    """The caller left."""


class Unavailable(RequestError):
    """The service cannot answer now but will soon; trying again is safe."""

    def __init__(self, message: str, *, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ModelFailed(RequestError):
    """The model raised on this item, or answered NaN or Inf. `reason`: MODEL_ERROR or NON_FINITE_OUTPUT."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
