"""A learner says, again and again, which data sets it can evaluate on, so that a job nobody could evaluate spends nothing."""

import asyncio
import os
import socket
import threading

import structlog

from dfml.datasets import SPLITS, DatasetMissing, names_under, open_dataset
from meta_server.store.learners import ANNOUNCE_EVERY, Announcement, Learners
from metering.scripts import StoreUnavailable, connect
from worker.devices import gpus
from worker.settings import Settings

log = structlog.get_logger()


def what_is_here(settings: Settings) -> Announcement:
    """The data sets under METAZOO_DATA and those that need none."""
    classes, missing = {}, {}
    for name in names_under(settings.data):
        try:
            dataset = open_dataset(name, settings.data)
            classes[name] = {split: len(dataset.classes(split)) for split in SPLITS}
        except (DatasetMissing, ValueError, OSError) as error:  # broken is as good as missing
            missing[name] = str(error)
    return Announcement(classes=classes, missing=missing, gpus=gpus())


def start_announcing(settings: Settings) -> None:
    """Announce from a thread of this process for as long as it lives."""
    threading.Thread(target=lambda: asyncio.run(_announce(settings)), name="announcing", daemon=True).start()


async def _announce(settings: Settings) -> None:
    learner = f"{socket.gethostname()}:{os.getpid()}"
    announcement = what_is_here(settings)
    learners = Learners(connect(settings.redis_url.get_secret_value()))
    while True:
        try:
            await learners.announce(learner, announcement)
        except StoreUnavailable as error:
            log.warning("not_announced", cause=str(error))
        await asyncio.sleep(ANNOUNCE_EVERY)
