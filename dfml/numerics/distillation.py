"""Targets and losses for learning from the answers of many classifiers, of which each saw only some of the images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_UNITS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


def rounding_unit(probabilities: Tensor) -> float | None:
    """The unit that answers were rounded to: 1.0 for labels only, 0.01 for two decimals, None for full precision.

    probabilities: (n, ways).
    """
    for unit in _UNITS:
        counts = probabilities.double() / unit
        if bool(((counts - counts.round()).abs() <= 2e-7 * counts).all()):  # float32 is exact to 6e-8
            return unit
    return None


def log_probabilities(probabilities: Tensor, *, floor: float) -> Tensor:
    """log max(p, floor), with p first clamped at half a unit and renormalised where answers were rounded: (n, ways).

    A probability of 0.00 means "less than half a unit"; taken as 0 it would dominate the logarithm. Of labels alone only
    the ranking of two values is left, which the standardisation of `standardised` makes the same for any clamp.
    """
    unit = rounding_unit(probabilities)
    if unit is not None:
        ways = probabilities.shape[1]
        probabilities = probabilities.clamp_min(min(unit / 2, 0.1 / ways))
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities.clamp_min(floor).log()


def standardised(logits: Tensor, asked: Tensor) -> Tensor:
    """Logits less their mean over the classes, divided by their standard deviation over the rows asked: (n, ways).

    Of a softmax the mean is lost anyway; the scale is how sure of itself an API is, which must not weigh its say.
    Rows not asked are zeros. asked: bool (n,).
    """
    centred = logits - logits.mean(-1, keepdim=True)
    spread = centred[asked].std() if int(asked.sum()) > 1 else centred.new_tensor(1.0)
    return torch.where(asked[:, None], centred / spread.clamp_min(1e-3), 0.0)


def centre_by_group(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows (sum of sizes, …) less the mean of their group, so that each group's outputs have mean zero for any input."""
    if len(set(sizes)) == 1:  # one operation instead of one a group
        grouped = weights.reshape(len(sizes), sizes[0], -1)
        return (grouped - grouped.mean(1, keepdim=True)).reshape(weights.shape)
    return torch.cat([part - part.mean(0) for part in torch.split(weights, list(sizes))])


def log_softmax_by_group(outputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Outputs (n, sum of sizes) -> log-probabilities, those of each group by themselves."""
    if len(set(sizes)) == 1:
        return outputs.reshape(len(outputs), len(sizes), sizes[0]).log_softmax(-1).reshape(outputs.shape)
    return torch.cat([part.log_softmax(-1) for part in torch.split(outputs, list(sizes), 1)], 1)


def largest_by_group(outputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Place of the largest output within each group: (n, sum of sizes) -> int64 (n, groups)."""
    if len(set(sizes)) == 1:
        return outputs.reshape(len(outputs), len(sizes), sizes[0]).argmax(-1)
    return torch.stack([part.argmax(-1) for part in torch.split(outputs, list(sizes), 1)], 1)


def masked_mean(errors: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of the entries, each counted as much as its weight in [0, 1] says; `weight` None counts all of them fully."""
    if weight is None:
        return errors.mean()
    return (errors * weight).sum() / weight.sum().clamp_min(1)


def cosines(centred: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosines between rows over the entries that both rows have, and how many entries those are: two (n, n).

    centred: (n, d), zero where not seen; seen: 0/1 (n, d), None where every row has all.
    """
    if seen is None:
        unit = F.normalize(centred, dim=1)
        return unit @ unit.T, centred.new_full((len(centred), len(centred)), centred.shape[1])
    length = (centred.square() @ seen.T).sqrt()  # [i, j]: of row i, over what row j has
    return (centred @ centred.T) / (length * length.T).clamp_min(1e-8), seen @ seen.T


def relational(features: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Do images that the APIs find alike have features alike? Mean over i != j of (cos f - target)^2, over Var(target).

    cos f is the cosine of the features less their batch mean (Tung and Mori 2019 match similarities; the scale is ours).
    features: (n, d); target: (n, n); weight: (n, n) of a pair, None for equal weights.
    """
    n = len(features)
    unit = F.normalize(features - features.mean(0), dim=1)
    off = ~torch.eye(n, dtype=torch.bool, device=features.device)
    wanted, got = target[off], (unit @ unit.T)[off]
    weights = torch.ones_like(wanted) if weight is None else weight[off]
    total = weights.sum().clamp_min(1e-8)
    middle = (weights * wanted).sum() / total
    variance = (weights * (wanted - middle).square()).sum() / total
    return (weights * (got - wanted).square()).sum() / total / variance.clamp_min(1e-3)


def divergence(probabilities: Tensor, logits: Tensor) -> Tensor:
    """Mean over images of KL(p || softmax(logits)): knowledge distillation from a teacher's probabilities, both (n, ways)."""
    return F.kl_div(logits.log_softmax(-1), probabilities, reduction="batchmean")


def divergence_as_released(probabilities: Tensor, logits: Tensor) -> Tensor:
    """What the released code of BiDf-MKD, FREE and TGR computes instead: `kl_div` of softmax outputs, mean over all entries.

    `kl_div` expects logarithms. Its gradient here is that of `-mean(p * softmax(logits))`, least at a one-hot answer: what the
    teacher knows about the other classes is lost. For ablations.
    """
    return (torch.xlogy(probabilities, probabilities) - probabilities * logits.softmax(-1)).mean()
