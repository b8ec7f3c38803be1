"""Takes a trained classifier from elsewhere into a zoo folder: weights of a network that we know, or a whole program.

Nothing is unpickled: safetensors holds tensors alone, an ONNX file is run by ONNX Runtime, and of a `torch.export` archive the
graph is checked call by call (`dfml.foreign.exported`).
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor

from api_zoo.folder import MANIFEST, BadZoo, read_manifest, write_whole
from contracts.zoo import Manifest, Network, Normalisation, TeacherEntry
from dfml import foreign
from dfml.teachers import BadTeacher, load_teacher

FORMATS = {".safetensors": "conv4", ".pt2": "torch-export", ".onnx": "onnx"}
PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


def import_teacher(
    source: Path,
    folder: Path,
    *,
    name: str,
    classes: Sequence[str],
    input_shape: tuple[int, int, int],
    normalise: Normalisation,
    answers: str = "logits",
    dataset: str = "imported",
    origin: str = "",
    digest: str | None = None,
    accuracy: float | None = None,
) -> Manifest:
    """Copy the file into the zoo folder, as the teacher `{dataset}-{name}`, once it has answered a few random images rightly.

    digest: the SHA-256 that the file must have. The folder is made if it is not there. Raises `BadZoo`, and then the folder
    is as it was.
    """
    suffix = source.suffix.lower()
    if suffix in PICKLED:
        raise BadZoo(
            f"{source} may hold a pickle, which can run anything: save it as safetensors, torch.export or ONNX"
        )
    if suffix not in FORMATS:
        raise BadZoo(f"{source}: must be one of {', '.join(FORMATS)}")
    if not _NAME.fullmatch(name):
        raise BadZoo(f"{name!r} is no name: use letters, digits, '.', '_' and '-', at most 61")
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise BadZoo("classes: give two or more, each once, in the order of the outputs")
    try:
        content = source.read_bytes()
    except OSError as error:
        raise BadZoo(f"{source} cannot be read: {error.strerror}") from error
    found = sha256(content).hexdigest()
    if digest is not None and found != digest.lower():
        raise BadZoo(f"{source} was changed or damaged: its SHA-256 is {found}")
    try:
        kind = recognised(read_safetensors(content)) if suffix == ".safetensors" else {"backbone": FORMATS[suffix]}
    except (SafetensorError, ValueError) as error:
        raise BadZoo(f"{source}: {error}") from error
    network = Network.model_validate({**kind, "input": input_shape, "normalise": normalise, "answers": answers})
    entry = TeacherEntry(
        file=f"{name}{suffix}",
        classes=list(classes),
        held_out_accuracy=accuracy,
        sha256=found,
        dataset=dataset,
        network=network,
        origin=origin or source.name,
    )
    manifest = _with(folder, entry, network)
    try:
        foreign.probe(load_teacher(manifest, entry, content).module, network.input, len(classes))
    except (BadTeacher, foreign.BadProgram) as error:
        raise BadZoo(f"{source} cannot be hosted: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / entry.file, content)
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True).encode())
    return manifest


def scaled(
    values: tuple[float, float], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Normalisation:
    """One normalisation of images in [0, 1] for: spread them over `values`, subtract `mean`, divide by `std`.

    Raises `BadZoo` where black is not below white or a deviation is not above 0.
    """
    low, high = values
    if not low < high or not min(std) > 0:
        raise BadZoo(f"range {low:g} to {high:g}, std {std}: the range must rise and deviations be above 0")
    middle, spread = ([(each - shift) / (high - low) for each in three] for three, shift in ((mean, low), (std, 0.0)))
    return Normalisation.model_validate({"mean": middle, "std": spread})


def recognised(tensors: Mapping[str, Tensor]) -> dict[str, str | int | bool]:
    """Which of our networks these tensors are the weights of, by their names and shapes. Raises ValueError."""
    first = "blocks.0.conv.weight"
    if first in tensors:
        return {"backbone": "conv4", "width": len(tensors[first]), "conv_bias": "blocks.0.conv.bias" in tensors}
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if "stem.conv.weight" in tensors and len(blocks) in (4, 8):
        return {"backbone": "resnet10" if len(blocks) == 4 else "resnet18", "width": len(tensors["stem.conv.weight"])}
    names = ", ".join(sorted(tensors)[:4])
    raise ValueError(
        f"it holds no Conv4 or ResNet as metazoo names them (blocks.0.conv.weight or stem.conv.weight, …, head.weight), "
        f"but {names or 'nothing'}: export it with torch.export or to ONNX instead"
    )


def _with(folder: Path, entry: TeacherEntry, network: Network) -> Manifest:
    """The folder's manifest with this entry added; a new one where there is no folder. Raises `BadZoo`."""
    if not (folder / MANIFEST).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise BadZoo(f"{folder} holds other things and no zoo: give a new folder, or finish its build first")
        shared = {**network.model_dump(), "dataset": "imported", "training": "elsewhere"}
        return Manifest.model_validate({**shared, "teachers": [entry]})
    manifest = read_manifest(folder)
    names = {manifest.model_name(each) for each in manifest.teachers}
    if manifest.model_name(entry) in names or (folder / entry.file).exists():
        raise BadZoo(f"{folder} has {manifest.model_name(entry)} or {entry.file} already: give another --name")
    return manifest.model_copy(update={"teachers": [*manifest.teachers, entry]})
