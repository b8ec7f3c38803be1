"""Small requests are computed together, nobody waits without need, and neighbours change no bit of an answer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import torch

from api_zoo.compiled import Compiled
from api_zoo.engine import Engine
from api_zoo.inference import Model, Pixels, folded
from api_zoo.weights import Shelf
from contracts.zoo import Normalisation
from dfml.nets import Classifier, build_classifier
from dfml.teachers import CHUNK

pytestmark = pytest.mark.anyio

SHAPE = (3, 32, 32)
NORMALISE = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


Frozen = Callable[[Classifier], torch.nn.Module]


def network(
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    width: int = 8,
    backbone: str = "conv4",
    frozen: Frozen = folded,
) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return frozen(build_classifier(width, shape, 5, normalisation=NORMALISE, backbone=backbone, generator=generator))


class Counting(Model):
    """Notes the batches it is given, and waits for `go` before each answer."""

    def __init__(self) -> None:
        super().__init__("m", network(), list("abcde"), SHAPE)
        self.batches: list[int] = []
        self.go = threading.Semaphore(0)

    def answer(self, images: Pixels) -> bytes:
        self.batches.append(len(images))
        assert self.go.acquire(timeout=30)
        return super().answer(images)


@pytest.fixture
def engine():
    made = Engine(1)
    yield made
    made.close()


def images(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("frozen", "backbone", "shape", "width"),
    [
        (folded, "conv4", SHAPE, 32),
        (folded, "conv4", (3, 28, 28), 64),
        (folded, "conv4", (3, 84, 84), 16),
        (Compiled, "conv4", SHAPE, 32),
        (Compiled, "conv4", (3, 28, 28), 64),
        (Compiled, "conv4", (3, 84, 84), 13),
        (Compiled, "resnet10", SHAPE, 8),
        (Compiled, "resnet18", (3, 21, 30), 6),
    ],
)
def test_neighbours_change_no_bit_of_an_answer(
    frozen: Frozen, backbone: str, shape: tuple[int, int, int], width: int
) -> None:
    module = network(shape=shape, width=width, backbone=backbone, frozen=frozen)
    model = Model("m", module, list("abcde"), shape, policy="round:3")
    sent = torch.rand((CHUNK, *shape), generator=torch.Generator().manual_seed(2))
    together = model.predict(sent)
    for size in (1, 2, 3, 5, 8, 31, 63):
        apart = torch.cat([model.predict(part) for part in sent.split(size)])
        assert torch.equal(apart, together), f"batches of {size}"
    among_others = torch.rand((CHUNK, *shape), generator=torch.Generator().manual_seed(3))
    among_others[17] = sent[40]
    assert torch.equal(model.predict(among_others)[17], together[40])


def test_bfloat16_answers_nearly_the_same() -> None:
    sent = images(9)
    exact, half = (Model("m", network(), list("abcde"), SHAPE, half=half).predict(sent) for half in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)  # it was computed otherwise
    torch.testing.assert_close(half, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(half.sum(1), torch.ones(9))


@pytest.mark.gpu
@pytest.mark.parametrize(("half", "atol"), [(False, 1e-4), (True, 0.02)])
def test_threads_that_share_a_gpu_mix_no_answers(half: bool, atol: float) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = build_classifier(8, SHAPE, 5, normalisation=NORMALISE, generator=generator)
    here = Model("m", folded(plain), list("abcde"), SHAPE)
    there = Model("m", folded(plain, "cuda"), list("abcde"), SHAPE, half=half)
    batches = [images(1 + 37 * n % 200, seed=n) for n in range(64)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(there.predict, batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert answer.device.type == "cpu"
        torch.testing.assert_close(answer, here.predict(batch), atol=atol, rtol=0)


async def test_what_arrives_while_a_batch_runs_is_computed_together(engine: Engine) -> None:
    model = Counting()
    answers: dict[int, bytes] = {}

    async def ask(n: int) -> None:
        answers[n] = await engine.answer(model, images(n, seed=n).numpy())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, 1)
        while not model.batches:  # noqa: ASYNC110 - it runs on a thread
            await anyio.sleep(0.001)
        for n in (2, 3, 4, 30, 31):
            tasks.start_soon(ask, n)
        await anyio.wait_all_tasks_blocked()
        model.go.release(10)
    assert model.batches == [1, 2 + 3 + 4 + 30, 31]  # never more than a chunk of small requests at once
    assert answers == {n: Model.answer(model, images(n, seed=n).numpy()) for n in (1, 2, 3, 4, 30, 31)}


async def test_those_who_keep_coming_are_waited_for_and_nobody_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api_zoo.engine.WINDOW", 600.0)
    model = Counting()
    model.go.release(10)
    await engine.answer(model, images(1).numpy())
    asked = []
    for n in (1, 2, 3):
        asked.append(engine.answer(model, images(n).numpy()))
        await anyio.lowlevel.checkpoint()
    for answer in asked:
        await answer
    assert model.batches == [1, 1 + 2 + 3]


async def test_nobody_is_waited_for_beyond_the_window(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_zoo.engine.WINDOW", 0.0)
    model = Counting()
    model.go.release(10)
    first = engine.answer(model, images(1).numpy())
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    second = engine.answer(model, images(2).numpy())
    await first
    await second
    assert model.batches == [1, 2]


async def test_a_full_batch_waits_for_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_zoo.engine.QUIET", 10**9)
    monkeypatch.setattr("api_zoo.engine.WINDOW", 600.0)
    model = Counting()
    model.go.release(10)
    await engine.answer(model, images(CHUNK).numpy())
    half = [engine.answer(model, images(CHUNK // 2).numpy()) for _ in range(2)]
    for answer in half:
        await answer
    assert model.batches == [CHUNK, CHUNK]


async def test_who_goes_away_takes_nobody_along(engine: Engine) -> None:
    model = Counting()
    answers: list[bytes] = []

    async def ask(n: int) -> None:
        answers.append(await engine.answer(model, images(n).numpy()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, 1)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(ask, 2)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        model.go.release(10)
    assert answers == [Model.answer(model, images(1).numpy())]


async def test_a_batch_that_fails_fails_each_of_its_requests(engine: Engine) -> None:
    model = Counting()
    model.answer = lambda images: 1 / 0
    failed = []

    async def ask() -> None:
        try:
            await engine.answer(model, images(1).numpy())
        except ZeroDivisionError:
            failed.append(1)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
    assert len(failed) == 3


def test_the_shelf_holds_what_was_used_last() -> None:
    read: list[str] = []

    def reader(name: str):
        def make() -> torch.nn.Module:
            read.append(name)
            return torch.nn.Linear(9, 1, bias=False)  # 36 bytes

        return make

    shelf = Shelf(80)
    for name in ("a", "b", "a", "c", "a", "b"):
        shelf.get(name, reader(name))
    assert read == ["a", "b", "c", "b"]
    assert (len(shelf), shelf.bytes) == (2, 72)
    tiny = Shelf(1)
    assert tiny.get("a", reader("a")) is tiny.get("a", reader("a"))  # the last one always stays


def test_many_who_ask_at_once_read_once() -> None:
    shelf, read = Shelf(10**6), []
    started = threading.Barrier(8)

    def make() -> torch.nn.Module:
        read.append(1)
        return torch.nn.Linear(2, 2)

    def ask() -> None:
        started.wait(30)
        shelf.get("a", make)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 1
