"""Fifty causal features per trading day, and the windows a model sees.

Source: daily open, high, low, close and volume of the S&P 500 and the NASDAQ Composite, 1999 to 2018,
as the `arch` package carries them. Nothing here looks ahead: every number of day t is a function of
days <= t. Nothing is fitted either, so there are no statistics to store beside the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Floats = npt.NDArray[np.float64]

WINDOW_DAYS = 60
"""Days in one window; the last one is the day the prediction is made."""

STANDARD_DAYS = 252
"""A feature is standardised with its own last trading year."""

STANDARD_MIN_DAYS = 60
"""Fewest days to standardise with; only the first year of the series has fewer than a full year."""

CLIP = 5.0
"""Standardised features are cut here, so that a crash day stays a number the model has seen."""

FLAT_BAND_PCT = 0.25
"""A day that moves less than this, in percent either way, is "flat"."""

CLASS_NAMES = ("down", "flat", "up")

_INDEX_FEATURES = (
    "return_1",
    "return_5",
    "return_10",
    "return_20",
    "return_59",
    "gap",
    "intraday",
    "range",
    "close_location",
    "upper_shadow",
    "lower_shadow",
    "log_volatility_5",
    "log_volatility_20",
    "log_volatility_60",
    "log_range_volatility_20",
    "volatility_ratio",
    "above_average_10",
    "above_average_50",
    "drawdown_60",
    "rebound_60",
    "gain_share_14",
    "volume_surprise",
)

_PAIR_FEATURES = (
    "lead_1",
    "lead_5",
    "lead_20",
    "correlation_20",
    "beta_59",
    "volume_share",
)

FEATURE_NAMES: tuple[str, ...] = (
    *(f"sp500_{name}" for name in _INDEX_FEATURES),
    *(f"nasdaq_{name}" for name in _INDEX_FEATURES),
    *(f"nasdaq_vs_sp500_{name}" for name in _PAIR_FEATURES),
)
"""Rows of a window, in order; 22 of each index and 6 of the pair."""

_LEVELS = np.array(["_log_" in name for name in FEATURE_NAMES])
"""Not standardised: a volatility measured against its own last year would no longer say how large it is,
and how large it is decides how large tomorrow's move may be."""


