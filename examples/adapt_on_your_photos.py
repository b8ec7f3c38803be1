"""Demonstrates how to teach a meta-model your own classes from photos in folders, and label other photos with it.

    METAZOO_URL=… METAZOO_API_KEY=… python examples/adapt_on_your_photos.py [PHOTOS]

PHOTOS is as in the quickstart: `support` with a folder for each class, named after it, and `new` with the photos to label;
without it, small pictures of three classes are drawn. Takes the newest meta-model of the server. Needs metazoo[client], Pillow
and numpy.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from client import Metazoo

KINDS = (".png", ".jpg", ".jpeg", ".webp")


def draw(folder: Path) -> None:
    """Three classes of noisy colours, six pictures of each to learn from and two in `new`."""
    rng = np.random.default_rng(0)
    for name, colour in {"rust": (190, 90, 40), "moss": (70, 130, 50), "slate": (80, 90, 130)}.items():
        for number in range(8):
            pixels = (np.array(colour) + rng.normal(0, 25, (48, 64, 3))).clip(0, 255).astype(np.uint8)
            place = folder / ("new" if number >= 6 else f"support/{name}") / f"{name}-{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)


def photos(folder: Path) -> list[Path]:
    """The photos in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)


with tempfile.TemporaryDirectory() as drawn, Metazoo() as metazoo:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        folder = Path(drawn)
        draw(folder)
    classes = sorted(path for path in (folder / "support").iterdir() if path.is_dir())
    support = [(photo, place.name) for place in classes for photo in photos(place)]
    asked = photos(folder / "new")

    models = metazoo.meta_models.list(limit=1).items
    if not models:
        sys.exit("the server has no meta-model yet: run examples/train_from_apis.py first")
    adapted = metazoo.meta_models.adapt(models[0].id, support=support, ttl=3600, name="my photos")
    print(f"{models[0].id} learned {len(classes)} classes from {len(support)} photos; served as {adapted.path}")

    answer = metazoo.adapted_models.predict(adapted.id, asked)
    for photo, prediction in zip(asked, answer.predictions, strict=True):
        print(f"{photo.name:<14} {prediction.label:<10} {prediction.probabilities[prediction.label]:.0%}")
    metazoo.adapted_models.delete(adapted.id)
