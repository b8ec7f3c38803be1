"""A meta-model on disk, in the Hugging Face layout: config.json, model.safetensors, README.md, metrics.json, SHA256SUMS.

The same backbone and record give the same bytes. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors

from contracts.meta_models import BackboneConfig, Evaluation, Score
from dfml.nets import STUDENT, Backbone, build, load_weights, weights

CONFIG, WEIGHTS, CARD, METRICS, SUMS = "config.json", "model.safetensors", "README.md", "metrics.json", "SHA256SUMS"
FORMAT = 1


class BadModel(ValueError):
    """The folder holds no meta-model, or a file of it is damaged or altered."""


def save(
    folder: Path,
    backbone: Backbone,
    record: Mapping[str, Any],
    *,
    name: str,
    method: str,
    options: Mapping[str, Any],
    apis: list[str],
    queries: int,
    seed: int,
    version: str,
    evaluation: Evaluation | None = None,
    score: Score | None = None,
    random_score: Score | None = None,
    teacher_passes: int | None = None,
    unlabeled: str | None = None,
) -> dict[str, str]:
    """Write a meta-model into `folder` (made if missing) and return file name -> SHA-256.

    record: what metrics.json holds beside the scores: plain JSON values, such as the training losses.
    apis: SHA-256 of each API's URL. queries: images paid for. version: of Metazoo. teacher_passes: images that went forward or
    back through published weights; None where answers were learned from. unlabeled: the image set that was asked about; None
    where the images were made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "model_type": "metazoo-backbone",
        **backbone.config.model_dump(),
        "input_shape": list(backbone.input_shape),
        "features": backbone.dim,
        "normalise": STUDENT.model_dump(mode="json"),
    }
    scores = {
        "evaluation": evaluation and evaluation.model_dump(mode="json"),
        "score": score and score.model_dump(mode="json"),
        "random_score": random_score and random_score.model_dump(mode="json"),
    }
    provenance: dict[str, Any] = {
        "method": method,
        "options": dict(options),
        "queries": queries,
        "apis": apis,
        "seed": seed,
        "version": version,
        "teacher_passes": teacher_passes,
        "unlabeled": unlabeled,
    }
    files = {
        CONFIG: _json(config),
        # one metadata key: the writer orders several at random
        WEIGHTS: write_safetensors(weights(backbone), metadata={"format": "pt"}),
        METRICS: _json({**record, **scores}),
        CARD: _card(name, backbone, provenance, evaluation, score, random_score).encode(),
    }
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in sorted(files.items())}
    files[SUMS] = "".join(f"{digest}  {file}\n" for file, digest in sums.items()).encode()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return {**sums, SUMS: hashlib.sha256(files[SUMS]).hexdigest()}


def load(folder: Path, *, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a meta-model, in evaluation mode.

    Raises BadModel that names the file which is missing, differs from SHA256SUMS, or does not fit.
    """
    sums = _read_sums(folder)
    held = {file: _verified(folder, file, sums) for file in sorted(sums)}
    for file in (CONFIG, WEIGHTS):
        if file not in held:
            raise BadModel(f"{folder / SUMS} does not list {file}: this is no meta-model")
    try:
        config = json.loads(held[CONFIG])
        version = config["format"]
        backbone_config = BackboneConfig(backbone=config["backbone"], width=config["width"])
        channels, height, width = config["input_shape"]
        backbone = build(backbone_config, (channels, height, width), generator=torch.Generator().manual_seed(0))
        load_weights(backbone, read_safetensors(held[WEIGHTS]))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:  # pydantic's errors are ValueErrors
        raise BadModel(f"{folder} holds a meta-model that cannot be read: {error}") from error
    if version != FORMAT:
        raise BadModel(f"{folder / CONFIG}: format {version} is not {FORMAT}: use the Metazoo version that wrote it")
    return backbone.to(device)


def _read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256. Names with a folder in them are refused: a meta-model is flat."""
    path = folder / SUMS
    if not path.is_file():
        raise BadModel(f"{path} is missing: this is no meta-model, or it was not fetched whole")
    sums = {}
    for line in path.read_text("utf-8", errors="replace").splitlines():
        digest, _, file = line.partition("  ")
        if len(digest) != 64 or not file or Path(file).name != file:
            raise BadModel(f"{path} cannot be read at {line[:80]!r}")
        sums[file] = digest
    return sums


def _verified(folder: Path, file: str, sums: Mapping[str, str]) -> bytes:
    path = folder / file
    if not path.is_file():
        raise BadModel(f"{path} is missing: fetch the meta-model again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sums[file]:
        raise BadModel(f"{path} differs from {SUMS}: it was damaged or altered; fetch the meta-model again")
    return content


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _card(
    name: str,
    backbone: Backbone,
    provenance: Mapping[str, Any],
    evaluation: Evaluation | None,
    score: Score | None,
    random_score: Score | None,
) -> str:
    config, (_, height, width) = backbone.config, backbone.input_shape
    passes, own = provenance["teacher_passes"], provenance["unlabeled"]
    lines = [
        "---",
        "library_name: metazoo",
        "tags: [few-shot, meta-learning, data-free]",
        "---",
        "",
        f"# {name}",
        "",
        f"A {config.backbone} backbone of width {config.width} for {height}x{width} images, learned from the "
        f"{'answers' if passes is None else 'published weights'} of "
        f"{len(provenance['apis'])} classification APIs by `{provenance['method']}`. "
        + ("No training data was seen." if own is None else f"They were asked about the unlabelled images of `{own}`."),
        "It takes RGB images, uint8 or in [0, 1], and gives "
        f"{backbone.dim} features; adapt it to a task with a handful of labelled images.",
        "",
        f"- queries paid for: {provenance['queries']:,} images",
        *([] if passes is None else [f"- passes through the weights, forward or back: {passes:,} images"]),
        f"- seed: {provenance['seed']}",
        f"- Metazoo version: {provenance['version']}",
        "- options: `" + json.dumps(provenance["options"], sort_keys=True) + "`",
        "",
        "## Few-shot accuracy",
        "",
    ]
    if evaluation is None or score is None:
        lines.append("Not evaluated.")
    else:
        lines += [
            f"{evaluation.ways}-way episodes of `{evaluation.dataset}` ({evaluation.split} classes), {evaluation.episodes} "
            f"episodes of seed {evaluation.seed}, {evaluation.queries} queries a class; logistic head, inductive batch "
            "norm; percent, with the 95 % half-width.",
            "",
            "| shots | this model | untrained, mean of 3 seeds |",
            "|---|---|---|",
            *(f"| {shot} | {_cell(score, shot)} | {_cell(random_score, shot)} |" for shot in score.accuracy),
        ]
    lines += ["", "## APIs", "", "SHA-256 of each URL:", "", *(f"- `{digest}`" for digest in provenance["apis"]), ""]
    return "\n".join(lines)


def _cell(score: Score | None, shot: str) -> str:
    if score is None or shot not in score.accuracy:
        return "-"
    return f"{score.accuracy[shot]:.2f} ± {score.interval[shot]:.2f}"
