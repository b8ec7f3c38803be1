"""Images of one's own, without labels, that a job may ask its APIs about in place of images made from its seed."""

from datetime import datetime

from pydantic import Field

from contracts._base import Record

FEWEST, MOST = 16, 20_000
"""Images of a set."""
ID = r"is_[0-9a-z]{22}"
"""What an image set's id looks like."""


class ImageSet(Record):
    """A set of images that was uploaded. It stays until it is deleted."""

    id: str = Field(description="What a job names as `unlabeled`; ids sort by time.")
    name: str = Field(description="To find it by.")
    created_at: datetime = Field(description="When it was stored.")
    images: int = Field(description="How many images it holds.")
    bytes: int = Field(description="Size of the archive.")
    sha256: str = Field(description="SHA-256 of the archive.")


class ImageSetPage(Record):
    """A page of image sets, newest first; pass `next` as `after` for the following page."""

    items: list[ImageSet] = Field(description="The image sets.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")
