"""What ends a job, by exception: one table from class to code, with the sentence a person gets to read. And what pauses it.

An exception that is not in the table is a fault of ours (`internal`); its message is logged, not shown.
"""

import errno

from contracts.jobs import JobError
from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing
from meta_server.store.secrets import BadSecretKey
from metering.leases import AttemptsExhausted


class JobFault(Exception):
    """The job cannot go on, and `error` says why."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


CODES: dict[type[Exception], str] = {
    AttemptsExhausted: "attempts_exhausted",
    ArtifactMissing: "artifact_missing",
    ArtifactDamaged: "artifact_damaged",
    BadSecretKey: "secret_key_changed",
    MemoryError: "out_of_memory",
}


def job_error(error: Exception) -> JobError:
    """The error of a job that `error` ended."""
    if isinstance(error, JobFault):
        return error.error
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return JobError(code=code, message=str(error) or code)
    return JobError(code="internal", message="a worker failed in a way it should not: its log has the cause")


def reason_to_pause(error: Exception) -> str | None:
    """Why the job should rest until a person has seen to it; None if `error` ends it.

    What was sent and could not be stored stays an open hold: after a resume within a day the API gives the answer again.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full: the artefact store is full; make room, then resume the job"
    return None
