"""What the zoo is told by its environment."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field is the environment variable named beside it. Secrets show as asterisks wherever this is printed."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", frozen=True)

    redis_url: SecretStr = Field(validation_alias="REDIS_URL", description="redis://:password@host:port/0")
    admin_key: SecretStr = Field(
        validation_alias="METAZOO_ZOO_ADMIN_KEY", min_length=16, description="The bearer token of /admin."
    )
    folder: Path | None = Field(None, validation_alias="METAZOO_ZOO_FOLDER", description="The zoo folder to host.")
    unverified: bool = Field(
        False, validation_alias="METAZOO_ZOO_UNVERIFIED", description="Also host teachers without a SHA-256."
    )
    policy: str | None = Field(
        None, validation_alias="METAZOO_ZOO_POLICY", description="What every model answers, whatever the manifest says."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", validation_alias="METAZOO_ZOO_DEVICE",
        description="Where models compute: cpu, cuda, cuda:1; auto is cuda where there is one.",
    )  # fmt: skip
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", validation_alias="METAZOO_ZOO_PRECISION",
        description="What models compute in: bf16 is for GPUs, and slower on most CPUs.",
    )  # fmt: skip
    loaded_bytes: int = Field(
        512 * 2**20, ge=1, validation_alias="METAZOO_ZOO_LOADED_BYTES", description="Bytes of weights in memory."
    )
    max_images: int = Field(
        512, ge=1, le=65_536, validation_alias="METAZOO_ZOO_MAX_IMAGES", description="Most images in one request."
    )
    max_body: int = Field(
        64 * 2**20, ge=2**10, validation_alias="METAZOO_ZOO_MAX_BODY", description="Bytes of the largest request body."
    )
    body_seconds: float = Field(
        30, gt=0, validation_alias="METAZOO_ZOO_BODY_SECONDS", description="Time in which a body must have arrived."
    )
    answer_seconds: float = Field(
        60,
        gt=0,
        validation_alias="METAZOO_ZOO_ANSWER_SECONDS",
        description="Time that answering may take once charged.",
    )
    threads: int = Field(
        os.cpu_count() or 1, ge=1, validation_alias="METAZOO_ZOO_THREADS", description="Batches computed at once."
    )
