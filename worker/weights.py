"""Takes the weights that an API's host publishes, checked against what the model's metadata says of them, and keeps them.

No image is sent and nothing is charged. What a file holds is first looked at by the learner (`dfml.teachers.white_box`): here
it is bytes with a digest, no more of them than the way out lets through (`worker.transport.MAX_BODY`).
"""

import asyncio
import json
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from client._flow import AsyncDriver, Request, once
from client.model import ModelInfo, split_url
from contracts._base import Record
from contracts.jobs import JobError, place_of
from contracts.zoo import SUFFIXES, Network, PublishedWeights
from meta_server.store.stored_job import StoredJob
from worker.context import Context
from worker.failures import JobFault
from worker.probe import BadApi
from worker.watch import Watch


class KeptWeights(Record):
    """The checkpoint of an API's weights."""

    path: str  # in the artefact store
    network: Network
    ways: int


def checkpoint_of(api_id: str) -> str:
    """Its name."""
    return f"weights:{api_id}"


def field_of(api_id: str) -> str:
    """The field of the request that asks for an API's weights."""
    return f"apis.{place_of(api_id)}.access"


async def take_weights(
    context: Context, job: StoredJob, api_id: str, api_key: str | None, info: ModelInfo
) -> tuple[Network, bytes]:
    """The network and its safetensors file, whose SHA-256 is the one stated.

    Raises `JobFault` where the host publishes none, `BadApi` where they are of no network known here or not what is stated,
    and the errors of `client.errors`.
    """
    url = job.spec(api_id).url
    base, path = split_url(url)
    name = path.split("/")[3]
    driver = AsyncDriver(base, api_key, transport=context.transport(), timeout=context.timeout)
    async with driver.http:
        told = _told((await driver.run(once(Request("GET", path), echo=False))).content)
        if told is None:
            message = (
                f"the host of {url} publishes no weights: leave it out, or set its access to predict and "
                "method.gradients.source to zeroth-order, surrogate or guided, which take answers alone and spend queries"
            )
            raise JobFault(JobError(code="weights_needed", message=message, param=field_of(api_id)))
        stated = _known(told, info)
        content = (await driver.run(once(Request("GET", f"/v1/models/{name}/weights"), echo=False))).content
    if await asyncio.to_thread(lambda: sha256(content).hexdigest()) != stated.sha256:
        raise BadApi("its weights are not the file whose SHA-256 it states")
    return stated.network, content


async def keep_weights(
    context: Context, job: StoredJob, api_id: str, network: Network, content: bytes, *, ways: int, watch: Watch
) -> None:
    """Store them and note where, so that whoever learns, and learns again, has the same ones."""
    stem = f"jobs/{job.id}/checkpoints/weights-{api_id}-{watch.lease.fence}"
    path = await asyncio.to_thread(context.artifacts.keep, stem, ".safetensors", content)
    kept = KeptWeights(path=path, network=network, ways=ways)
    await context.store.work.checkpoint(job.id, watch.lease, checkpoint_of(api_id), kept.model_dump_json())


def _told(metadata: bytes) -> Any:
    """What a model's metadata says of published weights; None where it says nothing."""
    try:
        return json.loads(metadata)["parameters"]["weights"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _known(told: Any, info: ModelInfo) -> PublishedWeights:
    try:
        stated = PublishedWeights.model_validate(told)
    except ValidationError as error:
        raise BadApi("it states weights of no network known here: conv4, resnet10 or resnet18") from error
    if stated.network.backbone in SUFFIXES:
        raise BadApi("it publishes a whole program, not weights of a network known here: conv4, resnet10 or resnet18")
    if stated.network.input != info.input_shape:
        raise BadApi(f"it takes images of {info.input_shape}, and its network those of {stated.network.input}")
    return stated
