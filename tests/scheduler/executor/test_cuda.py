"""CUDA instances, driven through a fake that does nothing before it is waited for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from scheduler.executor.runner import Array
from tests.scheduler.executor.cuda_passage import CudaPassage, check, rows, scaled
from tests.scheduler.executor.fake_cuda import (
    AcceleratorError,
)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize(
    ("launch", "graph", "select", "copy"),
    [(10, 1, 0, 0), (1, 10, 0, 0), (10, 1, 500, 0), (10, 1, 0, 500)],
    ids=["graphs pay", "plain pays", "kernel is slow", "copies are slow"],
)
def test_every_row_goes_its_way_in_whatever_is_fastest(
    graphs: bool, mapping: bool, launch: int, graph: int, select: int, copy: int
) -> None:
    """Several batches of several sizes, whose padding is left over from each other."""
    with CudaPassage(graphs=graphs, mapping=mapping) as passage:
        calls = passage.calls
        calls.launch_cost_ns, calls.graph_cost_ns = launch, graph
        calls.select_cost_ns, calls.copy_cost_ns = select, copy
        passage.warm()
        for sizes in [(1,), (3, 2, 1), (8, 8), (5,), (1, 1, 1), (7, 2)]:
            asked = [
                rows(*np.arange(size) + 10 * index, scale=index + 1.0) for index, size in enumerate(sizes)
            ]
            check(passage.ask(*asked), *asked)
        assert not passage.failures


def test_the_fastest_program_is_chosen_by_measurement() -> None:
    """Per bucket, with the host's part and the copies counted in."""

    def chosen(*, graphs: bool = True, mapping: bool = True, **costs: int) -> str:
        with CudaPassage(graphs=graphs, mapping=mapping) as passage:
            for name, value in costs.items():
                setattr(passage.calls, name, value)
            passage.warm()
            programs = set(passage.programs().values())
            assert len(programs) == 1, programs
            return programs.pop()

    assert chosen(launch_cost_ns=10, graph_cost_ns=1, select_cost_ns=500) == "graph, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=1, select_cost_ns=500, graphs=False) == "plain, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=10_000, select_cost_ns=500) == "plain, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=1, copy_cost_ns=500) == "graph, mapped"
    # Two inputs and two outputs: the mapped feed copies one array of indexes instead of two of rows.
    assert chosen(launch_cost_ns=0, graph_cost_ns=5, copy_cost_ns=500) == "plain, mapped"
    assert chosen(launch_cost_ns=0, graph_cost_ns=5, copy_cost_ns=500, mapping=False) == "plain, staged"


def test_a_batch_of_a_graph_is_one_launch() -> None:
    """The model itself is not called any more."""
    with CudaPassage() as passage:
        passage.calls.select_cost_ns = 500
        passage.warm()
        asked = rows(*range(4))
        check(passage.ask(asked), asked)
        assert passage.model.launches == []
        assert sum(graph.replays for graph in passage.calls.graphs) > 0


def test_capture_that_fails_leaves_plain_launches_with_the_reason() -> None:
    with CudaPassage() as passage:
        passage.calls.refuse_capture = AcceleratorError(
            900, "operation not permitted when stream is capturing"
        )
        passage.warm()
        assert all(name.startswith("plain") for name in passage.programs().values())
        refused = {note["program"] for note in passage.notes.warnings}
        assert refused == {"graph, staged", "graph, mapped", "graph of model"}
        assert all("not permitted" in note["reason"] for note in passage.notes.warnings)
        asked = rows(*range(5))
        check(passage.ask(asked), asked)


def test_slab_that_cannot_be_mapped_is_staged_with_a_warning() -> None:
    with CudaPassage(mapping=False) as passage:
        passage.warm()
        assert passage.notes.warnings == [
            {"event": "input slab is not mapped, batches are staged in pinned memory", "reason": "not today"}
        ]
        assert all("staged" in name for name in passage.programs().values())
        asked = rows(*range(8))
        check(passage.ask(asked), asked)


def test_kernel_that_brings_other_rows_is_not_used() -> None:
    """Before anybody's row goes through it."""
    with CudaPassage() as passage:
        passage.calls.select_from = lambda index: index * 0
        passage.calls.copy_cost_ns = 500
        passage.warm()
        assert "staged" in passage.programs()[8]
        assert {note["reason"] for note in passage.notes.warnings} == {
            "rows did not arrive as they were written"
        }
        asked = rows(*range(8))
        check(passage.ask(asked), asked)


def test_graph_that_answers_otherwise_is_not_used() -> None:
    with CudaPassage() as passage:
        passage.calls.select_cost_ns = 500
        capture = passage.calls.capture

        def spoilt(stream: Any, work: Callable[[], Any]) -> Any:
            graph, kept = capture(stream, work)
            graph.work = graph.work[:-1]  # type: ignore[attr-defined]  # without the last copy to the host
            return graph, kept

        passage.calls.capture = spoilt  # type: ignore[method-assign]
        passage.model._compute = lambda inputs: [
            array + len(passage.model.launches) for array in scaled(inputs)
        ]
        passage.warm((4,))
        assert passage.programs()[4].startswith("plain")
        assert "its outputs differ from those of a plain launch" in {
            n["reason"] for n in passage.notes.warnings
        }


def test_warm_up_reads_no_row_of_the_slab() -> None:
    """After a restart it may hold the row that ended the engine before this one."""
    seen: list[float] = []

    def compute(inputs: Sequence[Array]) -> Sequence[Array]:
        seen.append(float(np.abs(inputs[0]).max()))
        return scaled(inputs)

    with CudaPassage(compute=compute) as passage:
        passage.arena.input_rows[:] = 0x40
        passage.warm()
        assert seen
        assert set(seen) == {0.0}
