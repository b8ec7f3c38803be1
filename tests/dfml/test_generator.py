"""The image generator: any size, with labels or without, from a torch.Generator alone."""

import pytest
import torch

from dfml.nets.generator import build_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(32, 32), (84, 84), (30, 17), (5, 64)])
def test_any_size_in_the_unit_interval(size: tuple[int, int]) -> None:
    net = build_generator(latent=8, classes=None, shape=(3, *size), width=4, generator=seeded())
    images = net(torch.randn(3, 8, generator=seeded()))
    assert images.shape == (3, 3, *size)
    assert images.min() > 0
    assert images.max() < 1


def test_labels_change_the_image_and_are_checked() -> None:
    net = build_generator(latent=8, classes=5, shape=(3, 16, 16), width=4, generator=seeded())
    z = torch.randn(4, 8, generator=seeded())
    one, other = (net(z, torch.tensor(labels)) for labels in ([0, 1, 2, 3], [1, 2, 3, 4]))
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match=r"give it labels in \[0, 5\)"):
        net(z)
    plain = build_generator(latent=8, classes=None, shape=(3, 16, 16), width=4, generator=seeded())
    with pytest.raises(ValueError, match="takes no labels"):
        plain(z, torch.zeros(4, dtype=torch.int64))


def test_the_generator_alone_decides_the_weights() -> None:
    def make(seed: int) -> torch.Tensor:
        net = build_generator(latent=8, classes=5, shape=(3, 16, 16), width=4, generator=seeded(seed))
        return torch.cat([p.flatten() for p in net.parameters()])

    before = torch.random.get_rng_state()
    assert torch.equal(make(0), make(0))
    assert not torch.equal(make(0), make(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pass_changes_nothing_and_needs_no_mode() -> None:
    net = build_generator(latent=8, classes=None, shape=(3, 16, 16), width=4, generator=seeded())
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    z = torch.randn(4, 8, generator=seeded())
    assert torch.equal(net.train()(z), net.eval()(z))
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
