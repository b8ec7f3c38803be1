"""What data sets there are, and where each comes from: facts alone, nothing here opens or fetches a file."""

from dataclasses import dataclass

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise ValueError on anything but `train`, `val` and `test`."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: there are {', '.join(SPLITS)}")


@dataclass(frozen=True)
class Download:
    """A public file. `digest` as pooch takes it: `sha256:…`, or `md5:…` where its publishers give no other.

    folder: what an archive holds and is unpacked to, where it is of use only so.
    """

    url: str
    digest: str
    file: str
    folder: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    side: pixels of its images. licence: as its publishers state it. downloads: empty where there is no public URL with a
    known digest; then `how` says what a person can do. mirrors: whether a mirrored image is of the same class.
    """

    side: int
    about: str
    licence: str
    how: str
    downloads: tuple[Download, ...] = ()
    mirrors: bool = True


_LAKE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"

SOURCES: dict[str, Source] = {
    "glyphs": Source(
        32, "200 drawn classes, made from a seed", "Apache-2.0", "It is drawn: nothing to get.", mirrors=False
    ),
    "cifar-fs": Source(
        32,
        "CIFAR-FS, Bertinetto et al. 2019: CIFAR-100 split 64/16/20",
        "none stated",
        "Get cifar-fs.zip (the data set of Bertinetto et al., https://github.com/bertinetto/r2d2, linked in its README) and "
        "put it, or its folder cifar100, into the folder that METAZOO_DATA names.",
    ),
    "omniglot": Source(
        28,
        "Omniglot, Lake et al. 2015, split 1028/172/423 as by Vinyals et al. 2016",
        "MIT",
        "Run `metazoo data get omniglot`, or put images_background.zip and images_evaluation.zip of "
        "https://github.com/brendenlake/omniglot, or their folders, into the folder that METAZOO_DATA names.",
        (
            Download(f"{_LAKE}/images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718", "images_background.zip"),
            Download(f"{_LAKE}/images_evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811", "images_evaluation.zip"),
        ),
        mirrors=False,
    ),
    "omniglot-small": Source(
        28,
        "the two small background sets of Omniglot: 220 train and 22 val characters, none for test",
        "MIT",
        "Run `metazoo data get omniglot-small`, or put images_background_small1.zip and images_background_small2.zip of "
        "https://github.com/brendenlake/omniglot into the folder that METAZOO_DATA names.",
        (
            Download(
                f"{_LAKE}/images_background_small1.zip",
                "sha256:f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
                "images_background_small1.zip",
            ),
            Download(
                f"{_LAKE}/images_background_small2.zip",
                "sha256:3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
                "images_background_small2.zip",
            ),
        ),
        mirrors=False,
    ),
    "mini-imagenet": Source(
        84,
        "mini-ImageNet, Vinyals et al. 2016, split 64/16/20 by Ravi and Larochelle 2017",
        "terms of ImageNet: research alone",
        "ImageNet may not be passed on, so there is nothing to download from. Put its images as mini-imagenet/images/*.jpg "
        "beside train.csv, val.csv and test.csv (columns filename,label) of "
        "https://github.com/twitter-research/meta-learning-lstm/tree/master/data/miniImagenet into the folder that "
        "METAZOO_DATA names.",
    ),
    "cub": Source(
        84,
        "CUB-200-2011, Wah et al. 2011, split 100/50/50 as by Chen et al. 2019",
        "non-commercial research and education",
        "Run `metazoo data get cub`, or unpack CUB_200_2011.tgz of https://data.caltech.edu/records/65de6-vp158 in the folder "
        "that METAZOO_DATA names.",
        (
            Download(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
                "CUB_200_2011.tgz",
                folder="CUB_200_2011",
            ),
        ),
    ),
}
