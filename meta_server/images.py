"""Query images of a job on one sheet: made again from the seed, as the worker made them, or its own. numpy and Pillow only."""

from anyio import to_thread

from contracts.image_sets import FEWEST
from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from contracts.problems import ProblemError
from dfml.procedural import query_set
from dfml.sheets import sheet
from dfml.unlabelled import ImageArchive, OwnImages
from meta_server.store.artifacts import ArtifactMissing, Artifacts
from meta_server.store.image_sets import archive_of

COLUMNS = 8
LARGEST = 512 * 512  # pixels of an image; an API may claim any size


async def query_images(
    request: JobRequest, input_shape: tuple[int, int, int] | None, artifacts: Artifacts, *, count: int
) -> bytes:
    """The first `count` images that the job asks about, as a PNG; images of one's own are `FEWEST` at least.

    Raises `ProblemError`: `conflict` while no size is known, `gone` once images of one's own were deleted.
    """
    if input_shape is None:
        raise ProblemError("conflict", "no API has told its image size yet: look again when the probe has begun")
    if not isinstance(request.method, ProceduralQueries):
        raise ProblemError("conflict", f"{request.method.name} makes its images as it goes: there is no set to show")
    _, height, width = input_shape
    if height * width > LARGEST:
        raise ProblemError("conflict", f"images of {height} x {width} pixels are too large for a sheet")
    method, seed, own = request.method, request.seed, request.unlabeled

    def drawn() -> bytes:
        if own is None:
            return sheet(query_set(method.mixture, seed=seed, size=(height, width)).images(range(count)), COLUMNS)
        archive = ImageArchive(archive_of(artifacts, own))
        shown = range(min(count, FEWEST))
        return sheet(OwnImages(archive, seed=seed, size=(height, width)).images(shown), COLUMNS)

    try:
        return await to_thread.run_sync(drawn)
    except ArtifactMissing as error:
        raise ProblemError("gone", str(error)) from None
