"""Meta-models at home: what the server answers is what the downloaded files answer, in torch and in ONNX."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from client import Metazoo, local
from contracts.adaptation import AdaptedModel
from contracts.meta_models import BackboneConfig, MetaModel
from dfml import adapted, io
from dfml.nets import build

SUPPORT = [(np.full((40, 30, 3), shade, np.uint8), "dark" if shade < 128 else "light") for shade in (10, 40, 200, 250)]
QUERY = [np.full((16, 16, 3), shade, np.uint8) for shade in (5, 30, 220)]


class Server:
    """Serves the files of one meta-model and of one model adapted from it."""

    def __init__(self, folder: Path, kind: str = "conv4") -> None:
        config = BackboneConfig(backbone=kind, width=16)
        backbone = build(config, (3, 16, 16), generator=torch.Generator().manual_seed(3))
        told: dict[str, Any] = {"name": "toy", "method": "pqd", "apis": [], "queries": 0, "seed": 0, "version": "0"}
        io.save(folder, backbone, {}, options={}, **told)
        self.adapted = local.LocalMetaModel(backbone).adapt(support=SUPPORT)
        head = adapted.dump(self.adapted.network, labels=self.adapted.labels, meta_model="mm_1", shared=True)
        self.files = {"mm_1": {path.name: path.read_bytes() for path in folder.iterdir()}, "am_1": head}
        self.records = {
            "mm_1": MetaModel(
                id="mm_1", created_at="2026-01-01T00:00:00Z", job="j", backbone=config, input_shape=(3, 16, 16),
                evaluation=None, score=None, random_score=None, files=self._digests("mm_1"), **told,
            ),
            "am_1": AdaptedModel(
                id="am_1", name=None, meta_model="mm_1", method="logistic", calibrated=False, seed=0,
                labels=self.adapted.labels, shots={"dark": 2, "light": 2}, input_shape=(3, 16, 16), support_kept=False,
                bytes=1, files=self._digests("am_1"), path="/v2/models/am_1", created_at="2026-01-01T00:00:00Z",
                expires_at="2026-01-02T00:00:00Z",
            ),
        }  # fmt: skip
        self.sent = 0

    def _digests(self, name: str) -> dict[str, str]:
        return {file: hashlib.sha256(content).hexdigest() for file, content in self.files[name].items()}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name, *file = request.url.path.split("/")[3:]
        if not file:
            return httpx.Response(200, json=json.loads(self.records[name].model_dump_json()))
        self.sent += 1
        return httpx.Response(200, content=self.files[name][file[1]])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Server(tmp_path / "made")


@pytest.fixture
def metazoo(server: Server) -> Metazoo:
    return Metazoo("http://server.test", transport=httpx.MockTransport(server))


def test_a_loaded_meta_model_learns_and_predicts(metazoo: Metazoo, server: Server) -> None:
    model = metazoo.meta_models.load("mm_1")
    answer = model.predict(support=SUPPORT, query=QUERY)
    assert [prediction.label for prediction in answer.predictions] == ["dark", "dark", "light"]
    assert answer == server.adapted.predict(QUERY)
    for prediction in answer.predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    tuned = model.adapt(support=SUPPORT, method="fine-tune", steps=2)
    assert tuned.network.backbone is not model.backbone
    sent = server.sent
    metazoo.meta_models.load("mm_1")
    assert server.sent == sent  # what is in the cache is not fetched again
    for options in ({"method": "prototypes", "steps": 3}, {"support": [], "seed": 1}, {"support": SUPPORT[:2]}):
        with pytest.raises(ValidationError):
            model.adapt(**{"support": SUPPORT, **options})


@pytest.mark.anyio
async def test_an_adapted_model_comes_home_whole(metazoo: Metazoo, server: Server) -> None:
    from client import AsyncMetazoo

    home = metazoo.adapted_models.load("am_1")
    assert home.labels == ["dark", "light"]
    assert home.predict(QUERY) == server.adapted.predict(QUERY)
    async with AsyncMetazoo("http://server.test", transport=httpx.MockTransport(server)) as other:
        assert (await other.adapted_models.load("am_1")).predict(QUERY) == home.predict(QUERY)
        assert (await other.meta_models.load("mm_1")).predict(support=SUPPORT, query=QUERY) == home.predict(QUERY)


@pytest.mark.parametrize("kind", ["conv4", "resnet10"])
@pytest.mark.parametrize("options", [{}, {"method": "fine-tune", "steps": 2}], ids=["logistic", "fine-tune"])
def test_onnx_answers_as_torch_does(kind: str, options: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config = BackboneConfig(backbone=kind, width=16)
    backbone = build(config, (3, 16, 16), generator=torch.Generator().manual_seed(3))
    model = local.LocalMetaModel(backbone).adapt(support=SUPPORT, **options)
    session = onnxruntime.InferenceSession(model.export_onnx(tmp_path / "pets.onnx"))
    assert session.get_modelmeta().custom_metadata_map == {"labels": "dark\nlight"}
    for count in (1, 5):
        images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        (answer,) = session.run(["probabilities"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), adapted.predict(model.network, images))
