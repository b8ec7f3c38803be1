"""What tests expect of responses, and a model that gives none."""

import time

import httpx
import torch

from api_zoo.inference import Pixels
from contracts import oip
from contracts.problems import MEDIA_TYPE, URN


def problem(response: httpx.Response, status: int, name: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["x-request-id"]
    told = response.json()
    assert (told["type"], told["status"]) == (URN + name, status)
    assert isinstance(told["error"], str)
    return told


def answered(response: httpx.Response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    (output,) = oip.decode_response(response.content, response.headers.get(oip.HEADER)).outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    return torch.frombuffer(bytearray(output.data), dtype=torch.float32).view(output.shape)


class Failing:
    """Stands in for a model's engine: fails, or takes its time."""

    def __init__(self, model, seconds: float | None = None) -> None:
        self.model, self.seconds = model, seconds

    def __call__(self, images: Pixels) -> bytes:
        if self.seconds is None:
            raise RuntimeError("the engine broke")
        time.sleep(self.seconds)
        return type(self.model).answer(self.model, images)
