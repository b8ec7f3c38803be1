"""The inference engine: classifiers frozen for answering, and the check of what they are asked.

Our own networks run on a CPU as `api_zoo.compiled` has them. For all else, PyTorch's own kernels: batch norm is folded into
the convolutions, memory is `channels_last`, and batches run in chunks whose activations stay in the cache. What an image is
answered does not depend on what it is computed with: those kernels change their order of summation for very few rows alone,
so fewer are filled up. Nothing here knows HTTP.
"""

import math
import re
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from api_zoo.rehearsal import Rehearsal
from contracts import oip
from contracts.problems import Fault
from contracts.zoo import Behaviour, ModelMetadata, ModelParameters, PublishedWeights, TensorMetadata, parse_policy
from dfml.teachers import CHUNK

INPUT, OUTPUT = "images", "probabilities"
DATATYPES = ("UINT8", "FP32")
ONE = 0x3F800000
"""The bits of 1 as FP32."""
Pixels = npt.NDArray[Any]
"""Images, uint8 or float32 in [0, 1], (n, c, h, w)."""
FEWEST = 2
"""Images that PyTorch computes at least: one alone goes through other kernels, which round otherwise. Modules that have an
attribute `fewest` say their own number."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class BadInput(ValueError):
    """The tensors are no images that the model takes. `faults` names every fault found."""

    def __init__(self, found: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in found))
        self.faults = found


@dataclass(frozen=True)
class Published:
    """Weights that the host gives away: what is told of them, and how the file is read."""

    told: PublishedWeights
    read: Callable[[], bytes]


Layout = tuple[bytes, int]
"""The JSON part of a request, and the length of its body."""


@dataclass(frozen=True, slots=True)
class Form:
    """What requests that differ in their pixels alone have in common: one raw tensor behind the same short JSON part."""

    datatype: str
    shape: tuple[int, ...]
    start: int  # of the pixels in the body
    write: Callable[[bytes], tuple[bytes, list[tuple[bytes, bytes]]]]  # the answer, as a body and its headers


class Model:
    """A hosted classifier under its name.

    `module` gives logits and is run as it is: fold it before (see `folded`). Or it is a function that answers with such a
    module, called for every batch, on any thread.
    `policy` is what its answers tell (`contracts.zoo.ResponsePolicy`); with `eight_bit_only` it takes UINT8 images alone.
    With `half` it computes in bfloat16 what that suffices for: for GPUs, most CPUs are slower so.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module | Callable[[], nn.Module],
        labels: Sequence[str],
        input_shape: tuple[int, int, int],
        *,
        policy: str = "probabilities",
        eight_bit_only: bool = False,
        behaviour: Behaviour = Behaviour(),  # noqa: B008 (it is frozen)
        price: tuple[str | None, str | None] = (None, None),
        published: Published | None = None,
        half: bool = False,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no model name: use letters, digits, '.', '_' and '-', at most 100")
        kind, number = parse_policy(policy)
        if kind == "topk" and number > len(labels):
            raise ValueError(f"the response policy {policy} asks for more than the {len(labels)} classes there are")
        self.name = name
        self.policy = policy
        self.told = {"topk": number, "label": 1}.get(kind, len(labels))  # classes that an answer tells of
        self.datatypes = ("UINT8",) if eight_bit_only else DATATYPES
        self.labels = list(labels)
        self.input_shape = input_shape
        self.behaviour = behaviour
        self.rehearsal = None if behaviour == Behaviour() else Rehearsal(behaviour, name)
        self.published = published
        self.forms: dict[Layout, Form] = {}  # of requests that were sound: callers send the same ones all day
        self._half = half
        self._price = price  # of 1,000 images, and its currency
        self._module: Callable[[], nn.Module] = (lambda: module) if isinstance(module, nn.Module) else module

    def metadata(self, max_images: int) -> ModelMetadata:
        """What `GET /v2/models/{name}` answers."""
        return ModelMetadata(
            name=self.name,
            inputs=[TensorMetadata(name=INPUT, datatype="UINT8", shape=[-1, *self.input_shape])],
            outputs=[TensorMetadata(name=OUTPUT, datatype="FP32", shape=[-1, len(self.labels)])],
            parameters=ModelParameters(
                response_policy=self.policy,
                labels=self.labels,
                max_images=max_images,
                datatypes=list(self.datatypes),
                latency_ms=self.behaviour.latency,
                jitter_ms=self.behaviour.jitter,
                price_per_1k=self._price[0],
                currency=self._price[1],
                weights=None if self.published is None else self.published.told,
            ),
        )

    def check(self, inputs: Sequence[oip.Tensor]) -> None:
        """Raise `BadInput` unless there is one tensor, of the name, a datatype and the shape that the model takes."""
        if len(inputs) != 1:
            message = f"must be the one tensor {INPUT}, {len(inputs)} were sent"
            raise BadInput([Fault(field="inputs", message=message)])
        sent, found = inputs[0], []
        if sent.name != INPUT:
            found.append(Fault(field="inputs.0.name", message=f"must be {INPUT}"))
        if sent.datatype not in self.datatypes:
            found.append(Fault(field="inputs.0.datatype", message=f"must be {' or '.join(self.datatypes)}"))
        if len(sent.shape) != 4 or sent.shape[1:] != self.input_shape or sent.shape[0] < 1:
            wanted = ", ".join(map(str, self.input_shape))
            message = f"is {list(sent.shape)}: must be [n, {wanted}] with at least one image"
            found.append(Fault(field="inputs.0.shape", message=message))
        if found:
            raise BadInput(found)

    def images(self, sent: oip.Tensor) -> Pixels:
        """What passed `check` as uint8, or as float32 in [0, 1], (n, c, h, w). Raises `BadInput` on NaN and other values.

        A view of `sent.data` where that may be written to: what it lies in must be left alone until the answer is there.
        """
        data = memoryview(sent.data)
        return pixels(bytearray(data) if data.readonly else data, sent.datatype, sent.shape)

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, c, h, w) -> probabilities float32 (n, classes), on the CPU.

        An answer depends on its own image alone, whatever the batch; on a GPU and in bfloat16, but for its last bits.
        """
        module = self._module()
        device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self._half):
            if device.type == "cpu":
                chunks = [_answers(module, chunk) for chunk in images.split(CHUNK)]
                return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
            return _answers_there(module, images, device)

    def answer(self, images: Pixels) -> bytes:
        """What the policy lets through of `predict`, as FP32 bytes, row by row."""
        told = limited(self.predict(torch.from_numpy(images)), self.policy)
        return told.contiguous().numpy().astype("<f4", copy=False).tobytes()


def pixels(data: bytearray | memoryview, datatype: str, shape: tuple[int, ...], start: int = 0) -> Pixels:
    """The images in `data` from byte `start` on, uint8 or float32 in [0, 1]. Raises `BadInput` on NaN and other values."""
    count = math.prod(shape)
    if datatype == "UINT8":
        return np.frombuffer(data, np.uint8, count, start).reshape(shape)
    bits = np.frombuffer(data, np.uint32, count, start)
    # Floats that are not negative are ordered as their bits are: with none above those of 1 all are in [0, 1].
    if np.maximum.reduce(bits) > ONE:
        numbers = bits.view(np.float32)
        low, high = numbers.min().item(), numbers.max().item()  # NaN wins over any number
        if not (low >= 0 and high <= 1):  # -0 is 0
            what = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            message = f"holds {what}: send FP32 in [0, 1], or UINT8"
            raise BadInput([Fault(field="inputs.0.data", message=message)])
    return bits.view(np.float32).reshape(shape)


def _answers(module: nn.Module, images: Tensor) -> Tensor:
    count, fewest = len(images), getattr(module, "fewest", FEWEST)
    if count < fewest:
        images = images.expand(fewest, -1, -1, -1)
    answers: Tensor = module(images).float().softmax(-1)
    return answers[:count]


def _answers_there(module: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """As `_answers`, on a GPU: each thread copies and computes on a stream of its own, beside those of the others."""
    if not hasattr(_here, "streams"):
        _here.streams = {}
    stream = _here.streams.get(device)
    if stream is None:
        stream = _here.streams[device] = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):  # only what is pinned is copied beside other work
        answers = _answers(module, images.pin_memory().to(device, non_blocking=True))
        told = torch.empty(answers.shape, dtype=answers.dtype, pin_memory=True)
        told.copy_(answers, non_blocking=True)
    stream.synchronize()
    return told


_here = threading.local()


def limited(probabilities: Tensor, policy: str) -> Tensor:
    """What a response policy lets through, float32 (n, classes); of equal probabilities the first class counts as larger.

    Decimals are rounded half up in float64, then stored as the nearest float32, whose sums need not be 1.
    """
    kind, number = parse_policy(policy)
    if kind == "round":
        scale = 10.0**number
        return ((probabilities.double() * scale + 0.5).floor() / scale).float()
    if kind in {"topk", "label"}:
        largest = torch.sort(probabilities, dim=-1, descending=True, stable=True).indices[:, : number or 1]
        kept = torch.ones_like(probabilities) if kind == "label" else probabilities
        return torch.zeros_like(probabilities).scatter(-1, largest, kept.gather(-1, largest))
    return probabilities


class Rows(nn.Module):
    """A linear layer whose rows do not depend on how many there are: matrix products sum fewer than `FEWEST` otherwise."""

    FEWEST = 8

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, outputs)."""
        missing = self.FEWEST - len(x)
        if missing <= 0:
            return F.linear(x, self.linear.weight, self.linear.bias)
        return F.linear(F.pad(x, (0, 0, 0, missing)), self.linear.weight, self.linear.bias)[: len(x)]


def folded(module: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """A copy in evaluation mode in which each pair `conv`, `norm` is one convolution, in `channels_last`, on `device`."""
    module = deepcopy(module).eval()
    for part in list(module.modules()):
        for name, linear in list(part.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(part, name, Rows(linear))
        conv, norm = getattr(part, "conv", None), getattr(part, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            part.conv = fuse_conv_bn_eval(conv, norm)
            part.norm = nn.Identity()
    module.requires_grad_(False)
    there: nn.Module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # other streams will read it
    return there
