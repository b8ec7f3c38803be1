"""Webhooks: where to tell what becomes of a job."""

from base64 import b64decode
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from contracts._base import MASKED, Input, plain_http


class Webhook(Input):
    """Where to tell what becomes of a job: signed by the Standard Webhooks scheme (standardwebhooks.com)."""

    url: Annotated[str, Field(min_length=8, max_length=2048)] = Field(
        description="Told, by POST, when the job begins, pauses and ends."
    )
    secret: SecretStr = Field(
        description="`whsec_` and 24 to 64 bytes in base64: signs what is sent. Encrypted at rest, never returned."
    )

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        plain_http(url, example="https://host/path", instead="the signature says who sends")
        return url

    @field_validator("secret")
    @classmethod
    def _signs(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value()
        if text == MASKED:  # as it is read back; the store refuses it in what callers send
            return secret
        try:
            sound = text.startswith("whsec_") and 24 <= len(b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
        return secret
