"""Opens a zoo folder: `manifest.json` and the safetensors files it names, each checked against its SHA-256.

Opening reads and checks every file and keeps none; a model's file is read again, and checked again, when it is asked.
"""

import hashlib
import json
import os
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from pydantic import ValidationError
from torch import nn

from api_zoo.compiled import Compiled
from api_zoo.inference import Model, Published, folded
from api_zoo.weights import Shelf
from contracts.problems import faults
from contracts.zoo import SUFFIXES, Manifest, Network, PublishedWeights, TeacherEntry, parse_serving
from dfml.nets import Classifier
from dfml.teachers import BadTeacher, ModuleTeacher, check_weights, load_teacher

MANIFEST = "manifest.json"
SHELF = 512 * 2**20  # bytes of weights in memory
BUILD_HINT = "metazoo zoo build --dataset glyphs --teachers 12 --ways 5 --out FOLDER"


class BadZoo(ValueError):
    """The folder cannot be hosted; the message says what is wrong and what to do."""


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises `BadZoo`."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadZoo(f"{folder} holds no {MANIFEST}: build a zoo with `{BUILD_HINT}`") from None
    except OSError as error:
        raise BadZoo(f"{path} cannot be read: {error.strerror}") from error
    try:
        return Manifest.model_validate(json.loads(text))
    except ValidationError as error:
        wrong = "; ".join(f"{fault.field}: {fault.message}" for fault in faults(error.errors()))
        raise BadZoo(f"{path} is no manifest of a zoo: {wrong}") from None
    except (ValueError, RecursionError) as error:
        raise BadZoo(f"{path} is no JSON: {error}") from None


def open_folder(
    folder: Path,
    *,
    unverified: bool = False,
    policy: str | None = None,
    shelf: Shelf | None = None,
    device: torch.device | str = "cpu",
    half: bool = False,
) -> dict[str, Model]:
    """Every model of the folder by its name (`Manifest.model_name`), in the manifest's order.

    A teacher without a hash is refused unless `unverified`; one with a hash is always checked. `policy` replaces the
    response policies and behaviours of the manifest (see `contracts.zoo.parse_serving`). Weights that were used last stay
    on `shelf`. Raises `BadZoo`.
    """
    manifest = read_manifest(folder)
    unhashed = [entry.file for entry in manifest.teachers if entry.sha256 is None]
    if unhashed and not unverified:
        raise BadZoo(
            f"{folder / MANIFEST} has no sha256 for {_listed(unhashed)}: add the hashes, or serve with --unverified "
            "if you trust the files"
        )
    shelf = Shelf(SHELF) if shelf is None else shelf
    try:
        told_policy, told_behaviour = (None, None) if policy is None else parse_serving(policy)
    except ValueError as error:
        raise BadZoo(f"{folder} cannot be hosted so: {error}") from None
    models: dict[str, Model] = {}
    for entry in manifest.teachers:
        path = _path(folder, manifest, entry)
        name = manifest.model_name(entry)
        if name in models:
            raise BadZoo(f"{folder / MANIFEST} names {name} twice: file names must differ in their stem")
        network = manifest.network_of(entry)
        _check(path, manifest, entry, network)
        try:
            models[name] = Model(
                name,
                partial(shelf.get, name, partial(_network, path, manifest, entry, device, half)),
                entry.classes,
                network.input,
                policy=told_policy or entry.response_policy,
                eight_bit_only=entry.eight_bit_only,
                behaviour=told_behaviour or entry.behaviour,
                price=(entry.price_per_1k, entry.currency),
                published=_published(path, manifest, entry),
                half=half,
            )
        except ValueError as error:
            raise BadZoo(f"{path} cannot be hosted: {error}") from error
    return models


def _path(folder: Path, manifest: Manifest, entry: TeacherEntry) -> Path:
    suffix = manifest.network_of(entry).suffix
    if PurePosixPath(entry.file).name != entry.file or "\\" in entry.file or not entry.file.endswith(suffix):
        raise BadZoo(f"{entry.file!r} in {folder / MANIFEST}: must be the name of a {suffix} file in the folder")
    path = folder / entry.file
    if path.resolve().parent != folder.resolve():
        raise BadZoo(f"{path} points out of the folder: put the file itself there")
    return path


def _published(path: Path, manifest: Manifest, entry: TeacherEntry) -> Published | None:
    if entry.publish is None or entry.sha256 is None:
        return None
    told = PublishedWeights(sha256=entry.sha256, network=manifest.network_of(entry))
    return Published(told, partial(_held, path, entry))


def _held(path: Path, entry: TeacherEntry) -> bytes:
    try:
        held = path.read_bytes()
    except FileNotFoundError:
        raise BadZoo(f"{path} is missing although the manifest names it: get it again, or build the zoo anew") from None
    except OSError as error:
        raise BadZoo(f"{path} cannot be read: {error.strerror}") from error
    if entry.sha256 is not None and hashlib.sha256(held).hexdigest() != entry.sha256:
        raise BadZoo(
            f"{path} was changed or damaged: its SHA-256 is not the manifest's; get it again, or build it anew"
        )
    return held


def _teacher(path: Path, manifest: Manifest, entry: TeacherEntry) -> ModuleTeacher:
    try:
        return load_teacher(manifest, entry, _held(path, entry))
    except (BadTeacher, ValueError) as error:
        raise BadZoo(f"{path} cannot be hosted: {error}") from error


def _check(path: Path, manifest: Manifest, entry: TeacherEntry, network: Network) -> None:
    """Raise `BadZoo` unless the file is whole and could be hosted."""
    if network.backbone in SUFFIXES:  # its own program: only reading it tells
        _teacher(path, manifest, entry)
        return
    try:
        check_weights(network, len(entry.classes), _held(path, entry))
    except (BadTeacher, ValueError) as error:
        raise BadZoo(f"{path} cannot be hosted: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """By rename, so that no reader ever sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _network(path: Path, manifest: Manifest, entry: TeacherEntry, device: torch.device | str, half: bool) -> nn.Module:
    module = _teacher(path, manifest, entry).module
    if isinstance(module, Classifier) and torch.device(device).type == "cpu" and not half:
        return Compiled(module)
    return folded(module, device)


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
