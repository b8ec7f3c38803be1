import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dfml.numerics.zeroth_order import Estimator, cosines, step_size, surrogate

SHAPE = (3, 8, 8)
D = 192
KINDS = [
    Estimator(7),
    Estimator(7, antithetic=True),
    Estimator(7, orthogonal=True),
    Estimator(7, frequencies=4),
    Estimator(7, antithetic=True, orthogonal=True, frequencies=4),
]


@pytest.fixture
def points(generator: torch.Generator) -> Tensor:
    return torch.randn(400, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def slope(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def hessian(generator: torch.Generator) -> Tensor:
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return root @ root.T / D


def low(gradient: Tensor, kept: int) -> Tensor:
    """The part of images (…, 8, 8) that the lowest `kept` x `kept` frequencies make up."""
    rows = cosines(8)[:kept].double()
    return rows.T @ (rows @ gradient @ rows.T) @ rows


@pytest.mark.parametrize("estimator", KINDS, ids=str)
def test_on_a_linear_loss_the_cosine_is_as_stated(estimator: Estimator, points: Tensor, slope: Tensor) -> None:
    found = estimator.estimate(
        lambda x: (x * slope).sum((2, 3, 4)), points, step=0.1, generator=torch.Generator().manual_seed(1)
    )
    wanted = slope if estimator.frequencies is None else low(slope, estimator.frequencies)
    got = F.cosine_similarity(found.gradient.flatten(1), wanted.flatten()[None])
    mean = got.square().mean().sqrt() if estimator.orthogonal else got.mean()
    error = got.std() / math.sqrt(len(points))
    assert abs(mean - estimator.cosine(SHAPE)) < 3.5 * error
    assert torch.allclose(found.value, (points * slope).sum((1, 2, 3)))


@pytest.mark.parametrize("directions", [5, 50, 400])
def test_the_reference_estimators_cosine(directions: int, points: Tensor, slope: Tensor) -> None:
    """BiDf-MKD's: sqrt(q / (q + d)), also with more directions than dimensions."""
    found = Estimator(directions).estimate(
        lambda x: (x * slope).sum((2, 3, 4)), points[:100], step=0.005, generator=torch.Generator().manual_seed(1)
    )
    got = F.cosine_similarity(found.gradient.flatten(1), slope.flatten()[None])
    assert abs(got.mean() - math.sqrt(directions / (directions + D))) < 3.5 * got.std() / 10 + 1 / D


@pytest.mark.parametrize("estimator", KINDS, ids=str)
def test_the_mean_is_the_gradient(estimator: Estimator, points: Tensor, slope: Tensor) -> None:
    found = estimator.estimate(
        lambda x: (x * slope).sum((2, 3, 4)), points, step=0.1, generator=torch.Generator().manual_seed(2)
    ).gradient
    wanted = slope if estimator.frequencies is None else low(slope, estimator.frequencies)
    error = found.std(0) / math.sqrt(len(points))
    assert ((found.mean(0) - wanted).abs() < 4.5 * error + 1e-6).all()


def test_all_orthogonal_directions_give_the_gradient_itself(points: Tensor, slope: Tensor) -> None:
    exact = Estimator(D, orthogonal=True).estimate(
        lambda x: (x * slope).sum((2, 3, 4)), points[:3], step=0.1, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(exact.gradient, slope.expand(3, *SHAPE), atol=1e-5)
    few = Estimator(48, orthogonal=True, frequencies=4).estimate(
        lambda x: (x * slope).sum((2, 3, 4)), points[:3], step=0.1, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(few.gradient, low(slope, 4).expand(3, *SHAPE), atol=1e-5)


def test_on_a_quadratic_the_error_is_linear_in_the_step(points: Tensor, slope: Tensor, hessian: Tensor) -> None:
    def loss(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return flat @ slope.flatten() + ((flat @ hessian) * flat).sum(-1) / 2

    def found(step: float, *, antithetic: bool) -> Tensor:
        same = torch.Generator().manual_seed(3)
        return Estimator(10, antithetic=antithetic).estimate(loss, points[:20], step=step, generator=same).gradient

    exact = found(1e-3, antithetic=True)
    assert torch.allclose(found(0.5, antithetic=True), exact, atol=1e-6)
    errors = [found(step, antithetic=False) - exact for step in (0.1, 0.2, 0.4)]
    assert errors[0].norm() > 1e-2
    assert torch.allclose(errors[1], 2 * errors[0], atol=1e-6)
    assert torch.allclose(errors[2], 4 * errors[0], atol=1e-6)
    units = Estimator(10).directions_at(20, SHAPE, torch.Generator().manual_seed(3)).double().flatten(2)
    bends = 0.1 / 2 * ((units @ hessian) * units).sum(-1)  # step u'Hu / 2, as the docstring has it
    assert torch.allclose(errors[0].flatten(1), D / 10 * torch.einsum("kn,knd->nd", bends, units), atol=1e-6)


@pytest.mark.parametrize("estimator", [*KINDS, Estimator(1), Estimator(1, antithetic=True)], ids=str)
@pytest.mark.parametrize("n", [1, 9])
def test_queries_are_those_of_the_formula(
    estimator: Estimator, n: int, points: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfml.numerics.zeroth_order.TOGETHER", 20)
    asked = 0

    def loss(x: Tensor) -> Tensor:
        nonlocal asked
        assert x.shape[1:] == (n, *SHAPE)
        assert len(x) * n <= max(20, 2 * n)
        asked += len(x) * n
        return x.square().sum((2, 3, 4))

    found = estimator.estimate(loss, points[:n], step=0.1, generator=torch.Generator())
    expected = 2 * estimator.directions if estimator.antithetic else estimator.directions + 1
    assert asked == found.queries == n * expected == n * estimator.cost


def test_chunks_change_nothing(points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Tensor:
        same = torch.Generator().manual_seed(0)
        return (
            Estimator(9, antithetic=True)
            .estimate(lambda x: x.cos().sum((2, 3, 4)), points[:5], step=0.1, generator=same)
            .gradient
        )

    whole = found()
    monkeypatch.setattr("dfml.numerics.zeroth_order.TOGETHER", 10)
    assert torch.allclose(found(), whole)


def test_directions_are_of_length_one_and_of_their_space() -> None:
    drawn = Estimator(6, frequencies=3).directions_at(4, SHAPE, torch.Generator())
    assert torch.allclose(drawn.flatten(2).norm(dim=2), torch.ones(6, 4))
    assert torch.allclose(low(drawn.double(), 3), drawn.double(), atol=1e-6)
    angles = Estimator(6, orthogonal=True).directions_at(4, SHAPE, torch.Generator()).flatten(2)
    assert torch.allclose(torch.einsum("knd,lnd->nkl", angles, angles), torch.eye(6).expand(4, 6, 6), atol=1e-5)


def test_frequencies_beyond_the_image_are_all_of_them() -> None:
    assert Estimator(2, frequencies=99).dimension((3, 5, 7)) == 105
    assert torch.allclose(cosines(7) @ cosines(7).T, torch.eye(7), atol=1e-6)


def test_a_latent_gradient_reaches_what_made_the_points(generator: torch.Generator) -> None:
    """The loss begins with a decoder, the points are its noise; all directions: the gradient is the chain rule's."""
    decoder = torch.nn.Linear(6, 20).double()
    maker = torch.nn.Linear(2, 6).double()
    seeds = torch.randn(5, 2, generator=generator, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return decoder(z).sin().sum(-1)

    points = maker(seeds)
    found = Estimator(6, antithetic=True, orthogonal=True).estimate(loss, points, step=1e-3, generator=generator)
    surrogate(points, found.gradient).backward()
    estimated = maker.weight.grad
    assert estimated is not None
    (wanted,) = torch.autograd.grad(loss(maker(seeds)[None]).sum(), maker.weight)
    assert torch.allclose(estimated, wanted, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("unit", [1e-2, 1e-4])
def test_the_step_is_near_the_best_one_for_rounded_outputs(order: int, unit: float) -> None:
    """exp at random places: second and third derivative about one; the step is within a factor of the best error."""
    x = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5

    def error(step: float) -> float:
        found = Estimator(1, antithetic=order == 2).estimate(
            lambda p: (p.exp() / unit).round()[..., 0] * unit, x, step=step, generator=torch.Generator().manual_seed(1)
        )
        return float((found.gradient - x.exp()).square().mean().sqrt())

    chosen = step_size(order=order, output_unit=unit)
    assert error(chosen) < 1.6 * min(error(chosen * 2.0**k) for k in range(-6, 6))


def test_steps_for_full_precision_and_for_eight_bits() -> None:
    assert step_size(order=1, output_unit=None) < 1e-3 < step_size(order=2, output_unit=None) < 1e-2
    eight = step_size(order=2, output_unit=1e-4, input_unit=1 / 255, inputs=3072)
    assert eight == pytest.approx(2 / 255 * math.sqrt(3072))
    assert step_size(order=2, output_unit=1.0, input_unit=1 / 255, inputs=3) > 1  # labels alone: outputs decide


def test_contradictions_are_refused(points: Tensor) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Estimator(0)
    with pytest.raises(ValueError, match="cannot be orthogonal in 48"):
        Estimator(49, orthogonal=True, frequencies=4).estimate(
            lambda x: x.sum((2, 3, 4)), points, step=0.1, generator=torch.Generator()
        )
    with pytest.raises(ValueError, match="images"):
        Estimator(2, frequencies=4).dimension((6,))
