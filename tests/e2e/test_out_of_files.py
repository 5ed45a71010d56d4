"""A service whose supervisor can open no more files when one of its processes dies."""

import asyncio
import os
import resource
import signal
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import Ending, request, tensor, unary
from tests.e2e.conftest import Launch


@pytest.mark.parametrize(("child", "back"), [("frontend-0", "front end"), ("engine-0", "engine")])
def test_child_is_started_once_files_are_to_be_had_again(
    launch: Launch, tmp_path: Path, child: str, back: str
) -> None:
    """Until then it is tried again and again, and the log says why that fails."""
    service = launch(
        "--models", str(zoo.build(tmp_path, "doubler")), settings={"TICKRING_SERVER__FRONTENDS": "1"}
    ).ready()
    before = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    os.kill(service.pid(child), signal.SIGKILL)
    for _ in range(2):
        service.wait_for(
            "child cannot be started", after=len(service.logged()), child=child, error="Too many open files"
        )
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, before)
    service.wait_for(f"{back} serves again", child=child)

    async def call() -> Ending:
        async with grpc.aio.insecure_channel(service.target) as channel:
            return await unary(channel, request("doubler", tensor("x", [[1.0] * 4])))

    assert asyncio.run(call()).code is grpc.StatusCode.OK
    service.stop()
