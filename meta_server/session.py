"""A browser's session: the caller's key in a cookie that only this server can read, no script can see, no other site can send.

The cookie holds no state of the server: it is the key, sealed, and a key that is no longer good ends its sessions with it.
"""

from base64 import urlsafe_b64encode
from hashlib import sha256
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from starlette.requests import Request
from starlette.responses import Response

from edge.gatekeeper import SAFE

COOKIE = "metazoo_session"
SECONDS = 12 * 3600


class Sessions:
    """Seals keys into cookies, under a key derived from `secret` (`METAZOO_SECRET_KEY`)."""

    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(urlsafe_b64encode(sha256(b"session" + secret.encode()).digest()))

    def __repr__(self) -> str:
        return "Sessions(…)"

    def start(self, request: Request, response: Response, key: str) -> None:
        """Have the browser send `key`, sealed, for the next `SECONDS`."""
        sealed = self._fernet.encrypt(key.encode()).decode()
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, sealed, max_age=SECONDS, httponly=True, samesite="strict", secure=secure)

    def end(self, response: Response) -> None:
        """Have the browser forget the key."""
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")

    def key(self, request: Request) -> str | None:
        """The key that the browser's cookie holds; None without one, or when it is too old or not of this server."""
        sealed = request.cookies.get(COOKIE)
        if sealed is None:
            return None
        try:
            return self._fernet.decrypt(sealed, ttl=SECONDS).decode()
        except InvalidToken:
            return None


def forged(request: Request) -> bool:
    """Whether a request that would change something may have been made by another site's page.

    Browsers say where a request comes from (`Sec-Fetch-Site`, or `Origin` on plain HTTP), and no page can make them lie.
    A cookie alone is not enough: `SameSite` does not tell two ports of one host apart.
    """
    if request.method in SAFE:
        return False
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site != "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc != request.headers.get("host")
