"""The inner loop of meta-learning as pure functions over dictionaries of parameters, in the manner of functorch.

MAML (Finn et al. 2017) is `adapt` inside a loss; with `second_order=False` it is FOMAML; with `moving` naming the head alone
it is ANIL (Raghu et al. 2020); `fine_tune` is the same path when nobody differentiates through it.

    call, parameters = functional(module, batch_norm="batch")
    def on(images, labels):
        return lambda parameters: F.cross_entropy(call(parameters, images), labels)
    adapted = adapt(on(*support), parameters, steps=5, lr=0.01, second_order=True)
    on(*query)(adapted).backward()  # MAML

Tasks are looped over. `torch.func.vmap` over them gives the same numbers, with one exception, found by finite differences with
torch 2.13: through batch norm its second-order gradients are wrong by some per cent.
"""

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters], Tensor]
"""Parameters -> a scalar."""
Call = Callable[..., Any]
"""(parameters, *inputs) -> what the module gives."""
BatchNorm = Literal["running", "batch"]
"""Inductive: an image is normalised by the running statistics. Transductive: by the batch that it came in."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def adapt(
    loss: Loss,
    parameters: Parameters,
    *,
    steps: int,
    lr: float,
    second_order: bool,
    moving: Collection[str] | None = None,
) -> Parameters:
    """`steps` of gradient descent from `parameters`; the result is a differentiable function of them.

    second_order: differentiate through the gradients as well. Without it the result is `parameters` plus a constant.
    moving: names of the parameters that move; None for all. The others are returned as they came.
    Raises ValueError where `moving` names what is not there.
    """
    names = list(parameters) if moving is None else list(moving)
    unknown = sorted(set(names) - set(parameters))
    if unknown:
        raise ValueError(f"moving: there are no parameters called {', '.join(unknown)}")
    still = {name: value for name, value in parameters.items() if name not in names}
    slope = grad(lambda now: loss({**still, **now}))
    now = {name: parameters[name] for name in names}
    for _ in range(steps):
        if second_order:
            gradients = slope(now)
        else:  # at a copy cut off from the past: no graph is kept
            gradients = {name: g.detach() for name, g in slope({name: p.detach() for name, p in now.items()}).items()}
        now = {name: now[name] - lr * gradients[name] for name in names}
    return {name: now.get(name, value) for name, value in parameters.items()}


def fine_tune(
    loss: Loss, parameters: Parameters, *, steps: int, lr: float, moving: Collection[str] | None = None
) -> Parameters:
    """The end of the same path, cut off from `parameters`: ordinary gradient descent, of which no graph is kept."""
    start = {name: value.detach() for name, value in parameters.items()}
    return adapt(loss, start, steps=steps, lr=lr, second_order=False, moving=moving)


def functional(module: nn.Module, *, batch_norm: BatchNorm) -> tuple[Call, Parameters]:
    """A module as a pure function `call(parameters, *inputs)`, and its parameters: the module's own tensors, not copies.

    The function works on a private copy of the structure in evaluation mode (no dropout) and of the buffers as they are now: it
    never changes the module, its mode or its running statistics.

    batch_norm: "running" is inductive, an answer does not depend on its batch neighbours; "batch" is transductive.
    """
    own: Parameters = dict(module.named_parameters())
    private = copy.deepcopy(module).requires_grad_(False).eval()
    if batch_norm == "batch":
        for part in private.modules():
            if isinstance(part, _BATCH_NORMS):  # without running statistics batch norm uses the batch's, in either mode
                part.track_running_stats = False
                part.running_mean = part.running_var = part.num_batches_tracked = None

    def call(parameters: Parameters, *inputs: Any) -> Any:
        return functional_call(private, parameters, inputs)

    return call, own


def set_running_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch norm to their plain mean over `batches`; the mode is left as it was.

    What was trained transductively is used inductively with these: its own running statistics were never updated.
    Raises ValueError where there is no batch.
    """
    norms = [part for part in module.modules() if isinstance(part, _BATCH_NORMS) and part.track_running_stats]
    modes, momenta = {part: part.training for part in module.modules()}, [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            module(batch)
            seen += 1
    for part, training in modes.items():
        part.training = training
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if not seen:
        raise ValueError("no batch was given: running statistics need images to be measured on")
