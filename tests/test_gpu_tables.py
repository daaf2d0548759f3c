import importlib
import io
import json
import tarfile

import pytest
from flax import nnx

import train
from benchmarks.gpu import tables
from pb_jax.study import base_of, configuration, make_plan, parse_rules, read
from pb_jax.training import Classification, resolve
from tests.synthetic_study import write_run
from tests.tiny_training import BATCH, Tiny, tiny_data


@pytest.fixture
def tiny(monkeypatch):
    """A network and data that train in milliseconds in the place of the paper's."""

    def task(config, data):
        assert data is None
        return Classification(Tiny(nnx.Rngs(config["seed"])), tiny_data(), BATCH)

    monkeypatch.setattr(train, "classification", task)
    monkeypatch.setattr(tables, "load", lambda name, folder: None)
    monkeypatch.setattr(tables.jax.config, "update", lambda *_: None)


def run(folder, *arguments):
    options = ["--data", str(folder), "--work", str(folder / "work"), "--out", str(folder / "out")]
    status = tables.main([*options, "--only=tables-lenet5", "--seeds=2", "--epochs=4", *arguments])
    return status, json.loads((folder / "out/progress.json").read_text())


@pytest.mark.parametrize("network", tables.NETWORKS)
def test_the_settings_are_the_configs(network):
    config = importlib.import_module(f"configs.{network}_pb").get_config()
    assert resolve(tables.base_config(network, 110)) == resolve(config)
    assert tables.full_base(network, 110) == base_of(config)


def test_every_part_can_be_planned():
    names = [part.name for part in tables.parts(3)]
    assert names[:4] == [f"tables-{network}" for network in tables.NETWORKS]
    for part in tables.parts(1):
        base = tables.full_base(part.network, 110)
        runs = make_plan(tables.base_config(part.network, 110), parse_rules(part.rules), 1)
        assert all(configuration(base, run) for run in runs)


@pytest.mark.slow
def test_cut_off_and_resumed_it_ends_with_all_runs(tmp_path, tiny):
    status, progress = run(tmp_path, "--budget=0")
    assert (status, progress["left"]) == (tables.UNFINISHED, ["tables-lenet5"])
    status, progress = run(tmp_path, f"--budget={tables._SAVING + 0.05}", "--together=vmap")
    assert status == tables.UNFINISHED, "an epoch takes longer"
    status, progress = run(tmp_path, "--together=vmap")
    assert (status, progress["done"], progress["left"]) == (0, ["tables-lenet5"], [])
    with tarfile.open(tmp_path / "out/results.tar.gz") as archive:
        names = archive.getnames()
    assert "lenet5/study.json" in names
    for rule in ("none", "kde_otsu", "random"):
        for seed in (0, 1):
            assert f"lenet5/runs/{rule}/seed_{seed}/summary.json" in names
    assert not any("together" in name or "seed_1/mask" in name for name in names)
    summaries = {
        run_.folder: json.loads(
            (tmp_path / "work/lenet5" / run_.folder / "summary.json").read_text()
        )
        for run_ in read(tmp_path / "work/lenet5").runs
    }
    for seed in (0, 1):
        kde, random = (
            summaries[f"runs/{rule}/seed_{seed}"]["frozen_fraction"]
            for rule in ("kde_otsu", "random")
        )
        assert kde == random > 0
        config = tmp_path / f"work/lenet5/runs/random/seed_{seed}/config.json"
        assert json.loads(config.read_text())["freeze"]["frozen"] == random


def test_finished_runs_come_back_from_an_archive(tmp_path, tiny, capsys):
    first, second = tmp_path / "one", tmp_path / "two"
    (second / "work").mkdir(parents=True)
    run(first, "--budget=0")
    for seed in (0, 1):
        write_run(first / f"work/lenet5/runs/none/seed_{seed}", 0.9, 0.0, None, epochs=4)
    unfinished = first / "work/lenet5/runs/kde_otsu/seed_0"
    unfinished.mkdir(parents=True)
    (unfinished / "metrics.jsonl").write_text("{}\n")
    run(first, "--budget=0")
    archive = first / "out/results.tar.gz"
    status, _ = run(second, "--budget=0", f"--resume={archive}")
    assert status == tables.UNFINISHED
    there = {path.parent.name for path in (second / "work").rglob("metrics.jsonl")}
    assert there == {"seed_0", "seed_1"}
    assert not (second / "work/lenet5/runs/kde_otsu").exists()


def test_an_archive_cannot_write_elsewhere(tmp_path):
    archive = tmp_path / "results.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("../summary.json", "x/study.json"):
            member = tarfile.TarInfo(name)
            member.size = 2
            file.addfile(member, io.BytesIO(b"{}"))
    (tmp_path / "work").mkdir()
    with pytest.raises(tarfile.OutsideDestinationError):
        tables._unpack(archive, tmp_path / "work")
    assert not (tmp_path / "summary.json").exists()


def test_an_unknown_part_is_said(tmp_path, capsys):
    assert tables.main(["--only=tables-lenet", f"--out={tmp_path}"]) == 2
    assert "unknown part 'tables-lenet'; did you mean" in capsys.readouterr().err


def test_the_parts_can_be_listed(capsys):
    assert tables.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "tables-lenet5"
