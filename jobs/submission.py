"""Creating jobs: what the user sent is checked, recorded once, and announced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jobs import layout, logs
from jobs.blobs import Blobs, bytes_of
from jobs.clock import Down
from jobs.errors import Conflict, NotFound, NotReady, QuotaExceeded, RejectedUpload, StorageFull, Unavailable
from jobs.ids import new_id
from jobs.items import Items
from jobs.ledger import Item, Ledger
from jobs.plans import check_pictures, plan
from jobs.records import JobView, now
from jobs.states import first
from jobs.uploads import OPTIONAL, USES
from jobs.views import Views
from pruning_core.errors import InputError, RecipeError
from pruning_core.recipe import Recipe

MAX_LABELS = 32
MAX_LABEL_LENGTH = 256
MAX_KEY_LENGTH = 255


class Submissions:
    """The use case of creating a job; `jobs.service.Service` offers it."""

    def __init__(self, ledger: Ledger, views: Views, items: Items) -> None:
        self._views, self._items = views, items
        self._blobs = Blobs(ledger, items.tenant)
        self._bucket, self._clock = ledger.bucket, ledger.clock

    def create(
        self,
        uploads: dict[str, str | None],
        recipe: Any,
        labels: dict[str, str],
        idempotency_key: str | None,
    ) -> tuple[JobView, bool]:
        """Record a job; see `jobs.service.Service.create_job`."""
        # Without what is not named: the digest of a repeated request stays what it was before there was such a field.
        named = {field: upload for field, upload in uploads.items() if upload is not None or field == "validation"}
        body = {**named, "recipe": recipe, "labels": _checked_labels(labels)}
        if idempotency_key is None:
            return self._record(new_id("job"), self._checked(body), None), True
        if not 0 < len(idempotency_key) <= MAX_KEY_LENGTH:
            raise InputError(
                "The idempotency key has an impossible length.",
                expected=f"1 to {MAX_KEY_LENGTH} characters",
                received=f"{len(idempotency_key)} characters",
            )
        where = layout.idempotency(idempotency_key, self._items.tenant)
        with self._one_at_a_time(f"idempotency:{where}"):
            return self._create_idempotent(body, where)

    def _create_idempotent(self, body: dict[str, Any], where: str) -> tuple[JobView, bool]:
        digest = _digest(body)
        known = self._bucket.get_json(where)
        if known is None:
            checked = self._checked(body)
            mine = {"job": new_id("job"), "digest": digest, "created_at": now()}
            if self._bucket.write_once(where, mine):
                return self._record(mine["job"], checked, where), True
            known = self._bucket.get_json(where) or mine
        job: str = known["job"]
        view = self._view(job)
        if known["digest"] != digest and not (view is not None and self._same(view, body)):
            raise Conflict(
                "This idempotency key was used before with another body.",
                advice="Use a new key for a new job; repeat a request with exactly the same body.",
                job=job,
            )
        if view is None:
            # A crash between the two writes leaves a key without its job: then it is made now, under the same id.
            view = self._record(job, self._checked(body), where)
        elif view.state == first("job"):
            # A crash after them leaves a job that nobody was told of until the next comparison with the bucket.
            self._items.announce(job)
        return view, False

    def _same(self, view: JobView, body: dict[str, Any]) -> bool:
        """Return whether a job is what was asked for but for the ids of its uploads: other ones with the same bytes."""
        if (view.recipe, view.labels) != (body["recipe"], body["labels"]):
            return False
        named = {field: str(body[field]) for field in USES if body.get(field) is not None}
        found = {field: self._items.find(USES[field], upload) for field, upload in named.items()}
        sent = {field: upload and upload.request["sha256"] for field, upload in found.items()}
        return sent == {field: known.sha256 for field, known in view.inputs.items()}

    def plan(self, uploads: dict[str, str | None], recipe: Any) -> dict[str, Any]:
        """Say what such a job would do; see `jobs.service.Service.plan`."""
        parsed = Recipe.parse(recipe)
        found = self._uploads(parsed, uploads, OPTIONAL | {"calibration"})
        model = found["model"]
        if model.outcome is None:
            raise NotReady(
                "The model is still being inspected.",
                expected="ready",
                received="inspecting",
                advice="Poll the model until it is ready.",
            )
        ready = {field: item.outcome.get("result") for field, item in found.items() if item.outcome is not None}
        return plan(parsed, ready["model"] or {}, ready.get("calibration"), ready.get("masks"))

    def _checked(self, body: dict[str, Any]) -> dict[str, Any]:
        recipe = Recipe.parse(body["recipe"])
        uploads = self._uploads(recipe, body, OPTIONAL)
        ready = {field: item.outcome.get("result") for field, item in uploads.items() if item.outcome is not None}
        for field in ("calibration", "validation"):
            check_pictures(recipe, ready.get("model"), ready.get(field))
        inputs = {field: _input(upload) for field, upload in uploads.items()}
        return {**body, "normalised": recipe.model_dump(mode="json"), "inputs": inputs}

    def _uploads(self, recipe: Recipe, body: dict[str, Any], optional: frozenset[str]) -> dict[str, Item]:
        """Return the uploads that are named, by field; all are there, and none is known to be unusable."""
        _check_masks(recipe, body.get("masks"))
        items = {}
        for field, kind in USES.items():
            upload = body.get(field)
            if upload is None and field in optional:
                continue
            wanted = str(upload)
            found = self._items.find(kind, wanted)
            if found is None:
                raise _no_such(field, wanted)
            if found.outcome is not None and found.outcome["state"] == "rejected":
                raise rejection(field, wanted, found.outcome.get("problem"))
            items[field] = found
        return items

    def _record(self, job: str, checked: dict[str, Any], idempotency: str | None) -> JobView:
        self._items.expect()
        request = {
            "id": job,
            "kind": "job",
            "created_at": now(),
            **logs.origin(),
            **checked,
            "idempotency": idempotency,
        }
        self._refer(job, checked)
        try:
            recorded = self._items.record(job, request)
        except (QuotaExceeded, StorageFull):
            self._let_go(job, checked)
            raise
        if recorded:
            self._items.announce(job)
            return self._views.job(Item(id=job, request=request, outcome=None))
        view = self._view(job)
        if view is None:
            raise Unavailable("The bucket lost a job that it just held.", advice="Try again in a moment.")
        return view

    def _refer(self, job: str, checked: dict[str, Any]) -> None:
        """Keep the bytes for the job, even if an upload is deleted in this very moment."""
        inputs = checked["inputs"]
        for known in inputs.values():
            self._blobs.refer(known["blob"], job)
        for field in inputs:
            if self._bucket.head(layout.request(checked[field])) is None:
                self._let_go(job, checked)
                raise _no_such(field, checked[field])

    def _let_go(self, job: str, checked: dict[str, Any]) -> None:
        for known in checked["inputs"].values():
            self._blobs.release(known["blob"], job)

    def _view(self, job: str) -> JobView | None:
        found = self._items.read(job)
        return None if found is None else self._views.job(found)

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                locked = stack.enter_context(self._clock.lock(name, seconds=60, wait=20))
            except Down:
                locked = True  # then write_once's own lock, and the server's If-None-Match, must do
            if not locked:
                raise Conflict("A request with this idempotency key is being handled.", advice="Try again.")
            yield


def _no_such(field: str, received: str) -> NotFound:
    kind = USES[field]
    return NotFound(
        f"{field}: there is no {kind} of this id.",
        expected=f"the id of an uploaded {kind}",
        received=received[:64],
        advice=f"Upload it first: POST /{kind}s.",
        field=field,
    )


def _input(upload: Item) -> dict[str, Any]:
    """Return what a job keeps in mind of an upload: where its bytes are, and what to call them when it is deleted."""
    about = {name: upload.request.get(name) for name in ("filename", "size", "sha256")}
    verified = {} if upload.request.get("verified", True) else {"verified": False}
    return {"blob": bytes_of(upload), **about, **verified}


def rejection(field: str, upload: str, problem: dict[str, Any] | None) -> RejectedUpload:
    """Return the error of a job that names a rejected upload, with what the inspection found."""
    return RejectedUpload(
        f"{field}: the upload was rejected: {(problem or {}).get('detail', 'no reason was recorded')}",
        received=upload,
        advice=(problem or {}).get("advice"),
        field=field,
        problem=problem,
    )


def _check_masks(recipe: Recipe, masks: str | None) -> None:
    if recipe.needs_mask and masks is None:
        raise RecipeError(
            "The recipe takes its mask from an upload, and the job names none.",
            expected='"masks": the id of an uploaded mask',
            advice="Upload one (curl -T masks.safetensors …/masks/), or choose another pattern.",
            field="masks",
        )
    if masks is not None and not recipe.needs_mask:
        raise RecipeError(
            "The job names a mask that the recipe does not use.",
            expected='a recipe whose pattern is "mask", or with `refine` alone',
            received=str(masks)[:64],
            advice='Leave out "masks", or choose the pattern "mask".',
            field="masks",
        )


def _checked_labels(labels: dict[str, str]) -> dict[str, str]:
    fits = (
        isinstance(labels, dict)
        and len(labels) <= MAX_LABELS
        and all(isinstance(text, str) and len(text) <= MAX_LABEL_LENGTH for pair in labels.items() for text in pair)
    )
    if not fits:
        raise InputError(
            "The labels cannot be used.",
            expected=f"at most {MAX_LABELS} pairs of texts of at most {MAX_LABEL_LENGTH} characters",
        )
    return labels


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
