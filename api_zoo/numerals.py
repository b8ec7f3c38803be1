"""Reads large JSON requests without making a Python object of each number: three times faster than with one.

Takes the plain form that clients send, tensors whose `data` is one flat list of numbers. Whatever else comes is left to the
reader of `contracts.oip`, which finds and names what is wrong with it.
"""

from threading import Lock
from typing import Any

import numpy as np
import simdjson

from contracts import oip

LARGE = 2**16  # bytes; below, the other reader is as fast
_FIELDS = {"id", "inputs", "outputs", "parameters"}
_TENSOR = {"name", "datatype", "shape", "data", "parameters"}

_parser = simdjson.Parser()  # keeps its memory, which would take as long to get as parsing does
_guard = Lock()


class _Other(Exception):
    """Not of the plain form."""


def load(text: memoryview) -> Any:
    """JSON as Python objects, but `data` as the tensor's buffer where it can be. Raises `ValueError`: no JSON."""
    if len(text) >= LARGE:
        try:
            with _guard:
                return _request(text)
        except (_Other, ValueError, TypeError, RuntimeError, AttributeError):
            pass
    return oip.load(text)


def _request(text: memoryview) -> dict[str, Any]:
    read: Any = _parser.parse(text)
    request = _plain(read, _FIELDS, but="inputs")
    request["inputs"] = [_tensor(each) for each in read["inputs"]]
    lists = 1 + sum(2 if "data" in each else 1 for each in request["inputs"]) + ("outputs" in request)
    if bytes(text).count(b"[") != lists:  # lists in lists, which `as_buffer` flattens however ragged they are
        raise _Other
    return request


def _tensor(read: Any) -> dict[str, Any]:
    tensor = _plain(read, _TENSOR, but="data")
    if tensor.get("datatype") == "FP32":
        numbers = np.frombuffer(read["data"].as_buffer(of_type="d"))
        with np.errstate(over="ignore"):  # to infinity, which no model takes
            packed = numbers.astype("<f4")
    elif tensor.get("datatype") == "UINT8":
        numbers = np.frombuffer(read["data"].as_buffer(of_type="u"), np.uint64)
        if numbers.size and numbers.max() > 255:
            raise _Other
        packed = numbers.astype(np.uint8)
    else:
        raise _Other
    tensor["data"] = packed.data.cast("B")
    return tensor


def _plain(read: Any, known: set[str], *, but: str) -> dict[str, Any]:
    """The fields of an object without `but`, which it must have; each once, all of them known."""
    names = list(read.keys())
    if but not in names or len(set(names)) < len(names) or not known.issuperset(names):
        raise _Other
    return {name: _python(read[name]) for name in names if name != but}


def _python(read: Any) -> Any:
    if isinstance(read, simdjson.Array):
        return read.as_list()
    return read.as_dict() if isinstance(read, simdjson.Object) else read
