"""What to change where the service does not keep its promises: rules, each with the figures it goes by.

A rule looks at what happened over some minutes and names one setting, or says nothing. Rules about latency
speak only where a latency is missed; those about refusals and resources speak by themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from scheduler.priority import PriorityClass, urgent_classes
from server.settings import Settings
from server.sizing import bulk_quantum_ns
from server.telemetry import names
from server.telemetry.slo import LATENCIES, MISSED, Objective
from server.telemetry.windows import Span

# Fewer requests say nothing.
LEAST_REQUESTS = 20
# Of all requests: from here on a kind of refusal is worth a word.
WORTH_A_WORD = 0.01
# Of the time that requests take: from here on a part of it dominates.
DOMINATES = 0.5
# Of the largest size: batches that are as good as full.
FULL_PART = 0.8
CPU_SATURATED = 0.95
BULK_PART = 0.5

# Readings, by metric; the label says of which GPU.
CPU = names.CPU_UTILIZATION.name
GPU_USED = names.GPU_MEMORY_USED.name
GPU_TOTAL = names.GPU_MEMORY_TOTAL.name

DEADLINE_UNREACHABLE, SLOTS, QUEUE = names.SHED_DEADLINE, names.SHED_SLOTS, names.SHED_QUEUE


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One thing to change.

    Attributes:
        rule: its name, always the same.
        setting: the path of the setting that it is about.
        text: what to do with it, and why.
        evidence: the figures.
    """

    rule: str
    setting: str
    text: str
    evidence: str


@dataclass(frozen=True)
class Case:
    """What the rules look at: what happened, the settings meanwhile, and what was kept of them."""

    span: Span
    settings: Settings
    objectives: Sequence[Objective]

    @cached_property
    def late(self) -> bool:
        """Whether a latency was missed."""
        names = [name for name, _ in LATENCIES]
        return any(each.state == MISSED and each.name in names for each in self.objectives)

    @cached_property
    def requests(self) -> int:
        """All that ended."""
        return self.span.ended()

    @cached_property
    def mean_request_s(self) -> float:
        """Of what was let in; 0 where nothing was."""
        return _mean(self.span.latency_s().total, self.span.latency_s().count)

    @cached_property
    def mean_wait_s(self) -> float:
        """In the queue."""
        return _mean(self.span.wait_s().total, self.span.wait_s().count)

    @cached_property
    def mean_compute_s(self) -> float:
        """Of a request in its batch: batches count by their rows, as requests are in them."""
        total = rows = 0.0
        for model, sizes in self.span.batch_size.items():
            batches = self.span.batches_s(model=model)
            total += _mean(batches.total, batches.count) * sizes.total
            rows += sizes.total
        return total / rows if rows else 0.0

    @cached_property
    def largest(self) -> int:
        """Batch size."""
        return self.settings.scheduler.max_batch_size

    @cached_property
    def mean_batch(self) -> float:
        """Rows of a batch."""
        batches = list(self.span.batch_size.values())
        return _mean(sum(sizes.total for sizes in batches), sum(sizes.count for sizes in batches))

    @cached_property
    def target(self) -> int:
        """The smallest target size of all models that have run; 0 where none has."""
        sizes = [size for model, size in self.span.last.target.items() if model in self.span.batch_size]
        return min(sizes, default=0)

    @cached_property
    def waiting_dominates(self) -> bool:
        """Whether what is late is late in the queue."""
        return self.late and self.mean_wait_s > DOMINATES * self.mean_request_s

    @cached_property
    def cpu(self) -> float:
        """The part of the host's cores that is in use; 0 where nobody has read it."""
        return max(
            (value for (name, _), value in self.span.last.readings.items() if name == CPU), default=0.0
        )


Rule = Callable[[Case], Iterator[Recommendation]]


def advise(case: Case) -> list[Recommendation]:
    """What every rule has to say, the order of `RULES` kept."""
    if case.requests < LEAST_REQUESTS and not case.span.restarts:
        return []
    return [found for rule in RULES for found in rule(case)]


