"""Keys are shown once, recognised by their secret alone, and revoked for good."""

import pytest
from redis.asyncio import Redis

from contracts.zoo import KeyRequest
from metering.gate import Gate
from metering.keyring import FULL_REQUEST, Keyring, UnknownKey, audit, record
from metering.scripts import Scripts, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def keyring(redis: Redis) -> Keyring:
    return Keyring(redis, Scripts(redis))


@pytest.mark.redis
async def test_a_new_key_is_recognised_by_its_secret(keyring: Keyring) -> None:
    wanted = KeyRequest(name="mine", budget=7, images_per_second=2.5, burst=3, models=["b", "a"])
    made = await keyring.create(wanted)
    key = await keyring.authenticate(made.secret)
    assert key == await keyring.get(made.id)
    assert made.model_dump(exclude={"secret"}) == key.model_dump()
    assert (key.name, key.budget, key.images_per_second, key.burst, key.models) == ("mine", 7, 2.5, 3, ["a", "b"])
    assert (key.spent, key.revoked) == (0, False)


@pytest.mark.redis
async def test_no_other_secret_is_recognised(keyring: Keyring) -> None:
    made = await keyring.create(KeyRequest())
    other = await keyring.create(KeyRequest())
    _, key_id, secret = made.secret.split("_")
    last = "0" if secret[-1] != "0" else "1"
    for wrong in (
        "",
        "mz",
        f"mz_{key_id}",
        f"mz_{key_id}_",
        f"mz_{key_id}_{secret[:-1]}",
        f"mz_{key_id}_{secret[:-1]}{last}",
        f"mz_{other.id}_{secret}",
        f"mz_{'0' * 12}_{secret}",
        made.secret + "\n",
        made.secret + " ",
        made.secret.upper(),
        "mz_é_é",
    ):
        assert await keyring.authenticate(wrong) is None, wrong


@pytest.mark.redis
async def test_the_secret_is_not_kept(keyring: Keyring, redis: Redis) -> None:
    secret = (await keyring.create(KeyRequest())).secret.split("_")[2].encode()
    for name in await redis.keys():
        assert secret not in name
        assert secret not in await redis.dump(name)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("rate", "asked", "burst"),
    [(None, None, None), (10, None, FULL_REQUEST), (5000.5, None, 5001), (10, 4, 4)],
)
async def test_the_burst_holds_a_second_or_a_full_request_unless_stated(keyring, rate, asked, burst) -> None:
    assert (await keyring.create(KeyRequest(images_per_second=rate, burst=asked))).burst == burst


@pytest.mark.redis
async def test_a_revoked_key_is_told_apart_from_an_unknown_one(keyring: Keyring) -> None:
    made = await keyring.create(KeyRequest())
    assert (await keyring.revoke(made.id)).revoked
    assert (await keyring.revoke(made.id)).revoked
    found = await keyring.authenticate(made.secret)
    assert found is not None
    assert found.revoked


@pytest.mark.redis
async def test_keys_are_listed_oldest_first(keyring: Keyring) -> None:
    assert await keyring.list() == []
    ids = [(await keyring.create(KeyRequest())).id for _ in range(5)]
    assert [key.id for key in await keyring.list()] == ids


@pytest.mark.redis
async def test_an_unknown_key_is_an_error_and_none_is_made(keyring: Keyring, redis: Redis) -> None:
    for method in (keyring.get, keyring.revoke, keyring.usage):
        with pytest.raises(UnknownKey, match="no key nobody"):
            await method("nobody")
    assert await redis.keys() == []


@pytest.mark.redis
async def test_usage_tells_images_by_model(keyring: Keyring, redis: Redis) -> None:
    key = (await keyring.create(KeyRequest(budget=100))).id
    gate = Gate(redis, Scripts(redis))
    for model, images in (("b", 5), ("a", 2), ("b", 1)):
        await gate.admit(key, model=model, images=images, idempotency_key=None, digest="d")
    usage = await keyring.usage(key)
    assert (usage.budget, usage.spent, usage.left, usage.per_model) == (100, 8, 92, {"a": 2, "b": 6})
    assert (await keyring.get(key)).spent == 8


@pytest.mark.redis
async def test_all_that_belongs_to_a_key_shares_its_hash_tag(keyring: Keyring, redis: Redis) -> None:
    key = (await keyring.create(KeyRequest())).id
    await Gate(redis, Scripts(redis)).admit(key, model="a", images=1, idempotency_key="{k}", digest="d")
    names = {name.decode() for name in await redis.keys()} - {"mz:zoo:keys"}
    assert len(names) == 4
    assert all(name.startswith(f"mz:zoo:{{{key}}}:") for name in names)


async def test_without_redis_nobody_is_recognised(unused_redis: Redis) -> None:
    keyring = Keyring(unused_redis, Scripts(unused_redis))
    secret = f"mz_{'a' * 12}_{'b' * 43}"
    for call in (keyring.authenticate(secret), keyring.create(KeyRequest()), keyring.list(), keyring.get("a")):
        with pytest.raises(StoreUnavailable):
            await call


@pytest.mark.redis
async def test_rings_list_their_own_keys_and_can_forget_them(redis: Redis) -> None:
    scripts = Scripts(redis)
    zoo, other = Keyring(redis, scripts), Keyring(redis, scripts, index="mz:other:keys")
    kept, gone = await zoo.create(KeyRequest()), await other.create(KeyRequest())
    assert [key.id for key in await zoo.list()] == [kept.id]
    assert [key.id for key in await other.list()] == [gone.id]
    await other.forget(gone.id)
    assert await other.list() == []
    assert await other.authenticate(gone.secret) is None
    assert not await redis.exists(record(gone.id), audit(gone.id), "mz:other:keys")
