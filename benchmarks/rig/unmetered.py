"""The zoo by the environment without its meter: what metering costs is the difference. For benchmarks alone."""

import sys
from typing import Any

import torch
import uvicorn

from api_zoo.app import create_app
from api_zoo.services import hosted
from api_zoo.settings import Settings
from metering.gate import Admission, Gate
from metering.refusals import Limits


class Free(Gate):
    """Grants everything, counts nothing, asks no Redis."""

    def __init__(self) -> None:
        """Without a store."""

    def granted_last(self, key_id: str) -> bool:
        """Every request is."""
        return True

    async def admit(self, key_id: str, *, model: str, images: int, **more: Any) -> Admission:
        """A charge that is none."""
        return Admission("charged", "", images, None, Limits(), key_id, model, "", 1, repeatable=False)

    async def settle(self, admission: Admission, answer: bytes) -> None:
        """Nothing to settle."""

    async def refund(self, admission: Admission) -> None:
        """Nothing to give back."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = Settings()
    app = create_app(settings, registry=hosted(settings), gate=Free())
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