def batches_stop_at_the_budget(case: Case) -> Iterator[Recommendation]:
    """Requests wait, batches are as large as the latency budget lets them be, and could be larger."""
    full = FULL_PART * case.target <= case.mean_batch
    if case.waiting_dominates and 0 < case.target < case.largest and full:
        yield Recommendation(
            "batches_stop_at_the_budget",
            "scheduler.latency_budget_ms",
            "raise it: requests wait for batches that the budget keeps small",
            f"{_waits(case)}; batches have {case.mean_batch:.3g} rows, the target is {case.target}, "
            f"the largest {case.largest}",
        )


def batches_are_at_the_largest(case: Case) -> Iterator[Recommendation]:
    """Requests wait, and no batch can be larger: more has to compute at the same time."""
    if not case.waiting_dominates or case.mean_batch < FULL_PART * case.largest:
        return
    idle = case.cpu < CPU_SATURATED
    yield Recommendation(
        "batches_are_at_the_largest",
        "executor.instances" if idle else "executor.device",
        "raise it: all batches are full and requests still wait"
        if idle
        else "serve on more devices, or on more machines: all batches are full and the cores are busy",
        f"{_waits(case)}; batches have {case.mean_batch:.3g} rows of at most {case.largest}; "
        f"cores are in use by {case.cpu:.0%}",
    )


def waiting_for_company(case: Case) -> Iterator[Recommendation]:
    """A class waits for a batch to fill that does not."""
    if not case.late or case.mean_batch > 2:
        return
    for member in PriorityClass:
        most_s = case.settings.class_limits[member.index].max_wait_ns / 1e9
        waits = case.span.wait_s(priority=member.label)
        mean_s = _mean(waits.total, waits.count)
        if waits.count >= LEAST_REQUESTS and most_s > 0 and DOMINATES * most_s <= mean_s <= 2 * most_s:
            yield Recommendation(
                "waiting_for_company",
                f"scheduler.classes.{member.label}.max_wait_ms",
                f"lower it: {member.label} waits for company that does not come",
                f"it waits {_ms(mean_s)} on average, of {_ms(most_s)} at most; "
                f"batches have {case.mean_batch:.3g} rows",
            )


def bulk_crowds_out(case: Case) -> Iterator[Recommendation]:
    """Urgent requests are late while most of what is answered is bulk."""
    quantum_ms = case.settings.scheduler.bulk_quantum_ms
    urgent = urgent_classes(case.settings.class_limits, bulk_quantum_ns(case.settings))
    labels = [member.label for member in PriorityClass if urgent[member.index]]
    late = {
        value.priority
        for objective in case.objectives
        for value in objective.classes
        if value.state == MISSED and value.priority in labels
    }
    bulk = case.requests - sum(case.span.ended(priority=label) for label in labels)
    if late and bulk > BULK_PART * case.requests:
        yield Recommendation(
            "bulk_crowds_out",
            "scheduler.bulk_quantum_ms",
            "lower it, or set scheduler.reserved_instances: urgent requests are late behind batches of bulk",
            f"{', '.join(sorted(late))} is late; {bulk / case.requests:.0%} of the requests are bulk, "
            f"whose batches may take {quantum_ms:g} ms",
        )


def compute_dominates(case: Case) -> Iterator[Recommendation]:
    """What is late is late in the model."""
    if case.late and case.mean_compute_s > DOMINATES * case.mean_request_s > 0:
        yield Recommendation(
            "compute_dominates",
            "executor.precision",
            "try bf16 or fp16, or a smaller scheduler.latency_budget_ms: most of the time is the model's",
            f"a request takes {_ms(case.mean_request_s)} on average, {_ms(case.mean_compute_s)} of it "
            f"compute; the precision is {case.settings.executor.precision}",
        )


def frontend_bound(case: Case) -> Iterator[Recommendation]:
    """Neither queue nor model take the time: the front ends do."""
    rest_s = case.mean_request_s - case.mean_wait_s - case.mean_compute_s
    if case.late and rest_s > DOMINATES * case.mean_request_s:
        yield Recommendation(
            "frontend_bound",
            "server.frontends",
            "raise it: requests spend most of their time in front ends",
            f"{_waits(case)} and {_ms(case.mean_compute_s)} in the model",
        )


