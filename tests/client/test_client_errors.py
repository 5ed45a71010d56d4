"""Every form of a status becomes the same error."""

import pickle

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

import client as api
from client import Client, PredictionError
from client.errors import from_rpc_error, from_status

TABLE = {
    "INVALID_ARGUMENT": api.InvalidRequest,
    "NOT_FOUND": api.NotFound,
    "FAILED_PRECONDITION": api.NotReady,
    "RESOURCE_EXHAUSTED": api.Overloaded,
    "DEADLINE_EXCEEDED": api.DeadlineExceeded,
    "CANCELLED": api.Cancelled,
    "INTERNAL": api.ModelFailed,
    "ABORTED": api.SettingsChanged,
    "UNAUTHENTICATED": api.Unauthenticated,
    "PERMISSION_DENIED": api.PermissionDenied,
    "UNIMPLEMENTED": PredictionError,
}


@pytest.mark.parametrize("method", ["predict", "predict_unary"])
@pytest.mark.parametrize(("code", "raised"), TABLE.items())
async def test_the_table_of_errors(
    client: Client, method: str, code: str, raised: type[PredictionError]
) -> None:
    """One class per row, with field, reason and retry delay, from a trailer as from a stream message."""
    with pytest.raises(PredictionError) as caught:
        await getattr(client, method)({}, model="status", routing_key=code)
    error = caught.value
    assert type(error) is raised
    assert error.code is grpc.StatusCode[code]
    assert error.message == f"scripted {code}"
    assert (error.field, error.reason, error.retry_after_s) == ("inputs[0].shape", "SCRIPTED", 1.5)
    assert str(error) == f"{code}: scripted {code}"


def test_unavailable_has_its_class() -> None:
    """Kept out of the table above, where it would be retried."""
    error = from_status(status_pb2.Status(code=14, message="draining"))
    assert type(error) is api.Unavailable
    assert (error.field, error.reason, error.retry_after_s) == (None, None, None)


def test_internal_without_reason_is_not_blamed_on_the_model() -> None:
    """Proxies and transports say INTERNAL too."""
    assert type(from_status(status_pb2.Status(code=13))) is PredictionError


def test_an_unknown_code_is_unknown() -> None:
    """A code that gRPC does not know does not raise something else."""
    assert from_status(status_pb2.Status(code=99)).code is grpc.StatusCode.UNKNOWN


def test_garbled_details_leave_the_status() -> None:
    """A detail that does not parse costs the details, not the status."""
    garbled = Any(
        type_url=f"type.googleapis.com/{error_details_pb2.ErrorInfo.DESCRIPTOR.full_name}", value=b"\xff"
    )
    error = from_status(status_pb2.Status(code=5, message="no model", details=[garbled]))
    assert type(error) is api.NotFound
    assert error.reason is None


@pytest.mark.parametrize("trailer", [b"\xff", status_pb2.Status(code=3, message="else").SerializeToString()])
def test_a_contradicting_trailer_leaves_the_status(trailer: bytes) -> None:
    """A trailer that does not parse, or belongs to another status, is not believed."""
    rpc_error = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", trailer)),
        "no model",
        None,
    )
    error = from_rpc_error(rpc_error)
    assert (type(error), error.message) == (api.NotFound, "no model")


def test_errors_survive_pickling() -> None:
    """A worker process can hand its error to its parent."""
    error = api.Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", None, 0.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is api.Overloaded
    assert vars(copy) == vars(error)


def test_bad_input_is_a_value_error() -> None:
    """Callers who do not know the class still catch it."""
    assert issubclass(api.InvalidRequest, ValueError)
