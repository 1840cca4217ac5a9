"""The site of the documents builds without a warning, needs nothing from elsewhere, and says what was measured."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Page

from docs.making import algorithms, curves
from docs.making.tables import number, read
from pruning_core.recipe import catalogue
from tests.browser.axe import violations_in_each_look
from tests.browser.conftest import browser, tab
from tests.documents import DOCS, ROOT

__all__ = ["browser", "tab"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", folder / "trees"]
    done = subprocess.run([*command, DOCS, folder / "html"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_every_algorithm_has_a_page_with_its_options(site: Path) -> None:
    for name, entry in catalogue().items():
        pages = [path for path in site.rglob(f"{name}.html") if path.parent.name == "algorithms"]
        assert len(pages) == 1, name
        text = pages[0].read_text("utf-8")
        for option in entry["options"].get("properties", {}):
            assert f">{option}</span>" in text, f"{name} does not show {option}"
        assert ("<math" in text) == (name != "best"), name


def test_every_call_is_there(site: Path) -> None:
    from api.app import create_app

    page = (site / "rest.html").read_text("utf-8")
    text = re.sub("<[^>]*>", "", page)
    document = create_app().openapi()
    for path, operations in document["paths"].items():
        for verb in operations:
            assert f"{verb.upper()} {path}" in text
    for name in document["components"]["schemas"]:
        assert f'id="schema-{name.lower().replace("_", "-").rstrip("-")}"' in page, name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Links may lead out; what a page is made of lies beside it."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|object|source)\b[^>]*>", page.read_text("utf-8")):
            for target in re.findall(r'(?:src|href)="([^"]*)"', tag):
                assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
                if 'rel="search"' in tag or 'rel="index"' in tag or target.startswith("#"):
                    continue
                assert (page.parent / target.partition("?")[0].partition("#")[0]).exists(), f"{page.name}: {target}"
    for sheet in site.rglob("*.css"):
        found = re.findall(r"url\(['\"]?(?!data:|#)([^)'\"]+)|@import\s+([^;]+)", sheet.read_text("utf-8"))
        assert not [one for one in found if "//" in "".join(one)], sheet


def test_no_link_within_leads_nowhere(site: Path) -> None:
    """Neither to a page that is not there, nor to a place that its page does not have."""
    places = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text("utf-8"))) for page in site.rglob("*.html")}
    seen = 0
    for page in places:
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', page.read_text("utf-8")):
            path, _, place = unescape(target).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            seen += 1
            to = (page.parent / unquote(path)).resolve() if path else page
            assert to.is_file(), f"{page.name}: {target}"
            assert not place or to.suffix != ".html" or unquote(place) in places[to], f"{page.name}: {target}"
    assert seen > 1000
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{name}: {target}"


def test_it_is_for_everybody(site: Path, tab: Page) -> None:
    """The kinds of pages there are, by axe-core: text, commands, tables with plots, maths."""
    names = ("index", "quick-start", "algorithms/index", "algorithms/chita")
    assert violations_in_each_look(tab, *((site / f"{name}.html").as_uri() for name in names)) == []


def test_plots_are_there_for_both_grounds_and_say_what_they_show(site: Path) -> None:
    text = (site / "algorithms" / "index.html").read_text("utf-8")
    images = re.findall(r"<img [^>]*>", text)
    assert len(images) == 12
    for image in images:
        alt = re.search(r'alt="([^"]*)"', image)
        assert alt, image
        assert len(alt[1]) > 50, image
        assert ("only-dark" in image) == ("-dark" in image), image
        assert ("only-light" in image) == ("-light" in image), image


def test_an_algorithm_that_is_new_gets_a_page_by_itself(tmp_path: Path) -> None:
    entry = {**catalogue()["obd"], "summary": "Prune by the phase of the moon.", "source": "Nobody, 2026"}
    algorithms.write(tmp_path, {"moon": entry, "obd": catalogue()["obd"]})
    page = (tmp_path / "algorithms" / "moon.md").read_text("utf-8")
    assert "Prune by the phase of the moon." in page
    assert '"algorithm": "moon"' in page
    assert "| `batch_size` | `null` | whole number ≥ 1, ≤ 4 096 or `null` |" in page
    assert not (tmp_path / "algorithms" / "obd.md").exists(), "somebody wrote that one"
    assert "../generated/algorithms/moon\nobd\n" in (tmp_path / "contents.md").read_text("utf-8")


def test_the_advice_is_what_was_measured() -> None:
    """docs/algorithms/index.md: each line of its table, from the tables of the benchmarks."""
    resnet, mlp, vit = curves.resnet20(), curves.mlpnet(), curves.transformer()
    for network, levels in ((resnet, ("0.7", "0.8", "0.9")), (vit, ("0.7", "0.8"))):
        for level in levels:
            assert network.best(level).method == "gradual", f"{network.name}, {level}"
    for network, level in ((resnet, "0.8"), (resnet, "0.9"), (mlp, "0.95"), (mlp, "0.98")):
        one_shot = network.best(level, lambda one: one.labels and "stages" not in one.method)
        assert one_shot.method == "obs", f"{network.name}, {level}"
    for network in (resnet, mlp):
        for level in ("0.5", "0.7"):
            obs, chita = (network.curve(name).accuracy[level] for name in ("obs", "chita"))
            assert abs(obs - chita) < 0.5, f"{network.name}, {level}"
    assert mlp.best("0.98").method == "chita, 15 stages"
    quick = lambda one: one.seconds < 6 and not one.labels  # noqa: E731
    for network in (resnet, vit):
        assert network.best("0.8", quick).method in ("alps", "exact-obs")
        alps, exact = network.curve("alps"), network.curve("exact-obs")
        assert alps.seconds < exact.seconds
        assert abs(alps.accuracy["0.8"] - exact.accuracy["0.8"]) < 1
    (snows, gradual) = curves.resnet20_n_of_m()
    assert gradual.accuracy["1:4"] > snows.accuracy["1:4"]
    assert vit.curve("gradual").accuracy["1:4"] > vit.curve("magnitude, then snows").accuracy["1:4"]


def test_figures_in_the_text_are_in_the_tables() -> None:
    """A percentage with a decimal on a page of an algorithm is, rounded, in some table of the benchmarks."""
    known = {
        f"{float(value):.1f}"
        for path in (ROOT / "benchmarks" / "results").glob("*.md")
        for table in read(path)
        for cell in (table.heading, *(cell for row in table.rows for cell in row.values()))
        for value in re.findall(r"\d+\.\d+|\b\d\d\b", cell)
    }
    shown = 0
    for page in (DOCS / "algorithms").glob("*.md"):
        for value in re.findall(
            r"(?<![\w.])(\d\d\.\d)(?= ?%| and| against|$| where| at)", page.read_text("utf-8"), re.MULTILINE
        ):
            shown += 1
            assert value in known, f"{page.name}: {value}"
    assert shown > 20


def test_numbers_of_cells() -> None:
    assert [number(cell) for cell in ("91.06 [90.78, 91.37] (91.0)", "–")] == [91.06, None]
    assert number("84.67 ± 1.20, 4.09, 0.40", 3) == 0.40
