"""What follows from an Xid."""

import pytest

from server.xid import DOUBLE_BIT_ERROR, RECOVERY_ACTION_CHANGED, Policy, judge

# Of programs, whose own CUDA calls report them, and of parts that an engine does not use.
OF_OTHERS = (8, 13, 31, 32, 43, 45, 68, 69, 74, 80, 137)
REPAIRED = (63, 92, 121)


@pytest.mark.parametrize("xid", [*OF_OTHERS, *REPAIRED, 157, 171, 172])
def test_what_is_no_danger_to_results_is_logged(xid: int) -> None:
    """Under what it means."""
    verdict = judge(xid)
    assert verdict.policy is Policy.LOG
    assert verdict.meaning != judge(9999).meaning


@pytest.mark.parametrize("xid", [64, 109, 156])
def test_what_wants_a_reset_some_time_drains(xid: int) -> None:
    """Results are right until then."""
    assert judge(xid).policy is Policy.DRAIN


@pytest.mark.parametrize("xid", [46, DOUBLE_BIT_ERROR, 62, 79, 94, 95, 110, 119, 120, 140, 143, 158])
def test_what_makes_results_doubtful_ends_the_engine(xid: int) -> None:
    """Memory that cannot be trusted, a controller or a GPU that is gone."""
    assert judge(xid).policy is Policy.EXIT


@pytest.mark.parametrize("xid", [0, 1, 61, 200, 1 << 40])
def test_an_unknown_number_is_logged(xid: int) -> None:
    """Those the catalogue calls unused, and those to come."""
    assert judge(xid).policy is Policy.LOG


@pytest.mark.parametrize(
    ("action", "policy"),
    [
        (None, Policy.LOG),
        (0, Policy.LOG),
        (1, Policy.EXIT),
        (2, Policy.EXIT),
        (3, Policy.LOG),
        (4, Policy.DRAIN),
        (5, Policy.LOG),
        (6, Policy.EXIT),
        (7, Policy.EXIT),
        (99, Policy.LOG),
    ],
)
def test_a_changed_recovery_action_means_what_the_driver_asks_for(action: int | None, policy: Policy) -> None:
    """The only Xid whose number does not say it; for others the action is not looked at."""
    assert judge(RECOVERY_ACTION_CHANGED, action).policy is policy
    assert judge(31, action).policy is Policy.LOG
