"""A `torch.export` archive (`.pt2`), read and run without unpickling anything.

`torch.export.load` is not safe on a file from elsewhere: it unpickles sample inputs and constants, parses expressions with
`sympify`, and lets a graph call any function under `torch`. So the archive is read here: a zip of a graph in JSON and of raw
little-endian weights (schema 8 of torch/_export/serde/schema.py). A graph is a list of calls; those of `OPERATORS`, which
compute tensors from tensors and touch nothing else, are run, any other is refused. Pickled parts are never opened; an archive
that keeps weights in one is refused.
"""

import io
import json
import operator
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfml.foreign.problem import BadProgram

SCHEMA = 8
LARGEST = 2**30  # bytes of an archive, unpacked
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_ATEN = """
_adaptive_avg_pool2d.default _log_softmax.default _native_batch_norm_legit_no_training.default _softmax.default
_to_copy.default _unsafe_view.default abs.default adaptive_avg_pool2d.default add.Scalar add.Tensor add_.Scalar add_.Tensor
addmm.default alias.default amax.default amin.default avg_pool2d.default batch_norm.default bmm.default cat.default
clamp.default clamp_max.default clamp_min.default clone.default constant_pad_nd.default contiguous.default conv2d.default
conv2d.padding convolution.default detach.default detach_.default div.Scalar div.Tensor div_.Tensor dropout.default
dropout_.default elu.default elu_.default erf.default exp.default expand.default feature_dropout.default flatten.using_ints
gelu.default group_norm.default hardsigmoid.default hardsigmoid_.default hardswish.default hardswish_.default
hardtanh.default hardtanh_.default layer_norm.default leaky_relu.default leaky_relu_.default linear.default
log_softmax.int matmul.default max_pool2d.default
max_pool2d_with_indices.default mean.default mean.dim mm.default mul.Scalar mul.Tensor mul_.Scalar
mul_.Tensor neg.default pad.default permute.default pow.Tensor_Scalar prelu.default reciprocal.default relu.default
relu_.default relu6.default relu6_.default reshape.default rsqrt.default rsub.Scalar scaled_dot_product_attention.default
select.int sigmoid.default sigmoid_.default silu.default silu_.default slice.Tensor softmax.int softplus.default
sqrt.default squeeze.dim squeeze.dims sub.Scalar sub.Tensor sub_.Tensor sum.dim_IntList sym_size.int t.default tanh.default
tanh_.default to.dtype transpose.int unsqueeze.default upsample_bilinear2d.vec upsample_nearest2d.vec view.default
""".split()  # noqa: SIM905
OPERATORS: frozenset[str] = frozenset(f"torch.ops.aten.{name}" for name in _ATEN) | {
    f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "neg")
}
_CHECKS = ("torch.ops.aten._assert_", "torch.ops.aten.sym_constrain_range")  # of what held when it was traced: left out


@dataclass(frozen=True)
class _Name:
    """Stands for a value that is only known when the program runs."""

    name: str


