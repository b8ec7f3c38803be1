"""What a worker is told by its environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Each field is the environment variable named beside it. Secrets show as asterisks wherever this is printed."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", frozen=True)

    redis_url: SecretStr = Field(validation_alias="REDIS_URL", description="redis://:password@host:port/0")
    artifacts: str = Field(
        validation_alias="METAZOO_ARTIFACTS", description="Folder or fsspec URL of the artefact store."
    )
    secret_key: SecretStr = Field(
        validation_alias="METAZOO_SECRET_KEY", description="Fernet key for teachers' API keys."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        validation_alias="METAZOO_METRICS_PORT",
        description="Port on which this worker answers Prometheus. Default: none.",
    )
    data: Path | None = Field(None, validation_alias="METAZOO_DATA", description="Folder of data sets, to evaluate on.")
    allow: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), validation_alias="METAZOO_ALLOW", description="Comma list of host:port that may be called anyway."
    )
    patience: float = Field(
        120.0, gt=0, validation_alias="METAZOO_PATIENCE", description="Seconds for which a failing API is tried again."
    )
    timeout: float = Field(
        60.0,
        gt=0,
        validation_alias="METAZOO_TIMEOUT",
        description="Seconds in which an API must have answered in full.",
    )
    checkpoint_every: float = Field(
        30.0,
        ge=0,
        validation_alias="METAZOO_CHECKPOINT_EVERY",
        description="Seconds between two states of a training that are kept, to go on from if the learner is killed.",
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(part.strip().lower() for part in value.split(",") if part.strip())
        return value
