"""`metazoo zoo import`: take a trained classifier from elsewhere into a zoo folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metazoo.connection import fail

BAD_FILE = 1  # it cannot be hosted, or the folder is none


class Answers(StrEnum):
    """What a file computes."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


Three = tuple[float, float, float]


def import_file(
    file: Annotated[Path, typer.Argument(help="safetensors of a Conv4 or ResNet, torch.export (.pt2) or ONNX.")],
    out: Annotated[Path, typer.Option(help="The zoo folder to add it to; made if it is not there.")],
    classes: Annotated[str, typer.Option(help="Names of its classes in the order of its outputs: cat,dog,…")],
    name: Annotated[str | None, typer.Option(help="Of the teacher. Default: the file's.", show_default=False)] = None,
    size: Annotated[int, typer.Option(min=1, max=1024, help="Pixels a side of the images that it takes.")] = 32,
    value_range: Annotated[
        tuple[float, float], typer.Option("--range", help="Values of black and white that it expects.")
    ] = (0.0, 1.0),
    mean: Annotated[Three, typer.Option(help="Subtracted from each channel then.")] = (0.0, 0.0, 0.0),
    std: Annotated[Three, typer.Option(help="Each channel divided by it then.")] = (1.0, 1.0, 1.0),
    answers: Annotated[Answers, typer.Option(help="What its outputs are.")] = Answers.LOGITS,
    dataset: Annotated[str, typer.Option(help="What it was trained on: hosted as DATASET-NAME.")] = "imported",
    origin: Annotated[str, typer.Option(help="Where it is from, for the manifest. Default: the file's name.")] = "",
    sha256: Annotated[
        str | None, typer.Option(help="That the file must have. Default: unchecked.", show_default=False)
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Held-out accuracy, for the manifest.", show_default=False)
    ] = None,
) -> None:
    """Take a trained classifier from elsewhere into a zoo folder. Nothing is ever unpickled.

    It is asked about a few random images first; the manifest then holds its SHA-256, and a file that differs is never hosted.
    """
    from pydantic import ValidationError

    from api_zoo.folder import BadZoo
    from api_zoo.importing import import_teacher, scaled

    try:
        manifest = import_teacher(
            file,
            out.absolute(),
            name=name or file.stem,
            classes=[each.strip() for each in classes.split(",") if each.strip()],
            input_shape=(3, size, size),
            normalise=scaled(value_range, mean, std),
            answers=answers.value,
            dataset=dataset,
            origin=origin,
            digest=sha256,
            accuracy=accuracy,
        )
    except (BadZoo, ValidationError) as error:
        fail(str(error), BAD_FILE)
    typer.echo(f"{manifest.model_name(manifest.teachers[-1])} is in {out}. Next: metazoo zoo serve {out}")
