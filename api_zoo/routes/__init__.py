"""The REST interface: for callers the Open Inference Protocol v2, image files, weights and usage; for the host, its keys."""

from fastapi import APIRouter

from api_zoo.routes import admin, classify, infer, repository, usage, weights

answers = APIRouter()  # of any server that hosts classifiers
answers.include_router(infer.router)  # matched first: it is what callers send all day
answers.include_router(repository.router)
answers.include_router(classify.router)

root = APIRouter()
root.include_router(answers)
root.include_router(weights.router)
root.include_router(usage.router)
root.include_router(admin.router)
