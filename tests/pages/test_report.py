"""The report as HTML and as Markdown: what it says, that it stands alone, and that no text in it becomes markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

import pages
from pages import words
from pages.numbers import Interval, accuracy_interval, drop_interval, wilson
from pruning_core.report import Quality
from tests.pages.documents import HOSTILE, document, level, quality

VOID = {"meta", "rect", "line", "circle", "polyline", "polygon", "br", "input", "link", "img"}


class Outline(HTMLParser):
    """All tags and texts of a page; it must be well nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(*levels: dict[str, Any], title: str = "t", **more: Any) -> Outline:
    return Outline(pages.report_html(pages.parse(json.dumps(document(*levels, **more))), title))


def plain(*levels: dict[str, Any], **more: Any) -> str:
    return pages.markdown(pages.parse(json.dumps(document(*levels, **more))), "t")


def test_it_says_what_was_asked_and_what_came() -> None:
    for text in (outline().text, plain()):
        text = " ".join(text.replace("\\", "").split())
        assert "Prune with plain to 90.0 % sparsity" in text
        assert "no layer above 95.0 %" in text
        assert "180 of 200 weights are zero in the produced file: 90.0 %" in text
        assert "90.0 % (95 % interval 85.1 % to 93.4 %) pruned, 95.0 % (95 % interval" in text
        assert "70.0 %" in text
        assert "under zstd 250 kB (before: 1 MB, 4.0 times smaller)" in text
        assert "in the compact form, where no zeros are sent, 100 kB (10.0 times smaller)" in text
        assert "Accuracy fell by 5.0 points (95 % interval 0.5 to 9.9)." in text
        assert "takes 1,200 multiply-adds in the prunable layers (dense: 12,000, 10.0 times as many)" in text
        assert "What was not measured" in text
        assert "Latency in any runtime but PyTorch's own operations on plain" in text
        assert "No speed-up here. Measured." in text
        assert "1 min 15 s" in text
        assert "123 MB" in text
        for name in ("b" * 64, "a" * 64):
            assert name in text


def test_one_file_without_script_or_anything_from_elsewhere() -> None:
    page = outline(level(0.5), level(0.9))
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"href", "src", "style"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")]
    style = pages.report_html(pages.parse(json.dumps(document()))).partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_figures_have_words_and_tables_have_headers() -> None:
    page = outline(level(0.5), level(0.9))
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == 1 + 2 * (1 + 2) + 1, "frontier; for each level layers and two histograms; stages"
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for figure in figures:
        assert set((figure["aria-labelledby"] or "").split()) <= set(ids)
    assert [tag for tag, attributes in page.tags if tag == "th" and "scope" not in attributes] == []


@pytest.mark.parametrize("text", [HOSTILE, "x" * 20_000, "مرحبا", ""])
def test_no_text_of_a_file_becomes_markup(text: str) -> None:
    safe, page = outline(text="plain"), outline(level(0.9, text), text=text, title=text)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in safe.tags]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
    assert not re.search("[\x00-\x08\u202a-\u202e\u2066-\u2069]", page.text), "what turns the writing or is not seen"
    assert ("{{7*7}}" in page.text) == ("{{7*7}}" in text), "no template in a template"


def test_no_text_of_a_file_becomes_markdown() -> None:
    safe, hostile = plain(), plain(level(0.9, HOSTILE + "\n# h\n- x"), text=HOSTILE + "\n# h\n- x")
    assert len(hostile.splitlines()) == len(safe.splitlines())
    bare = re.sub(r"\\.", "", hostile)
    assert not re.search("[<>`\\[\\]\u202e\x00]", bare)
    for mine, theirs in zip(safe.splitlines(), bare.splitlines(), strict=True):
        assert mine.count("|") == theirs.count("|"), "a cell stays a cell"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"accuracy": 0.9}, "Accuracy fell by 5.0 points (95 % interval "),
        ({"accuracy": 0.945}, "Accuracy fell by 0.5 points (95 % interval -"),
        ({"accuracy": 0.96, "agreement": 0.8}, "with 200 samples it cannot be told from no change."),
        ({"accuracy": 1.0}, "Accuracy rose by 5.0 points (95 % interval "),
        ({"accuracy": 0.123}, "how sure that is cannot be known"),
    ],
)
def test_what_it_cost_with_confidence(after: dict[str, Any], said: str) -> None:
    one = level(0.9, pruned=quality(**after))
    for text in (outline(one).text, plain(one).replace("\\", "")):
        assert said in text
    for name in ("accuracy", "loss"):
        losses = {"loss_standard_error": 0.1} if name == "loss" else {}
        numbers = {"accuracy": None if name == "loss" else 0.9, **losses}
        same = quality(**numbers)
        made = pages.parse(json.dumps(document(level(0.9, pruned=same), dense=same)))
        told = str(words.cost(made.pruning, made.pruning.levels[0]))
        assert told.startswith(f"{name.capitalize()} stayed (95 % interval -")
        assert "cannot be told from no change" in told


