import pytest

from pb_jax.data import DATASETS, DataError
from pb_jax.data.specs import find


@pytest.mark.parametrize("name", DATASETS)
def test_each_spec_agrees_with_itself(name):
    spec = find(name)
    assert spec.name == name
    assert len(spec.class_names) == spec.geometry.num_classes
    assert len(spec.mean) == len(spec.std) == spec.geometry.shape[-1]
    assert spec.digests.keys() == {"train", "test"}
    fetched = {file.name for file in spec.downloads}
    assert not spec.layouts or any(fetched == set(layout.files) for layout in spec.layouts)
    assert bool(spec.downloads) == bool(spec.base_urls) == bool(spec.layouts)
    assert all(len(file.sha256) == 64 and file.size > 1000 for file in spec.downloads)


def test_checksums_and_sizes_are_those_that_tfds_publishes():
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("tensorflow_datasets")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "url_checksums"
    for name in ("mnist", "fashion_mnist", "cifar10"):
        lines = (folder / f"{name}.txt").read_text().splitlines()
        published = {line.split("\t")[0]: line.split("\t")[1:3] for line in lines}
        spec = find(name)
        for file in spec.downloads:
            matches = [published.get(base + file.name) for base in spec.base_urls]
            assert [str(file.size), file.sha256] in matches


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "unknown dataset 'mnst'; did you mean 'mnist'"),
        ("CIFAR-10", "did you mean 'cifar10'"),
        ("imagenet", "unknown dataset 'imagenet'; known: mnist, fashion_mnist, cifar10, digits"),
    ],
)
def test_unknown_names_get_a_suggestion(name, message):
    with pytest.raises(DataError, match=message):
        find(name)
