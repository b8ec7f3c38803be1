"""The answers of a job with those of earlier jobs beside them, as a learner takes them in."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as from_safetensors

from dfml.memory import Answers
from meta_server.store.artifacts import Artifacts
from worker.queries import own_pool, resized
from worker.reused import Api, Earlier, Pool


def joined(
    own: Answers,
    apis: Sequence[Api],
    pool: Pool,
    shape: tuple[int, int, int],
    earlier: Sequence[Earlier],
    artifacts: Artifacts,
) -> Answers:
    """The answers of a job, whose columns are those of `apis`, with those of earlier ones. Reads files.

    An image of another pool is one more row, an API that this job does not ask, or that had other classes, one more column.
    """
    rows: dict[Pool, dict[int, int]] = {pool: {index: index for index in range(len(own.images))}}
    images, total = [own.images], len(own.images)
    columns = {
        (api, answers.shape[1]): at for at, (api, answers) in enumerate(zip(apis, own.probabilities, strict=True))
    }
    blank = {api for at, api in enumerate(apis) if not own.asked[:, at].any()}  # their number of classes is a guess
    placed: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    ways = [answers.shape[1] for answers in own.probabilities]
    for one in earlier:
        answered = {
            api: [from_safetensors(artifacts.recall(path)) for path in paths] for api, paths in one.paths.items()
        }
        at = rows.setdefault(one.pool, {})
        asked = np.unique(np.concatenate([row["indices"] for each in answered.values() for row in each]))
        fresh = np.array([index for index in asked if index not in at], np.int64)
        if len(fresh):
            images.append(torch.from_numpy(_images(one, shape, artifacts)(fresh)))
            at |= {int(index): total + place for place, index in enumerate(fresh)}
            total += len(fresh)
        for api, each in answered.items():
            for row in each:
                classes = row["probabilities"].shape[1]
                if api in blank:
                    blank.remove(api)
                    column = list(apis).index(api)
                    columns[api, classes], ways[column] = column, classes
                column = columns.setdefault((api, classes), len(columns))
                if column == len(ways):
                    ways.append(classes)
                places = torch.tensor([at[int(index)] for index in row["indices"]])
                placed.append((column, places, torch.from_numpy(row["probabilities"].astype(np.float32))))
    probabilities = [torch.zeros(total, classes) for classes in ways]
    seen = torch.zeros(total, len(ways), dtype=torch.bool)
    for column, places, answers in placed:
        probabilities[column][places], seen[places, column] = answers, True
    for column, answers in enumerate(own.probabilities):  # the job's own last: they are newer
        mine = own.asked[:, column]
        if mine.any():
            probabilities[column][: len(own.images)][mine] = answers[mine]
            seen[: len(own.images), column] |= mine
    return Answers(images=torch.cat(images), probabilities=probabilities, asked=seen)


def _images(
    one: Earlier, shape: tuple[int, int, int], artifacts: Artifacts
) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    images = own_pool(one.job.request, one.shape, artifacts).images
    return images if one.shape == shape else resized(images, shape)
