"""Makes a zoo folder: trains teachers on classes of a data set, each in a process of its own, one file after the other.

A teacher is a function of the data set, the seed and its number: an interrupted build goes on where it was, and gives the
same files. The manifest is written last; until then finished teachers wait beside their own entry.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from api_zoo.folder import MANIFEST, BadZoo, read_manifest, write_whole
from api_zoo.scenarios import BuildPlan
from contracts.meta_models import BackboneConfig
from contracts.zoo import Manifest, Network, Normalisation, TeacherEntry
from dfml.datasets import SOURCES, open_dataset
from dfml.nets import STUDENT, weights
from dfml.supervised import train_classifier

PLAN = "build.json"
CHECKPOINT = ".training.safetensors"
TRAINING = (
    "random classes each, flips where a mirrored image is of the same class, shifts, AdamW one-cycle; a held-out tenth "
    "chose the epoch, accuracy on another"
)
OnTeacher = Callable[[int, int, TeacherEntry], None]
"""Called with (teachers done, teachers in all, the one just done)."""


def build(
    plan: BuildPlan,
    folder: Path,
    data: Path | None,
    *,
    processes: int,
    on_teacher: OnTeacher,
    device: str = "cpu",
    compiled: bool = False,
) -> Manifest:
    """Train what is missing and write the manifest. A complete folder is left as it is.

    `data` is the folder of data sets. Raises `BadZoo` when the folder holds another build, `ValueError` when a data set has
    too few classes or an architecture cannot take its images, `dfml.datasets.DatasetMissing` when one is not there.
    """
    for dataset in plan.datasets:
        names = open_dataset(dataset, data).classes(plan.split)
        if not 2 <= min(plan.ways) <= max(plan.ways) <= len(names):
            ways = ", ".join(map(str, plan.ways))
            raise ValueError(f"{ways} ways: {dataset} {plan.split} has {len(names)} classes, give 2 to {len(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(plan, folder)
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    missing = [number for number in range(plan.teachers) if _finished(folder, number) is None]
    done = plan.teachers - len(missing)
    training = partial(train_one, plan, folder, data, device=device, compiled=compiled)
    with closing(_train_all(training, missing, processes)) as trained:
        for entry in trained:
            done += 1
            on_teacher(done, plan.teachers, entry)
    return _write_manifest(plan, folder)


def _claim(plan: BuildPlan, folder: Path) -> None:
    """Write down whose build this folder is. Raises `BadZoo` when it is another's."""
    path = folder / PLAN
    if path.exists():
        try:
            held = json.loads(path.read_bytes())
        except ValueError:
            raise BadZoo(f"{path} is damaged: remove the folder, or give another --out") from None
        wanted = json.loads(json.dumps(asdict(plan)))
        if held != wanted:
            other = ", ".join(f"{name} {value}" for name, value in held.items() if wanted.get(name) != value)
            raise BadZoo(f"{folder} holds another build, of {other}: give another --out, or the same options")
    elif (folder / MANIFEST).exists():
        raise BadZoo(f"{folder} holds a zoo that was not built here: give another --out")
    else:
        write_whole(path, json.dumps(asdict(plan)).encode())


def _train_all(training: Callable[[int], TeacherEntry], numbers: list[int], processes: int) -> Generator[TeacherEntry]:
    if not numbers:
        return
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(processes, len(numbers)), mp_context=spawn, initializer=_start_trainer) as pool:
        running: set[Future[TeacherEntry]] = {pool.submit(training, number) for number in numbers}
        try:
            while running:
                finished, running = wait(running, return_when="FIRST_COMPLETED")
                for future in finished:
                    yield future.result()
        except BaseException:  # do not wait for teachers under way: their checkpoints are whole
            pool.shutdown(wait=False, cancel_futures=True)
            for trainer in set(multiprocessing.active_children()) - set(others):
                trainer.terminate()
            raise


