"""The REST interface: each handler reads a request, makes one call, and answers."""

from fastapi import APIRouter, Depends

from meta_server.routes import adapted_models, admin, health, image_sets, job_records, jobs, meta_models, zoo_keys
from meta_server.routes.access import authorised, owned
from meta_server.routes.description import problems

v1 = APIRouter(
    prefix="/v1",
    dependencies=[Depends(authorised), Depends(owned)],
    responses=problems(401, 403, 422, 429, 500, 503),
)
v1.include_router(jobs.router)
v1.include_router(job_records.router)
v1.include_router(meta_models.router)
v1.include_router(adapted_models.router)
v1.include_router(image_sets.router)

root = APIRouter()
root.include_router(v1)
root.include_router(admin.router)
root.include_router(zoo_keys.router)
root.include_router(health.router)
