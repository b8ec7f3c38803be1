"""What the meta server is told by its environment."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    api_key: SecretStr = Field(
        validation_alias="METAZOO_SERVER_API_KEY", min_length=16, description="The bearer key that callers must send."
    )
    max_body: int = Field(
        64 * 2**20, ge=2**10, validation_alias="METAZOO_MAX_BODY", description="Bytes of the largest request body."
    )
    data: Path | None = Field(
        None, validation_alias="METAZOO_DATA", description="Folder of data sets, to compare meta-models on."
    )
    model_memory: int = Field(
        512 * 2**20, ge=0, validation_alias="METAZOO_MODEL_MEMORY", description="Bytes of networks kept loaded."
    )
    adapted_images_per_second: float | None = Field(
        None,
        gt=0,
        validation_alias="METAZOO_ADAPTED_IMAGES_PER_SECOND",
        description="What each adapted model may answer. Default: no limit.",
    )
    zoo_url: str | None = Field(
        None, validation_alias="METAZOO_ZOO_URL", description="The zoo whose keys the dashboard shows and makes."
    )
    zoo_admin_key: SecretStr | None = Field(
        None, validation_alias="METAZOO_ZOO_ADMIN_KEY", description="Its admin key; no browser ever sees it."
    )
