"""Demonstrates how to learn from APIs within a budget and label images of new classes with the result.

    METAZOO_URL=… METAZOO_API_KEY=… METAZOO_ZOO_URL=… METAZOO_ZOO_API_KEY=… python examples/train_from_apis.py

`metazoo up` writes all four: `source ~/.local/share/metazoo/ready.env`. Needs metazoo[client], Pillow and numpy.
"""

import os

import numpy as np

from client import Metazoo


def pictures(rng: np.random.Generator, kind: str, count: int) -> list[np.ndarray]:
    """Two new classes, drawn here: uint8 (32, 32, 3) with stripes across or along."""
    across = np.indices((32, 32))[0 if kind == "across" else 1]
    shades = [np.sin(across * rng.uniform(0.4, 0.9) + rng.uniform(0, 6)) * 90 + 128 for _ in range(count)]
    return [np.repeat(shade[..., None], 3, axis=2).clip(0, 255).astype(np.uint8) for shade in shades]


with Metazoo() as metazoo:
    apis = [{"url": model.url, "api_key": os.environ["METAZOO_ZOO_API_KEY"]} for model in metazoo.zoo.models()]
    job = metazoo.jobs.create(
        {"name": "example", "apis": apis, "budget": {"queries": 1024}, "method": {"name": "pqd", "steps": 60}}
    )
    for event in job.stream():
        if event.type == "phase":
            print("phase", event.data["phase"])
    job.wait()
    print(f"paid for {job.budget.confirmed} images; meta-model {job.meta_model}")

    rng = np.random.default_rng(0)
    answer = metazoo.meta_models.predict(
        job.meta_model,
        support=[(image, kind) for kind in ("across", "along") for image in pictures(rng, kind, 5)],
        query=[*pictures(rng, "across", 3), *pictures(rng, "along", 3)],
    )
    print([prediction.label for prediction in answer.predictions])
