"""The zoo as a process of its own: started, asked by our client, killed in the middle of an answer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from client import Metazoo
from client.errors import BudgetExhausted, Unauthorized
from client.model import Model
from contracts import oip
from metazoo.redis_server import free_port

pytestmark = [pytest.mark.process, pytest.mark.redis]

ADMIN = "admin-key-of-the-tests"


@dataclass
class Served:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def key(self, **limits) -> str:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        made = httpx.post(f"{self.url}/admin/keys", json=limits, headers=headers, timeout=30)
        return made.raise_for_status().json()["secret"]


@contextmanager
def served(folder: Path, redis_url: str, log: Path) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "metazoo", "zoo", "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "REDIS_URL": redis_url, "METAZOO_ZOO_ADMIN_KEY": ADMIN}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    zoo = Served(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{zoo.url}/v2/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield zoo
    finally:
        process.kill()
        process.wait()


def images(n: int) -> oip.Tensor:
    pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return oip.Tensor("images", "UINT8", tuple(pixels.shape), pixels.numpy().tobytes())


def test_our_client_asks_a_served_zoo(tmp_path: Path, redis_url: str, write_zoo) -> None:
    write_zoo(tmp_path / "zoo")
    with served(tmp_path / "zoo", redis_url, tmp_path / "log") as zoo:
        key = zoo.key(budget=20)
        with Model(f"{zoo.url}/v2/models/toy-00", key) as model:
            info = model.metadata()
            assert (info.binary, info.idempotency, info.max_images, info.classes) == (True, True, 512, 3)
            first = model.infer(*model.encode(images(12)), idempotency_key="once")
            again = model.infer(*model.encode(images(12)), idempotency_key="once")
            assert (first.cost, first.replayed, again.cost, again.replayed) == (12, False, 12, True)
            assert bytes(first.probabilities.data) == bytes(again.probabilities.data)
            budget = first.limits.get("budget")
            assert budget is not None
            assert (budget.quota, budget.remaining) == (20, 8)
            with pytest.raises(BudgetExhausted):
                model.infer(*model.encode(images(9)))
        unknown = "mz_" + "a" * 12 + "_" + "b" * 43
        with Model(f"{zoo.url}/v2/models/toy-00", unknown) as stranger, pytest.raises(Unauthorized):
            stranger.metadata()
        with Metazoo(zoo_url=zoo.url, zoo_api_key=key) as metazoo:
            assert [listed.name for listed in metazoo.zoo.models()] == ["toy-00", "toy-01"]
            assert metazoo.zoo.usage().spent == 12
        zoo.process.send_signal(signal.SIGTERM)
        assert zoo.process.wait(20) in {0, -signal.SIGTERM}
        log = zoo.log.read_text()
        for line in log.splitlines():
            json.loads(line)
        assert ADMIN not in log
        assert key not in log
        assert redis_url.split("@")[0].rpartition(":")[2] not in log


def test_what_was_paid_for_is_replayed_by_the_next_process(tmp_path: Path, redis_url: str, write_zoo) -> None:
    write_zoo(tmp_path / "zoo")
    with served(tmp_path / "zoo", redis_url, tmp_path / "log") as zoo:
        key = zoo.key(budget=20)
        with Model(f"{zoo.url}/v2/models/toy-00", key) as model:
            model.metadata()
            first = model.infer(*model.encode(images(12)), idempotency_key="once")
    with served(tmp_path / "zoo", redis_url, tmp_path / "log") as zoo:
        with Model(f"{zoo.url}/v2/models/toy-00", key) as model:
            model.metadata()
            again = model.infer(*model.encode(images(12)), idempotency_key="once")
        assert again.replayed
        assert bytes(first.probabilities.data) == bytes(again.probabilities.data)
        with Metazoo(zoo_url=zoo.url, zoo_api_key=key) as metazoo:
            assert metazoo.zoo.usage().spent == 12


def test_a_client_that_nobody_here_wrote_asks_a_served_zoo(tmp_path: Path, redis_url: str, write_zoo) -> None:
    import tritonclient.http as triton  # here: it takes a while, and only this test needs it

    write_zoo(tmp_path / "zoo")
    pixels = torch.frombuffer(bytearray(images(5).data), dtype=torch.uint8).view(5, 3, 16, 16).numpy()
    with served(tmp_path / "zoo", redis_url, tmp_path / "log") as zoo:
        key = {"Authorization": f"Bearer {zoo.key(budget=60)}"}
        client = triton.InferenceServerClient(zoo.url.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy-00", headers=dict(key))
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("toy-00", headers=dict(key))["outputs"][0]["shape"] == [-1, 3]
        listed = client.get_model_repository_index(headers=dict(key))
        assert [(model["name"], model["state"]) for model in listed] == [("toy-00", "READY"), ("toy-01", "READY")]
        answers = []
        for raw_input in (True, False):
            for raw_output, packed in ((True, None), (False, "gzip"), (None, "deflate"), (True, "gzip"), (False, None)):
                given = triton.InferInput("images", list(pixels.shape), "UINT8")
                given.set_data_from_numpy(pixels, binary_data=raw_input)
                wanted = triton.InferRequestedOutput("probabilities", binary_data=raw_output or False)
                found = client.infer(
                    "toy-00",
                    [given],
                    outputs=None if raw_output is None else [wanted],
                    headers=dict(key),  # which the client changes
                    request_id="mine",
                    request_compression_algorithm=packed,
                )
                assert found.get_response()["id"] == "mine"
                answers.append(torch.tensor(found.as_numpy("probabilities")))
        for each in answers:
            torch.testing.assert_close(each, answers[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(answers[0].sum(1), torch.ones(5))
        for model, status in (("nothing", "404"), ("toy-00", "402")):  # the ten answers took 50 of the 60 images
            large = triton.InferInput("images", [11, 3, 16, 16], "UINT8")
            large.set_data_from_numpy(torch.zeros((11, 3, 16, 16), dtype=torch.uint8).numpy())
            with pytest.raises(triton.InferenceServerException) as refused:
                client.infer(model, [large], headers=dict(key))
            assert refused.value.status() == status
        client.close()