def test_the_interval_of_a_drop_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17:2635, method 10 for e, f, g, h = 36, 12, 2, 0: 0.0569 to 0.3404.
    dense = Quality(samples=50, accuracy=48 / 50)
    pruned = Quality(samples=50, accuracy=38 / 50, agreement=36 / 50)
    assert drop_interval(dense, Quality(samples=40, accuracy=0.5)) is None
    found = drop_interval(dense, pruned)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-4), pytest.approx(0.3404, abs=5e-4))


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.9, 1.2), "No speed-up here. Measured"), ((1.3, 1.5), "Measured"), (None, "No speed-up here. Measured")],
)
def test_speed_is_one_sentence_in_every_form(interval: tuple[float, float] | None, said: str) -> None:
    made = document()
    made["files"][0]["ratio_interval"] = interval
    report = pages.parse(json.dumps(made))
    sentence = words.speed(report.files[0])
    assert sentence.startswith(said)
    assert sentence.endswith(report.files[0].speedup), "what the JSON says"
    assert sentence in Outline(pages.report_html(report)).text
    assert sentence in pages.markdown(report).replace("\\", "")


def test_pictures_and_what_was_not_measured() -> None:
    shown = document(data="calibration", dense=quality(None))
    steps = {"samples": 48, "of": 50, "resize": 18, "crop": [16, 16], "channels": "rgb", "mean": [0.5], "std": [0.2]}
    shown["preprocessing"] = {"calibration": {**steps, "interpolation": "bilinear", "decoder": "Pillow 12"}}
    report = pages.parse(json.dumps(shown))
    for text in (Outline(pages.report_html(report)).text, pages.markdown(report)):
        assert "16 × 16" in text or "\\(16, 16\\)" in text
        assert "Pillow 12" in text
        assert "no validation data came with the job" in text
        assert "Accuracy: the data have no class labels." in text


def test_magnitude_instead_and_a_pattern_that_does_not_hold_are_said() -> None:
    text = outline(level(0.9, fell_back=True, pattern_holds=False)).text
    assert "plain magnitude pruning did better" in text
    assert "DOES NOT HOLD" in text


def test_a_report_from_before_there_were_plots() -> None:
    old = document(level(0.9))
    for layer in old["pruning"]["levels"][0]["layers"]:
        for name in ("change", "sensitivity", "histogram"):
            del layer[name]
    text = Outline(pages.report_html(pages.parse(json.dumps(old)))).text
    assert "This report has no histograms" in text
    assert "from before sensitivities were measured" in text


def test_fields_of_a_later_version_do_no_harm() -> None:
    later = document()
    later["pruning"]["levels"][0]["new"] = later["new"] = {"x": 1}
    assert "90.0 %" in pages.report_html(pages.parse(json.dumps(later)))


@pytest.mark.parametrize("bytes_", [b"", b"{}", b'{"pruning": {}}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_report_is_refused(bytes_: bytes) -> None:
    with pytest.raises(pages.Unrenderable, match="not written in a form"):
        pages.parse(bytes_)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"accuracy": 0.9}, "Wilson"),
        ({"accuracy": 0.123}, "several labels of each sample"),
        ({"accuracy": None, "loss_standard_error": 0.1}, "standard error over the samples"),
        ({"accuracy": None}, "no standard error"),
        ({"accuracy": None, "loss": None}, "no known spread"),
    ],
)
def test_where_the_bars_come_from(measured: dict[str, Any], said: str) -> None:
    numbers = quality(**{"accuracy": None, **measured})
    one = level(0.9, pruned=numbers, magnitude=numbers)
    made = pages.parse(json.dumps(document(one, dense=numbers, frontier=[])))
    assert said in words.intervals(made.pruning)
    bars = pages.report_html(made).count('class="bar ')
    assert (bars > 0) == (said in {"Wilson", "standard error over the samples"})


def test_wilson_is_the_published_formula() -> None:
    # Wilson 1927, for 0 of 10 and 95 %: 0 to 0.2775
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=5e-5)
    assert wilson(10, 10).high == pytest.approx(1)
    for right, count in ((3, 7), (50, 100)):
        p, z = right / count, 1.959964
        for end in (wilson(right, count).low, wilson(right, count).high):
            assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-9)
    assert accuracy_interval(Quality(samples=0, accuracy=0.0)) is None
    assert isinstance(accuracy_interval(Quality(samples=3, accuracy=1 / 3)), Interval)
