"""The bundled network: convolutions over the features, an LSTM over the days, three heads on its end."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional


class CnnLstm(nn.Module):
    """CNN+LSTM hybrid of 300,882 parameters with an ensemble of three heads.

    Every row goes through alone: there is no normalisation over the batch, and dropout exists only in
    training. Plain torch that `torch.jit.script` takes as it is.
    """

    # On the class, because TorchScript reads no globals.
    n_features: Final[int] = 50
    n_hidden: Final[int] = 128
    n_heads: Final[int] = 3
    n_classes: Final[int] = 3
    # Smallest uncertainty of a head, percent: keeps it positive and the likelihood bounded.
    min_scale_pct: Final[float] = 0.05

    def __init__(self, lstm_dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(self.n_features, 64, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(64, self.n_hidden, kernel_size=3, padding=1)
        self.lstm = nn.LSTM(
            self.n_hidden, self.n_hidden, num_layers=2, batch_first=True, dropout=lstm_dropout
        )
        # All heads and their weights are one matrix product: at batch 1 the number of calls is what
        # costs. Six rows of three: the class logits of each head, the weights of the heads, their
        # means, their scales. (Three is both the number of heads and of classes.)
        self.heads = nn.Linear(self.n_hidden, (self.n_heads + 3) * self.n_classes)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """From windows, float32 `[n, 50, 60]`, to float32 outputs.

        - classification_probs `[n, 3]`: down, flat, up; sums to 1
        - regression_mean `[n, 1]`: expected log return of the next day, percent
        - regression_uncertainty `[n, 1]`: its standard deviation, percent, above 0
        - ensemble_weights `[n, 3]`: how much each head counts for this window; sums to 1
        - features `[n, 128]`: the state of the LSTM after the last day
        """
        features = self.encode(window)
        head_probs, weights, means, scales = self.head_outputs(features)
        probs = torch.bmm(weights.unsqueeze(1), head_probs).squeeze(1)
        mean = (weights * means).sum(dim=1, keepdim=True)
        # The variance of a mixture: the mean of the variances plus the variance of the means.
        variance = (weights * (scales.square() + (means - mean).square())).sum(dim=1, keepdim=True)
        return probs, mean, variance.sqrt(), weights, features

    def encode(self, window: Tensor) -> Tensor:
        """Windows `[n, 50, 60]` to features `[n, 128]`."""
        hidden = torch.relu(self.conv1(window))
        hidden = torch.relu(self.conv2(hidden))
        _, (state, _) = self.lstm(hidden.transpose(1, 2))
        last: Tensor = state[1]
        return last

    def head_outputs(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each head by itself, from features `[n, 128]`.

        Probabilities `[n, 3 heads, 3 classes]`, weights `[n, 3]`, means and scales `[n, 3]` in percent.
        """
        raw = self.heads(features).view(-1, self.n_heads + 3, self.n_classes)
        simplex = torch.softmax(raw[:, : self.n_heads + 1], dim=2)
        scales = functional.softplus(raw[:, self.n_heads + 2]) + self.min_scale_pct
        return (
            simplex[:, : self.n_heads],
            simplex[:, self.n_heads].contiguous(),
            raw[:, self.n_heads + 1],
            scales,
        )


def parameter_count(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
