"""Archives of images that somebody uploads: checked whole, in a thread. numpy and Pillow only."""

from anyio import to_thread

from contracts.problems import Fault, ProblemError
from dfml.unlabelled import BadArchive, ImageArchive


async def check(content: bytes) -> int:
    """How many images the archive holds. Raises `ProblemError` (`invalid-request`) that names what cannot be used."""
    try:
        return await to_thread.run_sync(_checked, content)
    except BadArchive as error:
        found = [Fault(field=f"body.{file}", message=why) for file, why in error.faults]
        found = found or [Fault(field="body", message=str(error))]
        raise ProblemError("invalid-request", "the archive cannot be used", errors=found) from None


def _checked(content: bytes) -> int:
    archive = ImageArchive(content)
    archive.check()
    return len(archive)
