"""Demonstrates how to learn from a server that is not ours: any that speaks the Open Inference Protocol v2.

    OIP_URL=http://host:8080/v2/models/NAME python examples/any_oip_endpoint.py

KServe, Triton, MLServer, Seldon and OpenVINO Model Server speak it; the tests run this against an MLServer. OIP_API_KEY is sent
where it is set; METAZOO_URL and METAZOO_API_KEY are as in train_from_apis.py. A server of your own on loopback must be let in
by name: `METAZOO_ALLOW=127.0.0.1:8080 metazoo up`. Needs metazoo[client].
"""

import os

from client import Metazoo, Model

url, key = os.environ["OIP_URL"], os.environ.get("OIP_API_KEY")

# What the model says of itself costs no query.
with Model(url, key) as model:
    info = model.metadata()
print(f"{info.name} takes {info.datatype} images of {info.input_shape} and tells {info.classes} classes apart")

request = {
    "name": f"from {info.name}",
    "apis": [{"url": url} if key is None else {"url": url, "api_key": key}],
    "budget": {"queries": 256},
    "method": {"name": "pqd", "steps": 40},
}

with Metazoo() as metazoo:
    # A few images, which it charges for, show what it really answers.
    told = metazoo.jobs.estimate(request, probe=True)
    seen = told.probe.per_api["a0"]
    again = "the same" if seen.deterministic else "something else"
    print(f"asked about {seen.charged} images: {1000 * seen.latency:.0f} ms a request, asked again it answers {again}")

    job = metazoo.jobs.create(request)
    for event in job.stream():
        if event.type == "phase":
            print("phase", event.data["phase"])
    job.wait()
    print(f"paid for {job.budget.confirmed} of {job.budget.limit} images; meta-model {job.meta_model}")
