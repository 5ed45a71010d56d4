"""From the messages of the admin port to plain values."""

from dataclasses import fields

from google.protobuf.descriptor import EnumDescriptor

from client.admin_info import (
    BucketLatency,
    EngineModelStatus,
    EngineStatus,
    FrontendStatus,
    ServerStatus,
    SettingInfo,
    SettingsInfo,
)
from client.status_codec import label_of, read
from client.status_info import Activity, DeepHealth, SloReport
from tickring.v1 import admin_pb2

_EFFECT_PREFIX = "SETTING_EFFECT_"
# What is the same in message and dataclass.
_FRONTEND = tuple(field.name for field in fields(FrontendStatus) if field.name != "ended")
_ENGINE = tuple(field.name for field in fields(EngineStatus) if field.name not in ("readings", "models"))


def read_settings(answer: admin_pb2.GetSettingsResponse) -> SettingsInfo:
    """All settings, in the server's order."""
    return SettingsInfo(
        answer.version,
        answer.profile,
        tuple(
            SettingInfo(
                setting.path,
                setting.value,
                setting.origin,
                _name(admin_pb2.SettingEffect.DESCRIPTOR, setting.effect, _EFFECT_PREFIX),
            )
            for setting in answer.settings
        ),
    )


def read_status(answer: admin_pb2.GetStatusResponse) -> ServerStatus:
    """Every process, in the server's order."""
    return ServerStatus(
        answer.uptime_ns,
        answer.settings_version,
        tuple(map(_frontend, answer.frontends)),
        tuple(map(_engine, answer.engines)),
        answer.state,
        answer.profile,
        tuple(read(Activity, activity) for activity in answer.activity),
        dict(sorted(answer.readings.items())),
        read(SloReport, answer.slo),
        read(DeepHealth, answer.health) if answer.HasField("health") else None,
    )


def _frontend(message: admin_pb2.FrontendStatus) -> FrontendStatus:
    ended = {field.name: getattr(message.ended, field.name) for field in message.ended.DESCRIPTOR.fields}
    return FrontendStatus(ended=ended, **{name: getattr(message, name) for name in _FRONTEND})


def _engine(message: admin_pb2.EngineStatus) -> EngineStatus:
    return EngineStatus(
        readings=dict(sorted(message.readings.items())),
        models=tuple(map(_model, message.models)),
        **{name: getattr(message, name) for name in _ENGINE},
    )


def _model(message: admin_pb2.EngineModelStatus) -> EngineModelStatus:
    return EngineModelStatus(
        model_name=message.model_name,
        model_version=message.model_version,
        queued={label_of(queue.priority): queue.items for queue in message.queued},
        target_size=message.target_size,
        item_ns=message.item_ns,
        latency=tuple(
            BucketLatency(bucket.bucket, bucket.median_ns, bucket.high_ns) for bucket in message.latency
        ),
    )


def _name(enum: EnumDescriptor, number: int, prefix: str) -> str:
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix)  # a newer server's
