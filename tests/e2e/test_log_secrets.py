"""Neither the log of a whole run nor its traces hold a token or what callers have sent as data."""

import asyncio
import base64
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import exchange, request, streamed, unary
from tests.e2e.collector import Collector
from tests.e2e.conftest import Launch
from tests.e2e.service import Service
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
TOKEN, WRONG, REVOKED = "tr_known_8tP2mZ", "tr_wrong_5xK9qL", "tr_gone_3hV7nB"
# Floats like any other, and text that would be seen wherever it is written: 4 times 4 bytes.
PAYLOAD = b"PAY1LOA2SEC3RET4"
POISON = b"GoldGoldGoldGold"  # of which the sum is over 1000, so that the model raises
OTHER_METADATA = "metadata_6rW1cD"
COLLECTORS_TOKEN = "collectors_2fJ4sX"


def bearer(token: str) -> list[tuple[str, str]]:
    """As a caller shows it, in a trace of its own, with something that is nobody's business."""
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    return [("authorization", f"Bearer {token}"), ("traceparent", parent), ("x-own", OTHER_METADATA)]


def touchy(data: bytes, **fields: Any) -> inference_pb2.PredictRequest:
    """A request with these bytes."""
    tensor = types_pb2.Tensor(name="x", data_type=types_pb2.DATA_TYPE_FP32, shape=[1, 4], data=data)
    return request("touchy", tensor, **fields)


@pytest.fixture
def collector() -> Iterator[Collector]:
    it = Collector()
    yield it
    it.stop()


@pytest.fixture
def service(launch: Launch, tmp_path: Path, collector: Collector) -> Service:
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    gone = hashlib.sha256(REVOKED.encode()).hexdigest()
    tokens.write_text(
        f'[tokens.engine]\nroles = ["predict"]\nsha256 = "{digest}"\n'
        f'[tokens.old]\nroles = ["predict"]\nsha256 = "{gone}"\nexpires = 1970-01-01T00:00:00Z\n'
    )
    settings = zoo.SETTINGS | {
        "TICKRING_AUTH__TOKENS_FILE": str(tokens),
        "TICKRING_TELEMETRY__OTLP_ENDPOINT": collector.endpoint,
        "TICKRING_TELEMETRY__TRACE_SAMPLE_RATIO": "1",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={COLLECTORS_TOKEN}",
    }
    return launch("--models", str(zoo.build(tmp_path / "zoo", "touchy")), settings=settings).ready()


async def test_log_and_traces_hold_no_token_and_no_payload(service: Service, collector: Collector) -> None:
    """Of calls that are answered, refused for several reasons, and cut off by a death; at level debug."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        asked: list[tuple[inference_pb2.PredictRequest | bytes, str]] = [
            (touchy(PAYLOAD), TOKEN),
            (touchy(POISON), TOKEN),
            (touchy(PAYLOAD), WRONG),
            (touchy(PAYLOAD), REVOKED),
            (touchy(PAYLOAD + b"!"), TOKEN),
            (PAYLOAD * 2, TOKEN),
        ]
        codes = [(await unary(channel, message, metadata=bearer(token))).code for message, token in asked]
        assert codes == [
            Code.OK,
            Code.INTERNAL,
            Code.UNAUTHENTICATED,
            Code.UNAUTHENTICATED,
            Code.INVALID_ARGUMENT,
            Code.INVALID_ARGUMENT,
        ]
        answers, _ = await exchange(
            channel, streamed(1, touchy(PAYLOAD)), PAYLOAD * 2, metadata=bearer(TOKEN)
        )
        assert len(answers) == 2
        infer = kserve.ModelInferRequest(
            model_name="touchy",
            inputs=[kserve.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])],
            raw_input_contents=[PAYLOAD],
        )
        method = "/inference.GRPCInferenceService/ModelInfer"
        ending = await unary(channel, infer.SerializeToString(), method=method, metadata=bearer(TOKEN))
        assert ending.code is Code.OK

        lines = len(service.logged())
        with service.paused("engine-0"):
            waiting = asyncio.create_task(unary(channel, touchy(PAYLOAD), metadata=bearer(TOKEN)))
            await asyncio.wait([waiting], timeout=0.5)  # where it has got to by then is all the same
            os.kill(service.pid("engine-0"), signal.SIGKILL)
            await waiting
        await asyncio.to_thread(service.wait_for, "engine serves again", after=lines)
        service.signal(signal.SIGHUP)
        await asyncio.to_thread(service.wait_for, "settings reloaded")
    await asyncio.to_thread(collector.wait_for, "batch")
    service.stop()

    refused = service.wait_for("call refused")
    assert refused["trace_id"] == "ab" * 16
    log, spans = service.output(), repr(collector.spans())
    assert "touchy" in log
    assert "touchy" in spans
    for name, text in (("log", log), ("spans", spans)):
        assert [secret for secret in SECRETS if secret in text] == [], name
    order = [line["event"] for line in service.logged() if line["event"] in EVENTS]
    assert order == list(EVENTS)


def forms(data: bytes) -> Iterator[str]:
    """How bytes may appear in a log."""
    yield data.decode()
    yield data.hex()
    yield base64.b64encode(data).decode().rstrip("=")
    yield " ".join(f"{byte:02x}" for byte in data)
    yield ", ".join(str(byte) for byte in data)


SECRETS = [
    *(TOKEN, WRONG, REVOKED, OTHER_METADATA, COLLECTORS_TOKEN),
    *(hashlib.sha256(token.encode()).hexdigest() for token in (TOKEN, WRONG, REVOKED)),
    *(form for data in (PAYLOAD, POISON) for form in forms(data)),
]
# One line for each start, death, recovery, reload and end.
EVENTS = (
    "ready",
    "child died",
    "engine serves again",
    "settings reloaded",
    "draining",
    "stopped",
)
