"""The page of runs in a browser, without a window; skipped where there is none."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from pb_jax.reports.page import write_page
from tests.synthetic_run import deep, write_mask, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
PHONE, TALL = 390, 844  # pixels; no window is narrower than 500, but a frame in it may be
MEASURE = """<script>
const shown = name => [...document.querySelectorAll(name)].map(e => e.getBoundingClientRect());
addEventListener("load", () => parent.postMessage([
  innerWidth, document.documentElement.scrollWidth,
  Math.max(...shown("figure svg, .key, p, h1, h2, h3, .scroll").map(box => box.right)),
  shown("figure svg").filter(box => box.width > 250 && box.height > 150).length,
  getComputedStyle(document.querySelector("path.c0")).stroke,
].join("; "), "*"));
</script>"""
FRAME = """<!DOCTYPE html><p id="said">nothing</p>
<iframe src="page.html" style="width: {}px; height: {}px; border: 0"></iframe>
<script>addEventListener("message", e => document.querySelector("p").textContent = e.data)</script>
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed"),
]


def measured(folder, runs):
    """What a browser says of the page in a frame as wide as a phone."""
    page = write_page(runs, folder / "page.html")
    content = page.read_text(encoding="utf-8")
    content, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", content)
    assert found == 1  # it would keep the script out
    page.write_text(content.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(PHONE, TALL), encoding="utf-8")
    dom = browse(folder, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    return re.search(r'<p id="said">(.*?)</p>', dom)[1].split("; ")


def browse(folder, *arguments):
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        timeout=120,
        check=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_phone_shows_all_of_it(tmp_path, count):
    name = "random/freeze.granularity=channel,freeze.frozen=0.8257126265559118"
    runs = {}
    for i in range(count):
        share = {"frozen": 0.8257126265559118 + i / 100}
        folder = write_run(tmp_path / str(i), masks=[3], epochs=30, freeze=share)
        write_mask(folder, estimate=True, sizes=deep(60))
        runs[f"{name} {i}"] = folder
    width, scrolled, right, charts, colour = measured(tmp_path, runs)
    assert int(width) == PHONE
    assert int(scrolled) <= PHONE
    assert float(right) <= PHONE
    assert int(charts) == (3 if count == 1 else 5) + 3 * count
    assert colour == "rgb(0, 114, 178)"  # the style is there


def test_it_is_drawn_under_its_own_policy(tmp_path):
    """Nothing that it needs is kept out: the colours of both runs, and of what is frozen."""
    runs = {name: write_run(tmp_path / name, masks=[3]) for name in ("a", "b")}
    write_mask(runs["b"], estimate=True)
    page = write_page(runs, tmp_path / "page.html")
    size = "--window-size=1100,2000"
    picture = tmp_path / "page.png"
    browse(tmp_path, size, "--hide-scrollbars", f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as drawn:
        assert drawn.size == (1100, 2000)
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 22) or ()}
    assert {(0, 114, 178), (213, 94, 0), (204, 232, 248), (230, 159, 0)} <= colours