def cpu_saturated(case: Case) -> Iterator[Recommendation]:
    """More threads than cores get in each other's way, and every latency is a matter of luck."""
    if case.cpu >= CPU_SATURATED:
        yield Recommendation(
            "cpu_saturated",
            "executor.cpu_threads",
            "lower it where other processes need the cores, or give the service more of them",
            f"the cores are in use by {case.cpu:.0%}",
        )


def deadlines_cannot_be_met(case: Case) -> Iterator[Recommendation]:
    """Requests are refused since they could not be done in time."""
    for member in PriorityClass:
        refused = case.span.refused(priority=member.label, reason=DEADLINE_UNREACHABLE)
        asked = case.span.ended(priority=member.label)
        if refused > WORTH_A_WORD * asked:
            limits = case.settings.class_limits[member.index]
            yield Recommendation(
                "deadlines_cannot_be_met",
                f"scheduler.classes.{member.label}.default_timeout_ms",
                "raise it, or the timeouts of the callers, or add instances: what waits would be too late",
                f"{refused} of {asked} requests of {member.label} were refused for their deadline; "
                f"where they name none it is {limits.default_timeout_ns / 1e6:g} ms",
            )


def queues_are_full(case: Case) -> Iterator[Recommendation]:
    """Requests are refused since their class has its queue full."""
    for member in PriorityClass:
        refused = case.span.refused(priority=member.label, reason=QUEUE)
        asked = case.span.ended(priority=member.label)
        if refused > WORTH_A_WORD * asked:
            limit = case.settings.class_limits[member.index].queue_limit
            yield Recommendation(
                "queues_are_full",
                f"scheduler.classes.{member.label}.queue_limit",
                "raise it for bursts; where it is full for minutes, more has to compute",
                f"{refused} of {asked} requests of {member.label} did not fit its queue of {limit} items",
            )


def slots_are_taken(case: Case) -> Iterator[Recommendation]:
    """Requests are refused since no slot is free."""
    refused = case.span.refused(reason=SLOTS)
    if refused > WORTH_A_WORD * case.requests:
        yield Recommendation(
            "slots_are_taken",
            "scheduler.slots_per_frontend",
            "raise it: requests were refused for want of slots, not of time",
            f"{refused} of {case.requests} requests; a front end has "
            f"{case.settings.scheduler.slots_per_frontend} slots",
        )


def gpu_memory_is_short(case: Case) -> Iterator[Recommendation]:
    """Close to the mark from which batches shrink."""
    mark = case.settings.executor.memory_utilization_high
    found = case.span.last.readings
    for (name, gpu), total in found.items():
        used = found.get((GPU_USED, gpu), 0.0)
        if name == GPU_TOTAL and total and used >= mark * total:
            yield Recommendation(
                "gpu_memory_is_short",
                "executor.memory_fraction",
                "lower it, unload models, or lower scheduler.max_batch_size: batches shrink at this mark",
                f"GPU {gpu} uses {used / 2**30:.1f} of {total / 2**30:.1f} GiB, the mark is {mark:.0%}",
            )


def processes_die(case: Case) -> Iterator[Recommendation]:
    """Whose calls end UNAVAILABLE, and what is missed may be missed for that alone."""
    if case.span.restarts:
        named = ", ".join(f"{name} {count} times" for name, count in sorted(case.span.restarts.items()))
        yield Recommendation(
            "processes_die",
            "telemetry.log_level",
            "read the log: a process that dies says why, more of it at debug",
            f"started again: {named}",
        )


RULES: tuple[Rule, ...] = (
    processes_die,
    bulk_crowds_out,
    batches_stop_at_the_budget,
    batches_are_at_the_largest,
    waiting_for_company,
    compute_dominates,
    frontend_bound,
    cpu_saturated,
    deadlines_cannot_be_met,
    queues_are_full,
    slots_are_taken,
    gpu_memory_is_short,
)


def _mean(total: float, count: float) -> float:
    return total / count if count else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _waits(case: Case) -> str:
    return (
        f"a request takes {_ms(case.mean_request_s)} on average, {_ms(case.mean_wait_s)} of it in the queue"
    )
