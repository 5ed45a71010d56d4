"""Where admitted items enter the lanes: urgent ones at once, bulk only as far as it does not pile up there.

A key is fixed on entering, and bulk that waits in a lane for longer than its slack has aged past everything
urgent: with enough of it queued, urgent work would wait behind bulk after all. So bulk is let in only as
long as all bulk in the lanes is taken within its slack, which is a sum over the classes (see
docs/scheduling.md):

    engine time queued / slack, summed over the bulk classes  <=  FULLEST of what urgent work leaves

What does not fit is held here, in the order of its arrival, and enters as the lanes empty. It keeps its
slots, its deadline and its place in the queue limit; only its key does not age yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import CLASS_COUNT, ClassLimits, KeyStamp, urgent_classes

# How full the lanes may be for the most urgent bulk class; for each that is less urgent half as full. What
# is held first is what matters least.
FULLEST = 0.8


@dataclass(slots=True)
class _Entry:
    """What a push needs to know beside the submission."""

    arrived_ns: int
    deadline_ns: int
    exclusive: bool


class Entrance:
    """Stamps and pushes what one front end has admitted. Belongs to its event loop."""

    def __init__(
        self,
        partition: Partition,
        forecasts: Forecasts,
        limits: Sequence[ClassLimits],
        *,
        models: int,
        bulk_quantum_ns: int,
        engine: int = 0,
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_held` is called when something is held: from then on, call `let_in` every few milliseconds."""
        self._partition = partition
        self._forecasts = forecasts
        self._stamp = KeyStamp(models, limits)
        self._quantum_ns = bulk_quantum_ns
        self._engine = engine
        self._on_held = on_held
        # By class, in the order of arrival.
        self._held: list[dict[Submission, _Entry]] = [{} for _ in range(CLASS_COUNT)]
        self.held_rows = [0] * CLASS_COUNT
        self.change(limits)

    def change(self, limits: Sequence[ClassLimits]) -> None:
        """Uses other slacks from now on; what has entered keeps its key."""
        self._stamp.change(limits)
        self._slack_ns = [limit.slack_ns for limit in limits]
        urgent = urgent_classes(limits, self._quantum_ns)
        self._bulk = [index for index, is_urgent in enumerate(urgent) if not is_urgent]
        self._fullest = {index: FULLEST / 2**rank for rank, index in enumerate(self._bulk)}

    @property
    def holds(self) -> bool:
        """Whether anything waits to be let in."""
        return any(self.held_rows)

    def enter(
        self, submission: Submission, *, now_ns: int, arrived_ns: int, deadline_ns: int, exclusive: bool
    ) -> None:
        """Takes over a reserved and written submission; it ends exactly once, through its `on_end`."""
        entry = _Entry(arrived_ns, deadline_ns, exclusive)
        queue = self._held[submission.class_index]
        if not queue and self._fits(submission, now_ns):
            self._push(submission, entry, now_ns)
            return
        queue[submission] = entry
        self.held_rows[submission.class_index] += len(submission.slots)
        self._on_held()

    def let_in(self, now_ns: int) -> None:
        """Pushes what fits by now, the most urgent class first. After completions, and every now and then."""
        if not self.holds:
            return
        # Classes that a change has made urgent since are among them.
        for queue in self._held:
            while queue:
                submission, entry = next(iter(queue.items()))
                if entry.deadline_ns < now_ns:
                    self._withdraw(submission, Outcome.EXPIRED)
                elif self._fits(submission, now_ns):
                    self._forget(submission)
                    self._push(submission, entry, now_ns)
                else:
                    break

    def cancel(self, submission: Submission) -> None:
        """The caller left: what is held ends now, what has entered is skipped when its turn comes."""
        if submission in self._held[submission.class_index]:
            self._withdraw(submission, Outcome.CANCELLED)
        else:
            self._partition.cancel(submission)

    def lose_engine(self) -> None:
        """Ends all that is held as LOST; the partition does so with what has entered."""
        for queue in self._held:
            for submission in list(queue):
                self._withdraw(submission, Outcome.LOST)

    def _fits(self, submission: Submission, now_ns: int) -> bool:
        class_index = submission.class_index
        fullest = self._fullest.get(class_index)
        if fullest is None:
            return True
        forecast = self._forecasts.of(submission.model, now_ns)
        rows = len(submission.slots)
        work_ns = self._partition.backlog_ns(self._engine)
        fullness = rows * forecast.item_ns / self._slack_ns[class_index]
        fullness += sum(work_ns[index] / self._slack_ns[index] for index in self._bulk)
        if fullness <= fullest * self._forecasts.bulk_share():
            return True
        # One full batch of each class may always wait: no class is shut out while another keeps coming.
        queued = self._partition.depths(self._engine)[class_index]
        return queued == 0 or queued + rows <= forecast.target

    def _push(self, submission: Submission, entry: _Entry, now_ns: int) -> None:
        self._partition.push(
            submission,
            engine=self._engine,
            key=self._stamp.key(submission.model, submission.class_index, now_ns),
            enqueued_ns=entry.arrived_ns,  # what it waited here is waiting, too
            deadline_ns=entry.deadline_ns,
            exclusive=entry.exclusive,
        )

    def _withdraw(self, submission: Submission, outcome: Outcome) -> None:
        self._forget(submission)
        self._partition.end_unpushed(submission, outcome)

    def _forget(self, submission: Submission) -> None:
        del self._held[submission.class_index][submission]
        self.held_rows[submission.class_index] -= len(submission.slots)
