import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfml.numerics.inner_loop import Parameters, adapt, fine_tune, functional, set_running_statistics


def two_parameter_net(parameters: Parameters, x: Tensor) -> Tensor:
    return parameters["a"] * torch.tanh(parameters["b"] * x)


def squares(x: Tensor, y: Tensor) -> Callable[[Parameters], Tensor]:
    return lambda parameters: (two_parameter_net(parameters, x) - y).square().mean()


@pytest.fixture
def start() -> Parameters:
    return {
        "a": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
        "b": torch.tensor(-0.4, dtype=torch.float64, requires_grad=True),
    }


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    return x, torch.sin(x)


def by_hand(a: Tensor, b: Tensor, x: Tensor, y: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One step with the gradient written out: d/da and d/db of mean (a tanh(b x) - y)^2."""
    t = torch.tanh(b * x)
    error = a * t - y
    return a - lr * (2 * error * t).mean(), b - lr * (2 * error * a * (1 - t * t) * x).mean()


def test_a_meta_step_is_the_one_unrolled_by_hand(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    adapted = adapt(squares(x[::2], y[::2]), start, steps=2, lr=0.1, second_order=True)
    a, b = start["a"], start["b"]
    for _ in range(2):
        a, b = by_hand(a, b, x[::2], y[::2], 0.1)
    assert torch.allclose(torch.stack([adapted["a"], adapted["b"]]), torch.stack([a, b]), atol=1e-12)

    outer = squares(x[1::2], y[1::2])
    meant = torch.autograd.grad(outer({"a": a, "b": b}), [start["a"], start["b"]])
    got = torch.autograd.grad(outer(adapted), [start["a"], start["b"]])
    assert torch.allclose(torch.stack(got), torch.stack(meant), atol=1e-12)


def test_first_order_takes_the_gradient_where_it_ends(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    outer = squares(x[1::2], y[1::2])
    adapted = adapt(squares(x[::2], y[::2]), start, steps=3, lr=0.1, second_order=False)
    got = torch.autograd.grad(outer(adapted), list(start.values()))
    end = {name: value.detach().requires_grad_() for name, value in adapted.items()}
    meant = torch.autograd.grad(outer(end), list(end.values()))
    assert torch.equal(torch.stack(got), torch.stack(meant))
    exact = adapt(squares(x[::2], y[::2]), start, steps=3, lr=0.1, second_order=True)
    assert torch.allclose(exact["a"], adapted["a"])  # the path is the same, its slope is not
    assert not torch.allclose(torch.stack(torch.autograd.grad(outer(exact), list(start.values()))), torch.stack(meant))


def test_the_meta_gradient_passes_gradcheck(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    x, y = data

    def meta_loss(a: Tensor, b: Tensor) -> Tensor:
        return squares(x, y)(adapt(squares(x, y), {"a": a, "b": b}, steps=2, lr=0.1, second_order=True))

    assert torch.autograd.gradcheck(meta_loss, (start["a"], start["b"]))


def test_only_what_moves_moves(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    adapted = adapt(squares(*data), start, steps=2, lr=0.1, second_order=True, moving=["a"])
    assert adapted["b"] is start["b"]
    assert adapted["a"] != start["a"]
    assert list(adapted) == list(start)
    slopes = torch.autograd.grad(squares(*data)(adapted), list(start.values()))
    assert all(slope != 0 for slope in slopes)  # ANIL: what stands still is learned by the outer loop
    with pytest.raises(ValueError, match="called c"):
        adapt(squares(*data), start, steps=1, lr=0.1, second_order=True, moving=["c"])


def test_no_steps_change_nothing(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    adapted = adapt(squares(*data), start, steps=0, lr=0.1, second_order=True)
    assert all(adapted[name] is value for name, value in start.items())


def test_fine_tuning_walks_the_same_path_and_keeps_no_graph(start: Parameters, data: tuple[Tensor, Tensor]) -> None:
    adapted = adapt(squares(*data), start, steps=4, lr=0.1, second_order=True)
    tuned = fine_tune(squares(*data), start, steps=4, lr=0.1)
    assert all(torch.allclose(tuned[name], adapted[name]) and not tuned[name].requires_grad for name in start)


def test_fine_tuning_is_sgd(generator: torch.Generator) -> None:
    net, x, labels = nn.Linear(4, 3), torch.randn(8, 4, generator=generator), torch.arange(8) % 3
    call, parameters = functional(net, batch_norm="running")
    tuned = fine_tune(lambda now: F.cross_entropy(call(now, x), labels), parameters, steps=5, lr=0.3)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(5):
        optimiser.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimiser.step()
    assert all(torch.allclose(tuned[name], value, atol=1e-6) for name, value in net.named_parameters())


class Tied(nn.Module):
    """One weight used twice, another never, and a buffer that is no statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x))) * self.scale


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.view(len(x), 2, 3))
        return states[:, -1]


AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "recurrent": Recurrent,
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)),
    "batch norm, no affine": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False)),
    "batch norm, no statistics": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.9), nn.Linear(6, 6)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_modules_against_a_plain_loop(name: str, training: bool, generator: torch.Generator) -> None:
    """Batch statistics: what `adapt` gives is what steps on a copy of the module give, and the module is untouched."""
    torch.manual_seed(0)
    module = AWKWARD[name]().train(training)
    before = copy.deepcopy(module.state_dict())
    x, labels = torch.randn(10, 6, generator=generator), torch.arange(10) % 6
    call, parameters = functional(module, batch_norm="batch")
    adapted = adapt(lambda now: F.cross_entropy(call(now, x), labels), parameters, steps=3, lr=0.2, second_order=True)
    outer = F.cross_entropy(call(adapted, x), labels)
    torch.autograd.grad(outer, list(parameters.values()), allow_unused=True)

    plain = copy.deepcopy(module).train()
    for part in plain.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    for _ in range(3):
        plain.zero_grad()
        F.cross_entropy(plain(x), labels).backward()
        with torch.no_grad():
            for value in plain.parameters():
                if value.grad is not None:
                    value -= 0.2 * value.grad
    assert all(torch.allclose(adapted[key], value, atol=1e-5) for key, value in plain.named_parameters())
    assert module.training is training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_inductive_answers_do_not_depend_on_their_batch(generator: torch.Generator) -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    x = torch.randn(10, 6, generator=generator)
    set_running_statistics(module, [x])
    running, parameters = functional(module.train(), batch_norm="running")
    batch, _ = functional(module, batch_norm="batch")
    assert torch.allclose(running(parameters, x)[:2], running(parameters, x[:2]), atol=1e-6)
    assert not torch.allclose(batch(parameters, x)[:2], batch(parameters, x[:2]), atol=1e-2)


def test_running_statistics_are_the_mean_over_batches(generator: torch.Generator) -> None:
    module = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout()).eval()
    batches = [torch.randn(8, 4, generator=generator) * 3 + 1 for _ in range(5)]
    set_running_statistics(module, iter(batches))
    norm = module[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert torch.allclose(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-5)
    assert norm.momentum == 0.3
    assert not module.training
    assert not norm.training
    with pytest.raises(ValueError, match="no batch"):
        set_running_statistics(module, [])


@pytest.mark.parametrize(("second_order", "norm"), [(True, False), (False, False), (False, True)])
def test_many_tasks_at_once_are_the_tasks_one_by_one(
    second_order: bool, norm: bool, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    call, parameters = functional(module, batch_norm="batch")
    x = torch.rand(4, 6, 3, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 3

    def task(images: Tensor) -> Tensor:
        def loss(now: Parameters) -> Tensor:
            return F.cross_entropy(call(now, images), labels)

        return loss(adapt(loss, parameters, steps=2, lr=0.1, second_order=second_order))

    together = torch.func.vmap(task)(x)
    alone = torch.stack([task(images) for images in x])
    assert torch.allclose(together, alone, atol=1e-12)
    slopes = zip(*(torch.autograd.grad(t.sum(), list(parameters.values())) for t in (together, alone)), strict=True)
    assert all(torch.allclose(one, two, atol=1e-10) for one, two in slopes)


def test_the_meta_gradient_through_batch_norm_passes_gradcheck(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    call, parameters = functional(module, batch_norm="batch")
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)

    def meta_loss(*values: Tensor) -> Tensor:
        def loss(now: Parameters) -> Tensor:
            return F.cross_entropy(call(now, x), torch.arange(5) % 2)

        given = dict(zip(parameters, values, strict=True))
        return loss(adapt(loss, given, steps=2, lr=0.1, second_order=True))

    assert torch.autograd.gradcheck(meta_loss, tuple(parameters.values()))
