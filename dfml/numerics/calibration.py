"""The calibration loss of PURER's ICFIL, inversion calibrated by few images of the new task (Hu et al. 2023)."""

import torch
from torch import Tensor


def calibration_loss(
    support: Tensor, support_labels: Tensor, pseudo: Tensor, pseudo_labels: Tensor, *, temperature: float
) -> Tensor:
    """L_cal = - sum_x sum_{x+} log( exp(x.x+ / T) / sum_{x^} exp(x.x^ / T) ).

    x: real support images; x+: pseudo images of the same label; x^: all pseudo images; all three as features.
    Pulls the features of a real image towards those of the pseudo images of its class. A sum, as in the paper: it grows with
    the number of pairs (see `pairs`). A support image whose class has no pseudo image adds nothing.

    support: features (n, d) of real images; pseudo: features (m, d) of recovered ones; labels: int64 (n,) and (m,). The paper
    writes plain inner products: normalise before where lengths should not count.
    """
    log_probability = (support @ pseudo.T / temperature).log_softmax(1)
    return -(log_probability * same_class(support_labels, pseudo_labels)).sum()


def pairs(support_labels: Tensor, pseudo_labels: Tensor) -> int:
    """Terms of the sum in `calibration_loss`."""
    return int(same_class(support_labels, pseudo_labels).sum())


def same_class(labels: Tensor, others: Tensor) -> Tensor:
    """bool (n, m)."""
    return torch.eq(labels[:, None], others[None])
