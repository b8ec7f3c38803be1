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
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random

import torch
from pydantic import ValidationError
from safetensors.torch import save

from api_zoo.folder import MANIFEST, BadZoo, read_manifest
from contracts.meta_models import BackboneConfig
from contracts.zoo import Manifest, TeacherEntry
from dfml.datasets import Dataset, open_dataset
from dfml.nets import STUDENT, weights
from dfml.supervised import train_classifier

PLAN = "build.json"
OnTeacher = Callable[[int, int, TeacherEntry], None]
"""Called with (teachers done, teachers in all, the one just done)."""


@dataclass(frozen=True)
class BuildPlan:
    """What a zoo folder is to hold. `epochs` None: as many as `dfml.supervised` holds right."""

    dataset: str = "glyphs"
    split: str = "train"
    teachers: int = 12
    ways: int = 5
    width: int = 32
    seed: int = 0
    epochs: int | None = None

    @property
    def digits(self) -> int:
        """Of a teacher's number in its file name."""
        return max(2, len(str(self.teachers - 1)))

    @property
    def flips(self) -> bool:
        """Whether training may mirror images; a mirrored glyph may be another one."""
        return self.dataset != "glyphs"

    def classes(self, number: int, names: tuple[str, ...]) -> list[str]:
        """The classes of teacher `number`, drawn from the data set's without repetition, in random order."""
        return Random(f"{self.seed}/{number}").sample(names, self.ways)


def build(plan: BuildPlan, folder: Path, data: Path | None, *, processes: int, on_teacher: OnTeacher) -> Manifest:
    """Train what is missing and write the manifest. A complete folder is left as it is.

    `data` is the folder of data sets. Raises `BadZoo` when the folder holds another build, `ValueError` when the data set
    has too few classes, `dfml.datasets.DatasetMissing` when it is not there.
    """
    names = open_dataset(plan.dataset, data).classes(plan.split)
    if not 2 <= plan.ways <= len(names):
        raise ValueError(
            f"{plan.ways} ways: {plan.dataset} {plan.split} has {len(names)} classes, give 2 to {len(names)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _claim(plan, folder)
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    missing = [number for number in range(plan.teachers) if _finished(folder, number) is None]
    done = plan.teachers - len(missing)
    with closing(_train_all(plan, folder, data, missing, processes)) as trained:
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
        if held != asdict(plan):
            other = ", ".join(f"{name} {value}" for name, value in held.items() if asdict(plan).get(name) != value)
            raise BadZoo(f"{folder} holds another build, of {other}: give another --out, or the same options")
    elif (folder / MANIFEST).exists():
        raise BadZoo(f"{folder} holds a zoo that was not built here: give another --out")
    else:
        _write(path, json.dumps(asdict(plan)).encode())


def _train_all(
    plan: BuildPlan, folder: Path, data: Path | None, numbers: list[int], processes: int
) -> Generator[TeacherEntry]:
    if not numbers:
        return
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(processes, len(numbers)), mp_context=spawn, initializer=_start_trainer) as pool:
        running: set[Future[TeacherEntry]] = {pool.submit(train_one, plan, folder, data, number) for number in numbers}
        try:
            while running:
                finished, running = wait(running, return_when="FIRST_COMPLETED")
                for future in finished:
                    yield future.result()
        except BaseException:  # do not wait for teachers under way: what is written is whole
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


@lru_cache(maxsize=1)
def _opened(name: str, data: Path | None) -> Dataset:
    """Opened once a process: reading the images takes seconds."""
    return open_dataset(name, data)


def train_one(plan: BuildPlan, folder: Path, data: Path | None, number: int) -> TeacherEntry:
    """Train teacher `number` and write its file, then its entry."""
    began = time.monotonic()
    dataset = _opened(plan.dataset, data)
    names = dataset.classes(plan.split)
    classes = plan.classes(number, names)
    images = dataset.images(plan.split)[[names.index(name) for name in classes]]
    classifier, accuracy = train_classifier(
        images,
        config=BackboneConfig.model_validate({"backbone": "conv4", "width": plan.width}),
        seed=plan.seed * 100_003 + number,
        epochs=plan.epochs,
        flip=plan.flips,
    )
    held = save(weights(classifier))
    entry = TeacherEntry(
        file=f"{number:0{plan.digits}d}.safetensors",
        classes=classes,
        held_out_accuracy=round(accuracy, 4),
        sha256=sha256(held).hexdigest(),
        seconds=round(time.monotonic() - began, 1),
    )
    _write(folder / entry.file, held)
    _write(_entry_path(folder, number), entry.model_dump_json().encode())
    return entry


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
    entries = [_finished(folder, number) for number in range(plan.teachers)]
    manifest = Manifest(
        dataset=plan.dataset,
        split=plan.split,
        backbone="conv4",
        width=plan.width,
        input=(3, 32, 32),  # of every data set that teachers can be made from
        normalise=STUDENT,
        seed=plan.seed,
        training=f"{plan.ways} random classes each, {'flip and ' if plan.flips else ''}shift augmentation, "
        "AdamW one-cycle; accuracy on a held-out fifth",
        teachers=[entry for entry in entries if entry is not None],
    )
    _write(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
    for number in range(plan.teachers):
        _entry_path(folder, number).unlink(missing_ok=True)
    return manifest


def _entry_path(folder: Path, number: int) -> Path:
    return folder / f".{number:02d}.entry.json"


def _write(path: Path, content: bytes) -> None:
    """By rename, so that no reader ever sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
