"""The Open Inference Protocol v2 on buffers: JSON tensors and the binary tensor extension, both ways.

Knows no array library: a tensor is a name, a datatype, a shape and a contiguous little-endian row-major buffer, which
numpy and torch wrap without a copy. Faults are collected and raised together, before anything is charged.

Specification: https://github.com/kserve/open-inference-protocol and its binary tensor data extension.
"""

import json
import math
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from contracts.problems import Fault

HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"

# datatype -> (array typecode, bytes an element). Only what classifiers of images need.
DATATYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("B", 1),
    "UINT8": ("B", 1),
    "INT32": ("i", 4),
    "INT64": ("q", 8),
    "FP32": ("f", 4),
    "FP64": ("d", 8),
}


class InvalidPayload(Exception):
    """The body does not follow the protocol. `faults` names every fault found."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; `data` is its contiguous little-endian row-major buffer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    @property
    def elements(self) -> int:
        """Number of elements that the shape states."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An infer request: its input tensors, the outputs asked for, and which of those are wanted as binary."""

    inputs: list[Tensor]
    id: str | None
    outputs: tuple[str, ...]
    binary_outputs: frozenset[str] | None  # None: all of them


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An infer response."""

    model: str
    outputs: list[Tensor]
    id: str | None


def encode_request(
    inputs: list[Tensor], *, binary: bool, request_id: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """A body and its headers. With `binary`, tensors follow the JSON raw and the answer is asked for raw as well."""
    head: dict[str, Any] = {"inputs": []}
    if request_id is not None:
        head["id"] = request_id
    if binary:
        head["parameters"] = {"binary_data_output": True}
    return _encode(head, "inputs", [(tensor, binary) for tensor in inputs])


def encode_response(response: InferResponse, *, binary: frozenset[str] | None) -> tuple[bytes, dict[str, str]]:
    """A body and its headers; `binary` names the outputs to send raw (`None`: all)."""
    head: dict[str, Any] = {"model_name": response.model, "model_version": "1", "outputs": []}
    if response.id is not None:
        head["id"] = response.id
    return _encode(head, "outputs", [(tensor, binary is None or tensor.name in binary) for tensor in response.outputs])


def load(text: memoryview) -> Any:
    """JSON as Python objects. Raises `ValueError`."""
    # five times faster than json, and refuses NaN and depths that json recurses into
    return from_json(bytes(text), allow_inf_nan=False)


def decode_request(
    body: bytes | memoryview, header_length: str | None, *, load: Callable[[memoryview], Any] = load
) -> InferRequest:
    """Parse an infer request. Buffers of binary tensors are views into `body`, not copies.

    `load` reads the JSON part; it may give the `data` of a tensor as its buffer, a `memoryview` of bytes.
    Raises `InvalidPayload` naming every fault.
    """
    head, raw = _split(body, header_length, load)
    found: list[Fault] = []
    inputs = _tensors(head, "inputs", raw, found)
    by_default = _parameters(head).get("binary_data_output") is True
    wanted, binary = [], set()
    outputs = head.get("outputs", [])
    if not isinstance(outputs, list):
        found.append(Fault(field="outputs", message="must be a list of objects with a name"))
        outputs = []
    for index, output in enumerate(outputs):
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            found.append(Fault(field=f"outputs.{index}", message="must be an object with a name"))
            continue
        wanted.append(output["name"])
        if _parameters(output).get("binary_data", by_default) is True:
            binary.add(output["name"])
    if found:
        raise InvalidPayload(found)
    request_id = head.get("id")
    return InferRequest(
        inputs=inputs,
        id=request_id if isinstance(request_id, str) else None,
        outputs=tuple(wanted),
        binary_outputs=None if by_default and not wanted else frozenset(binary),
    )


def decode_response(body: bytes | memoryview, header_length: str | None) -> InferResponse:
    """Parse an infer response. Raises `InvalidPayload` naming every fault."""
    head, raw = _split(body, header_length, load)
    found: list[Fault] = []
    outputs = _tensors(head, "outputs", raw, found)
    if found:
        raise InvalidPayload(found)
    return InferResponse(model=str(head.get("model_name", "")), outputs=outputs, id=head.get("id"))


def _encode(head: dict[str, Any], key: str, tensors: list[tuple[Tensor, bool]]) -> tuple[bytes, dict[str, str]]:
    raw: list[bytes | bytearray | memoryview] = []
    for tensor, binary in tensors:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            described["parameters"] = {"binary_data_size": memoryview(tensor.data).nbytes}
            raw.append(tensor.data)
        else:
            described["data"] = numbers(tensor)
        head[key].append(described)
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if not raw:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *raw]), {"Content-Type": BINARY, HEADER: str(len(text))}


def numbers(tensor: Tensor) -> list[Any]:
    """The elements in row-major order as Python numbers."""
    code, _ = DATATYPES[tensor.datatype]
    elements = array(code)
    elements.frombytes(memoryview(tensor.data).cast("B"))
    if sys.byteorder == "big":
        elements.byteswap()
    return [bool(element) for element in elements] if tensor.datatype == "BOOL" else elements.tolist()


def _split(
    body: bytes | memoryview, header_length: str | None, load: Callable[[memoryview], Any]
) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(body)
    length = len(view)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
            raise InvalidPayload([Fault(field=HEADER, message="must be the number of bytes of the JSON part")])
        length = int(header_length)
        if length > len(view):
            raise InvalidPayload([Fault(field=HEADER, message=f"{length} is beyond the body of {len(view)} bytes")])
    try:
        head = load(view[:length])
    except ValueError as error:
        raise InvalidPayload([Fault(field="body", message=f"is not JSON: {error}")]) from None
    if not isinstance(head, dict):
        raise InvalidPayload([Fault(field="body", message="must be a JSON object")])
    return head, view[length:]


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _tensors(head: dict[str, Any], key: str, raw: memoryview, found: list[Fault]) -> list[Tensor]:
    described = head.get(key)
    if not isinstance(described, list) or not described:
        found.append(Fault(field=key, message="must be a list with at least one tensor"))
        return []
    tensors, at = [], 0
    for index, part in enumerate(described):
        where = f"{key}.{index}"
        if not isinstance(part, dict):
            found.append(Fault(field=where, message="must be an object"))
            continue
        name, datatype, shape = part.get("name"), part.get("datatype", ""), part.get("shape", [])
        before = len(found)
        if not isinstance(name, str) or not name:
            found.append(Fault(field=f"{where}.name", message="must be a non-empty string"))
        if datatype not in DATATYPES:
            found.append(Fault(field=f"{where}.datatype", message=f"must be one of {', '.join(DATATYPES)}"))
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            found.append(Fault(field=f"{where}.shape", message="must be a list of whole numbers, none negative"))
        size = _parameters(part).get("binary_data_size")
        if size is not None and (type(size) is not int or not 0 <= size <= len(raw) - at):
            found.append(
                Fault(field=f"{where}.parameters.binary_data_size", message=f"is not within the {len(raw)} bytes sent")
            )
        if len(found) > before:
            continue
        code, width = DATATYPES[datatype]
        expected = math.prod(shape) * width
        if size is not None:
            data: memoryview = raw[at : at + size]
            at += size
        else:
            encoded = _pack(part.get("data"), datatype, code)
            if encoded is None:
                found.append(Fault(field=f"{where}.data", message=f"must be a list of {datatype} numbers"))
                continue
            data = encoded
        if len(data) != expected:
            message = f"shape {shape} of {datatype} needs {expected} bytes, {len(data)} were sent"
            found.append(Fault(field=f"{where}.data", message=message))
            continue
        tensors.append(Tensor(name=str(name), datatype=datatype, shape=tuple(shape), data=data))
    if at != len(raw) and not found:
        found.append(Fault(field="body", message=f"{len(raw) - at} bytes belong to no tensor"))
    return tensors


def _pack(numbers: Any, datatype: str, code: str) -> memoryview | None:
    if isinstance(numbers, memoryview):
        return numbers
    if not isinstance(numbers, list):
        return None
    try:
        packed = array(code, _flat(numbers))
    except (TypeError, ValueError, OverflowError):
        return None
    if sys.byteorder == "big":
        packed.byteswap()
    return memoryview(packed).cast("B")


def _flat(numbers: list[Any]) -> list[Any]:
    """Row-major nested lists flattened; the protocol allows both forms."""
    while numbers and isinstance(numbers[0], list):
        numbers = [number for row in numbers for number in row]
    return numbers
