"""Our networks as graphs for ONNX Runtime, whose kernels answer one image as fast as many, and faster than PyTorch's on a CPU.

What an image is answered does not depend, to the bit, on what it is computed with: each is convolved by itself.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dfml.nets import Backbone, Classifier
from dfml.nets.conv4 import Block, Conv4
from dfml.nets.resnet import BasicBlock, ConvNorm, ResNet12, ThreeConvolutions

STEP = 16
"""Images at once: their activations stay in the cache, and take little memory in each of many sessions."""
COPIES, OWN_BYTES = 3, 2**19
"""What a session holds: its weights so often, and so much beside them. Seen: 132 MB for weights of 45, 0.9 MB for 0.12."""
OPSET, IR = 17, 8  # old enough for every runtime that is allowed


class Compiled(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> logits or features, as `network` gives in evaluation mode. On the CPU.

    `held_bytes` is about what its session holds, outside torch's sight.
    """

    fewest = 1
    """Images that it wants at least."""

    def __init__(self, network: Classifier | Backbone) -> None:
        super().__init__()
        content = _graph(network)
        self.held_bytes = COPIES * len(content) + OWN_BYTES
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # each session would keep the activations of its largest batch
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        asked = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        answers = [self._session.run(None, {"images": part})[0] for part in _steps(asked.contiguous().numpy())]
        return torch.from_numpy(answers[0] if len(answers) == 1 else np.concatenate(answers))


def _steps(images: Any) -> list[Any]:
    return [images[at : at + STEP] for at in range(0, len(images), STEP)]


class _Draft:
    """A graph in the making: each node gives one tensor, by whose name the next ones take it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, tensor: Tensor) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(tensor.detach().cpu().contiguous().numpy(), name))
        return name

    def convolved(self, x: str, part: Block | ConvNorm) -> str:
        """Its convolution and its batch norm, as one convolution."""
        conv = fuse_conv_bn_eval(part.conv, part.norm)
        weights = self.constant(conv.weight), self.constant(cast("Tensor", conv.bias))
        kernel, pad, stride = (list(map(int, size)) for size in (conv.kernel_size, conv.padding, conv.stride))
        return self.add("Conv", x, *weights, kernel_shape=kernel, pads=pad * 2, strides=stride)

    def basic_block(self, x: str, block: BasicBlock) -> str:
        first = self.add("Relu", self.convolved(x, block.first))
        beside = self.convolved(x, block.shortcut) if isinstance(block.shortcut, ConvNorm) else x
        return self.add("Relu", self.add("Add", self.convolved(first, block.second), beside))

    def three_convolutions(self, x: str, block: ThreeConvolutions) -> str:
        out = x
        for part in (block.first, block.second):
            out = self.add("LeakyRelu", self.convolved(out, part), alpha=0.1)
        both = self.add("Add", self.convolved(out, block.third), self.convolved(x, block.shortcut))
        return self.add("MaxPool", self.add("LeakyRelu", both, alpha=0.1), kernel_shape=[2, 2], strides=[2, 2])


def _graph(network: Classifier | Backbone) -> bytes:
    """The network as an ONNX file: `images`, float32 in [0, 1], to logits or features."""
    draft, body, normalise = _Draft(), network.body, network.normalise
    x = draft.add("Sub", "images", draft.constant(normalise.mean))
    x = draft.add("Div", x, draft.constant(normalise.std))
    if isinstance(body, Conv4):
        for block in cast("Iterable[Block]", body.blocks):
            x = draft.add("Relu", draft.convolved(x, block))  # fused into the convolution, unlike behind the pool
            x = draft.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    elif isinstance(body, ResNet12):
        for three in cast("Iterable[ThreeConvolutions]", body.blocks):
            x = draft.three_convolutions(x, three)
        x = draft.add("GlobalAveragePool", x)
    else:
        x = draft.add("Relu", draft.convolved(x, body.stem))
        for basic in cast("Iterable[BasicBlock]", body.blocks):
            x = draft.basic_block(x, basic)
        x = draft.add("GlobalAveragePool", x)
    x = draft.add("Flatten", x)
    if isinstance(network, Classifier):
        head = draft.constant(network.head.weight), draft.constant(network.head.bias)
        x = draft.add("Gemm", x, *head, transB=1)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *network.input_shape])
    answers = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", None])
    graph = helper.make_graph(draft.nodes, "network", [images], [answers], draft.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    content: bytes = model.SerializeToString()
    return content
