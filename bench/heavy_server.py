"""Servers with the heavy model of `heavy_model`: one front end, one instance of one thread."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import heavy_model
from bench.server_process import ServerProcess

# A server can do what one core does, so that what it does not do is the scheduler's choice; and nothing
# but the scheduler's limits holds back what a load process offers.
SETTINGS = {
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_SERVER__MAX_IN_FLIGHT_PER_STREAM": "4096",
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": str(heavy_model.BUCKETS[-1]),
    "TICKRING_EXECUTOR__INSTANCES": "1",
    "TICKRING_EXECUTOR__CPU_THREADS": "1",
}


@contextlib.contextmanager
def serving(
    variants: Mapping[str, Mapping[str, str]], row_ms: float = heavy_model.ROW_MS
) -> Iterator[dict[str, ServerProcess]]:
    """One server for each set of settings, all of one model; idle ones cost the others nothing."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tickring-bench-"))
        models = heavy_model.build(Path(folder), row_ms)
        yield {
            name: stack.enter_context(ServerProcess({**SETTINGS, **settings}, ("--models", str(models))))
            for name, settings in variants.items()
        }
