"""How far to trust an API, by whether it finds those images alike that the others find alike. No answer is asked for it.

APIs name other classes, so their answers cannot be compared; which images they tell apart can. An API that answers at random,
or the same to everything, agrees with nobody.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 2048
"""Images that agreement is told from: the first of the pool."""
ENOUGH = 0.25
"""Of the agreement that the upper quartile of the APIs has: from here on an API is trusted fully."""


def agreement(profiles: Sequence[Tensor], asked: Tensor) -> tuple[Tensor, Tensor]:
    """Of each API with all the others, about -1 to 1, and the standard deviation that chance alone would give: two (APIs,).

    With `K_t[i, j]` the inner product of API t's answers to images i and j, less their mean, in units of its length over
    all i != j of its images, it is `sum_s <K_t, K_s> / sum_s sqrt(f_ts f_st)` over i != j and s != t; `f_ts` is the share of
    t's pairs of images that s was shown. Without i = j it is 0 in the mean where answers have nothing to do with the others'
    (the unbiased form of kernel alignment: Song et al. 2012, Cortes et al. 2012); its variance is then
    `sum_s 2 p_ts / (p_t p_s)` over the square of the denominator, p the pairs of images that APIs were shown.

    profiles: answers (n, ways) of each API less their mean over its images, zero where not asked. asked: bool (n, APIs).
    """
    asked = asked[:MOST]
    total = torch.zeros(len(asked), len(asked), device=asked.device)
    for profile in profiles:  # twice, so that no more than one is held
        total += _kernel(profile[:MOST])
    counts = asked.double().T @ asked.double()  # images that both were shown
    pairs = counts * (counts - 1)
    own = pairs.diagonal().clamp_min(1)
    shared = pairs / (own[:, None] * own)
    expected = (pairs * shared).sqrt().fill_diagonal_(0).sum(1).clamp_min(1e-12)
    chance = (2 * shared.fill_diagonal_(0)).sum(1).sqrt() / expected
    with_all, varies = [], []  # what always says the same agrees with nobody, by no chance
    for profile in profiles:
        kernel = _kernel(profile[:MOST])
        with_all.append((kernel * (total - kernel)).sum())
        varies.append(profile.abs().amax() > 1e-6)
    return (torch.stack(with_all) / expected).float(), (chance * torch.stack(varies)).float()


def trust(agreement: Tensor, chance: Tensor) -> Tensor:
    """A weight in [0, 1] for each API: in proportion to its agreement, 1 from `ENOUGH` of the upper quartile's on: (APIs,).

    Two standard deviations of chance are added first: with few answers none is distrusted for bad luck. All ones where there
    are fewer than three APIs, or nobody agrees: then there is nothing to tell them apart by.
    """
    usual = agreement.quantile(0.75)
    if len(agreement) < 3 or usual <= 0:
        return torch.ones_like(agreement)
    return ((agreement + 2 * chance) / (ENOUGH * usual)).clamp(0, 1)


def _kernel(profile: Tensor) -> Tensor:
    """(n, n), zero on the diagonal, of length one; zeros where all answers are the same."""
    kernel = (profile @ profile.T).fill_diagonal_(0)
    return kernel / kernel.square().sum().sqrt().clamp_min(1e-12)
