"""The Python SDK of Metazoo: jobs, meta-models and the API zoo over HTTP. Brings no torch and no numpy."""

from client._client import AsyncMetazoo, Metazoo
from client._limits import Limit, RateLimits
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
from client.job import AsyncJob, AsyncJobPage, Job, JobPage
from client.model import Answer, AsyncModel, Model, ModelInfo
from client.zoo import ZooModel
from contracts.adaptation import AdaptedModel, AdaptedModelPage, Prediction, PredictResponse
from contracts.image_sets import ImageSet, ImageSetPage
from contracts.job_records import Event
from contracts.jobs import JobRequest, JobStatus
from contracts.meta_models import MetaModel, MetaModelPage

__all__ = [
    "AdaptedModel",
    "AdaptedModelPage",
    "Answer",
    "ApiUnavailable",
    "AsyncJob",
    "AsyncJobPage",
    "AsyncMetazoo",
    "AsyncModel",
    "BudgetExhausted",
    "Conflict",
    "Event",
    "ImageSet",
    "ImageSetPage",
    "InProgress",
    "InvalidAnswer",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobPage",
    "JobRequest",
    "JobStatus",
    "Limit",
    "MetaModel",
    "MetaModelPage",
    "Metazoo",
    "MetazooError",
    "Model",
    "ModelInfo",
    "NotConfigured",
    "NotFound",
    "PredictResponse",
    "Prediction",
    "RateLimited",
    "RateLimits",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "ZooModel",
]
