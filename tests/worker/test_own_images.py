"""Jobs that ask about images of one's own: these and no others are sent, to every size of API, and the card says so."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contracts.jobs import JobStatus
from meta_server.store import image_sets
from meta_server.store.meta_models import MetaModelStore

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
NAME = "is_" + "0" * 22


def stored(world: Any, count: int = 20) -> np.ndarray:
    """An image set of noise in the artefact store: uint8 (count, 3, 16, 16)."""
    images = np.random.RandomState(0).randint(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for index, image in enumerate(images):
            drawn = io.BytesIO()
            Image.fromarray(image).save(drawn, "PNG")
            file.writestr(f"{index:03d}.png", drawn.getvalue())
    image_sets.keep_archive(world.context.artifacts, NAME, content.getvalue())
    return images.transpose(0, 3, 1, 2)


def listening(one: Any) -> list[bytes]:
    """The images that it is asked about."""
    seen: list[bytes] = []
    proper = one.answer

    def answer(pixels: np.ndarray) -> np.ndarray:
        seen.extend(image.tobytes() for image in pixels.astype(np.uint8))
        return proper(pixels)

    one.answer = answer
    return seen


@pytest.mark.parametrize("method", ["pqd", "distill_average"])
async def test_ones_own_images_are_asked_about_and_no_others(world: Any, api: Any, method: str) -> None:
    images = stored(world)
    first, second = api(), api(classes=3, shape=(3, 24, 24))
    seen, resized = listening(first), listening(second)
    options = {"name": method, "steps": 3, "batch": 8, "images": 20}
    job = await world.submit(first, second, queries=100, method=options, unlabeled=NAME, image_size=16)
    acquired = await world.acquire_all(job)
    assert acquired.budget.confirmed == first.charged + second.charged == 40
    assert sorted(seen) == sorted(image.tobytes() for image in images)
    fitted = [Image.fromarray(image.transpose(1, 2, 0)).resize((24, 24), Image.Resampling.BILINEAR) for image in images]
    assert sorted(resized) == sorted(np.asarray(image).transpose(2, 0, 1).tobytes() for image in fitted)
    ended = await world.learn(job.id)
    assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
    model = await MetaModelStore(world.redis).get(ended.meta_model)
    assert (model.unlabeled, model.queries) == (NAME, 40)
    folder = world.context.artifacts.local(await MetaModelStore(world.redis).folder(model.id))
    card = (folder / "README.md").read_text()
    assert f"asked about the unlabelled images of `{NAME}`" in card
    assert "No training data was seen" not in card


async def test_a_set_that_was_deleted_fails_the_job_before_anything_is_spent(world: Any, api: Any) -> None:
    one = api()
    told = await world.acquire_all(await world.submit(one, queries=64, unlabeled=NAME))
    assert (told.error.code, told.error.param) == ("images_gone", "unlabeled")
    assert "upload the images again" in told.error.message
    assert one.charged == 0
