"""Programs from elsewhere compute what they computed at home; nothing in a file is unpickled, or called by its name alone."""

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from contracts.zoo import Network, Normalisation
from dfml.foreign import BadProgram, probe, read
from dfml.foreign.exported import read_archive

SHAPE = (3, 16, 16)
PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Net(nn.Module):
    """What exporters meet: batch norm, steps in place, pooling, a view with the batch's size, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)
        )
        self.drop, self.head = nn.Dropout(), nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        return self.head(self.drop(features.view(features.shape[0], -1)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    net(torch.rand(50, *SHAPE))  # running statistics
    return net.eval()


@pytest.fixture(scope="module")
def archive(net: nn.Module) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim("n")},)
        torch.export.save(torch.export.export(net, (torch.rand(2, *SHAPE),), dynamic_shapes=dynamic), out)
    return out.getvalue()


def changed(archive: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The archive with its files, by their names below the top folder, as `change` left them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as held:
        top = held.namelist()[0].split("/")[0]
        files = {name.removeprefix(f"{top}/"): held.read(name) for name in held.namelist()}
    change(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as rewritten:
        for name, content in files.items():
            rewritten.writestr(f"{top}/{name}", content)
    return out.getvalue()


def edit(path: str, change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], object]:
    def apply(files: dict[str, bytes]) -> None:
        held = json.loads(files[path])
        change(held)
        files[path] = json.dumps(held).encode()

    return apply


def node(number: int, **fields: Any) -> Callable[[dict[str, bytes]], object]:
    return edit("models/model.json", lambda held: held["graph_module"]["graph"]["nodes"][number].update(fields))


def test_an_archive_computes_what_was_exported(net: nn.Module, archive: bytes) -> None:
    program = read_archive(archive)
    images = torch.rand(7, *SHAPE)
    for each in (program, copy.deepcopy(program).to(memory_format=torch.channels_last)):
        before = images.clone()
        torch.testing.assert_close(each(images), net(images))
        torch.testing.assert_close(each(images[:1]), net(images[:1]))
        assert torch.equal(images, before)


def test_nothing_of_an_archive_is_unpickled(
    net: nn.Module, archive: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # a stream that calls os.mkdir when it is unpickled
    hostile = f"cos\nmkdir\n(V{tmp_path / 'was here'}\ntR.".encode()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    evil = changed(archive, lambda files: files.update({"data/sample_inputs/model.pt": hostile}))
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(read_archive(evil)(images), net(images))
    assert list(tmp_path.iterdir()) == []


WEIGHTS = "data/weights/model_weights_config.json"


def first_weight(**fields: Any) -> Callable[[dict[str, bytes]], object]:
    return edit(WEIGHTS, lambda held: next(iter(held["config"].values())).update(fields))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (node(0, target="torch.hub.load"), r"calls torch\.hub\.load"),
        (node(0, target="torch.ops.aten.from_file.default"), "from_file"),
        (node(0, target="os.system"), r"calls os\.system"),
        (node(0, target="_operator.methodcaller"), "methodcaller"),
        (node(1, target="torch.ops.aten.relu_.default", inputs=[]), "no archive"),
        (
            node(0, target="torch.ops.aten.relu_.default", inputs=[{"arg": {"as_tensor": {"name": "p_head_weight"}}}]),
            "its own weights",
        ),
        (node(0, inputs=[{"arg": {"as_operator": "os.system"}}]), "as_operator"),
        (node(0, inputs=[{"arg": {"as_custom_obj": {"name": "x", "class_fqn": "y"}}}]), "as_custom_obj"),
        (first_weight(use_pickle=True), "nothing is unpickled"),
        (first_weight(path_name="../../models/model.json"), "no archive"),
        (first_weight(tensor_meta=None), "nothing is unpickled"),
        (
            edit(
                WEIGHTS,
                lambda held: next(iter(held["config"].values()))["tensor_meta"]["sizes"][0].update(as_int=10**9),
            ),
            "no archive",
        ),
        (edit("models/model.json", lambda held: held["schema_version"].update(major=9)), "schema is 9"),
        (lambda files: files.update({"models/other.json": b"{}"}), "2 programs"),
        (lambda files: files.pop("models/model.json"), "0 programs"),
        (lambda files: files.pop(WEIGHTS), "older versions of torch"),
        (lambda files: files.update({"models/model.json": b"[" * 100_000}), "no archive"),
        (lambda files: files.update({"data/weights/weight_0": files["data/weights/weight_0"][:-4]}), "no archive"),
    ],
)
def test_an_archive_that_does_anything_else_is_refused(archive: bytes, change: Any, told: str) -> None:
    with pytest.raises(BadProgram, match=told):
        read_archive(changed(archive, change))


def test_a_damaged_archive_is_refused(archive: bytes) -> None:
    flipped = bytearray(archive)
    flipped[archive.index(b"weight_1") + 200] ^= 1
    pickled = b"\x80\x04\x95\x06\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a."  # [1]
    for content in (b"", b"PK\x03\x04", archive[: len(archive) // 2], bytes(flipped), pickled):
        with pytest.raises(BadProgram):
            read_archive(content)


def test_an_archive_that_unpacks_to_too_much_is_refused(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfml.foreign.exported.LARGEST", len(archive) // 2)
    with pytest.raises(BadProgram, match="unpacks to more"):
        read_archive(archive)


WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3) / 9


def onnx_file(*, batch: int | str = "n", side: int = 16, softmax: bool = False, extra: bool = False) -> bytes:
    """Mean of each channel, times WEIGHT."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y" if not softmax else "logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=1))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])]
    if extra:
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def network(**more: Any) -> Network:
    return Network.model_validate({"backbone": "onnx", "input": SHAPE, "normalise": PLAIN, **more})


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("batch", ["n", 1])
def test_an_onnx_file_answers_what_it_computes(batch: int | str, softmax: bool) -> None:
    answers = "probabilities" if softmax else "logits"
    module = copy.deepcopy(read(network(answers=answers), onnx_file(batch=batch, softmax=softmax)))
    images = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    expected = (images.double() / 255).mean((2, 3)) @ torch.from_numpy(WEIGHT).double()
    torch.testing.assert_close(module(images).softmax(-1), expected.softmax(-1).float(), atol=1e-5, rtol=1e-5)
    probe(module, SHAPE, 3)


