"""The Python SDK of Metazoo: jobs, meta-models and the API zoo over HTTP. Brings no torch and no numpy."""

from client.errors import (
    ApiUnavailable,
    BudgetExhausted,
    Conflict,
    InProgress,
    InvalidAnswer,
    InvalidRequest,
    JobFailed,
    MetazooError,
    NotConfigured,
    NotFound,
    RateLimited,
    TimedOut,
    TooLarge,
    Unauthorized,
)
from client.model import Answer, AsyncModel, Model, ModelInfo

__all__ = [
    "Answer",
    "ApiUnavailable",
    "AsyncModel",
    "BudgetExhausted",
    "Conflict",
    "InProgress",
    "InvalidAnswer",
    "InvalidRequest",
    "JobFailed",
    "MetazooError",
    "Model",
    "ModelInfo",
    "NotConfigured",
    "NotFound",
    "RateLimited",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
]
