"""scripts/report.py, as a user meets it: the command, and the page in a real browser."""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.genotype import random_genotype
from mobilenext.tables.confusion import MOST_OPACITY
from tests.results import (
    fake_cell,
    fake_result,
    fake_search,
    small_result,
    write_evaluation,
    write_results,
)

pytest.importorskip("matplotlib", reason="needs the extra report: matplotlib")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_a_page_of_runs(run, tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result(), small_result())
    done = run("scripts/report.py", runs, "output=out/page.html", "title=Mine")
    assert "out/page.html: 2 runs" in done.stdout
    text = (tmp_path / "out/page.html").read_text()
    assert "<title>Mine</title>" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text


def test_evaluations_are_part_of_the_page_or_all_of_it(run, tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result())
    evaluation = write_evaluation(runs, *PETS)
    done = run("scripts/report.py", runs)
    assert "report.html: 1 run, 1 evaluation, " in done.stdout
    assert "Of <code>runs/mobilenext/0/best.pt</code>" in (tmp_path / "report.html").read_text()
    done = run("scripts/report.py", evaluation, "output=alone.html")
    assert "alone.html: 0 runs, 1 evaluation, " in done.stdout
    done = run("scripts/tables.py", evaluation, ok=False)
    assert "found no result.json of a finished training run" in done.stderr


def test_searches_are_part_of_the_page_or_all_of_it(run, tmp_path: Path) -> None:
    cell = random_genotype(0, "darts_sandglass")
    odd = fake_search(cell, 1) | {"genotype": 3}
    alone = write_results(tmp_path / "alone", fake_search(cell), odd)
    done = run("scripts/report.py", alone)
    assert "report.html: 0 runs, 2 searches, " in done.stdout
    assert "result.json: left out: genotype: expected entries" in done.stdout
    assert "Search for cells" in (tmp_path / "report.html").read_text()


def test_no_runs(run, tmp_path: Path) -> None:
    done = run("scripts/report.py", "nowhere", ok=False)
    assert done.returncode == 1
    assert "error: nowhere: expected a run folder" in done.stderr
    assert not list(tmp_path.iterdir())


PETS = np.array([[8, 2, 0], [0, 0, 0], [1, 3, 4]]), ["cat", "dog", "<script>'"]


FOUND = random_genotype(3, "darts_sandglass")
LONG = "random:1:darts_inverted_residual:3nodes:3.298M"
OTHER = random_genotype(4, "darts_sandglass")


def results() -> list[dict[str, Any]]:
    evil = "<script>document.title = 'run'</script>"
    return [
        fake_result(command=evil),
        *(small_result(model=model, width=width, seed=seed, top1=40 + 20 * width + seed)
          for model in ("mobilenext", "mobilenetv2") for width in (0.35, 1.0) for seed in (0, 1)),
        small_result(identity=0.5, width=0.35, top1=45.0),
        fake_cell(FOUND, "/x/genotype.yaml"), fake_cell(OTHER, LONG),
        fake_search(FOUND, command=evil),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mobilenext.tables import read_results
    from mobilenext.tables.confusion import read_evaluations
    from mobilenext.tables.page import render_page
    from mobilenext.tables.results import SEARCH, other_results

    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    runs = write_results(folder, *results())
    write_evaluation(runs, *PETS)
    searches = other_results([runs], SEARCH)
    page = render_page(
        read_results([runs]), "A report", folder, read_evaluations([runs]), searched=searches
    )
    path.write_text(page)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip)")
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no browser: looked for {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Any:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.said, page.asked_for = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked_for.append(request.url))
    page.goto(path.as_uri())
    return page


