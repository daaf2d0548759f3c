"""Every reader of files from outside, each with whole files to begin with: see `tests.fuzz`."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import caption
import train
from models.torch_weights import fitting
from pb_jax.data import Vocabulary, caption_preparation, cifar, flickr8k, idx, preparation
from pb_jax.data.features import compute_or_map
from pb_jax.data.pictures import FORMATS, ArrayImages
from pb_jax.data.progress import Progress
from pb_jax.data.specs import FLICKR8K
from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.reports import captions as caption_figures
from pb_jax.reports.page import captions as page_captions
from pb_jax.reports.page import write_page
from pb_jax.reports.run_folder import read_run
from pb_jax.study import export as study_export
from pb_jax.study import record as study_record
from pb_jax.study.results import read_result
from pb_jax.training import (
    branch,
    config,
    default_config,
    export,
    finished,
    make_freezing,
    make_optimizer,
    metrics,
    resolve,
    settle,
)
from pb_jax.training.checkpoints import Checkpoints, read_arrays
from pb_jax.training.interrupted import Interrupted, Part
from pb_jax.training.step import Totals
from tests import synthetic_run, synthetic_study
from tests.data_files import (
    TINY_CIFAR10,
    TINY_MNIST,
    Flickr8kFiles,
    cifar_archive,
    random_splits,
    write_cifar,
    write_idx,
)
from tests.mutations import Mutator
from tests.test_training_delta import bits, compact_state, dense_state

SILENT = Progress(enabled=False)
GREY, COLOURED = random_splits(TINY_MNIST), random_splits(TINY_CIFAR10)


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        weight: how many inputs of all it is to get.
        write: writes whole files into an empty folder.
        read: reads a folder; gets the files that were changed too. Raises a `UserError`, or an
            AssertionError where something is read that was not written and has a checksum.
        changes: which files may be changed, by their path in the folder.
        mutate: how they are mostly changed; None: as their format asks for.
    """

    weight: int
    write: Callable[[Path], Any]
    read: Callable[[Path, list[Path]], Any]
    changes: Callable[[str], bool] = bool
    mutate: Callable[[bytes, Mutator], bytes] | None = None


def each(*calls: Callable[[], Any]) -> None:
    """Make all calls, also where one raises a UserError; the last of these goes on."""
    said = None
    for call in calls:
        try:
            call()
        except UserError as error:
            said = error
    if said is not None:
        raise said


# ----------------------------------------------------------------------------------------------
# Data.
# ----------------------------------------------------------------------------------------------