def test_normalisation_comes_before_the_program() -> None:
    normalise = Normalisation(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    module = read(network(normalise=normalise), onnx_file())
    images = torch.rand(2, *SHAPE)
    seen = (images - torch.tensor(normalise.mean).view(3, 1, 1)) / torch.tensor(normalise.std).view(3, 1, 1)
    torch.testing.assert_close(module(images), seen.mean((2, 3)) @ torch.from_numpy(WEIGHT))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (onnx_file(side=28), "it takes images"),
        (onnx_file(batch=4), "batches of exactly 4"),
        (onnx_file(extra=True), "one input"),
        (b"", "ONNX Runtime does not take it"),
        (b"nonsense", "ONNX Runtime does not take it"),
        (onnx_file()[:-40], "ONNX Runtime does not take it"),
    ],
)
def test_an_onnx_file_that_is_no_classifier_of_such_images(content: bytes, told: str) -> None:
    with pytest.raises(BadProgram, match=told):
        read(network(), content)


def test_an_onnx_file_reads_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(onnx_file())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadProgram, match="ONNX Runtime does not take it"):
        read(network(), (tmp_path / "m.onnx").read_bytes())


class Odd(nn.Module):
    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answer(images.float().mean((2, 3)) / 255)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: x[:, :2], r"\(3, 2\)"),
        (lambda x: x / 0 - x / 0, "NaN"),
        (lambda x: x - x.mean(0), "depends on the other images"),
        (lambda x: x @ x, "fails on images"),
    ],
)
def test_a_dry_run_finds_what_is_no_classifier(answer: Callable[[torch.Tensor], torch.Tensor], told: str) -> None:
    with pytest.raises(BadProgram, match=told):
        probe(Odd(answer), SHAPE, 3)
