"""Every Redis key of the meta server and its workers, in one place. Job ids are ours, so they need no escaping."""

from contracts.access import DEFAULT_TENANT
from metering.ledger import LedgerKeys
from metering.records import RecordKeys

PREFIX = "mz"
JOBS = f"{PREFIX}:jobs"  # sorted set: every job id of the default tenant; ids sort by time
TENANTS = f"{PREFIX}:tenant:"  # + tenant: hash of its quota; `:day:` and the day: images it sent on it
WEBHOOKS = f"{PREFIX}:webhooks"  # set: jobs whose webhook is yet to be told something
ACCESS_KEYS = f"{PREFIX}:access-keys"  # set: ids of keys of the server
AUDIT = f"{PREFIX}:audit"  # stream: what callers asked for
OPEN_JOBS = f"{PREFIX}:jobs:open"  # set: jobs with work or open holds left; the reaper's list
JOBS_BY_STATUS = f"{PREFIX}:jobs:status:"  # + status: sorted set of job ids
META_MODELS = f"{PREFIX}:meta-models"  # sorted set: every meta-model id; ids sort by time
ADAPTED_MODELS = f"{PREFIX}:adapted-models"  # sorted set: every adapted model id; ids sort by time
ADAPTED_ENDS = f"{PREFIX}:adapted-models:ends"  # sorted set: adapted model id by the second at which it ends
ADAPTED_KEYS = f"{PREFIX}:adapted-models:keys"  # set: metering keys of adapted models
SERVICE_LEASES = f"{PREFIX}:leases"  # leases that belong to no job, such as the reaper's
LEARNERS = f"{PREFIX}:learners"  # hash: learner -> the data sets it can open and until when it said so


def job(job_id: str, part: str) -> str:
    """Parts: record, budget, apis, leases, holds, settled, events, metrics, sent, webhook."""
    return f"{PREFIX}:job:{job_id}:{part}"


def probe(probe_id: str) -> str:
    """Hash, for a few minutes: `sealed` (what is asked of whom), `claimed`, `result` (JSON of Probe)."""
    return f"{PREFIX}:probe:{probe_id}"


def meta_model(meta_model_id: str) -> str:
    """Hash: `record` (JSON of MetaModel) and `folder` in the artefact store."""
    return f"{PREFIX}:meta-model:{meta_model_id}"


def adapted_model(adapted_id: str) -> str:
    """Hash: `record` (JSON of AdaptedModel), `key` (id of its metering key), `ended` (why it is gone)."""
    return f"{PREFIX}:adapted-model:{adapted_id}"


def image_set(image_set_id: str) -> str:
    """Hash: `record` (JSON of ImageSet), `tenant`."""
    return f"{PREFIX}:image-set:{image_set_id}"


def image_sets(of_tenant: str) -> str:
    """Sorted set: the ids of a tenant's image sets; ids sort by time."""
    return f"{tenant(of_tenant)}:image-sets"


def idempotency(digest: str) -> str:
    """Hash: which job a creation under this idempotency key (by digest) made."""
    return f"{PREFIX}:idempotency:{digest}"


def access_key(key_id: str) -> str:
    """Hash: `record` (JSON of AccessKey), `secret` (its SHA-256), `revoked`."""
    return f"{PREFIX}:access-key:{key_id}"


def tenant(name: str) -> str:
    """Hash: the tenant's quota."""
    return f"{TENANTS}{name}"


def jobs(of_tenant: str) -> str:
    """Sorted set: every job id of a tenant."""
    return JOBS if of_tenant == DEFAULT_TENANT else f"{tenant(of_tenant)}:jobs"


def ledger(job_id: str) -> LedgerKeys:
    """The keys of a job's ledger."""
    parts = ("leases", "record", "budget", "holds", "settled", "events")
    return LedgerKeys(**{part: job(job_id, part) for part in parts}, tenants=TENANTS)


def records(job_id: str, of_tenant: str = DEFAULT_TENANT) -> RecordKeys:
    """The keys of a job's record. Whose it is matters where it is made and deleted."""
    parts = {part: job(job_id, part) for part in ("leases", "record", "budget", "apis", "events")}
    return RecordKeys(**parts, index=JOBS_BY_STATUS, index_all=jobs(of_tenant), open=OPEN_JOBS)
