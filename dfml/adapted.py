"""A network that has learned a task: a backbone with one head, and how it is kept in a few files.

A head on frozen features keeps the meta-model's backbone, which any number of tasks share; fine-tuning and calibration give the
task a backbone of its own. Batch norm is inductive, so an answer never depends on its batch neighbours.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor, nn

from contracts.adaptation import Method
from contracts.methods import IcfilOptions
from dfml import adaptation, icfil
from dfml.adaptation import Heads
from dfml.io import CONFIG, WEIGHTS, BadModel
from dfml.nets import Backbone, build, load_weights, weights
from dfml.teachers import CHUNK

FORMAT = 1
HEAD = "head."


class UnitHead(nn.Module):
    """Features (n, d) -> logits (n, ways): linear on features of length 1, minus a centre; `adaptation.Heads` of one task."""

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, centre: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)  # (d,)
        self.register_buffer("weight", weight)  # (d, ways)
        self.register_buffer("bias", bias)  # (ways,)

    def forward(self, features: Tensor) -> Tensor:
        return torch.addmm(self.bias, F.normalize(features, dim=-1) - self.centre, self.weight)


class TaskNetwork(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> logits (n, ways)."""

    def __init__(self, backbone: Backbone, head: UnitHead | nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


def fit(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    *,
    ways: int,
    method: Method = "logistic",
    fine_tuning: IcfilOptions | None = None,
    seed: int = 0,
) -> TaskNetwork:
    """Learn a task from a few labelled images; `backbone` stays as it is, and is shared unless `fine_tuning` is given.

    images: uint8, or float in [0, 1], (n, 3, h, w); labels: int64 (n,) in [0, ways), each class at least once.
    fine_tuning: how the network itself is changed before a head is fitted to it; for `fine-tune` it brings the head.
    Raises ValueError that says what does not fit.
    """
    if fine_tuning is not None:
        tuned = icfil.adapt(backbone, images, labels, ways=ways, options=fine_tuning, seed=seed).learner
        if method == "fine-tune":
            return TaskNetwork(tuned.backbone, tuned.head).requires_grad_(False).eval()
        backbone = tuned.backbone
    if method == "fine-tune":
        raise ValueError("fine-tune needs its options: give fine_tuning")
    head = adaptation.adapt(backbone, images, labels, ways=ways, head=method).head
    return TaskNetwork(backbone, _unit(head)).requires_grad_(False).eval()


def predict(network: TaskNetwork, images: Tensor) -> Tensor:
    """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways), on the CPU."""
    with torch.inference_mode():
        parts = [network(part).softmax(-1) for part in torch.split(images, CHUNK)]
    return torch.cat(parts).cpu().clone()


def dump(network: TaskNetwork, *, labels: Sequence[str], meta_model: str, shared: bool) -> dict[str, bytes]:
    """File name -> bytes, the same for the same network.

    labels: names of the classes, in order. meta_model: id of the one it comes from. shared: its backbone is the meta-model's,
    and is left out.
    """
    tensors = {HEAD + name: tensor.detach().cpu().contiguous() for name, tensor in network.head.state_dict().items()}
    if not shared:
        tensors |= weights(network.backbone)
    config = {
        "format": FORMAT,
        "model_type": "metazoo-adapted",
        "meta_model": meta_model,
        "head": "unit" if isinstance(network.head, UnitHead) else "linear",
        "shared_backbone": shared,
        "labels": list(labels),
    }
    return {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: write_safetensors(tensors, metadata={"format": "pt"}),
    }


def load(files: Mapping[str, bytes], backbone: Backbone) -> tuple[TaskNetwork, list[str]]:
    """The network and the names of its classes. `backbone`: of the meta-model it comes from; it stays as it is.

    Raises BadModel where the files hold none, or one of another architecture.
    """
    try:
        config: dict[str, Any] = json.loads(files[CONFIG])
        if config["format"] != FORMAT or config["model_type"] != "metazoo-adapted":
            raise BadModel(
                f"{config['model_type']!r} of format {config['format']}: use the Metazoo version that wrote it"
            )
        labels = [str(label) for label in config["labels"]]
        tensors = read_safetensors(files[WEIGHTS])
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
        if not config["shared_backbone"]:
            fresh = build(backbone.config, backbone.input_shape, generator=torch.Generator())
            load_weights(fresh, own)
            backbone = fresh
        head = _head(config["head"], {name.removeprefix(HEAD): tensors[name] for name in tensors if name not in own})
        if head(torch.zeros(1, backbone.dim)).shape != (1, len(labels)):
            raise BadModel(f"{WEIGHTS} holds a head of other classes than the {len(labels)} of {CONFIG}")
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadModel(f"this is no adapted model of that meta-model: {error}") from error
    return TaskNetwork(backbone, head).requires_grad_(False).eval(), labels


def size(module: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _unit(head: Heads) -> UnitHead:
    return UnitHead(head.centre[0, 0].clone(), head.weight[0].clone(), head.bias[0, 0].clone())


def _head(kind: str, tensors: Mapping[str, Tensor]) -> UnitHead | nn.Linear:
    if kind == "unit":
        return UnitHead(**tensors)
    if kind != "linear":
        raise BadModel(f"a head called {kind!r} is unknown")
    ways, dim = tensors["weight"].shape
    head = nn.Linear(dim, ways)
    head.load_state_dict(dict(tensors))
    return head
