"""Plans: what a job would do, from what the inspections found."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plans import kept
from pruning_core.patterns import build
from pruning_core.recipe import Select
from tests.api.finished_job import accept, reject
from tests.api.live_api import Api, problem, safetensors_bytes, zip_bytes

LAYERS = [
    {"name": "conv", "weight": "conv.weight", "kind": "conv", "shape": [8, 6, 3, 3], "weights": 432},
    {"name": "head", "weight": "head.weight", "kind": "linear", "shape": [10, 50], "weights": 500},
]
MODEL = {"format": "pt2", "parameters": 950, "layers": LAYERS, "unprunable": {"lstm.w": "too deep"}, "inputs": []}


@pytest.fixture
def model(running_api: Api, http: httpx.Client) -> str:
    upload: str = http.put("/models/net.pt2", content=zip_bytes(50)).json()["id"]
    accept(running_api.service, upload, MODEL)
    return upload


def plan(http: httpx.Client, model: str, select: dict[str, Any], **more: Any) -> Any:
    recipe = {"select": {"algorithm": "magnitude", **select}}
    return http.post("/plans", json={"model": model, "recipe": recipe, **more})


def test_a_plan_fills_in_defaults_and_counts(http: httpx.Client, running_api: Api, model: str) -> None:
    data = http.put("/datasets/d.npz", content=zip_bytes(50)).json()["id"]
    accept(running_api.service, data, {"samples": 40, "arrays": {"x": {"dtype": "float32", "shape": [40, 6]}}})
    before = len(http.get("/jobs").json()["items"])
    response = plan(
        http, model, {"algorithm": "chita", "sparsity": [0.5, 0.9], "layers": {"exclude": ["conv"]}}, calibration=data
    )
    assert response.status_code == 200, response.text
    document = response.json()
    assert document["recipe"]["select"]["block_size"] == 500
    assert document["recipe"]["seed"] == 0
    assert {layer["name"]: layer["takes_part"] for layer in document["layers"]} == {"conv": False, "head": True}
    assert document["unprunable"] == MODEL["unprunable"]
    assert [(level["sparsity"], level["kept"]) for level in document["levels"]] == [(0.5, 250), (0.9, 50)]
    assert document["estimate"]["memory_bytes"] > 500 * 2**20
    assert document["estimate"]["rule"]
    assert len(http.get("/jobs").json()["items"]) == before, "nothing is queued"
    goal = plan(http, model, {"sparsity": {"max_accuracy_drop": 0.01}}).json()
    assert goal["levels"] == [{"sparsity": None, "weights": 932, "kept": None, "sparsity_reached": None}]


def test_a_plan_looks_whether_the_mask_fits(http: httpx.Client, running_api: Api, model: str) -> None:
    for shape, status in (([10, 50], 200), ([10, 49], 422)):
        mask = http.put("/masks", content=safetensors_bytes()).json()["id"]
        found = {"name": "head.weight", "shape": shape, "weights": 500, "kept": 100}
        accept(running_api.service, mask, {"weights": 500, "kept": 100, "masks": [found]})
        response = plan(http, model, {"pattern": "mask"}, masks=mask)
        assert response.status_code == status, response.text
        if status == 200:
            assert response.json()["levels"][0]["kept"] == 100
            assert [layer["takes_part"] for layer in response.json()["layers"]] == [False, True]
        else:
            document = problem(response, 422, "invalid-mask")
            assert (document["expected"], document["received"]) == ([10, 50], [10, 49])


def test_what_cannot_be_planned(http: httpx.Client, running_api: Api, model: str) -> None:
    fresh = http.put("/models/net.pt2", content=zip_bytes(50)).json()["id"]
    problem(plan(http, fresh, {"sparsity": 0.5}), 409, "not-ready")
    reject(running_api.service, fresh, {"detail": "hostile"})
    problem(plan(http, fresh, {"sparsity": 0.5}), 422, "rejected-upload")
    problem(plan(http, "mdl_x", {"sparsity": 0.5}), 404, "not-found")
    problem(plan(http, model, {"sparsity": 5}), 422, "invalid-recipe")
    problem(plan(http, model, {"pattern": "mask"}), 422, "invalid-recipe")
    problem(plan(http, model, {"sparsity": 0.5, "layers": {"include": []}}), 422, "nothing-to-prune")
    problem(plan(http, model, {"sparsity": 0.5}, labels={}), 422, "invalid-request")
    problem(http.post("/plans", content=b"{"), 400, "malformed-request")
    assert http.get("/plans").status_code == 405


_SHAPE = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


@given(
    st.lists(_SHAPE, min_size=1, max_size=4),
    st.floats(0, 0.999),
    st.sampled_from(
        ["2:4", "1:3", "4x1", "2x3", {"scope": "layer"}, {"type": "block", "shape": [1, 4], "scope": "layer"}]
    ),
)
def test_the_counts_are_those_of_the_patterns(shapes: list[tuple[int, ...]], sparsity: float, pattern: Any) -> None:
    given_sparsity = {} if pattern in ("2:4", "1:3") else {"sparsity": sparsity}
    select = Select.model_validate({"algorithm": "magnitude", "pattern": pattern, **given_sparsity})
    (level,) = select.levels
    assert kept(select, level, shapes) == build(select.pattern, shapes, level, None).kept
