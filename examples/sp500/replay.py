"""Stream twenty years of S&P 500 history through a running server, as a trading engine would.

    python -m examples.sp500.replay --target 127.0.0.1:8001 --in-flight 16

One request per trading day, in date order, a few in flight at a time, all over one RPC stream. Then the
last predictions beside what the market did, and where the time went.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from client import Client, PredictionError
from examples.sp500.features import CLASS_NAMES, Windows, load_history, make_windows
from examples.sp500.split import split_by_date

MODEL = "sp500_direction"
PRIORITY = "real_time_trading"
PREDICTION_TIMEOUT_S = 1.0
PROGRESS_EVERY = 32
"""Answers per update of the progress bar: it shares the cores with the server."""

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What the server said of each window, in the order of the windows.

    `probs` float32 `[n, 3]`; `mean_pct` and `uncertainty_pct` float32 `[n]`; the times int64 `[n]`, of which
    `round_trip_ns` is this process's own; `batch_size` `[n]`; `wall_s` from first request to last answer.
    """

    probs: npt.NDArray[np.float32]
    mean_pct: npt.NDArray[np.float32]
    uncertainty_pct: npt.NDArray[np.float32]
    queue_wait_ns: Nanoseconds
    compute_ns: Nanoseconds
    round_trip_ns: Nanoseconds
    batch_size: npt.NDArray[np.int64]
    wall_s: float


async def stream_history(
    client: Client, windows: npt.NDArray[np.float32], in_flight: int, on_progress: Callable[[int], None]
) -> Answers:
    """Ask for every window `[n, 50, 60]` in order, with `in_flight` outstanding.

    `on_progress` is told how many are answered so far. Raises the first `PredictionError`; no request is
    left behind then.
    """
    n = len(windows)
    probs = np.empty((n, len(CLASS_NAMES)), dtype=np.float32)
    mean_pct, uncertainty_pct = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    queue_wait_ns, compute_ns, round_trip_ns, batch_size = np.zeros((4, n), dtype=np.int64)
    days = iter(range(n))
    answered = 0

    async def one_after_the_other() -> None:
        nonlocal answered
        # All workers draw from one iterator, so requests start in date order.
        for day in days:
            start_ns = time.perf_counter_ns()
            prediction = await client.predict(
                {"window": windows[day : day + 1]},
                model=MODEL,
                priority=PRIORITY,
                timeout_s=PREDICTION_TIMEOUT_S,
            )
            round_trip_ns[day] = time.perf_counter_ns() - start_ns
            probs[day] = prediction["classification_probs"][0]
            mean_pct[day] = prediction["regression_mean"][0, 0]
            uncertainty_pct[day] = prediction["regression_uncertainty"][0, 0]
            queue_wait_ns[day] = prediction.timing.queue_wait_ns
            compute_ns[day] = prediction.timing.compute_ns
            batch_size[day] = prediction.timing.batch_size
            answered += 1
            if answered % PROGRESS_EVERY == 0 or answered == n:
                on_progress(answered)

    begin = time.perf_counter()
    workers = [asyncio.create_task(one_after_the_other()) for _ in range(min(in_flight, n))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return Answers(
        probs=probs,
        mean_pct=mean_pct,
        uncertainty_pct=uncertainty_pct,
        queue_wait_ns=queue_wait_ns,
        compute_ns=compute_ns,
        round_trip_ns=round_trip_ns,
        batch_size=batch_size,
        wall_s=time.perf_counter() - begin,
    )


def predictions_table(windows: Windows, answers: Answers, last: int) -> Table:
    """The last predictions, one line per day, beside what the day brought."""
    table = Table(title=f"The last {last} predictions, and what the market did")
    table.add_column("trading day")
    for name in CLASS_NAMES:
        table.add_column(name, justify="right")
    table.add_column("expected move, %", justify="right")
    table.add_column("actual move, %", justify="right")
    table.add_column("was")
    for day in range(max(0, len(answers.probs) - last), len(answers.probs)):
        table.add_row(
            str(windows.target_dates[day]),
            *(f"{probability:.0%}" for probability in answers.probs[day]),
            f"{answers.mean_pct[day]:+.2f} ± {answers.uncertainty_pct[day]:.2f}",
            f"{windows.target_pct[day]:+.2f}",
            CLASS_NAMES[windows.target_class[day]],
        )
    return table


def timings_table(answers: Answers) -> Table:
    """p50, p99 and maximum of where the time went, in milliseconds, from every single request."""
    table = Table(title="Where the time went, ms")
    table.add_column("")
    for name in ("p50", "p99", "max"):
        table.add_column(name, justify="right")
    for label, times_ns in (
        ("queue wait", answers.queue_wait_ns),
        ("compute", answers.compute_ns),
        ("round trip", answers.round_trip_ns),
    ):
        p50, p99, highest = np.percentile(times_ns, [50, 99, 100]) / 1e6
        table.add_row(label, f"{p50:.3f}", f"{p99:.3f}", f"{highest:.3f}")
    return table


def verdict(windows: Windows, answers: Answers) -> str:
    """One sentence on the days that the model has not been trained on."""
    test = split_by_date(windows).test
    classes = windows.target_class[test]
    right = float((answers.probs[test].argmax(axis=1) == classes).mean())
    commonest = float(np.bincount(classes, minlength=3).max() / len(classes))
    return (
        f"On the {len(test)} days never trained on the likeliest class was right {right:.1%} of the time; "
        f"always naming the commonest of them in hindsight: {commonest:.1%}. A demo, not a signal."
    )


async def replay(
    windows: Windows, target: str, in_flight: int, last: int, ready_timeout_s: float, console: Console
) -> Answers:
    """Wait for the server at `target`, stream everything, print the tables.

    Raises `PredictionError` if the server is not ready in time or a prediction fails.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    async with Client(target) as client:
        await client.wait_ready(timeout_s=ready_timeout_s)
        # What is alive now stays alive: a full collection in the middle would show as a slow request.
        gc.freeze()
        with progress:
            bar = progress.add_task("replaying", total=len(windows.windows))

            def on_progress(done: int) -> None:
                progress.update(bar, completed=done, description=str(windows.target_dates[done - 1]))

            answers = await stream_history(client, windows.windows, in_flight, on_progress)
    console.print(predictions_table(windows, answers, last))
    console.print(timings_table(answers))
    console.print(
        f"{len(answers.probs):,} windows in {answers.wall_s:.2f} s with {in_flight} in flight: "
        f"{len(answers.probs) / answers.wall_s:,.0f} per second, {answers.batch_size.mean():.1f} to a batch. "
        f"With more than one in flight a round trip includes waiting for one's own neighbours."
    )
    console.print(verdict(windows, answers))
    return answers


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the server could not be reached or a prediction failed, 2 misuse."""
    parser = argparse.ArgumentParser(description="Replay S&P 500 history through a tickring server.")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of the server's gRPC")
    parser.add_argument("--in-flight", type=_positive, default=16, help="requests outstanding at a time")
    parser.add_argument("--last", type=_positive, default=10, help="predictions to print")
    parser.add_argument("--ready-timeout-s", type=float, default=10.0, help="how long to wait for the server")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(
            replay(
                make_windows(load_history()),
                options.target,
                options.in_flight,
                options.last,
                options.ready_timeout_s,
                Console(),
            )
        )
    except PredictionError as error:
        # One line, whatever the status text holds.
        print(f"replay: {options.target}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
