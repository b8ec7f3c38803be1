"""Where a training stands: weights, optimisers, random stream, the best epoch so far; and all that in a file.

The file is safetensors with a JSON note: nothing is pickled.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

NOTE = "training"


class TrainingState:
    """Of a module, the optimisers of its parameters and the generator that its training draws from.

    name: what is trained on what; only a file that was saved under the same name is restored. `more`: tensors that the training
    keeps beside these, saved and restored with them.
    """

    def __init__(
        self, module: nn.Module, optimisers: Sequence[torch.optim.Optimizer], generator: torch.Generator, name: str
    ) -> None:
        self.epoch = 0
        self.best_epoch = 0
        self.best_accuracy = -1.0
        self.more: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._module, self._optimisers, self._generator, self._name = module, optimisers, generator, name

    def note(self, accuracy: float) -> None:
        """One epoch more is done; its weights are copied if none was better."""
        self.epoch += 1
        if accuracy >= self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
            self._best = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}

    def stale(self, patience: int | None) -> bool:
        """Whether `patience` epochs have gone by since the best."""
        return patience is not None and self.epoch - self.best_epoch >= patience

    def keep_best(self) -> None:
        """Put the best epoch's weights back into the module."""
        if self._best:
            self._module.load_state_dict(self._best)

    def save(self, path: Path) -> None:
        """By rename, so that a file under this name is always whole."""
        tensors = {f"now/{name}": tensor for name, tensor in self._module.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"more/{name}": tensor for name, tensor in self.more.items()}
        held = [optimiser.state_dict() for optimiser in self._optimisers]
        tensors |= {
            f"optimiser {which}/{index}/{name}": value
            for which, one in enumerate(held)
            for index, state in one["state"].items()
            for name, value in state.items()
        }
        tensors["generator"] = self._generator.get_state()
        note = {
            "name": self._name,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "groups": [one["param_groups"] for one in held],
        }
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            draft,
            {NOTE: json.dumps(note)},
        )
        draft.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a file; one that is missing, damaged or of another training is passed over."""
        try:
            with safe_open(path, "pt") as file:
                note = json.loads((file.metadata() or {}).get(NOTE, "{}"))
                if note.get("name") != self._name:
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError):
            return
        self._module.load_state_dict(_under("now/", tensors))
        best = _under("best/", tensors)
        self._best = {
            name: torch.empty_like(own).copy_(best[name]) for name, own in self._module.state_dict().items() if best
        }
        self.more = _under("more/", tensors)
        for which, (optimiser, groups) in enumerate(zip(self._optimisers, note["groups"], strict=True)):
            _restore(optimiser, _under(f"optimiser {which}/", tensors), groups)
        self._generator.set_state(tensors["generator"])
        self.epoch, self.best_epoch, self.best_accuracy = note["epoch"], note["best_epoch"], note["best_accuracy"]


def name_of(told: Sequence[Any], tensors: Iterable[Tensor]) -> str:
    """What a training is, of all that it follows from: JSON values, and tensors on the CPU."""
    digest = hashlib.sha256(json.dumps(told).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, object]]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition("/")
        own = parameters[int(index)]  # in the memory format of its parameter, or kernels would differ
        value = torch.empty_like(own).copy_(tensor) if tensor.shape == own.shape and tensor.ndim else tensor
        state.setdefault(int(index), {})[field] = value
    tuples = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}  # type: ignore[arg-type]
        for group in groups
    ]
    optimiser.load_state_dict({"state": state, "param_groups": tuples})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
