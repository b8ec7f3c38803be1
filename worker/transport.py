"""The one way out to URLs that users give: an httpx transport that calls public addresses only.

The name is resolved when a connection is made; every address found must be public, and the one that was checked is the
one that is dialled, with the name as Host and SNI. So a name that changes its address in between gains nothing. No
redirects, no proxies, no compressed bodies, a cap on size. `host:port` pairs of the operator's allow-list are exempt
from the address check alone.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

MAX_BODY = 64 * 2**20  # bytes of an answer

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> every address of the host. Raises OSError when there is none."""

_UNICAST = IPv6Network("2000::/3")  # all that is globally routed in IPv6
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """The URL leads to no address that may be called."""


class Guard:
    """Says which addresses of a host may be dialled. `allow`: `host:port` pairs that need not be public."""

    def __init__(self, allow: Iterable[str] = (), *, resolve: Resolve | None = None) -> None:
        self._allow = frozenset(pair.lower() for pair in allow)
        self._resolve = resolve or _resolve

    async def addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses, each of them fit to be dialled. Raises `AddressRefused`, OSError."""
        found = await self._resolve(host, port)
        if f"{host}:{port}".lower() in self._allow:
            return found
        for address in found:
            if not is_public(ip_address(address.partition("%")[0])):
                raise AddressRefused(
                    f"{host}:{port} is not a public address: if it is meant, the operator adds it to METAZOO_ALLOW"
                )
        return found

    async def check(self, url: str) -> None:
        """Whether the URL may be called now. Raises `AddressRefused`, also when the name does not resolve."""
        parts = urlsplit(url)
        try:
            await self.addresses(parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme])
        except OSError:
            raise AddressRefused(f"the name {parts.hostname} does not resolve: check the URL") from None


def is_public(address: Address) -> bool:
    """Whether an address, and each one wrapped in it, is global and not multicast."""
    wrapped = _wrapped(address)
    if wrapped:
        return all(is_public(inner) for inner in wrapped)
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _wrapped(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address stands for: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(address, IPv4Address):
        return []
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64 or int(address) >> 32 == 0:
        return [low]
    if address.sixtofour is not None:
        return [address.sixtofour]
    return list(address.teredo or ())


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class GuardedTransport(httpx.AsyncBaseTransport):
    """Carries requests to addresses that `guard` lets pass, and answers of at most `max_body` bytes back."""

    def __init__(self, guard: Guard, *, max_body: int = MAX_BODY, tls: ssl.SSLContext | None = None) -> None:
        self._max_body = max_body
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            max_connections=16,
            keepalive_expiry=30.0,
            network_backend=_GuardedBackend(guard),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises httpx's exceptions; a refused address is a `ConnectError`."""
        assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101 - an async client makes no other
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"accept-encoding"]
        url = request.url
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=[*headers, (b"Accept-Encoding", b"identity")],
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except Exception as error:
            raise _as_httpx(error, request) from error
        told = httpx.Headers(response.headers)
        body = _Body(response, request, self._max_body)
        if told.get("content-encoding", "identity").lower() != "identity":
            await body.aclose()
            raise httpx.DecodingError("the answer is compressed although that was not asked for", request=request)
        return httpx.Response(response.status, headers=told, stream=body, extensions=response.extensions)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's bytes, up to a limit."""

    def __init__(self, response: httpcore.Response, request: httpx.Request, limit: int) -> None:
        self._response = response
        self._request = request
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        parts = aiter(self._response.aiter_stream())
        while True:
            try:
                part = await anext(parts, None)
            except Exception as error:
                raise _as_httpx(error, self._request) from error
            if part is None:
                return
            size += len(part)
            if size > self._limit:
                raise httpx.DecodingError(f"the answer is larger than {self._limit} bytes", request=self._request)
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Dials checked addresses; TLS above it still sees the name."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await asyncio.wait_for(self._guard.addresses(host, port), timeout)
        except (AddressRefused, OSError) as error:
            raise httpcore.ConnectError(str(error)) from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("only TCP is spoken")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _as_httpx(error: Exception, request: httpx.Request) -> Exception:
    """httpcore's exceptions have namesakes in httpx; anything else passes."""
    namesake = getattr(httpx, type(error).__name__, None)
    if type(error).__module__.startswith("httpcore") and namesake is not None:
        known: Exception = namesake(str(error), request=request)
        return known
    if isinstance(error, TimeoutError):
        return httpx.ConnectTimeout("resolving the name took too long", request=request)
    return error
