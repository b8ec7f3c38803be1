import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.adaptation import SCALE, HeadName, adapt, embed, heads, logistic_heads, prototype_heads
from dfml.nets import build


def task(seed: int, *, ways: int = 3, n: int = 12, d: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % ways
    return torch.randn(n, d, generator=generator) + 4 * F.one_hot(labels, d), labels


def plain_logistic(support: Tensor, labels: Tensor, *, ways: int) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd and torch's Adam, one task."""
    unit = F.normalize(support, dim=1) * SCALE
    x = unit - unit.mean(0)
    weight, bias = torch.zeros(x.shape[1], ways, requires_grad=True), torch.zeros(ways, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(100):
        loss = F.cross_entropy(x @ weight + bias, labels) + 0.5 * 1e-2 * weight.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return unit.mean(0), weight.detach(), bias.detach()


def test_many_tasks_at_once_are_each_alone() -> None:
    tasks = [task(seed) for seed in range(4)]
    support, labels = torch.stack([x for x, _ in tasks]), torch.stack([y for _, y in tasks])
    query = torch.randn(4, 9, 20, generator=torch.Generator().manual_seed(9))
    batched = logistic_heads(support, labels, ways=3).logits(query)
    for index, (x, y) in enumerate(tasks):
        centre, weight, bias = plain_logistic(x, y, ways=3)
        plain = (F.normalize(query[index], dim=1) * SCALE - centre) @ weight + bias
        # a shift common to all classes is free, so rounding decides it: compare what it leaves alone
        assert torch.allclose(batched[index].softmax(-1), plain.softmax(-1), atol=1e-4)


def test_prototypes_by_hand() -> None:
    support = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 1.0]]])
    head = prototype_heads(support, torch.tensor([[0, 1, 1]]), ways=2)
    logits = head.logits(torch.tensor([[[1.0, 1.0], [5.0, 0.0]]]))
    assert torch.allclose(logits, 10 * torch.tensor([[[0.5**0.5, 0.5**0.5], [1.0, 0.0]]]))


@pytest.mark.parametrize("name", ["logistic", "prototypes"])
def test_heads_separate_what_is_separate(name: HeadName) -> None:
    support, labels = task(0)
    query, answers = task(1, n=60)
    guess = heads(name, support[None], labels[None], ways=3).logits(query[None])[0].argmax(-1)
    assert (guess == answers).double().mean() > 0.8


@pytest.mark.parametrize("name", ["logistic", "prototypes"])
def test_a_prediction_does_not_depend_on_its_neighbours(tiny: BackboneConfig, images: Tensor, name: HeadName) -> None:
    backbone = build(tiny, (3, 16, 16), generator=torch.Generator().manual_seed(0)).train()
    adapted = adapt(backbone, images[:6], torch.arange(6) % 3, ways=3, head=name)
    together = adapted.predict(images)
    alone = torch.cat([adapted.predict(image[None]) for image in images])
    assert together.shape == (len(images), 3)
    assert torch.allclose(together.sum(1), torch.ones(len(images)))
    assert torch.allclose(together, alone, atol=1e-5)


def test_embedding_leaves_the_backbone_as_it_was(tiny: BackboneConfig, images: Tensor) -> None:
    backbone = build(tiny, (3, 16, 16), generator=torch.Generator().manual_seed(0)).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features = embed(backbone, images)
    assert features.shape == (len(images), backbone.dim)
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("labels", "ways", "message"),
    [
        ([0, 1], 2, "one label an image"),
        ([0, 0, 0], 1, "two classes"),
        ([0, 2, 2], 3, "at least one image"),
        ([0, 1, 2], 2, "classes 0 to 1"),
    ],
)
def test_labels_that_do_not_fit(
    tiny: BackboneConfig, images: Tensor, labels: list[int], ways: int, message: str
) -> None:
    backbone = build(tiny, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        adapt(backbone, images[:3], torch.tensor(labels), ways=ways)


def test_an_unknown_head_is_named() -> None:
    support, labels = task(0)
    with pytest.raises(ValueError, match="logistic and prototypes"):
        heads("svm", support[None], labels[None], ways=3)  # type: ignore[arg-type]
