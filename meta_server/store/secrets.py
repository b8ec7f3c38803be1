"""Secrets at rest: the API keys of teachers, encrypted under the operator's key."""

import hmac
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from hashlib import sha256

from cryptography.fernet import Fernet, InvalidToken


class BadSecretKey(ValueError):
    """The key is no Fernet key, or not the one that the secrets were encrypted under."""


class Secrets:
    """Encrypts and decrypts under one Fernet key (`METAZOO_SECRET_KEY`)."""

    def __init__(self, key: str) -> None:
        try:
            self._fernet = Fernet(key)
        except ValueError:
            how = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
            raise BadSecretKey(f"METAZOO_SECRET_KEY must be a Fernet key; make one with: {how}") from None
        self._digest_key = sha256(b"digest" + urlsafe_b64decode(key)).digest()

    def __repr__(self) -> str:
        return "Secrets(…)"

    @staticmethod
    def generate() -> str:
        """A new key."""
        return Fernet.generate_key().decode()

    def seal(self, values: Mapping[str, str]) -> str:
        """Names and secrets as one encrypted text."""
        return self._fernet.encrypt(json.dumps(dict(values)).encode()).decode()

    def open(self, sealed: str) -> dict[str, str]:
        """What `seal` encrypted. Raises `BadSecretKey`."""
        try:
            values: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise BadSecretKey("stored API keys cannot be read: METAZOO_SECRET_KEY has changed") from None
        return values

    def digest(self, content: bytes) -> str:
        """A keyed digest: tells whether two contents are equal without letting anyone guess them."""
        return hmac.new(self._digest_key, content, sha256).hexdigest()
