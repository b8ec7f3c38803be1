"""LitServe, which nobody here wrote, with two classifiers of coloured noise: `python litserver.py PORT`.

`/upload` takes one image file a request, as hosted vision APIs do; `/json` takes one in base64. Both answer labels with scores.
"""

import base64
import sys
from io import BytesIO
from typing import Any

import litserve
import numpy as np
from PIL import Image

LABELS = ["ant", "bee", "cat"]


def scores(image: np.ndarray) -> np.ndarray:
    """(3,) probabilities of an image, (height, width, 3) in uint8: its mean colour, sharpened."""
    shade = np.exp(image.reshape(-1, 3).mean(0) / 16)
    return shade / shade.sum()


class Upload(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request):  # an annotation would tell LitServe what to parse
        return np.asarray(Image.open(request["content"].file))

    def predict(self, image: np.ndarray) -> np.ndarray:
        return scores(image)

    def encode_response(self, answer: np.ndarray) -> Any:
        ranked = sorted(zip(LABELS, answer.tolist(), strict=True), key=lambda pair: -pair[1])
        return [{"label": label, "score": score} for label, score in ranked]


class Json(Upload):
    def decode_request(self, request):  # an annotation would tell LitServe what to parse
        return np.asarray(Image.open(BytesIO(base64.b64decode(request["image"]))))

    def encode_response(self, answer: np.ndarray) -> Any:
        return {"result": {"classes": dict(zip(LABELS, answer.tolist(), strict=True))}}


if __name__ == "__main__":
    apis = [Upload(api_path="/upload"), Json(api_path="/json")]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1, log_level="warning"
    )
