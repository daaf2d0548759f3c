import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pb_jax.errors import UserError
from pb_jax.reports.__main__ import main
from pb_jax.reports.page import charts, names_of, write_page
from pb_jax.reports.page.charts import Axes, Line, Scale
from tests.synthetic_run import deep, write_mask, write_run

HOSTILE = "</td></style><script>alert(1)</script><img src=https://a.example/x.png>\"'&\x00\ud800"


class Reader(HTMLParser):
    """A page's elements, texts and addresses; fails where elements do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.addresses = [], set(), [], []
        self.cells = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset")]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    @property
    def rows(self):
        """The first row of each name."""
        return {name: rest for name, *rest in reversed(self.cells)}

    @property
    def text(self):
        return "".join(self.texts)


def page(tmp_path, **runs):
    path = write_page(runs, tmp_path / "page.html")
    content = path.read_text(encoding="utf-8")
    read = Reader(content)
    assert all(address.startswith(("#", "data:image/")) for address in read.addresses)
    assert not read.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert "url(" not in content
    assert "@import" not in content
    return read


def test_a_page_of_one_run(tmp_path):
    write_run(tmp_path / "a", masks=[3])
    write_mask(tmp_path / "a", estimate=True)
    read = page(tmp_path, a=tmp_path / "a")
    assert read.text.count("toy on noise") == 2  # title and heading
    headings = ("Summary", "Curves", "Threshold", "Frozen weights", "Configuration")
    assert all(heading in read.texts for heading in headings)
    assert "Captions" not in read.texts
    assert read.rows["epochs"] == ["6 of ?, not finished"]
    assert read.rows["accuracy, last epoch"] == ["90.00 %"]
    assert read.rows["accuracy, best epoch"] == ["90.00 % (epoch 6)"]
    with np.load(tmp_path / "a/mask_step_201.npz") as mask:
        shares = mask["leaf_frozen"] / mask["leaf_sizes"]
    kernel, bias = (f"{100 * share:.1f} %" for share in shares[:2])
    assert read.rows["conv1"] == ["208", kernel, bias, "-"]
    assert "threshold t = 1.5" in read.text
    assert read.rows["freeze.rule"] == ["kde_otsu"]


def test_runs_beside_one_another(tmp_path):
    write_run(tmp_path / "a", rule="random", masks=[3], freeze={"frozen": 0.5})
    write_run(tmp_path / "b", rule="none", epochs=4)
    write_mask(tmp_path / "a", threshold=None, sizes=deep(60))
    (tmp_path / "b/summary.json").write_text(
        json.dumps({"epochs": 4, "parameters": 1234, "versions": {"jax": "1.2"}})
    )
    read = page(tmp_path, one=tmp_path / "a", two=tmp_path / "b")
    assert read.rows["rule"] == ["random", "none"]
    assert read.rows["epochs"] == ["6 of ?, not finished", "4"]
    assert "network" not in read.rows
    assert "network: toy; data: noise; weights: 1,234" in read.text
    differing = [name for name, *values in read.cells if name.startswith("freeze.") and values[1:]]
    assert differing == ["freeze.frozen", "freeze.rule"]
    assert read.rows["freeze.frozen"] == ["0.5", "-"]
    assert "layer1.0" in read.rows  # a deep network by blocks, a column for the run with a mask
    assert len(read.rows["layer1.0"]) == 4
    assert "no threshold of gradients" in read.text


def test_bars_have_the_colour_of_their_run(tmp_path):
    write_run(tmp_path / "full", rule="none")
    for name in ("kde", "random"):
        write_mask(write_run(tmp_path / name, masks=[3]))
    names = ("full", "kde", "random")
    page(tmp_path, **{name: tmp_path / name for name in names})
    assert bars(tmp_path / "page.html") == {"c1", "c2"}
    read = page(tmp_path, full=tmp_path / "full", kde=tmp_path / "kde")
    assert bars(tmp_path / "page.html") == {"c1"}  # of each kind of leaf
    frozen = read.text.split("Frozen weights")[-1].split("Configuration")[0]
    assert "kde" in frozen  # which the columns do not say


def bars(path):
    """The classes of the bars in the table of frozen shares."""
    return set(re.findall(r'<span class="([^"]+)"><svg', path.read_text(encoding="utf-8")))


def test_sixteen_runs_can_be_told_apart(tmp_path):
    runs = {f"r{i}": write_run(tmp_path / f"r{i}", masks=[3]) for i in range(16)}
    page(tmp_path, **runs)
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    lines = re.findall(r'<path class="line ([^"]+)"', content)
    assert len(lines) == 5 * 16
    assert len(set(lines)) == 16
    assert set(lines) == set(
        re.findall(r'<li><span class="named"><span class="swatch ([^"]+)"', content)
    )


def test_validation_is_said_to_be_the_test_split(tmp_path):
    write_run(tmp_path / "a")
    words = "validation (the test split, as in the paper)"
    one = page(tmp_path, a=tmp_path / "a")
    assert words in one.texts  # of the legend
    assert f"Accuracy and loss: {words}." in one.texts
    two = page(tmp_path, a=tmp_path / "a", b=tmp_path / "a")
    assert f"V{words[1:]}; training: mean over the epoch's batches." in two.texts
    assert f"Accuracy and loss: {words}." in two.texts


def test_of_captioners_it_is_a_split_of_its_own(tmp_path):
    write_run(tmp_path / "a")
    records = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    lines = [json.dumps({**json.loads(line), "val_bleu4": 0.1}) for line in records]
    (tmp_path / "a/metrics.jsonl").write_text("\n".join(lines))
    read = page(tmp_path, a=tmp_path / "a")
    assert "validation split" in read.texts
    assert "test split" not in read.text


def test_rows_that_no_run_fills_are_left_out(tmp_path):
    for name, date in (("a", {}), ("b", {"date": "2026-11-22"})):
        write_run(tmp_path / name)
        summary = {"epochs": 6, "parameters": 1, **date}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    assert not {"date", "versions"} & page(tmp_path, a=tmp_path / "a").rows.keys()
    read = page(tmp_path, a=tmp_path / "a", b=tmp_path / "b")
    assert "date: 2026-11-22" in read.text


def test_numbers_of_configurations_are_short_where_they_stay_apart(tmp_path):
    write_run(tmp_path / "a", freeze={"frozen": 0.8257126265559118, "coverage": 0.95})
    write_run(tmp_path / "b", freeze={"frozen": 0.5, "coverage": 0.9500001})
    read = page(tmp_path, a=tmp_path / "a", b=tmp_path / "b")
    assert read.rows["freeze.frozen"] == ["0.8257", "0.5"]
    assert read.rows["freeze.coverage"] == ["0.95", "0.9500001"]
    assert "0.8257126265559118" in read.text  # among all keys


def test_runs_that_do_not_differ(tmp_path):
    write_run(tmp_path / "a")
    read = page(tmp_path, a=tmp_path / "a", b=tmp_path / "a")
    assert "The configurations are the same in every key." in read.texts
    assert "Threshold" not in read.texts


def write_captions(folder, *, name="dog.jpg", words=("a", "dog")):
    rng = np.random.default_rng(0)
    (folder / "test_captions.json").write_text(json.dumps({name: " ".join(words), "b.jpg": "b"}))
    np.savez(
        folder / "test_attention.npz",
        names=np.array([name.rstrip("\x00").replace("\ud800", "")]),
        pixels=rng.integers(0, 256, (1, 30, 40, 3), np.uint8),
        captions=np.array([" ".join(words)]),
        alphas=rng.random((1, 5, 6)).astype(np.float32),
        grid=np.array([2, 3]),
    )


def test_captions_with_attention(tmp_path):
    for name in "ab":
        write_run(tmp_path / name)
        write_captions(tmp_path / name)
    read = page(tmp_path, a=tmp_path / "a", b=tmp_path / "b")
    assert "Captions" in read.texts
    pictures = [address for address in read.addresses if address.startswith("data:image/jpeg")]
    glows = [address for address in read.addresses if address.startswith("data:image/png")]
    assert len(pictures) == 1  # which both runs have described
    assert len(glows) == 4
    assert read.rows["dog.jpg"] == ["a dog", "a dog"]


def test_nothing_that_a_run_holds_becomes_part_of_the_page(tmp_path):
    folder = write_run(tmp_path / "a", rule=HOSTILE, masks=[3], freeze={HOSTILE: HOSTILE})
    config = json.loads((folder / "config.json").read_text())
    config["model"]["name"] = config["dataset"]["name"] = HOSTILE
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"epochs": 6, "hardware": HOSTILE, "versions": {HOSTILE: HOSTILE}, "date": HOSTILE}
    (folder / "summary.json").write_text(json.dumps(summary))
    harmless = HOSTILE.replace("\x00", "").replace("\ud800", "")
    write_mask(folder, sizes={f"{harmless}.kernel": 100, "b.kernel": 50})
    write_captions(folder, name=HOSTILE, words=harmless.split())
    read = page(tmp_path, **{HOSTILE: folder, "other": write_run(tmp_path / "b")})
    assert read.text.count("<script>alert(1)</script>") > 10
    assert "\x00" not in read.text
    assert "\ufffd\ufffd" in read.text


@pytest.mark.parametrize("name", ["summary.json", "test_captions.json", "test_attention.npz"])
@pytest.mark.parametrize("content", [b"[1", b"\xff", b"[1]"])
def test_damaged_files_are_named(tmp_path, name, content):
    folder = write_run(tmp_path / "a")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        page(tmp_path, a=folder)
    assert not (tmp_path / "page.html").exists()


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(write_run(tmp_path / f"rule=={name}/seed_0")) for name in "ab"]
    assert main(runs[:1]) == 0
    assert capsys.readouterr().out.strip() == f"{runs[0]}/report.html"
    assert main(["page", *runs, "--output", "two.html"]) == 0
    assert capsys.readouterr().out.strip() == "two.html"
    head = next(iter(Reader((tmp_path / "two.html").read_text()).cells))
    assert head == ["", "rule==a", "rule==b"]
    assert main([f"A={runs[0]}", f"A={runs[1]}"]) == 2
    assert "same name" in capsys.readouterr().err
    assert main([f"{tmp_path}/nowhere", runs[0]]) == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "required: [NAME=]DIR" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "report.html").mkdir()
    assert main(runs) == 2
    assert "cannot write report.html" in capsys.readouterr().err


def test_a_study_stands_for_the_runs_of_its_first_seed(tmp_path, capsys):
    for run in ("none/seed_3", "none/seed_4", "random/freeze.frozen=0.5/seed_3"):
        write_run(tmp_path / "runs" / run)
    (tmp_path / "study.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "report.html"
    head = next(iter(Reader(page.read_text()).cells))
    assert head == ["", "none", "random/freeze.frozen=0.5"]


def test_names_that_tell_folders_apart(tmp_path):
    def names(*folders):
        return names_of([tmp_path / folder for folder in folders])

    assert names("a/x/seed_0", "a/x/seed_1") == ["seed_0", "seed_1"]
    assert names("a", "a/b") == ["a", "a/b"]
    assert names("a", "a") == ["a", "a"]
    assert names("x=0.1234567,y=1", "v1.234567") == ["x=0.1235,y=1", "v1.234567"]
    assert names("x=0.1234567", "x=0.1234568") == ["x=0.1234567", "x=0.1234568"]


def test_places_on_a_chart():
    axes = Axes(Scale(0, 10), Scale(0, 1, percent=True))
    axes.line(Line(np.array([0.0, 5, 6, 10]), np.array([0.0, 1, np.nan, 0.5])))
    drawn = axes.draw("title", "epochs")
    left, right = axes.right(0), axes.right(10)
    floor, ceiling = axes.down(0), axes.down(1)
    assert left < right <= charts.WIDTH
    assert 0 <= ceiling < floor < charts.HEIGHT
    middle = (left + right) / 2
    half = (floor + ceiling) / 2
    assert f'd="M{left} {floor}L{middle} {ceiling}M{right} {half}"' in drawn
    assert drawn.count("<circle") == 3
    assert "50 %" not in drawn  # the ticks are at 0, 20, ... 100
    assert "80 %" in drawn


@pytest.mark.parametrize("scale", [Scale(1e-7, 1e5, log=True), Scale(0, 3, whole=True)])
def test_ticks_are_few_round_and_inside(scale):
    ticks = scale.ticks()
    assert 3 <= len(ticks) <= 8
    shares = [scale.share(value) for value, _ in ticks]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert len({label for _, label in ticks}) == len(ticks)


def test_what_lies_beyond_an_axis_is_at_its_end():
    scale = Scale(1.0, 100.0, log=True)
    assert [scale.share(x) for x in (0.0, 0.1, 10.0, 1e9)] == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("values", [[np.nan], [], [3.0], [0.0, 0.0]])
def test_an_axis_of_little_has_a_length(values):
    low, high = charts.extent([np.array(values, float)])
    assert low < high