def test_it_needs_no_network_and_runs_no_script(browser: Any, page_path: Path) -> None:
    page = opened(browser, page_path)
    assert page.said == []
    assert page.asked_for == [page_path.as_uri()]
    assert page.title() == "A report"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_makes_the_page_scroll_sideways(browser: Any, page_path: Path, width: int) -> None:
    page = opened(browser, page_path, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


OVERFLOWING = """
[...document.querySelectorAll('.scroll')].filter(one => one.offsetParent).map(one => [
  one.scrollWidth > one.clientWidth,
  parseFloat(getComputedStyle(one, '::before').height) > 0,
])
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_tables_that_scroll_sideways_say_so(browser: Any, page_path: Path, width: int) -> None:
    page = opened(browser, page_path, width)
    if not page.evaluate("CSS.supports('animation-timeline', 'scroll()')"):
        pytest.skip("the browser has no scroll timelines; there the shadow alone says it")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.wait_for_timeout(100)  # timelines are sampled once a frame
    found = page.evaluate(OVERFLOWING)
    assert [scrolls for scrolls, _ in found] == [says_so for _, says_so in found]
    assert any(scrolls for scrolls, _ in found)
    assert not all(scrolls for scrolls, _ in found)


def test_a_screen_reader_finds_its_way(browser: Any, page_path: Path) -> None:
    page = opened(browser, page_path)
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert page.locator(landmark).count() == 1
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    charts = page.locator("svg")
    assert charts.count() >= 8
    assert charts.count() == page.get_by_role("img").count()
    for number in range(charts.count()):
        names = charts.nth(number).get_attribute("aria-labelledby").split()
        assert all(page.evaluate("id => document.getElementById(id).textContent", n) for n in names)
    assert page.locator("figure").count() == page.locator("figure details table").count()
    assert page.locator("table").count() == page.locator("table > caption").count()
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    broken = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')]"
        ".filter(one => !document.getElementById(one.hash.slice(1))).length"
    )
    assert broken == 0


def test_everything_can_be_reached_by_keyboard(browser: Any, page_path: Path) -> None:
    page = opened(browser, page_path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the tables"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className || "
                                  "document.activeElement.tagName"))  # fmt: skip
    assert {"A", "scroll", "SUMMARY"} <= reached
    summary = page.locator("details.run > summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.run").first.evaluate("one => one.open")
    assert page.locator("details.run pre").first.is_visible()


CONTRAST = """
colours => {
  const curve = c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const channel = c => curve(c / 255);
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const probe = document.createElement('div');
  document.body.append(probe);
  const page = light(getComputedStyle(document.body).backgroundColor);
  const found = {page};
  for (const name of colours) {
    probe.style.color = `var(--${name})`;
    const one = light(getComputedStyle(probe).color);
    found[name] = (Math.max(one, page) + 0.05) / (Math.min(one, page) + 0.05);
  }
  return found;
}
"""


def test_colours_can_be_told_from_the_page(browser: Any, page_path: Path, scheme: str) -> None:
    page = opened(browser, page_path, scheme=scheme)
    names = ["text", "quiet", "accent", *(f"series-{number}" for number in range(1, 5))]
    found = page.evaluate(CONTRAST, names)
    assert (found.pop("page") < 0.1) == (scheme == "dark")
    assert all(contrast >= 4.5 for contrast in found.values()), found
    drawn = page.locator("svg text").first.evaluate("one => getComputedStyle(one).fill")
    assert drawn == page.evaluate("getComputedStyle(document.body).color")


BLENDED = """
() => {
  const probe = document.querySelector('svg[aria-labelledby^=evaluation] rect[fill-opacity]');
  const fills = ['--series-1', '--series-2'].map(name => {
    probe.style.fill = `var(${name})`;
    return getComputedStyle(probe).fill;
  });
  const body = getComputedStyle(document.body);
  return {fills, page: body.backgroundColor, text: body.color};
}
"""


def test_counts_can_be_read_on_the_darkest_cells(
    browser: Any, page_path: Path, scheme: str
) -> None:
    page = opened(browser, page_path, scheme=scheme)
    found = page.evaluate(BLENDED)
    back, text = (rgb(found[name]) for name in ("page", "text"))
    for fill in found["fills"]:
        cell = MOST_OPACITY * rgb(fill) + (1 - MOST_OPACITY) * back
        lights = sorted(luminance(colour) for colour in (cell, text))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5


def rgb(colour: str) -> np.ndarray:
    return np.array([float(number) for number in re.findall(r"[\d.]+", colour)[:3]])


def luminance(colour: np.ndarray) -> float:
    share = colour / 255
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
