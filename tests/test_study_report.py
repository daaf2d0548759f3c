import json

import numpy as np
import pytest

from pb_jax.errors import UserError
from pb_jax.study import read, write_report
from pb_jax.study.__main__ import main
from pb_jax.study.export import export
from pb_jax.study.paper import PAPER
from pb_jax.study.report import fill
from tests.synthetic_run import mask_content, write_mask
from tests.synthetic_study import write_study

PATHS = {"dataset.source_dir": "/home/someone/data", "dataset.data_dir": "/scratch"}


def document(folder, *blocks):
    path = folder / "report.md"
    text = "".join(f"<!-- study: {block} -->\nold\n<!-- end -->\n\n" for block in blocks)
    path.write_text(f"# Report\n\nBefore.\n\n{text}After.\n")
    return path


def filled(folder, *blocks):
    path = document(folder, *blocks)
    fill(path)
    return path.read_text()


def rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    ]


def test_only_the_blocks_change_and_twice_is_once(tmp_path):
    write_study(tmp_path / "one", seeds=2)
    text = filled(tmp_path, "paper one", "zeros one")
    assert text.startswith("# Report\n\nBefore.\n\n<!-- study: paper one -->\n\n| network")
    assert text.endswith("|\n\n<!-- end -->\n\nAfter.\n")
    assert "old" not in text
    path = tmp_path / "report.md"
    assert fill(path) == [tmp_path / "one"]
    assert path.read_text() == text


def test_the_papers_numbers_stand_beside_the_measured(tmp_path):
    write_study(tmp_path / "one", seeds=3)
    table = rows(filled(tmp_path, "paper one missing"))
    assert len(table) == 1 + 4 * 2 + 3 + 3
    lenet = next(row for row in table if "LeNet-5" in row[0])
    at = table.index(lenet)
    assert lenet[1:3] == ["paper: full training", "99.25"]
    assert table[at + 1][1:6] == [
        "paper: partial",
        "99.22; mean of 3: 99.22",
        "-0.03",
        "93.70; 92.36",
        "0.5",
    ]
    assert table[at + 2][:4] == ["measured, 110 epochs", "`none`", "96.00 ± 1.00", ""]
    assert table[at + 3][1:5] == ["`kde_otsu`", "95.05 ± 1.00", "-0.95 ± 0.00", "76.10 ± 0.10"]
    assert table[at + 4][1:4] == ["`random`", "93.15 ± 1.00", "-2.85 ± 0.00"]
    assert sum(row[1] == "*not run*" for row in table) == 3


def test_the_papers_share_and_threshold_are_measured_rows_too(tmp_path):
    own = "fixed_threshold:threshold=0.5,label=t,quantile:frozen=0.937,random:frozen=0.937,label=r"
    others = "quantile:frozen=0.937,largest=true,fixed_threshold:threshold=0.4"
    write_study(tmp_path / "one", f"none,kde_otsu,random,{own},{others}", seeds=1)
    table = rows(filled(tmp_path, "paper one"))
    first = next(i for i, row in enumerate(table) if row[0].startswith("measured"))
    labels = ["none", "kde_otsu", "random", "t", "quantile(frozen=0.937)", "r"]
    assert [row[1].strip("`") for row in table[first:]] == labels


def test_the_papers_table_is_that_of_its_tables_1_and_2():
    assert {name: (p.full, p.frozen_accuracy[0], p.frozen[0]) for name, p in PAPER.items()} == {
        "vgg19": (0.8812, 0.8788, 0.7968),
        "resnet110": (0.8372, 0.8281, 0.4985),
        "densenet121": (0.8820, 0.8763, 0.6907),
        "lenet5": (0.9925, 0.9922, 0.9370),
    }


def test_a_table_has_command_hardware_and_date(tmp_path):
    study = write_study(tmp_path / "one", seeds=1)
    for run in study.runs:
        path = tmp_path / "one" / run.folder / "summary.json"
        more = {"hardware": "2 cores of it", "date": f"2026-11-2{2 + (run.rule == 'random')}"}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    text = filled(tmp_path, "table one", "table two")
    assert "LeNet-5, MNIST, 110 epochs; 2 cores of it, 2026-11-22 to 2026-11-23." in text
    assert "\n```sh\npython study.py --rules=x\n```\n" in text
    assert "| kde_otsu | 1 | 94.05 |" in text
    assert "*two: not run yet.*" in text


def test_rows_are_some_of_a_table_compared_as_in_it(tmp_path):
    write_study(tmp_path / "one", seeds=2)
    whole, some = (
        rows(filled(tmp_path, block)) for block in ("table one", "rows one random kde_otsu")
    )
    assert some == [whole[0], whole[3], whole[2]]
    assert rows(filled(tmp_path, "rows two random")) == []


def test_a_difference_is_taken_seed_by_seed(tmp_path):
    write_study(tmp_path / "one", seeds=3)
    table = rows(filled(tmp_path, "difference kde_otsu random one two", "difference a b one"))
    assert table[1] == [
        "LeNet-5, MNIST, 110 epochs",
        "95.05 ± 1.00",
        "93.15 ± 1.00",
        "+1.90 ± 0.00",
        "3",
        "76.10 ± 0.10 / 76.10 ± 0.10",
    ]
    assert table[2][:3] == ["two", "*not run*", "*not run*"]
    assert table[4][1] == "*not run*", "labels that the study does not have"


