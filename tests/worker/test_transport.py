"""What the workers may call: a table of addresses, a name that changes its mind, and the limits on answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import httpx
import pytest

from worker.transport import AddressRefused, Guard, GuardedTransport, is_public

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",  # noqa: S104
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # cloud metadata
        "100.64.0.1",  # carrier-grade NAT
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:5db8:d70e:0:0:f5ff:fffe",  # Teredo of a private client
        "2001:0:7f00:1:0:0:a247:28f1",  # Teredo of a loopback server
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "1.1.1.1",
        "2606:4700::1111",
        "::ffff:93.184.215.14",
        "64:ff9b::5db8:d70e",
        "2002:5db8:d70e::1",
    ],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def resolving(*answers: list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that answers each of these in turn, the last of them for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def test_every_address_of_a_name_must_be_public() -> None:
    guard = Guard(resolve=resolving(["93.184.215.14", "10.0.0.1"]))
    with pytest.raises(AddressRefused, match="METAZOO_ALLOW"):
        await guard.check("http://api.test/v2/models/m")


async def test_only_the_allowed_port_of_a_host_is_exempt() -> None:
    guard = Guard(["127.0.0.1:8001", "Zoo.test:80"], resolve=resolving(["127.0.0.1"]))
    await guard.check("http://127.0.0.1:8001/v2/models/m")
    await guard.check("http://zoo.test/v2/models/m")
    for url in ("http://127.0.0.1:8002/v2/models/m", "https://zoo.test/v2/models/m", "http://other.test:8001/"):
        with pytest.raises(AddressRefused):
            await guard.check(url)


async def test_a_name_that_does_not_resolve() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError

    with pytest.raises(AddressRefused, match="does not resolve"):
        await Guard(resolve=resolve).check("http://nowhere.test/")


@pytest.mark.redis  # a tier that may open sockets
class TestOverSockets:
    async def test_a_name_that_changes_its_address_is_refused_when_dialled(self) -> None:
        async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
            guard = Guard(resolve=resolving(["93.184.215.14"], ["127.0.0.1"]))
            await guard.check(f"http://rebind.test:{port}/")
            with pytest.raises(httpx.ConnectError, match="not a public address"):
                await fetch(guard, f"http://rebind.test:{port}/")

    async def test_the_checked_address_is_dialled_with_the_name_as_host(self) -> None:
        heard: list[bytes] = []
        async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", heard) as port:
            guard = Guard([f"zoo.test:{port}"], resolve=resolving(["127.0.0.1"]))
            response = await fetch(guard, f"http://zoo.test:{port}/v2")
            assert response.text == "hi"
            assert f"host: zoo.test:{port}".encode() in heard[0].lower()
            assert b"accept-encoding: identity" in heard[0].lower()

    async def test_redirects_are_not_followed(self) -> None:
        answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
        async with server(answer) as port:
            response = await fetch(Guard([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/")
            assert response.status_code == 302

    async def test_proxy_variables_are_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
            guard = Guard([f"zoo.test:{port}"], resolve=resolving(["127.0.0.1"]))
            assert (await fetch(guard, f"http://zoo.test:{port}/")).status_code == 200

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000,
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
        ],
        ids=["large", "compressed"],
    )
    async def test_answers_that_are_not_read(self, answer: bytes) -> None:
        async with server(answer) as port:
            with pytest.raises(httpx.DecodingError):
                await fetch(Guard([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/", max_body=1000)

    async def test_a_server_that_hangs_up(self) -> None:
        async with server(b"") as port:
            with pytest.raises(httpx.RemoteProtocolError):
                await fetch(Guard([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/")


async def fetch(guard: Guard, url: str, *, max_body: int = 10**6) -> httpx.Response:
    async with httpx.AsyncClient(transport=GuardedTransport(guard, max_body=max_body), timeout=5) as http:
        return await http.get(url)


@asynccontextmanager
async def server(answer: bytes, heard: list[bytes] | None = None) -> AsyncIterator[int]:
    """Answers every connection with these bytes and closes it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(request)
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
