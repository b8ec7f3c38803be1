"""Runs in MLServer's environment: asks it over gRPC with raw tensors. `grpc_load.py ADDRESS MODEL COUNT C H W SECONDS`."""

import sys
import time

import numpy
import tritonclient.grpc as triton

address, model, count, channels, height, width, seconds = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
shape = [int(count), int(channels), int(height), int(width)]
images = numpy.random.default_rng(0).random(shape, dtype=numpy.float32)
client = triton.InferenceServerClient(address)
took = []
until = None
while until is None or time.perf_counter() < until:
    tensor = triton.InferInput("images", shape, "FP32")
    tensor.set_data_from_numpy(images)
    began = time.perf_counter()
    answer = client.infer(model, [tensor]).as_numpy("probabilities")
    took.append(time.perf_counter() - began)
    assert answer.shape[0] == shape[0]
    if until is None:
        took, until = [], time.perf_counter() + seconds
took.sort()
print(len(took) / sum(took), 1000 * took[len(took) // 2], 1000 * took[-1 - len(took) // 100])