def _write_archive(form: str, name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(cifar_archive(COLOURED, form))


def _write_pictures(folder: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
    for kind in FORMATS:
        for mode in ("RGB", "RGBA") if kind in ("PNG", "WEBP") else ("RGB",):
            picture = Image.fromarray(pixels).convert(mode)
            exif = Image.Exif()
            exif[0x0112] = 6  # lies on its side
            options: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
            picture.save(folder / f"{mode}.{kind.lower()}", kind, **options)


def _read_pictures(_: Path, changed: list[Path]) -> None:
    each(*(lambda path=path: caption.read_picture(path) for path in changed))


def _prepare(folder: Path) -> None:
    write_idx(folder / "source" / "mnist", GREY)
    _prepared(folder, folder / "source")


def _prepared(folder: Path, source: Path) -> None:
    found = preparation.splits(TINY_MNIST, folder / "root", source_dir=source, progress=SILENT)
    assert set(found) == {"train", "test"}


def _read_prepared(folder: Path, _: list[Path]) -> None:
    found = preparation.splits(
        TINY_MNIST, folder / "root", source_dir=folder / "nowhere", progress=SILENT
    )
    for split, (images, labels) in found.items():
        size = TINY_MNIST.geometry.size(split)
        assert (images.shape, labels.shape) == ((size, 28, 28, 1), (size,))
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        images.sum()


def _prepare_captions(folder: Path) -> None:
    Flickr8kFiles().write(folder / "source" / "flickr8k")
    caption_preparation.load(
        FLICKR8K, folder / "root", source_dir=folder / "source", progress=SILENT
    )


def _read_prepared_captions(folder: Path, _: list[Path]) -> None:
    found = caption_preparation.load(FLICKR8K, folder / "root", progress=SILENT)
    for part in found.splits.values():
        assert part.images.read(range(len(part.images)), 8).shape == (len(part.captions), 8, 8, 3)


def _features(folder: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    return compute_or_map(
        ArrayImages([*"abcde"], pixels),
        lambda x: x[:, :2, :2] / 2,
        image_size=4,
        shape=(2, 2, 3),
        fingerprint="half",
        folder=folder,
        progress=False,
    )


def _read_features(folder: Path, _: list[Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(_features(folder), (pixels[:, :2, :2] / 2).astype(np.float16))


# ----------------------------------------------------------------------------------------------
# Configurations and what runs leave.
# ----------------------------------------------------------------------------------------------

_FLAGS = "arguments.txt"
_ODD = (
    *("", "None", "nan", "-inf", "1e999", "-1", "0", "1.5", "True", "[]", "{}", "()", "(1, 2", "'"),
    *("__import__('os').system('touch {outside}')", "lambda: 0", "1_000", "0x10", "9" * 400),
    *("70000", "9" * 10, "9" * 20, "(9999999999,)", "localhost:99999"),
    *("9" * 5000, "(" * 500 + ")" * 500, "(" * 100_000, "é", "\x00", "\n", "=", "--", "a" * 10_000),
    *(
        "(3, 2)",
        "[1, 'a']",
        "{outside}",
        "../../x",
        "1e-400",
        "0.5",
        "kde_otsu",
        "cnn",
        "captioner",
    ),
)


def _write_flags(folder: Path) -> None:
    keys = [*config.KEYS, *config.CAPTIONER_KEYS]
    (folder / _FLAGS).write_text("\n".join(f"--config.{key}=1" for key in keys))


def _mutate_flags(content: bytes, mutator: Mutator) -> bytes:
    lines = content.decode().split("\n")
    rng = mutator.rng
    chosen = [line.partition("=")[0] for line in rng.sample(lines, rng.choice((1, 1, 2, 3)))]
    odd = [rng.choice(_ODD).replace("{outside}", mutator.outside) for _ in chosen]
    given = [rng.choice((f"{k}={v}",) * 8 + (k, v)) for k, v in zip(chosen, odd, strict=True)]
    return (
        mutator.octets(("\n".join(given)).encode())
        if rng.random() < 0.3
        else "\n".join(given).encode()
    )


def _read_flags(folder: Path, _: list[Path]) -> None:
    path = folder / _FLAGS
    if not path.is_file():
        return
    given = path.read_bytes().decode("latin-1").split("\n")
    if len(given) > 20:  # as it was written
        given = []
    name = "shapes_captioner" if any("captioner." in one for one in given) else "digits"
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        command = train.parse(["train.py", "--config", f"configs/{name}_pb.py", *given])
        chosen = resolve(command.config)
    # What `train.py` does with it before there is data to train on.
    rate, optimizer = make_optimizer(chosen, steps_per_epoch=14)
    if callable(rate):
        rate(0)
    optimizer.init({"w": np.zeros(3, np.float32)})
    freezing = make_freezing(chosen, steps_per_epoch=14)
    if freezing is not None:
        freezing.around(optimizer)
        freezing.makes_mask(chosen["epochs"])
    jax.random.key(chosen["seed"])


def _captioner() -> dict[str, Any]:
    return resolve(default_config("captioner"))


def _write_run(folder: Path) -> None:
    """A finished captioner's folder, with everything in it that reports read."""
    synthetic_run.write_run(folder)
    for epoch, options in ((3, {"estimate": True}), (5, {"per_leaf": True})):
        synthetic_run.write_mask(folder, epoch=epoch, **options)
    summary = {f"test_bleu{order}": 0.1 * order for order in range(1, 5)}
    summary |= dict.fromkeys(metrics.SUMMARY, 3) | {"epochs": 6, "steps": 60, "versions": {}}
    write_json(folder / "summary.json", summary | {"date": "2026-01-01"})
    write_json(folder / "config.json", _captioner() | {"epochs": 6})
    write_json(folder / "test_captions.json", {"a.jpg": "a dog", "b.jpg": "two dogs"})
    rng = np.random.default_rng(0)
    np.savez(
        folder / "test_attention.npz",
        grid=np.array([2, 3]),
        names=np.array(["a.jpg", "b.jpg"]),
        pixels=rng.integers(0, 256, (2, 8, 8, 3), np.uint8),
        captions=np.array(["a dog", "two dogs"]),
        alphas=rng.random((2, 4, 6), np.float32),
    )


def _read_a_run(folder: Path, _: list[Path]) -> None:
    plan = synthetic_study.plan(seeds=1)
    each(
        lambda: read_run(folder),
        lambda: metrics.read(folder / "metrics.jsonl"),
        lambda: read_result(folder.parent, plan[0].__class__(**vars(plan[0]) | {"folder": "in"})),
        lambda: finished(folder, 6),
        lambda: branch.check(_captioner(), folder),
        lambda: caption._read_run(folder),
        lambda: caption_figures._read_scores(folder, "test"),
        lambda: page_captions.read_samples(folder),
        lambda: page_captions.read_captions(folder),
        lambda: settle(_captioner(), folder),
    )


def _draw_a_run(folder: Path, _: list[Path]) -> None:
    write_page({"run": folder}, folder / "page.html")


def _write_study(folder: Path) -> None:
    synthetic_study.write_study(folder / "study")


def _read_study(folder: Path, _: list[Path]) -> None:
    found = study_record.read(folder / "study")
    each(
        *(lambda run=run: read_result(folder / "study", run) for run in found.runs),
        lambda: study_export.export(folder / "study", folder / "target"),
    )


# ----------------------------------------------------------------------------------------------
# Weights and checkpoints.
# ----------------------------------------------------------------------------------------------

_SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (2, 16)}


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in _SHAPES.items()}


def _write_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(_weights(), folder / "weights.safetensors", {"epoch": "1"})


def _write_npz(folder: Path) -> None:
    np.savez(folder / "weights.npz", **_weights())
    np.savez_compressed(folder / "compressed.npz", **_weights())


def _write_torch(folder: Path) -> None:
    """As PyTorch writes them, which only PyTorch reads: under its names, and under ours."""
    import torch  # pyright: ignore[reportMissingImports]

    state = {name: torch.from_numpy(value) for name, value in _weights().items()}
    for name in ("weights.pth", "weights.npz", "weights.safetensors"):
        torch.save(state, folder / name)
    torch.save(state, folder / "old.npz", _use_new_zipfile_serialization=False)


def _read_weights(_: Path, changed: list[Path]) -> None:
    each(*(lambda path=path: fitting(path, _SHAPES, "Net") for path in changed))


def _read_torch(folder: Path, changed: list[Path]) -> None:
    """None of these may be read, whole or not."""
    refused = False
    try:
        _read_weights(folder, changed)
    except UserError:
        refused = True
    assert refused


def _mutate_torch(content: bytes, mutator: Mutator) -> bytes:
    return mutator.pickle() if mutator.rng.random() < 0.4 else mutator.any(content)


def _record(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "val_accuracy": epoch / 10, "frozen_fraction": 0.5}


def _write_checkpoints(state: Callable[[], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        checkpoints = Checkpoints(folder / "checkpoints")
        for epoch in (1, 2):
            checkpoints.save(state(), _record(epoch))
        checkpoints.close()

    return write


def _read_checkpoints(state: Callable[[], Any]) -> Callable[[Path, list[Path]], None]:
    """What was saved, or an error: nothing else may be read."""
    expected = None

    def read(folder: Path, _: list[Path]) -> None:
        nonlocal expected
        expected = expected or bits(state())

        def export_it() -> None:
            export.export(folder, folder / "out.safetensors", 2)

        def restore() -> None:
            said: list[str] = []
            checkpoints = Checkpoints(folder / "checkpoints", warn=said.append)
            try:
                found = checkpoints.restore(dense_state(9))
            finally:
                checkpoints.close()
            assert found is not None
            assert bits(found[0]) == expected
            assert found[1] == _record(found[1]["epoch"])
            if said:
                raise UserError("\n".join(said))

        each(
            lambda: export.listing(folder),
            lambda: read_arrays(folder / "checkpoints", 2),
            export_it,
            restore,
        )

    return read


def _write_interrupted(folder: Path) -> None:
    Interrupted(folder / "checkpoints").save(dense_state(), Part(3, Totals.empty(), 1.5))


def _read_interrupted(folder: Path, _: list[Path]) -> None:
    said: list[str] = []
    found = Interrupted(folder / "checkpoints", said.append).restore(dense_state(9), 2, 9)
    if found is None:
        raise UserError("\n".join(said) or "there is none")
    assert bits(found[0]) == bits(dense_state())
    assert found[1].epoch == 3


def _write_starts(folder: Path) -> None:
    synthetic_run.write_run(folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(dense_state(), _record(2))
    checkpoints.close()


def _read_starts(folder: Path, _: list[Path]) -> None:
    branch.read(folder, dense_state(9), 3)


READERS: dict[str, Reader] = {
    "idx": Reader(10, lambda f: write_idx(f, GREY), lambda f, _: idx.read(f, TINY_MNIST.geometry)),
    "cifar_pickles": Reader(
        10,
        lambda f: write_cifar(f, COLOURED, "py"),
        lambda f, _: cifar.read_pickled(f, TINY_CIFAR10.geometry),
    ),
    "cifar_pickles_tar": Reader(
        8,
        _write_archive("py", cifar.PICKLED_ARCHIVE),
        lambda f, _: cifar.read_pickled_archive(f, TINY_CIFAR10.geometry),
    ),
    "cifar_binary": Reader(
        3,
        lambda f: write_cifar(f, COLOURED, "bin"),
        lambda f, _: cifar.read_binary(f, TINY_CIFAR10.geometry),
    ),
    "cifar_binary_tar": Reader(
        5,
        _write_archive("bin", cifar.BINARY_ARCHIVE),
        lambda f, _: cifar.read_binary_archive(f, TINY_CIFAR10.geometry),
    ),
    "flickr8k": Reader(
        8,
        lambda f: Flickr8kFiles().write(f),
        lambda f, _: flickr8k.read(flickr8k.locate(f), SILENT),
    ),
    "pictures": Reader(8, _write_pictures, _read_pictures),
    "prepared": Reader(3, _prepare, _read_prepared, lambda path: path.startswith("root")),
    "prepared_captions": Reader(
        3, _prepare_captions, _read_prepared_captions, lambda path: path.startswith("root")
    ),
    "features": Reader(5, lambda f: _features(f), _read_features),
    "vocabulary": Reader(
        5,
        lambda f: Vocabulary(["a", "dog", "runs"]).save(f / "vocabulary.json"),
        lambda f, _: Vocabulary.load(f / "vocabulary.json"),
    ),
    "flags": Reader(8, _write_flags, _read_flags, mutate=_mutate_flags),
    "run": Reader(16, _write_run, _read_a_run),
    "page": Reader(1, _write_run, _draw_a_run),
    "study": Reader(6, _write_study, _read_study),
    "safetensors": Reader(6, _write_safetensors, _read_weights),
    "npz": Reader(7, _write_npz, _read_weights),
    "torch": Reader(4, _write_torch, _read_torch, mutate=_mutate_torch),
    "checkpoint": Reader(4, _write_checkpoints(dense_state), _read_checkpoints(dense_state)),
    "delta_checkpoint": Reader(
        4, _write_checkpoints(compact_state), _read_checkpoints(compact_state)
    ),
    "interrupted_state": Reader(2, _write_interrupted, _read_interrupted),
    "start_from": Reader(2, _write_starts, _read_starts),
}
"""By name."""