@dataclass(frozen=True)
class Bars:
    """Daily bars of one index; float64 `[days]` each, prices in index points, volume in shares."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


@dataclass(frozen=True)
class History:
    """Both indices on the same days; `dates` is datetime64[D] `[days]`, ascending."""

    dates: npt.NDArray[np.datetime64]
    sp500: Bars
    nasdaq: Bars


@dataclass(frozen=True)
class Windows:
    """Everything a model is given or judged by, one row per prediction, in date order.

    `windows` float32 `[n, 50, 60]`, features first, oldest day first. `first_dates` and `dates` `[n]`: the
    first and last day of the window; the prediction is made after the close of the last. `target_dates`
    `[n]`: the trading day after it. `target_pct` float32 `[n]`: log return of the S&P 500's close over that
    day, in percent. `target_class` int64 `[n]`: index into `CLASS_NAMES`. `trailing_volatility_pct` float32
    `[n]`: what the last 20 days alone say about the size of a move, in percent; a baseline, not an input.
    """

    windows: npt.NDArray[np.float32]
    first_dates: npt.NDArray[np.datetime64]
    dates: npt.NDArray[np.datetime64]
    target_dates: npt.NDArray[np.datetime64]
    target_pct: npt.NDArray[np.float32]
    target_class: npt.NDArray[np.int64]
    trailing_volatility_pct: npt.NDArray[np.float32]


def load_history() -> History:
    """Both series from the `arch` package; no network.

    Raises ValueError if the two do not cover the same days.
    """
    # Here, not above: arch brings pandas and scipy, which the pure functions below do not need.
    import arch.data.nasdaq
    import arch.data.sp500

    sp500, nasdaq = arch.data.sp500.load(), arch.data.nasdaq.load()
    if not sp500.index.equals(nasdaq.index):
        raise ValueError("the S&P 500 and NASDAQ series do not cover the same days")
    dates = sp500.index.to_numpy().astype("datetime64[D]")
    return History(dates=dates, sp500=_bars(sp500), nasdaq=_bars(nasdaq))


def feature_matrix(history: History) -> Floats:
    """Features as the model takes them, float64 `[days, 50]` in the order of `FEATURE_NAMES`.

    The first days have too little past and are NaN as whole rows; every later value is finite and within
    ±`CLIP`.
    """
    columns = _index_features(history.sp500) + _index_features(history.nasdaq) + _pair_features(history)
    return _standardised(np.stack(columns, axis=1))


def make_windows(history: History) -> Windows:
    """Every window with a full past and a known next day."""
    matrix = feature_matrix(history)
    first = int(np.argmax(np.isfinite(matrix).all(axis=1)))
    last_days = np.arange(first + WINDOW_DAYS - 1, len(matrix) - 1)
    # The view has one window too many: that of the last day, whose next day is not known.
    windows = sliding_window_view(matrix[first:-1].astype(np.float32), WINDOW_DAYS, axis=0)

    log_return = _log_return(history.sp500.close, 1)
    target_pct = 100.0 * log_return[last_days + 1]
    volatility_pct = 100.0 * _over(log_return, 20, np.std)[last_days]
    return Windows(
        windows=np.ascontiguousarray(windows),
        first_dates=history.dates[last_days - WINDOW_DAYS + 1],
        dates=history.dates[last_days],
        target_dates=history.dates[last_days + 1],
        target_pct=target_pct.astype(np.float32),
        target_class=classify(target_pct),
        trailing_volatility_pct=volatility_pct.astype(np.float32),
    )


def classify(move_pct: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """0 down, 1 flat, 2 up; flat is anything up to `FLAT_BAND_PCT` either way."""
    return 1 + (move_pct > FLAT_BAND_PCT).astype(np.int64) - (move_pct < -FLAT_BAND_PCT).astype(np.int64)


def _bars(frame: Any) -> Bars:
    """Arrays of one data frame of `arch`.

    Two NASDAQ days carry a volume of zero, which means "not recorded". Such a day takes the last known
    volume: filling from both sides would look ahead.
    """
    volume = frame["Volume"].to_numpy().astype(np.float64)
    last_known = np.maximum.accumulate(np.where(volume > 0, np.arange(len(volume)), 0))
    open_, high, low, close = (
        frame[name].to_numpy().astype(np.float64) for name in ("Open", "High", "Low", "Close")
    )
    return Bars(open=open_, high=high, low=low, close=close, volume=volume[last_known])


def _index_features(bars: Bars) -> list[Floats]:
    """The features of one index, `[days]` each, in the order of `_INDEX_FEATURES`.

    The S&P 500's open equals the close before on most days until 2006, as its publisher reported it then:
    `gap` and `intraday` say little in those years.
    """
    close, high, low = np.log(bars.close), np.log(bars.high), np.log(bars.low)
    open_, volume = np.log(bars.open), np.log(bars.volume)
    daily = _log_return(bars.close, 1)
    span = high - low
    volatility_5, volatility_20, volatility_60 = (_over(daily, days, np.std) for days in (5, 20, 60))
    gains = _over(np.maximum(daily, 0.0), 14, np.sum)
    moves = _over(np.abs(daily), 14, np.sum)
    return [
        daily,
        _log_return(bars.close, 5),
        _log_return(bars.close, 10),
        _log_return(bars.close, 20),
        _log_return(bars.close, 59),
        open_ - _shifted(close, 1),
        close - open_,
        span,
        _ratio(close - low, span, otherwise=0.5),
        high - np.maximum(open_, close),
        np.minimum(open_, close) - low,
        _log_percent(volatility_5),
        _log_percent(volatility_20),
        _log_percent(volatility_60),
        # Parkinson (1980): the range of a day says more about its volatility than its close does.
        _log_percent(np.sqrt(_over(span**2, 20, np.mean) / (4.0 * np.log(2.0)))),
        _ratio(volatility_5, volatility_60, otherwise=1.0),
        close - _over(close, 10, np.mean),
        close - _over(close, 50, np.mean),
        close - _over(high, 60, np.max),
        close - _over(low, 60, np.min),
        # The relative strength index with plain sums, on a scale of 0 to 1.
        _ratio(gains, moves, otherwise=0.5),
        volume - _over(volume, 20, np.mean),
    ]


def _pair_features(history: History) -> list[Floats]:
    """How the NASDAQ moves against the S&P 500, `[days]` each, in the order of `_PAIR_FEATURES`."""
    sp500, nasdaq = history.sp500, history.nasdaq
    base, other = _log_return(sp500.close, 1), _log_return(nasdaq.close, 1)
    share = np.log(nasdaq.volume) - np.log(sp500.volume)
    return [
        other - base,
        _log_return(nasdaq.close, 5) - _log_return(sp500.close, 5),
        _log_return(nasdaq.close, 20) - _log_return(sp500.close, 20),
        _ratio(
            _covariance(base, other, 20), _over(base, 20, np.std) * _over(other, 20, np.std), otherwise=0.0
        ),
        _ratio(_covariance(base, other, 59), _over(base, 59, np.var), otherwise=1.0),
        share - _over(share, 60, np.mean),
    ]


def _standardised(raw: Floats) -> Floats:
    """Each feature minus its mean, over its standard deviation, of the last `STANDARD_DAYS` days.

    Except `_LEVELS`, which stay as they are. The day itself is included, the next is not. A loop over the
    days, because that is visibly causal and takes a third of a second.
    """
    first = int(np.argmax(np.isfinite(raw).all(axis=1)))
    if not np.isfinite(raw[first:]).all():
        raise ValueError("a feature is not finite after its warm-up")
    result = np.full_like(raw, np.nan)
    for day in range(first + STANDARD_MIN_DAYS - 1, len(raw)):
        past = raw[max(first, day + 1 - STANDARD_DAYS) : day + 1]
        # A feature that did not move all year (the S&P 500's gap can) says nothing: 0.
        score = _ratio(raw[day] - past.mean(axis=0), past.std(axis=0), otherwise=0.0)
        result[day] = np.clip(np.where(_LEVELS, raw[day], score), -CLIP, CLIP)
    return result


def _over(values: Floats, days: int, reduce: Callable[..., Any]) -> Floats:
    """`reduce` over each day and the `days` - 1 before it; NaN where there are fewer."""
    result = np.full(len(values), np.nan)
    result[days - 1 :] = reduce(sliding_window_view(values, days), axis=-1)
    return result


def _covariance(left: Floats, right: Floats, days: int) -> Floats:
    """Trailing covariance, by the two-pass formula."""
    centred_left = sliding_window_view(left, days) - _over(left, days, np.mean)[days - 1 :, None]
    centred_right = sliding_window_view(right, days) - _over(right, days, np.mean)[days - 1 :, None]
    result = np.full(len(left), np.nan)
    result[days - 1 :] = (centred_left * centred_right).mean(axis=-1)
    return result


def _log_return(close: Floats, days: int) -> Floats:
    """Log of the close over the close `days` trading days before."""
    return np.log(close) - _shifted(np.log(close), days)


def _shifted(values: Floats, days: int) -> Floats:
    """The value of `days` days before; NaN where there is none."""
    result = np.full(len(values), np.nan)
    result[days:] = values[:-days]
    return result


def _log_percent(volatility: Floats) -> Floats:
    """Logarithm of a daily volatility in percent: 0 at 1 % a day. A fixed scale, fitted to nothing."""
    return np.log(np.maximum(100.0 * volatility, 0.05))


def _ratio(over: Floats, under: Floats, otherwise: float) -> Floats:
    """`over / under`, and `otherwise` where `under` is too small to divide by; NaN stays NaN."""
    safe = ~(np.abs(under) < 1e-10)
    return np.where(safe, over / np.where(safe, under, 1.0), otherwise)
