"""Query images of a job on one sheet: made again from the seed, as the worker made them. numpy and Pillow only."""

from anyio import to_thread

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from contracts.problems import ProblemError
from dfml.procedural import query_set
from dfml.sheets import sheet

COLUMNS = 8
LARGEST = 512 * 512  # pixels of an image; an API may claim any size


async def query_images(request: JobRequest, input_shape: tuple[int, int, int] | None, *, count: int) -> bytes:
    """The first `count` images that the job asks about, as a PNG. Raises `ProblemError` (`conflict`) while no size is known."""
    if input_shape is None:
        raise ProblemError("conflict", "no API has told its image size yet: look again when the probe has begun")
    if not isinstance(request.method, ProceduralQueries):
        raise ProblemError("conflict", f"{request.method.name} makes its images as it goes: there is no set to show")
    _, height, width = input_shape
    if height * width > LARGEST:
        raise ProblemError("conflict", f"images of {height} x {width} pixels are too large for a sheet")
    queries = query_set(request.method.mixture, seed=request.seed, size=(height, width))
    return await to_thread.run_sync(lambda: sheet(queries.images(range(count)), COLUMNS))
