"""The pages of docs/ do what they say: their commands and snippets run, in order, against the running service."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from api.recipe_schema import recipe_schema
from pruning_core.recipe import Recipe, catalogue
from tests.documents import DOCS, ROOT, Snippet, run, run_script, snippets

README = ROOT / "README.md"
#: Pages whose snippets other tests run.
ELSEWHERE = {
    "api.md": "service/test_api_reference.py",
    "cli.md": "service/test_command_line.py",
    "after-pruning.md": "worker/test_after_pruning.py",
}
PAGES = [README, *sorted(path for path in DOCS.rglob("*.md") if "generated" not in path.parts)]
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
QUICK_START = DOCS / "quick-start.md"
#: Blocks that are no snippets: MyST's own.
DIRECTIVES = ("{include}", "{literalinclude}")
#: Commands that change the machine, and those that a person or a test of its own starts.
NOT_RUN = ("pip install ", "prune --install-completion ")
#: What a line begins with that is a command.
COMMANDS = ("make", "prune", "curl", "python", "python3", "pip", "docker", "git", "source", "export")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def where(one: object) -> str:
    return one.relative_to(DOCS).as_posix() if isinstance(one, Path) else str(one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quick start's first snippet leaves behind, which the how-to pages begin with."""
    folder = tmp_path_factory.mktemp("trained")
    run(snippets(QUICK_START, "python")[:1], folder)
    return folder


@needs_curl
def test_quick_start(live: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    out = run(snippets(QUICK_START, "sh", "python")[1:], tmp_path, {"PRUNING_URL": live}).stdout
    sparsity = next(float(line) for line in out.splitlines() if re.fullmatch(r"0\.\d+", line))
    assert sparsity == pytest.approx(0.8, abs=0.001)
    assert "<svg" in (tmp_path / "report.html").read_text("utf-8")


@needs_curl
@pytest.mark.parametrize("page", [page for page in HOW_TO if page.stem != "index"], ids=where)
def test_how_to(page: Path, live: str, operator: dict[str, str], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shown = snippets(page, "sh", "python")
    assert shown
    more = operator if page.stem == "keys" else {}
    run(shown, tmp_path, {**more, "PRUNING_URL": live})


@needs_curl
def test_readme(live: str, tmp_path: Path) -> None:
    """How it exports a network, and the same job with and without the service; the rest is in test_documents.py."""
    export, _ = snippets(README, "python")
    (tmp_path / "export.py").write_text(
        "import numpy, torch\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))\n"
        "x = torch.rand(60, 16)\n"
        "y = model(x).argmax(1)\n" + export.code
    )
    run_script("python3 export.py && cp calibration.npz validation.npz", tmp_path).check_returncode()
    commands = snippets(README, "sh")
    assert commands
    run(commands, tmp_path, {"PRUNING_URL": live})
    assert (tmp_path / "digits-pruned.pt2").stat().st_size > 1000


RECIPES = [
    Snippet(page, one.line, "json", line)
    for page in PAGES
    for one in snippets(page, "json")
    for line in (one.code.splitlines() if page == README else [one.code])
]


@pytest.mark.parametrize("shown", RECIPES, ids=str)
def test_recipe(shown: Snippet) -> None:
    """Each is what POST /plans and the library take, and the algorithm can serve its pattern."""
    document = json.loads(shown.code)
    recipe = Recipe.parse(document)
    jsonschema.Draft202012Validator(recipe_schema()).validate(document)
    if shown.page.parent.name == "algorithms" and shown.page.stem in catalogue():
        part = catalogue()[shown.page.stem]["part"]
        assert getattr(recipe, part).algorithm == shown.page.stem


def test_each_page_of_an_algorithm_has_a_recipe_options_and_its_source() -> None:
    for page in (DOCS / "algorithms").glob("*.md"):
        if page.stem == "index":
            continue
        assert page.stem in catalogue(), f"{page} is of no algorithm that there is"
        text = page.read_text("utf-8")
        assert snippets(page, "json"), page
        assert f"../generated/options/{page.stem}.md" in text, page
        assert f"../generated/facts/{page.stem}.md" in text, page
        assert "$" in text or page.stem == "best", f"{page} says nothing of what is minimised"


def test_no_snippet_is_left_out() -> None:
    """What stands in a block is run here, or by the test that the page has; what is not run is no command."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name, test in ELSEWHERE.items():
        code = (ROOT / "tests" / test).read_text("utf-8")
        assert name in code, name
        assert "snippets(" in code, name
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(snippets(page)), f"{page} has a block that is not seen"
        for one in snippets(page):
            if one.language.startswith("{"):
                assert one.language.startswith(DIRECTIVES), one
            elif one.language in ("sh", "python"):
                known = page in HOW_TO or page in (QUICK_START, README) or page.name in ELSEWHERE
                assert known, f"nobody runs {one}"
            elif one.language == "bash":
                assert one.code.strip() in (ROOT / "demo" / "session.sh").read_text("utf-8"), one
            elif one.language == "yaml":
                assert yaml.safe_load(one.code), one
            elif one.language == "json":
                assert [known for known in RECIPES if (known.page, known.line) == (one.page, one.line)], one
            else:
                assert one.language in ("", "text"), f"{one} has the language {one.language!r}"
                for line in filter(None, one.code.splitlines()):
                    word, *rest = line.split()
                    made = word == "make" and rest[0] in targets
                    assert word not in COMMANDS or made or line.startswith(NOT_RUN), f"nobody runs {one}: {line!r}"