@dataclass(frozen=True)
class Call:
    """One step: the operator, its arguments, and what its results are called."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    results: tuple[str, ...]


class ExportedProgram(nn.Module):
    """float32 (n, 3, h, w) -> what the exported module answered. Made by `read_archive`."""

    def __init__(self, calls: list[Call], constants: dict[str, Tensor], takes: str, gives: str) -> None:
        super().__init__()
        self._calls, self._takes, self._gives = calls, takes, gives
        self._constants = {name: f"constant_{number}" for number, name in enumerate(constants)}
        for name, tensor in constants.items():
            self.register_buffer(self._constants[name], tensor)

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._constants.items()}
        values[self._takes] = images.clone()  # steps may work in place
        for call in self._calls:
            arguments = [_filled(each, values) for each in call.arguments]
            options = {name: _filled(each, values) for name, each in call.options.items()}
            given = call.run(*arguments, **options)
            values |= dict(zip(call.results, given if len(call.results) > 1 else (given,), strict=True))
        answer: Tensor = values[self._gives]
        return answer.float()


def read_archive(content: bytes) -> ExportedProgram:
    """The one program of an archive. Raises BadProgram."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(file.file_size for file in archive.infolist()) > LARGEST:
                raise BadProgram(f"it unpacks to more than {LARGEST} bytes")
            return _Archive(archive).program()
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError) as error:
        if isinstance(error, BadProgram):
            raise
        raise BadProgram(f"it is no archive that torch.export.save writes: {error!r}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BadProgram(f"it is damaged or no .pt2 archive: {error}") from error


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._top = archive.namelist()[0].split("/")[0]
        models = [name for name in archive.namelist() if name.startswith(f"{self._top}/models/")]
        if len(models) != 1:
            raise BadProgram(f"it holds {len(models)} programs: save one with torch.export.save")
        self._model = models[0].rsplit("/", 1)[1].removesuffix(".json")

    def program(self) -> ExportedProgram:
        held = self._json(f"models/{self._model}.json")
        version = held["schema_version"]["major"]
        if version != SCHEMA:
            raise BadProgram(f"its schema is {version}, {SCHEMA} is read here: export it with torch 2.13")
        graph, signature = held["graph_module"]["graph"], held["graph_module"]["signature"]
        stored = self._tensors("weights") | self._tensors("constants")
        constants, takes = {}, []
        for spec in signature["input_specs"]:
            ((kind, said),) = spec.items()
            if kind == "user_input":
                takes.append(said["arg"]["as_tensor"]["name"])
            elif kind in {"parameter", "buffer", "tensor_constant"}:
                constants[said["arg"]["name"]] = stored[said[f"{kind}_name"]]
            else:
                raise BadProgram(f"it needs {kind}, which is not read here")
        gives = [spec.get("user_output", {}).get("arg", {}).get("as_tensor") for spec in signature["output_specs"]]
        if len(takes) != 1 or len(gives) != 1 or gives[0] is None:
            raise BadProgram("it must take one tensor of images, give one of logits, and change nothing else")
        calls = [_call(node, constants) for node in graph["nodes"] if not node["target"].startswith(_CHECKS)]
        return ExportedProgram(calls, constants, takes[0], gives[0]["name"])

    def _json(self, name: str) -> Any:
        return json.loads(self._archive.read(f"{self._top}/{name}"))

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        path = f"data/{kind}/{self._model}_{kind}_config.json"
        if f"{self._top}/{path}" not in self._archive.namelist():
            raise BadProgram(
                f"it keeps its {kind} in a pickle, as older versions of torch did: export it with torch 2.13"
            )
        config = self._json(path)["config"]
        return {name: self._tensor(kind, name, said) for name, said in config.items()}

    def _tensor(self, kind: str, name: str, said: dict[str, Any]) -> Tensor:
        meta = said["tensor_meta"]
        if said["use_pickle"] or meta is None:
            raise BadProgram(f"{name} is pickled in it, and nothing is unpickled here: save it as a plain tensor")
        if meta["dtype"] not in _DTYPES:
            raise BadProgram(f"{name} is of a type that is not read here")
        sizes, strides = ([each["as_int"] for each in meta[field]] for field in ("sizes", "strides"))
        raw = self._archive.read(f"{self._top}/data/{kind}/{said['path_name']}")
        if not raw:
            return torch.empty(sizes, dtype=_DTYPES[meta["dtype"]])
        flat = torch.frombuffer(bytearray(raw), dtype=_DTYPES[meta["dtype"]])
        return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).clone()  # within bounds, or it raises


def _call(node: dict[str, Any], constants: Mapping[str, Tensor]) -> Call:
    """Raises BadProgram on an operator that is not run here."""
    target = node["target"]
    if target not in OPERATORS:
        raise BadProgram(f"it calls {target}, which is not run here")
    if target.startswith("_operator."):
        run = getattr(operator, target.removeprefix("_operator."))
    else:
        # A view of a tensor in another memory format than it was traced in would fail; reshaping is the same otherwise.
        packet, overload = target.removeprefix("torch.ops.aten.").replace("view.", "reshape.").split(".")
        run = getattr(getattr(torch.ops.aten, packet.removeprefix("_unsafe_")), overload)
    arguments, options = [], {}
    for each in node["inputs"]:
        value = _argument(each["arg"])
        if each.get("kind", 1) == 2:
            options[each["name"]] = value
        else:
            arguments.append(value)
    if _in_place(target) and isinstance(arguments[0], _Name) and arguments[0].name in constants:
        raise BadProgram(f"it changes its own weights ({target}): bring it into evaluation mode, then export")
    return Call(run, tuple(arguments), options, tuple(_result(each, target) for each in node["outputs"]))


def _result(said: dict[str, Any], target: str) -> str:
    match said:
        case {"as_tensor": {"name": str(name)}} | {"as_sym_int": {"as_name": str(name)}}:
            return name
    raise BadProgram(f"{target} gives what is not read here")


def _in_place(target: str) -> bool:
    return target.split(".")[-2].endswith("_")


def _argument(said: dict[str, Any]) -> Any:
    """A value, or a name that stands for one. Raises BadProgram."""
    ((kind, value),) = said.items()
    match kind:
        case "as_none":
            return None
        case "as_int" | "as_ints" | "as_float" | "as_floats" | "as_bool" | "as_bools" | "as_string":
            return float(value) if kind == "as_float" else value
        case "as_tensor":
            return _Name(value["name"])
        case "as_tensors":
            return [_Name(each["name"]) for each in value]
        case "as_sym_int":
            return _sym_int(value)
        case "as_sym_ints":
            return [_sym_int(each) for each in value]
        case "as_scalar_type":
            return _DTYPES[value]
        case "as_memory_format":
            return _FORMATS[value]
        case "as_layout" if value == 7:
            return torch.strided
    raise BadProgram(f"it has an argument {kind}, which is not read here")


def _sym_int(said: dict[str, Any]) -> Any:
    return _Name(said["as_name"]) if "as_name" in said else said["as_int"]


def _filled(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, _Name):
        return values[argument.name]
    return [_filled(each, values) for each in argument] if isinstance(argument, list) else argument
