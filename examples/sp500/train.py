"""Train the bundled model from scratch, about a minute on one core, and write it to the repository.

    PYTHONHASHSEED=0 python -m examples.sp500.train

The seed is fixed and there is one thread: the same torch build on the same kind of CPU gives the same
file, byte for byte. Elsewhere the last digits of the weights differ, and the sha256 with them.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from examples.sp500.evaluate import (
    Scores,
    baselines,
    classification_scores,
    regression_scores,
    tables,
)
from examples.sp500.export import NAME, export
from examples.sp500.features import FLAT_BAND_PCT, Windows, load_history, make_windows
from examples.sp500.model import CnnLstm, parameter_count
from examples.sp500.split import Split, split_by_date


@dataclass(frozen=True)
class Recipe:
    """How to train; chosen on the validation part, before the test part was looked at."""

    seed: int = 7
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    dropout: float = 0.4
    lstm_dropout: float = 0.3
    batch_size: int = 64
    max_gradient_norm: float = 1.0
    max_epochs: int = 20
    patience: int = 4


@dataclass(frozen=True)
class Data:
    """`Windows` as tensors, row for row."""

    windows: Tensor
    classes: Tensor
    move_pct: Tensor


def sample_losses(probs: Tensor, mean: Tensor, scale: Tensor, classes: Tensor, move_pct: Tensor) -> Tensor:
    """Log loss of the class plus negative log likelihood of the move, one per row and head.

    `probs` `[n, k, 3]`, `mean` and `scale` `[n, k]`, `classes` and `move_pct` `[n]`; returns `[n, k]`,
    without the constant of the normal density.
    """
    heads = probs.shape[1]
    hit = probs.gather(2, classes[:, None, None].expand(-1, heads, 1)).squeeze(2)
    score = (move_pct[:, None] - mean) / scale
    return -hit.log() + 0.5 * score.square() + scale.log()


def training_loss(model: CnnLstm, rows: Tensor, data: Data, counts: Tensor, dropout: float) -> Tensor:
    """Loss of the ensemble as a whole plus that of each head on its own bootstrap sample.

    `counts` `[n, 3]` says how often a row is in the sample of each head (Poisson(1), as online bagging
    does it: Oza and Russell, 2001). Without it the heads would learn the same thing.
    """
    features = functional.dropout(model.encode(data.windows[rows]), dropout)
    probs, weights, means, scales = model.head_outputs(features)
    losses = sample_losses(probs, means, scales, data.classes[rows], data.move_pct[rows])
    alone = (losses * counts[rows]).mean()
    # -log sum_k w_k exp(-loss_k): the likelihood of the mixture of the heads.
    together = -torch.logsumexp(weights.log() - losses, dim=1).mean()
    return together + alone


def fit(data: Data, split: Split, recipe: Recipe) -> tuple[CnnLstm, list[float]]:
    """Train until the validation loss has not improved for `patience` epochs.

    Returns the network of the best epoch and the validation loss of every epoch.
    """
    torch.manual_seed(recipe.seed)
    model = CnnLstm(recipe.lstm_dropout)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rows = torch.from_numpy(split.train)
    counts = torch.poisson(torch.ones(len(rows), model.n_heads))
    best, best_state, curve = np.inf, model.state_dict(), list[float]()
    for epoch in range(recipe.max_epochs):
        model.train()
        for batch in torch.split(rows[torch.randperm(len(rows))], recipe.batch_size):
            optimiser.zero_grad()
            # Rows of the training part are the first ones, so they index `counts` too.
            loss = training_loss(model, batch, data, counts, recipe.dropout)
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            optimiser.step()
        curve.append(validation_loss(model, data, split))
        print(f"epoch {epoch + 1:2d}: validation loss {curve[-1]:.4f}", flush=True)
        if curve[-1] < best:
            best = curve[-1]
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - int(np.argmin(curve)) >= recipe.patience:
            break
    # Dropout in the LSTM is a number of the module, not a parameter: what is exported has none.
    result = CnnLstm()
    result.load_state_dict(best_state)
    return result.eval(), curve


@torch.no_grad()
def validation_loss(model: CnnLstm, data: Data, split: Split) -> float:
    """What early stopping goes by: the same two losses, of the model's final outputs."""
    rows = torch.from_numpy(split.validation)
    probs, mean, deviation, _, _ = model.eval()(data.windows[rows])
    losses = sample_losses(probs[:, None], mean, deviation, data.classes[rows], data.move_pct[rows])
    return float(losses.mean())


@torch.no_grad()
def scores(model: CnnLstm, windows: Windows, rows: Any, train: Any) -> dict[str, dict[str, Scores]]:
    """The model on `rows` beside the baselines that `train` gives."""
    probs, mean, deviation, _, _ = model(torch.from_numpy(windows.windows[rows]))
    move_pct, classes = windows.target_pct[rows], windows.target_class[rows]
    classification, regression = baselines(
        windows.target_pct[train],
        windows.target_class[train],
        move_pct,
        classes,
        windows.trailing_volatility_pct[rows],
    )
    return {
        "classification": {
            "this model": classification_scores(probs.double().numpy(), classes),
            **classification,
        },
        "regression": {
            "this model": regression_scores(mean[:, 0].numpy(), deviation[:, 0].numpy(), move_pct),
            **regression,
        },
    }


def describe_part(windows: Windows, rows: Any) -> dict[str, Any]:
    """Size and dates of one part: first day that any of its windows reads, first and last target day."""
    shares = np.bincount(windows.target_class[rows], minlength=3) / len(rows)
    return {
        "windows": len(rows),
        "first_window_day": str(windows.first_dates[rows[0]]),
        "first_target": str(windows.target_dates[rows[0]]),
        "last_target": str(windows.target_dates[rows[-1]]),
        "class_shares": [round(float(share), 4) for share in shares],
    }


def main() -> None:
    """Train, measure once on the test part, write model, manifest and metrics."""
    parser = argparse.ArgumentParser(description="Train the S&P 500 demo model.")
    parser.add_argument("--out", type=Path, default=Path("models") / NAME, help="folder of the model")
    out: Path = parser.parse_args().out

    if os.environ.get("PYTHONHASHSEED") != "0":
        # TorchScript writes the constants of a module in the order of a set of strings.
        parser.error("set PYTHONHASHSEED=0: without it the same weights give a different file each time")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    windows = make_windows(load_history())
    split = split_by_date(windows)
    data = Data(
        windows=torch.from_numpy(windows.windows),
        classes=torch.from_numpy(windows.target_class),
        move_pct=torch.from_numpy(windows.target_pct),
    )
    recipe = Recipe()
    model, curve = fit(data, split, recipe)
    path = export(model, out)

    metrics: dict[str, Any] = {
        "parameters": parameter_count(model),
        "flat_band_pct": FLAT_BAND_PCT,
        "recipe": asdict(recipe),
        "validation_loss_per_epoch": [round(value, 5) for value in curve],
        "split": {name: describe_part(windows, rows) for name, rows in vars(split).items()},
        "validation": scores(model, windows, split.validation, split.train),
        "test": scores(model, windows, split.test, split.train),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {parameter_count(model):,} parameters, {path.stat().st_size:,} bytes\n")
    print(tables(**metrics["test"]))


if __name__ == "__main__":
    main()
