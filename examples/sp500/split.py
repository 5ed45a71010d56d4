"""The split by time: train, validation and test never share a day."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.sp500.features import WINDOW_DAYS, Windows

TRAIN_END = np.datetime64("2010-12-31")
"""Last target day that may be trained on."""

VALIDATION_END = np.datetime64("2013-12-31")
"""Last target day that may choose when to stop training; everything later is only ever measured."""


@dataclass(frozen=True)
class Split:
    """Row indices into `Windows`, ascending; int64 `[n]` each."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def split_by_date(windows: Windows) -> Split:
    """Cut at the two dates above, and drop `WINDOW_DAYS` windows at each cut.

    A window reads 60 days and its target is the day after. Of each later part the first 60 windows are
    dropped, so its first window starts on a day after the last target of the part before: no day's row of
    features or target is in two parts. (What a feature itself reads reaches further back, into days that
    lie in the past of every prediction made with it.)
    """
    days = windows.target_dates
    rows = np.arange(len(days))
    first_validation = int(np.searchsorted(days, TRAIN_END, side="right"))
    first_test = int(np.searchsorted(days, VALIDATION_END, side="right"))
    return Split(
        train=rows[:first_validation],
        validation=rows[first_validation + WINDOW_DAYS : first_test],
        test=rows[first_test + WINDOW_DAYS :],
    )
