"""What to do about an Xid: an error of a GPU that its driver reports under a number.

Numbers, meanings and what has to follow are from NVIDIA's Xid catalogue, columns for A100 and H100
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, read in November 2026); the recovery actions
are from its notes on memory errors (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt). NVML does not say which
process an Xid is about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

DOUBLE_BIT_ERROR = 48
RECOVERY_ACTION_CHANGED = 154


class Policy(Enum):
    """What the engine on the GPU does.

    LOG: nothing more. Where a program's own context dies of it, that program's next CUDA call says so; in
    another program it does not concern us.
    DRAIN: results are right, but the GPU has to be reset: stop using it as soon as another can take over.
    EXIT: what the GPU does may be wrong or never end, so the engine must end now.
    """

    LOG = "log"
    DRAIN = "drain"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and what has happened."""

    policy: Policy
    meaning: str


# EXIT is what the catalogue answers with a reset of the GPU or of the machine, and what makes its memory
# doubtful. Of the latter, 94 asks only for a new process, and so may 48: with EXIT there is one.
_XIDS: Mapping[int, Verdict] = {
    8: Verdict(Policy.LOG, "stopped processing; the program must be restarted"),
    13: Verdict(Policy.LOG, "a program's kernel failed: out of bounds or an illegal instruction"),
    31: Verdict(Policy.LOG, "a program's access to memory that it does not have"),
    32: Verdict(Policy.LOG, "a program's command stream arrived corrupted"),
    43: Verdict(Policy.LOG, "a program failed and must end; the GPU is healthy"),
    44: Verdict(Policy.LOG, "fault during a context switch"),
    45: Verdict(Policy.LOG, "contexts removed after a program's end or an earlier error"),
    46: Verdict(Policy.EXIT, "stopped processing; the GPU must be reset"),
    DOUBLE_BIT_ERROR: Verdict(Policy.EXIT, "memory error that could not be corrected"),
    62: Verdict(Policy.EXIT, "an internal controller has halted"),
    63: Verdict(Policy.LOG, "a memory row will be replaced at the next reset"),
    64: Verdict(Policy.DRAIN, "a memory row could not be replaced"),
    68: Verdict(Policy.LOG, "error of a video decoder"),
    69: Verdict(Policy.LOG, "a program's command of the wrong class"),
    74: Verdict(Policy.LOG, "NVLink error; an engine uses one GPU alone"),
    79: Verdict(Policy.EXIT, "fallen off the bus"),
    80: Verdict(Policy.LOG, "a program's data arrived corrupted"),
    92: Verdict(Policy.LOG, "many memory errors, all corrected"),
    94: Verdict(Policy.EXIT, "memory error, contained to one program"),
    95: Verdict(Policy.EXIT, "memory error, not contained"),
    109: Verdict(Policy.DRAIN, "a program did not let go of the GPU in time"),
    110: Verdict(Policy.EXIT, "security fault"),
    119: Verdict(Policy.EXIT, "its system processor does not answer"),
    120: Verdict(Policy.EXIT, "error of its system processor"),
    121: Verdict(Policy.LOG, "error on the link to the CPU, corrected"),
    136: Verdict(Policy.LOG, "an NVLink did not come up; an engine uses one GPU alone"),
    137: Verdict(Policy.LOG, "illegal access over NVLink; an engine uses one GPU alone"),
    140: Verdict(Policy.EXIT, "memory errors that could not be corrected, nor their pages retired"),
    143: Verdict(Policy.EXIT, "initialisation failed"),
    156: Verdict(Policy.DRAIN, "a faulty part will be retired at the next reset"),
    157: Verdict(Policy.LOG, "a faulty part could not be retired"),
    158: Verdict(Policy.EXIT, "fatal timeout"),
    171: Verdict(Policy.LOG, "where the error of Xid 48 was: DRAM"),
    172: Verdict(Policy.LOG, "where the error of Xid 48 was: SRAM"),
}
_UNKNOWN = Verdict(Policy.LOG, "not known to this version")

# What the driver asks for since the newest Xid 154, as NVML numbers it. It sums up the Xids beside it, those
# that are not in the table above included. 5 has meant two things.
_RECOVERY_ACTIONS: Mapping[int, Verdict] = {
    0: Verdict(Policy.LOG, "the driver asks for nothing any more"),
    1: Verdict(Policy.EXIT, "the driver asks for a reset of the GPU"),
    2: Verdict(Policy.EXIT, "the driver asks for a restart of the machine"),
    3: Verdict(Policy.LOG, "the driver asks for an end of traffic between GPUs"),
    4: Verdict(Policy.DRAIN, "less of the GPU is left; the driver asks to drain and reset it"),
    6: Verdict(Policy.EXIT, "the driver asks for a reset of the GPU's bus"),
    7: Verdict(Policy.EXIT, "the driver asks for a restart of the machine"),
}
_UNKNOWN_ACTION = Verdict(Policy.LOG, "the driver asks for something else now")


def judge(xid: int, recovery_action: int | None = None) -> Verdict:
    """What to do about an Xid; `recovery_action` is NVML's number, for Xid 154, None if it cannot be had."""
    if xid != RECOVERY_ACTION_CHANGED:
        return _XIDS.get(xid, _UNKNOWN)
    if recovery_action is None:
        return _UNKNOWN_ACTION
    return _RECOVERY_ACTIONS.get(recovery_action, _UNKNOWN_ACTION)