def _start_trainer() -> None:
    """In a new process: one thread, as many processes as cores being asked for; it also keeps the weights the same
    wherever they are trained. And an end when the builder dies, even if it is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the builder's to handle
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_builder, daemon=True).start()


def _end_with_builder() -> None:
    builder = multiprocessing.parent_process()
    if builder is not None:
        builder.join()
        os._exit(1)


def train_one(
    plan: BuildPlan, folder: Path, data: Path | None, number: int, *, device: str = "cpu", compiled: bool = False
) -> TeacherEntry:
    """Train teacher `number`, from its checkpoint if there is one, and write its file, then its entry."""
    began = time.monotonic()
    lesson, seed = plan.lesson(number), plan.seed * 100_003 + number
    dataset = open_dataset(lesson.dataset, data, side=lesson.side)
    classes = plan.classes(number, dataset.classes(plan.split))
    images = dataset.images(plan.split, classes)
    normalisation = statistics(images) if plan.own_statistics else STUDENT
    checkpoint = folder / f".{number:02d}{CHECKPOINT}"
    resumed = checkpoint.exists()
    classifier, accuracy = train_classifier(
        images,
        config=BackboneConfig(backbone=lesson.backbone, width=plan.width),
        seed=seed,
        epochs=plan.epochs,
        patience=plan.patience,
        normalisation=normalisation,
        flip=lesson.dataset not in SOURCES or SOURCES[lesson.dataset].mirrors,
        device=device,
        compiled=compiled,
        checkpoint=checkpoint,
    )
    held = save(weights(classifier))
    entry = TeacherEntry(
        file=f"{number:0{plan.digits}d}.safetensors",
        classes=classes,
        held_out_accuracy=round(accuracy, 4),
        sha256=sha256(held).hexdigest(),
        seed=seed,
        seconds=None if resumed else round(time.monotonic() - began, 1),
        dataset=lesson.dataset,
        network=Network(
            backbone=lesson.backbone, width=plan.width, input=classifier.input_shape, normalise=normalisation
        ),
    )
    write_whole(folder / entry.file, held)
    write_whole(_entry_path(folder, number), entry.model_dump_json().encode())
    checkpoint.unlink(missing_ok=True)
    return entry


def statistics(images: Tensor) -> Normalisation:
    """Mean and standard deviation of each channel of uint8 images (…, 3, h, w), in [0, 1], to four decimals.

    Of a channel that hardly varies the deviation is 0.01: dividing by less would only amplify noise.
    """
    pixels = images.double().div(255).movedim(-3, 0).flatten(1)
    mean = [round(value, 4) for value in pixels.mean(1).tolist()]
    std = [round(max(value, 0.01), 4) for value in pixels.std(1, correction=0).tolist()]
    return Normalisation(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))


def _finished(folder: Path, number: int) -> TeacherEntry | None:
    """The entry of a teacher that was trained before and whose file is whole."""
    path = _entry_path(folder, number)
    if not path.exists():
        return None
    try:
        entry = TeacherEntry.model_validate_json(path.read_bytes())
    except ValidationError:
        return None
    file = folder / entry.file
    whole = file.exists() and sha256(file.read_bytes()).hexdigest() == entry.sha256
    return entry if whole else None


def _write_manifest(plan: BuildPlan, folder: Path) -> Manifest:
    """What all teachers share is said once, at its top; what they do not, in their entries."""
    entries = [entry for number in range(plan.teachers) if (entry := _finished(folder, number)) is not None]
    first = entries[0]
    alike = all(entry.network == first.network for entry in entries)
    one_source = len(plan.datasets) == 1
    manifest = Manifest.model_validate(
        {
            **(first.network or Network(normalise=STUDENT)).model_dump(),
            "dataset": plan.datasets[0] if one_source else "several",
            "split": plan.split,
            "seed": plan.seed,
            "training": TRAINING,
            "teachers": [
                entry.model_copy(
                    update=({"network": None} if alike else {}) | ({"dataset": None} if one_source else {})
                )
                for entry in entries
            ],
        }
    )
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True).encode())
    for number in range(plan.teachers):
        _entry_path(folder, number).unlink(missing_ok=True)
    for left in folder.glob(f".*{CHECKPOINT}*"):  # by trainers that were killed while they wrote
        left.unlink()
    return manifest


def _entry_path(folder: Path, number: int) -> Path:
    return folder / f".{number:02d}.entry.json"
