"""A linear head that can grow while it is trained, as more classes come to be known."""

import torch
from torch import nn


def build_head(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """PyTorch's own initialisation, from the generator, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(inputs, outputs)
    bound = inputs**-0.5
    nn.init.uniform_(head.weight, -bound, bound, generator=generator)
    nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    return head


def widen(head: nn.Linear, outputs: int, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """Give a head in training more outputs: those it has stay, with what the optimiser remembers of them."""
    more = outputs - head.out_features
    if not more:
        return
    added = build_head(head.in_features, more, generator)
    for name, new in added.named_parameters():
        old: nn.Parameter = getattr(head, name)
        wider = nn.Parameter(torch.cat([old.detach(), new.detach().to(old.device)]))
        setattr(head, name, wider)
        for group in optimiser.param_groups:
            group["params"] = [wider if parameter is old else parameter for parameter in group["params"]]
        optimiser.state[wider] = {
            what: torch.cat([value, value.new_zeros(new.shape)]) if value.shape == old.shape else value
            for what, value in optimiser.state.pop(old, {}).items()
        }
    head.out_features = outputs
