"""How one bucket of one model is launched on one stream: plainly, or as a CUDA graph.

    plain           feed, model and fetch are launched one by one
    graph           all of them are one graph
    graph of model  only the model is; the copies are launched before and after it

Which is fastest depends on model, size and machine, so `programs` makes all that work and the instance
measures them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from scheduler.executor.cuda_buffers import Buffers, Feed
from scheduler.executor.cuda_calls import CudaCalls, Graph, Stream, Tensor
from scheduler.executor.runner import DeviceModel


class Program(Protocol):
    """One way to launch. `feed.fill` comes before, `Buffers.fetched` after the stream has been waited for."""

    @property
    def name(self) -> str:
        """For logs and reports."""
        ...

    @property
    def feed(self) -> Feed:
        """How its inputs come in."""
        ...

    def launch(self) -> None:
        """Enqueues everything on the current stream."""
        ...


class Plain:
    """Launch by launch."""

    def __init__(self, model: DeviceModel, buffers: Buffers, feed: Feed, bucket: int) -> None:
        self.name = f"plain, {feed.name}"
        self.feed = feed
        self._model = model
        self._buffers = buffers
        self._bucket = bucket

    def launch(self) -> None:
        """See `Program`."""
        self.feed.enqueue(self._bucket)
        self._buffers.enqueue_fetch(self.compute(), self._bucket)

    def compute(self) -> Sequence[Tensor]:
        """Enqueues the model alone; its outputs on the device."""
        return self._model.forward(self._buffers.inputs_of(self._bucket))


class WholeGraph:
    """One graph from the host's inputs to the host's outputs."""

    def __init__(self, plain: Plain, graph: Graph) -> None:
        self.name = f"graph, {plain.feed.name}"
        self.feed = plain.feed
        self.launch = graph.replay


class ModelGraph:
    """A graph of the model; its outputs stay where they are, since the graph writes them there each time."""

    def __init__(
        self, plain: Plain, buffers: Buffers, bucket: int, graph: Graph, outputs: Sequence[Tensor]
    ) -> None:
        self.name = f"graph of model, {plain.feed.name}"
        self.feed = plain.feed
        self._buffers = buffers
        self._bucket = bucket
        self._graph = graph
        self._outputs = outputs

    def launch(self) -> None:
        """See `Program`."""
        self.feed.enqueue(self._bucket)
        self._graph.replay()
        self._buffers.enqueue_fetch(self._outputs, self._bucket)


def graph_programs(
    calls: CudaCalls,
    stream: Stream,
    plains: Sequence[Plain],
    buffers: Buffers,
    bucket: int,
    on_refusal: Callable[[str, Exception], None],
) -> Iterator[Program]:
    """Captures what can be captured, one program after the other. Each plain one has run before.

    Args:
        plains: one per feed.
        on_refusal: told the name and the reason of a capture that failed; the others are still tried.
    """
    for plain in plains:
        try:
            graph, _ = calls.capture(stream, plain.launch)
            yield WholeGraph(plain, graph)
        except Exception as error:  # of any kind: torch and CUDA have many words for it
            on_refusal(f"graph, {plain.feed.name}", error)
    try:
        # The model's part does not depend on the feed: one graph serves all.
        graph, outputs = calls.capture(stream, plains[0].compute)
    except Exception as error:
        on_refusal("graph of model", error)
        return
    for plain in plains:
        yield ModelGraph(plain, buffers, bucket, graph, outputs)
