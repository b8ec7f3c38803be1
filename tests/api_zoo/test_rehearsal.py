"""Models that are slow or fail on purpose, and weights that a host gives away."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from api_zoo.folder import BadZoo, open_folder, read_manifest
from api_zoo.inference import Model
from api_zoo.rehearsal import Failed, Rehearsal
from contracts import oip
from contracts.zoo import Behaviour, parse_serving
from dfml.teachers import load_teacher

ROW = 12  # bytes of three classes


def test_the_same_seed_hits_the_same_requests_at_the_stated_rates() -> None:
    told = Behaviour(latency=30, jitter=10, errors=0.2, stalls=0.1, stall=7, shapes=0.3, nans=0.05, seed=4)
    drawn = Rehearsal(told, "m")
    turns = [drawn.turn() for _ in range(4000)]
    same = Rehearsal(told, "m")
    assert turns == [same.turn() for _ in range(4000)]
    assert turns[:9] != [other.turn() for other in [Rehearsal(told, "n")] for _ in range(9)]
    for share, hit in ((0.2, "fails"), (0.3, "short"), (0.05, "nan")):
        assert abs(sum(getattr(turn, hit) for turn in turns) / 4000 - share) < 0.03
    stalled = [turn for turn in turns if turn.seconds > 1]
    assert abs(len(stalled) / 4000 - 0.1) < 0.03
    quick = [turn.seconds for turn in turns if turn.seconds < 1]
    assert 0.020 <= min(quick) < 0.021
    assert 0.039 < max(quick) <= 0.040
    without = Rehearsal(told.model_copy(update={"errors": 0.0}), "m")
    assert [turn.short for turn in turns] == [without.turn().short for _ in range(4000)]


def test_an_answer_is_spoilt_as_drawn() -> None:
    answer = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).numpy().tobytes()
    behaviour = {"fails": Behaviour(errors=1), "short": Behaviour(shapes=1), "nan": Behaviour(nans=1)}
    turns = {name: Rehearsal(told, "m").turn() for name, told in behaviour.items()}
    with pytest.raises(Failed):
        turns["fails"].spoil(answer, 3)
    assert turns["short"].spoil(answer, 3) == answer[:ROW]
    spoilt = torch.frombuffer(bytearray(turns["nan"].spoil(answer, 3)), dtype=torch.float32)
    assert spoilt[:3].isnan().all()
    assert spoilt[3:].tolist() == torch.tensor([0.1, 0.2, 0.7]).tolist()


@pytest.mark.parametrize(
    ("text", "policy", "behaviour"),
    [
        ("label", "label", None),
        ("latency=50,jitter=20", None, Behaviour(latency=50, jitter=20)),
        ("errors=0.5, topk:2, seed=3", "topk:2", Behaviour(errors=0.5, seed=3)),
    ],
)
def test_how_models_serve_is_read(text: str, policy: str | None, behaviour: Behaviour | None) -> None:
    assert parse_serving(text) == (policy, behaviour)


@pytest.mark.parametrize(
    "text", ["", "logits", "label,label", "errors=2", "latency=-1", "colour=3", "errors=0.1,errors=0.2", "latency=nan"]
)
def test_what_is_no_way_to_serve_is_refused(text: str, tmp_path: Path, write_zoo) -> None:
    with pytest.raises(ValueError, match=r"policy|must|should|known|neither"):
        parse_serving(text)
    write_zoo(tmp_path)
    with pytest.raises(BadZoo):
        open_folder(tmp_path, policy=text)


def of(module: torch.nn.Module, **behaviour: float) -> dict[str, Model]:
    return {"m": Model("m", module, ["red", "green", "blue"], (3, 2, 2), behaviour=Behaviour(**behaviour))}


@pytest.mark.anyio
@pytest.mark.redis
async def test_a_zoo_rehearses_bad_days(running, redis_url: str, colours, zoo) -> None:
    module = zoo.app.state.services.models["colours"]._module()
    async with running(redis_url, of(module, errors=1)) as failing:
        key = await failing.key(budget=10)
        answer = await failing.infer(key, colours(4), model="m")
        assert (answer.status_code, await failing.spent(key)) == (500, 0)
        assert "on purpose" in answer.json()["error"]
    async with running(redis_url, of(module, shapes=1)) as short:
        key = await short.key(budget=10)
        answer = await short.infer(key, colours(4), model="m")
        (output,) = oip.decode_response(answer.content, answer.headers[oip.HEADER]).outputs
        assert (output.shape, await short.spent(key)) == ((3, 3), 4)
    async with running(redis_url, of(module, nans=1)) as nan:
        answer = await nan.infer(await nan.key(), colours(2), model="m")
        (output,) = oip.decode_response(answer.content, answer.headers[oip.HEADER]).outputs
        assert math.isnan(oip.numbers(output)[0])
        key = await nan.key(budget=10)
        assert (await nan.infer(key, colours(2), model="m", binary=False)).status_code == 500
        assert await nan.spent(key) == 0
    async with running(redis_url, of(module, stalls=1, stall=30), answer_seconds=0.05) as slow:
        key = await slow.key(budget=10)
        answer = await slow.infer(key, colours(4), model="m")
        assert (answer.status_code, await slow.spent(key)) == (503, 0)
    async with running(redis_url, of(module, latency=30)) as late:
        key = await late.key()
        assert (await late.http.get("/v2/models/m", headers=key)).json()["parameters"]["latency_ms"] == 30
        assert (await late.infer(key, colours(1), model="m")).status_code == 200


@pytest.mark.anyio
@pytest.mark.redis
async def test_a_host_may_publish_weights(running, redis_url: str, tmp_path: Path, write_zoo) -> None:
    manifest = write_zoo(tmp_path)
    manifest["teachers"][0] |= {"publish": "weights", "price_per_1k": "0.50", "currency": "EUR"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    async with running(redis_url, open_folder(tmp_path)) as zoo:
        key = await zoo.key()
        told = (await zoo.http.get("/v2/models/toy-00", headers=key)).json()["parameters"]
        assert (told["price_per_1k"], told["currency"]) == ("0.50", "EUR")
        given = await zoo.http.get("/v1/models/toy-00/weights", headers=key)
        assert hashlib.sha256(given.content).hexdigest() == told["weights"]["sha256"]
        assert given.headers["etag"] == f'"{told["weights"]["sha256"]}"'
        assert told["weights"]["network"]["backbone"] == "conv4"
        entry = read_manifest(tmp_path).teachers[0]
        teacher = load_teacher(read_manifest(tmp_path), entry, given.content)
        assert set(load(given.content)) == set(teacher.weights())
        assert (await zoo.http.get("/v1/models/toy-01/weights", headers=key)).status_code == 403
        assert (await zoo.http.get("/v2/models/toy-01", headers=key)).json()["parameters"]["weights"] is None
        assert (await zoo.http.get("/v1/models/toy-00/weights")).status_code == 401
        assert await zoo.spent(key) == 0
