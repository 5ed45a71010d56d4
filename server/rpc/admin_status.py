"""The books and reports of the service as tickring.v1 tells them."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict

from tickring.v1 import admin_pb2

_NS_PER_US = 1_000
_NS_PER_MS = 1_000_000
# What has the same name in the books and in the message.
_FRONTEND = ("name", "admitted", "undelivered", "corrupt", "slots_free")
_ENGINE = (
    "name",
    "device",
    "ready",
    "readings",
    "taken",
    "completed",
    "lost",
    "discarded",
    "batches",
    "corrupt",
    "waiting",
)


def status_message(
    books: Mapping[str, Any], report: Mapping[str, Any], *, settings_version: int, uptime_ns: int
) -> admin_pb2.GetStatusResponse:
    """`books`: see `server.books.books`; `report`: fields of the message, with classes by their labels."""
    restarts = books["restarts"]
    message = admin_pb2.GetStatusResponse(
        uptime_ns=uptime_ns,
        settings_version=settings_version,
        frontends=[_frontend(entry, restarts) for entry in books["frontends"]],
        engines=[_engine(entry, restarts) for entry in books["engines"]],
    )
    ParseDict(_with_priorities(report), message)
    return message


def _with_priorities(value: Any) -> Any:
    """The same with each `priority` as the enum names it."""
    if isinstance(value, Mapping):
        return {
            name: f"PRIORITY_{inside.upper()}" if name == "priority" else _with_priorities(inside)
            for name, inside in value.items()
        }
    return [_with_priorities(each) for each in value] if isinstance(value, list) else value


def _frontend(entry: Mapping[str, Any], restarts: Mapping[str, int]) -> admin_pb2.FrontendStatus:
    return admin_pb2.FrontendStatus(
        restarts=restarts[entry["name"]],
        ended=admin_pb2.EndedItems(**entry["ended"]),
        # Nothing stops while it is counted: what ends meanwhile may not be among the admitted yet.
        open=max(0, entry["open"]),
        **{name: entry[name] for name in _FRONTEND},
    )


def _engine(entry: Mapping[str, Any], restarts: Mapping[str, int]) -> admin_pb2.EngineStatus:
    return admin_pb2.EngineStatus(
        restarts=restarts[entry["name"]],
        models=[_model(model) for model in entry["models"]],
        **{name: entry[name] for name in _ENGINE},
    )


def _model(entry: Mapping[str, Any]) -> admin_pb2.EngineModelStatus:
    return admin_pb2.EngineModelStatus(
        model_name=entry["name"],
        model_version=str(entry["version"]),
        queued=[
            admin_pb2.QueuedItems(priority=f"PRIORITY_{label.upper()}", items=items)
            for label, items in entry["queued"].items()
        ],
        target_size=entry["target_batch"],
        item_ns=round(entry["item_us"] * _NS_PER_US),
        latency=[
            admin_pb2.BucketLatency(
                bucket=int(bucket),
                median_ns=round(latency["median"] * _NS_PER_MS),
                high_ns=round(latency["high"] * _NS_PER_MS),
            )
            for bucket, latency in entry["latency_ms"].items()
        ],
    )
