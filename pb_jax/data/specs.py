"""The datasets that this package knows: what they hold and where their original files are."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pb_jax.data import cifar, idx, shapes
from pb_jax.data.dataset import Geometry, Split
from pb_jax.data.errors import DataError


@dataclass(frozen=True)
class Layout:
    """One form in which people keep a dataset's original files.

    Attributes:
        folders: where below a source folder they may lie; "." is the source folder itself.
        files: the names; all of them are needed.
        read: reads the files in a folder, checked against a geometry.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path, Geometry], dict[str, Split]]


@dataclass(frozen=True)
class Download:
    """A published file: its size in bytes and its published SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Spec:
    """A dataset of labelled images.

    Attributes:
        name: what `load` calls it.
        version: of our TFDS builder.
        title: one line for people.
        homepage: where it comes from.
        geometry: shapes and counts.
        class_names: in the order of the labels.
        mean: per channel, of pixels divided by 255, over the training split.
        std: the same.
        layouts: accepted forms of the original files, the preferred one first; none: built in.
        downloads: the files to fetch; together they make one of the layouts.
        base_urls: public folders that hold `downloads`, in the order of trying.
        system_dirs: source folders that a distribution's package installs.
        digests: `content_digest` of each published split.
    """

    name: str
    version: str
    title: str
    homepage: str
    geometry: Geometry
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layouts: tuple[Layout, ...] = ()
    downloads: tuple[Download, ...] = ()
    base_urls: tuple[str, ...] = ()
    system_dirs: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


_DIGIT_NAMES = tuple(str(digit) for digit in range(10))

MNIST = Spec(
    name="mnist",
    version="1.0.0",
    title="MNIST handwritten digits",
    homepage="http://yann.lecun.com/exdb/mnist/",
    geometry=Geometry((28, 28, 1), 10, 60_000, 10_000),
    class_names=_DIGIT_NAMES,
    mean=(0.1307,),
    std=(0.3081,),
    layouts=(Layout(("mnist", "MNIST/raw", "."), idx.FILES, idx.read),),
    downloads=(
        Download(
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Download(
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        Download(
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Download(
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    base_urls=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    digests={
        "train": "2a9bac7d365be67de4ee2bde1b2e99976435fa84c8fa83c150b04c268c859699",
        "test": "8e4f653f4234f022331f8194d2a1ca62e34862ca6c2f74856b0097c7a397840d",
    },
)

FASHION_MNIST = Spec(
    name="fashion_mnist",
    version="1.0.0",
    title="Fashion-MNIST articles of clothing",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    geometry=MNIST.geometry,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    layouts=(
        Layout(("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "."), idx.FILES, idx.read),
    ),
    downloads=(
        Download(
            "train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Download(
            "train-labels-idx1-ubyte.gz",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        Download(
            "t10k-images-idx3-ubyte.gz",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Download(
            "t10k-labels-idx1-ubyte.gz",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    base_urls=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    system_dirs=("/usr/share/datasets",),  # Debian's dataset-fashion-mnist
    digests={
        "train": "76704e3cd579f18220850c5b89d8de54ba3b661eb231367c7621b287b1171569",
        "test": "ed2fb2e398948e8568915ac50e227c694c29e44385ee2fbad73d4f1fc7f92dbe",
    },
)

CIFAR10 = Spec(
    name="cifar10",
    version="1.0.0",
    title="CIFAR-10 small colour photographs",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    geometry=Geometry((32, 32, 3), 10, 50_000, 10_000),
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    mean=(0.4914, 0.4822, 0.4465),
    # Everyone's constant is the mean of the images' own deviations; that of all pixels is
    # (0.2470, 0.2435, 0.2616).
    std=(0.2023, 0.1994, 0.2010),
    layouts=(
        Layout(("cifar-10-batches-py", "."), cifar.PICKLED_FILES, cifar.read_pickled),
        Layout(("cifar-10-batches-bin", "."), cifar.BINARY_FILES, cifar.read_binary),
        Layout((".",), (cifar.BINARY_ARCHIVE,), cifar.read_binary_archive),
        Layout((".",), (cifar.PICKLED_ARCHIVE,), cifar.read_pickled_archive),
    ),
    downloads=(
        Download(
            cifar.BINARY_ARCHIVE,
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    base_urls=("https://www.cs.toronto.edu/~kriz/",),
    digests={
        "train": "3cb34bc1eb7b3510d605b1a112ba2921cd6b3cd80ca2d046129ed2eb563c0571",
        "test": "268e889ad366fcc26a10ded082db6922af67d7ad6066328d098e5093806a6511",
    },
)

DIGITS = Spec(
    name="digits",
    version="1.0.0",
    title="scikit-learn's handwritten digits, enlarged from 8 x 8",
    homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
    geometry=Geometry((28, 28, 1), 10, 1_437, 360),
    class_names=_DIGIT_NAMES,
    mean=(0.2244,),
    std=(0.3139,),
    digests={
        "train": "e81fcebcb5f650f9d5a1fc60bd9da7dd6457dab4c50d5c8b27627fe580f2cdc7",
        "test": "644948ae6ea32abe16a1bc93cdf034d965d060409d96d179716f3048fa60d60b",
    },
)

DATASETS = {spec.name: spec for spec in (MNIST, FASHION_MNIST, CIFAR10, DIGITS)}


@dataclass(frozen=True)
class CaptionSpec:
    """A dataset of pictures with captions.

    Attributes:
        name: what `load_captions` calls it.
        version: of our TFDS builder.
        title: one line for people.
        homepage: where it comes from.
        sizes: pictures in each split, as published.
        picture: their size, for people.
        built_in: needs no files.
    """

    name: str
    version: str
    title: str
    homepage: str
    sizes: Mapping[str, int]
    picture: str
    built_in: bool = False


FLICKR8K = CaptionSpec(
    name="flickr8k",
    version="1.0.0",
    title="Flickr8k photographs with five captions each",
    homepage="https://doi.org/10.1613/jair.3994",
    sizes={"train": 6_000, "validation": 1_000, "test": 1_000},
    picture="various",
)

SHAPES = CaptionSpec(
    name="shapes",
    version="1.0.0",
    title="Coloured shapes in relations, rendered, with five true captions each",
    homepage="",
    sizes=shapes.SPLITS,
    picture=f"{shapes.SIZE}x{shapes.SIZE}x3",
    built_in=True,
)

CAPTION_DATASETS = {spec.name: spec for spec in (FLICKR8K, SHAPES)}

_Spec = TypeVar("_Spec", bound=Spec | CaptionSpec)


def find(name: str) -> Spec:
    """Return the dataset of labelled images called `name`.

    Raises:
        DataError: there is none; the message suggests one.

    Example:
        >>> find("cifar-10")
        Traceback (most recent call last):
        ...
        pb_jax.data.errors.DataError: unknown dataset 'cifar-10'; did you mean 'cifar10'? Known: ...
    """
    return _find(name, DATASETS)


def find_captions(name: str) -> CaptionSpec:
    """Return the dataset of pictures with captions called `name`.

    Raises:
        DataError: there is none; the message suggests one.

    Example:
        >>> find_captions("flickr")
        Traceback (most recent call last):
        ...
        pb_jax.data.errors.DataError: unknown dataset 'flickr'; did you mean 'flickr8k'? Known: ...
    """
    return _find(name, CAPTION_DATASETS)


def find_any(name: str) -> Spec | CaptionSpec:
    """Return the dataset called `name`, whatever it holds.

    Raises:
        DataError: there is none; the message suggests one.

    Example:
        >>> find_any("shapes").title
        'Coloured shapes in relations, rendered, with five true captions each'
    """
    return _find(name, {**DATASETS, **CAPTION_DATASETS})


def _find(name: str, known: Mapping[str, _Spec]) -> _Spec:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=1)
    suggestion = f"did you mean {close[0]!r}? Known" if close else "known"
    raise DataError(f"unknown dataset {name!r}; {suggestion}: {', '.join(known)}")
