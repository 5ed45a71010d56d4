"""Where admitted items enter the lanes: the most urgent class at once, the others without piling up there.

A key is fixed on entering, and what waits in a lane for longer than its slack has aged past everything more
urgent: with enough of it queued, urgent work would wait behind it after all. So an item of any class but
the most urgent enters

- while all that is there of these classes is less than `BATCHES` batches: the engine has enough to do; or
- on the account of its class, which fills at `GUARANTEED_SHARE` of the engine's time, up to one bulk quantum:
  whoever asks for less than that enters on arrival, whatever the others do, and so ages from then on. It
  pays for what is computed: an item that expires in the lanes after all gives back what it entered for.

The rest is held here, in the order of its arrival, and enters as the lanes empty. It keeps its slots, its
deadline and its place in the queue limit; only its key does not age yet. docs/scheduling.md has the bounds.

Each engine has its own lanes and accounts, so the bounds hold for each. What is held belongs to none of them:
it goes to whichever has room first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.engines import Engines
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import CLASS_COUNT, ClassLimits, KeyStamp

# Batches that may wait in the lanes beside the ones that run: enough that no instance runs dry until
# completions let in more.
BATCHES = 2
# How often what has expired here is looked for. What enters expired meanwhile is dropped at the take.
SWEEP_EVERY_NS = 20_000_000
# Of the engine's time, for each of these classes. All of it together is what they can take from the most
# urgent one by aging.
GUARANTEED_SHARE = 0.05


@dataclass(slots=True)
class _Entry:
    """What a push needs to know beside the submission."""

    arrived_ns: int
    deadline_ns: int
    exclusive: bool


class _Account:
    """The time of one engine that one class may enter for: a token bucket that one request may overdraw."""

    def __init__(self, limit_ns: float, share: float) -> None:
        self._limit_ns = limit_ns
        self._share = share
        self._balance_ns = limit_ns
        self._since_ns = 0

    def pays(self, cost_ns: float, now_ns: int) -> bool:
        """Takes the cost off, if anything is left."""
        earned_ns = (now_ns - self._since_ns) * self._share
        self._balance_ns = min(self._limit_ns, self._balance_ns + earned_ns)
        self._since_ns = now_ns
        if self._balance_ns <= 0:
            return False
        self._balance_ns -= cost_ns
        return True

    def refund(self, cost_ns: float) -> None:
        """It was paid for what the engine has never computed."""
        self._balance_ns = min(self._limit_ns, self._balance_ns + cost_ns)


class _Pace:
    """How fast the held items of one class get fewer."""

    OVER_NS = 100_000_000

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, now_ns: int) -> None:
        """The first item is held: nothing is known yet."""
        self._since_ns = now_ns
        self._rows = 0
        self._rows_per_ns: float | None = None

    def left(self, rows: int) -> None:
        """Some have entered or ended."""
        self._rows += rows

    def settle(self, now_ns: int) -> None:
        """Takes stock. Every now and then while anything is held."""
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= self.OVER_NS:
            pace = self._rows / elapsed_ns
            known = self._rows_per_ns
            self._rows_per_ns = pace if known is None else (known + pace) / 2
            self._since_ns, self._rows = now_ns, 0

    def wait_ns(self, rows: int) -> int:
        """How long until this many have left, at the pace so far; 0 while none is known."""
        if self._rows_per_ns is None:
            return 0
        # As if at least one row left in each second: a prediction, not a verdict.
        return int(rows / max(self._rows_per_ns, 1e-9))


class Entrance:
    """Stamps and pushes what one front end has admitted. Belongs to its event loop."""

    def __init__(
        self,
        partition: Partition,
        engines: Engines,
        limits: Sequence[ClassLimits],
        *,
        models: int,
        bulk_quantum_ns: int,
        frontends: int = 1,
        early_refusal: bool = True,
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        early_refusal: do not let in what cannot be done by its deadline any more.
        on_held: called when something is held: from then on, call `let_in` every few milliseconds.
        """
        self._partition = partition
        self._engines = engines
        self._stamp = KeyStamp(models, limits)
        self._quantum_ns = bulk_quantum_ns
        self._part = 1 / frontends
        self._share = GUARANTEED_SHARE * self._part
        # By engine, then by class; the most urgent has none.
        self._accounts: list[dict[int, _Account]] = [{} for _ in range(len(engines))]
        self._on_held = on_held
        # By class, in the order of arrival.
        self._held: list[dict[Submission, _Entry]] = [{} for _ in range(CLASS_COUNT)]
        self.held_rows = [0] * CLASS_COUNT
        self._paces = [_Pace() for _ in range(CLASS_COUNT)]
        self._swept_ns = 0
        self.change(limits, bulk_quantum_ns, early_refusal=early_refusal)

    def change(self, limits: Sequence[ClassLimits], bulk_quantum_ns: int, *, early_refusal: bool) -> None:
        """Uses other slacks, and another quantum, from now on; what has entered keeps its key."""
        self._early_refusal = early_refusal
        if bulk_quantum_ns != self._quantum_ns:
            self._accounts = [{} for _ in self._accounts]
        self._quantum_ns = bulk_quantum_ns
        self._stamp.change(limits)
        least_ns = min(limit.slack_ns for limit in limits)
        self._patient = [index for index, limit in enumerate(limits) if limit.slack_ns > least_ns]
        self._accounts = [
            {
                index: accounts.get(index) or _Account(self._quantum_ns * self._part, self._share)
                for index in self._patient
            }
            for accounts in self._accounts
        ]

    @property
    def holds(self) -> bool:
        """Whether anything waits to be let in."""
        return any(self.held_rows)

    def enter(
        self,
        submission: Submission,
        *,
        engine: int,
        now_ns: int,
        arrived_ns: int,
        deadline_ns: int,
        exclusive: bool,
    ) -> None:
        """Takes over a reserved and written submission; it ends exactly once, through its `on_end`.

        `engine`: as `Engines` chose it just now.
        """
        entry = _Entry(arrived_ns, deadline_ns, exclusive)
        queue = self._held[submission.class_index]
        if not queue:
            found = self._find_room(submission, engine, now_ns)
            if found is not None:
                self._push(submission, entry, found, now_ns)
                return
            self._paces[submission.class_index].begin(now_ns)
        queue[submission] = entry
        self.held_rows[submission.class_index] += len(submission.slots)
        self._partition.hold(submission, len(submission.slots))
        self._on_held()

    def let_in(self, now_ns: int) -> None:
        """Pushes what fits by now, the most urgent class first. After completions, and every now and then."""
        if not self.holds:
            return
        if now_ns - self._swept_ns >= SWEEP_EVERY_NS:
            self._swept_ns = now_ns
            self._sweep(now_ns)
        # Classes that a change has made urgent since are among them.
        for queue, pace in zip(self._held, self._paces, strict=True):
            while queue:
                submission, entry = next(iter(queue.items()))
                rows = len(submission.slots)
                wanted, done_ns = self._engines.first_done(
                    submission.model, submission.class_index, rows, now_ns
                )
                if self._early_refusal and done_ns > entry.deadline_ns:
                    # It would expire in the lanes, and the account would have paid for nothing.
                    self._expire(submission, entry, now_ns)
                    continue
                found = self._find_room(submission, wanted, now_ns)
                if found is None:
                    break
                self._forget(submission)
                self._push(submission, entry, found, now_ns)
            pace.settle(now_ns)

    def wait_ns(self, class_index: int, item_ns: int) -> int:
        """How long a new item of a class will be held here, if items cost `item_ns` of the engines' time."""
        held = self.held_rows[class_index]
        if held == 0:
            return 0
        at_best_ns = sum(self.held_rows[: class_index + 1]) * item_ns
        return max(at_best_ns, self._paces[class_index].wait_ns(held))

    def cancel(self, submission: Submission) -> None:
        """The caller left: what is held ends now, what has entered is skipped when its turn comes."""
        if submission in self._held[submission.class_index]:
            self._withdraw(submission, Outcome.CANCELLED)
        else:
            self._partition.cancel(submission)

    def lose_stranded(self) -> None:
        """Ends as LOST what is held for models that no engine serves any more.

        The partition does so with what has entered.
        """
        for queue in self._held:
            for submission in list(queue):
                if not self._engines.ready_for(submission.model):
                    self._withdraw(submission, Outcome.LOST)

    def holds_for(self, engine: int) -> bool:
        """Whether something is held that may go to this engine."""
        held = {submission.model for queue in self._held for submission in queue}
        return any(engine in self._engines.ready_for(model) for model in held)

    def _sweep(self, now_ns: int) -> None:
        """Ends what has expired; deadlines are not in the order of arrival."""
        for queue in self._held:
            for submission, entry in list(queue.items()):
                if entry.deadline_ns < now_ns:
                    self._expire(submission, entry, now_ns)

    def _expire(self, submission: Submission, entry: _Entry, now_ns: int) -> None:
        submission.queue_wait_ns = now_ns - entry.arrived_ns
        self._withdraw(submission, Outcome.EXPIRED)

    def _find_room(self, submission: Submission, wanted: int, now_ns: int) -> int | None:
        """The engine whose lanes it may enter now, if possible the wanted one; None: it has to be held."""
        class_index = submission.class_index
        if class_index not in self._patient:
            return wanted
        ready = self._engines.ready_for(submission.model)
        engines = ready if len(ready) == 1 else (wanted, *(each for each in ready if each != wanted))
        for engine in engines:
            if self._has_room(engine, submission, now_ns):
                return engine
        for engine in engines:
            account, cost_ns = self._accounts[engine][class_index], self._cost_ns(engine, submission, now_ns)
            if account.pays(cost_ns, now_ns):
                submission.on_end = _refunding(account, cost_ns, submission.on_end)
                return engine
        return None

    def _has_room(self, engine: int, submission: Submission, now_ns: int) -> bool:
        queued_ns = self._partition.backlog_ns(engine)
        there_ns = sum([queued_ns[index] for index in self._patient])
        if there_ns == 0:
            return True
        forecast = self._engines.forecast(engine, submission.model, now_ns)
        batch_ns = max(forecast.batch_ns(forecast.target), forecast.target * forecast.item_ns)
        room_ns = BATCHES * min(self._quantum_ns, batch_ns)
        return there_ns + self._cost_ns(engine, submission, now_ns) <= room_ns

    def _cost_ns(self, engine: int, submission: Submission, now_ns: int) -> int:
        return len(submission.slots) * self._engines.forecast(engine, submission.model, now_ns).item_ns

    def _push(self, submission: Submission, entry: _Entry, engine: int, now_ns: int) -> None:
        self._engines.used(engine, submission.model)
        self._partition.push(
            submission,
            engine=engine,
            key=self._stamp.key(submission.model, submission.class_index, now_ns),
            enqueued_ns=entry.arrived_ns,  # what it waited here is waiting, too
            deadline_ns=entry.deadline_ns,
            exclusive=entry.exclusive,
        )

    def _withdraw(self, submission: Submission, outcome: Outcome) -> None:
        self._forget(submission)
        self._partition.end_unpushed(submission, outcome)

    def _forget(self, submission: Submission) -> None:
        rows = len(submission.slots)
        del self._held[submission.class_index][submission]
        self.held_rows[submission.class_index] -= rows
        self._partition.hold(submission, -rows)
        self._paces[submission.class_index].left(rows)


def _refunding(
    account: _Account, cost_ns: float, on_end: Callable[[Submission], None]
) -> Callable[[Submission], None]:
    def ended(submission: Submission) -> None:
        if submission.executions == 0:  # it expired in the lanes, or its caller left
            account.refund(cost_ns)
        on_end(submission)

    return ended
