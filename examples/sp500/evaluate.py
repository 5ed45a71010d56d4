"""How good predictions are, beside what one gets without a model."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from examples.sp500.features import FLAT_BAND_PCT

Floats = npt.NDArray[np.floating[Any]]
Scores = dict[str, float]

DOWN, FLAT, UP = 0, 1, 2


def classification_scores(probs: Floats, classes: npt.NDArray[np.int64]) -> Scores:
    """Accuracy, log loss (nats) and Brier score (0 to 2) of `probs` `[n, 3]` against `classes` `[n]`.

    `direction_accuracy`: of the days that were not flat, the share on which the likelier of up and down
    was right. `says_up`: the share of all days on which up was the likelier of the two.
    """
    hit = probs[np.arange(len(classes)), classes]
    moved = classes != FLAT
    says_up = probs[:, UP] > probs[:, DOWN]
    return {
        "accuracy": float((probs.argmax(axis=1) == classes).mean()),
        "direction_accuracy": float((says_up == (classes == UP))[moved].mean()),
        "says_up": float(says_up.mean()),
        "log_loss": float(-np.log(np.maximum(hit, 1e-12)).mean()),
        "brier": float(((probs - np.eye(3)[classes]) ** 2).sum(axis=1).mean()),
    }


def regression_scores(mean_pct: Floats, deviation_pct: Floats, move_pct: Floats) -> Scores:
    """Errors in percent and the calibration of the stated deviation, from arrays `[n]`.

    `nll`: negative log likelihood of a normal distribution, nats. `within_1`, `within_2`: the share of
    moves within one and two deviations of the mean; a calibrated normal has 0.683 and 0.954.
    """
    error = move_pct - mean_pct
    score = np.abs(error / deviation_pct)
    return {
        "mae_pct": float(np.abs(error).mean()),
        "rmse_pct": float(np.sqrt((error**2).mean())),
        "nll": float((0.5 * score**2 + np.log(deviation_pct) + 0.5 * np.log(2 * np.pi)).mean()),
        "within_1": float((score <= 1).mean()),
        "within_2": float((score <= 2).mean()),
    }


def class_probabilities(mean_pct: Floats, deviation_pct: Floats) -> Floats:
    """Probabilities of down, flat and up, `[n, 3]`, of normal distributions with these parameters `[n]`."""
    edges = np.stack([-FLAT_BAND_PCT - mean_pct, FLAT_BAND_PCT - mean_pct], axis=1)
    below = torch.special.ndtr(torch.from_numpy(edges / deviation_pct[:, None])).numpy()
    return np.stack([below[:, 0], below[:, 1] - below[:, 0], 1.0 - below[:, 1]], axis=1)


def baselines(
    train_pct: Floats,
    train_classes: npt.NDArray[np.int64],
    move_pct: Floats,
    classes: npt.NDArray[np.int64],
    trailing_volatility_pct: Floats,
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """What no network gets: (classification, regression), each by name.

    Only the training part is looked at for constants; `trailing_volatility_pct` is known on the day of
    the prediction.
    """
    n = len(classes)
    frequencies = np.bincount(train_classes, minlength=3) / len(train_classes)
    certain = np.full(3, 1e-12)
    certain[frequencies.argmax()] = 1.0
    zeros, mean = np.zeros(n), np.full(n, train_pct.mean())
    spread = np.full(n, train_pct.std())
    recent = np.asarray(trailing_volatility_pct, dtype=np.float64)
    classification = {
        "training frequencies": classification_scores(np.tile(frequencies, (n, 1)), classes),
        "always the majority class": classification_scores(np.tile(certain, (n, 1)), classes),
        "normal, last 20 days": classification_scores(class_probabilities(mean, recent), classes),
    }
    regression = {
        "zero return, training deviation": regression_scores(zeros, spread, move_pct),
        "training mean and deviation": regression_scores(mean, spread, move_pct),
        "training mean, last 20 days": regression_scores(mean, recent, move_pct),
    }
    return classification, regression


def tables(classification: dict[str, Scores], regression: dict[str, Scores]) -> str:
    """Both comparisons as Markdown, as the model card shows them."""
    lines = ["| | accuracy | up or down right | log loss | Brier |", "|---|---|---|---|---|"]
    for name, row in classification.items():
        # A log loss of certainty is infinite; the floor inside the score only keeps it computable.
        loss = f"{row['log_loss']:.4f}" if row["log_loss"] < 5 else "infinite"
        lines.append(
            f"| {name} | {row['accuracy']:.1%} | {row['direction_accuracy']:.1%} "
            f"| {loss} | {row['brier']:.4f} |"
        )
    lines += ["", "| | MAE, % | RMSE, % | NLL | within 1 dev. | within 2 dev. |", "|---|---|---|---|---|---|"]
    for name, row in regression.items():
        lines.append(
            f"| {name} | {row['mae_pct']:.4f} | {row['rmse_pct']:.4f} | {row['nll']:.4f} "
            f"| {row['within_1']:.1%} | {row['within_2']:.1%} |"
        )
    return "\n".join(lines)