def test_the_means_beside_a_difference_are_of_the_seeds_that_both_have(tmp_path):
    study = write_study(tmp_path / "one", seeds=3)
    gone = next(run for run in study.runs if run.label == "random" and run.seed == 0)
    (tmp_path / "one" / gone.folder / "summary.json").unlink()
    row = rows(filled(tmp_path, "difference kde_otsu random one"))[1]
    assert row[1:5] == ["95.55 ± 0.71", "93.65 ± 0.71", "+1.90 ± 0.00", "2"]


def test_zero_gradients_are_those_of_full_training(tmp_path):
    write_study(tmp_path / "one", seeds=2)
    assert rows(filled(tmp_path, "zeros one two"))[1:] == [
        ["LeNet-5, MNIST, 110 epochs", "31.8", "30.0 ± 0.0", "2"],
        ["two", "", "*not run*", ""],
    ]


def with_masks(folder):
    """A study of which one run keeps two masks: 100 weights, of which 10 have no gradient."""
    study = write_study(folder, seeds=2)
    workdir = folder / next(run for run in study.runs if run.rule == "kde_otsu").folder
    leaves = {"leaf_zeros": np.array([10, 0]), "leaf_sizes": np.array([60, 40])}
    histograms = {
        "hist_counts": np.array([[20, 20, 10], [20, 10, 10]]),
        "hist_edges": np.array([0.1, 0.5, 1.0, 10.0]),
    }
    content = mask_content({"a.kernel": 60, "b.kernel": 40}, threshold=0.095, epoch=10)
    write_mask(workdir, content)
    write_mask(workdir, {**content, **leaves, **histograms, "step": 9, "frozen_fraction": 0.76})
    return workdir


def test_thresholds_are_applied_to_the_gradients_that_the_rule_saw(tmp_path):
    workdir = with_masks(tmp_path / "one")
    row = rows(filled(tmp_path, "thresholds one two"))[1]
    assert row[:5] == ["LeNet-5, MNIST, 110 epochs, seed 0", "0.5", "93.70", "0.095", "76.0"]
    assert row[5] == "50.0", "10 zeros and 40 of 100 weights are at most 0.5"
    assert float(row[6]) == pytest.approx(10 ** ((93.7 - 80) / 20), abs=1e-3)
    (workdir / "mask_step_9.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        filled(tmp_path, "thresholds one")


def test_the_figures_show_the_gradients_behind_the_first_mask(tmp_path):
    with_masks(tmp_path / "one")
    names = [path.name for path in write_report(tmp_path / "one") if path.suffix == ".png"]
    assert names == ["curves.png", "accuracy_frozen.png", "layer_gradients.png", "gradients.png"]


def test_other_data_do_not_stand_beside_the_papers(tmp_path):
    write_study(tmp_path / "one", seeds=1, **{"dataset.name": "digits"})
    table = rows(filled(tmp_path, "paper one", "thresholds one", "zeros one"))
    assert sum(row[1] == "*not run*" for row in table) == 4
    assert table[-1][:2] == ["LeNet-5, digits, 110 epochs", ""]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("tables one", "'tables' is no kind of block; there are paper, table"),
        ("table", "needs one folder"),
        ("rows one", "needs a folder and labels"),
        ("difference a one", "needs two labels and folders"),
    ],
)
def test_what_is_wrong_with_a_block_is_said(tmp_path, block, message):
    with pytest.raises(UserError, match=message):
        filled(tmp_path, block)


def test_an_export_has_no_paths_of_the_machine_and_makes_the_same_tables(tmp_path, capsys):
    study = write_study(tmp_path / "one", seeds=2, **PATHS)
    for run in study.runs:
        (tmp_path / "one" / run.folder / "checkpoints").mkdir()
        write_mask(tmp_path / "one" / run.folder, {**mask_content(), "step": 9})
        (tmp_path / "one" / run.folder / "log.txt").write_text("/home/someone")
    assert main(["tables", str(tmp_path / "one")]) == 0
    assert main(["export", str(tmp_path / "one"), str(tmp_path / "results/one")]) == 0
    target = tmp_path / "results/one"
    assert "study.json" in capsys.readouterr().out or (target / "study.json").exists()
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {"table.md", "table.json", "figures/curves.png"} <= files
    inside = {name for name in files if name.startswith("runs/none/")}
    assert inside == {
        *(
            f"runs/none/seed_{s}/{n}"
            for s in (0, 1)
            for n in ("config.json", "metrics.jsonl", "summary.json")
        ),
        "runs/none/seed_0/mask_step_9.npz",
    }
    for path in target.rglob("*.json"):
        assert "/home" not in path.read_text()
        assert "/scratch" not in path.read_text()
    assert (target / "table.md").read_text() == (tmp_path / "one/table.md").read_text()
    assert read(target).runs == study.runs
    export(tmp_path / "one", target)  # again


def test_one_command_makes_document_tables_and_figures(tmp_path, capsys):
    write_study(tmp_path / "one", seeds=1)
    path = document(tmp_path, "table one")
    assert main(["report", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(path)
    assert str(tmp_path / "one/figures/curves.png") in out
    assert main(["report", str(tmp_path / "none.md")]) == 2
    assert "cannot be read" in capsys.readouterr().err
