"""What a job that succeeded has to give."""

from __future__ import annotations

from jobs.artifacts import ArtifactName, wanted
from jobs.bucket import Bucket
from jobs.errors import NotFound, NotReady
from jobs.items import Items
from jobs.s3 import Stored
from jobs.states import ENDED
from jobs.views import Views


class Results:
    """The use case, for one tenant; `jobs.service.Service` offers it."""

    def __init__(self, bucket: Bucket, views: Views, items: Items) -> None:
        self._bucket, self._views, self._items = bucket, views, items

    def artifact(self, job: str, name: ArtifactName, sparsity: float | None) -> Stored:
        """Return the record of an artifact; see `jobs.service.Service.artifact`."""
        found = self._items.find("job", job)
        if found is None:
            raise NotFound("There is no job of this id.", received=job[:64])
        view = self._views.job(found)
        if found.outcome is None or view.state != "succeeded":
            raise NotReady(
                f"The job has no {name}: it is {view.state}.",
                expected="succeeded",
                received=view.state,
                advice="Poll the job until it has succeeded." if view.state not in ENDED else "See the job's error.",
                error=view.error,
            )
        stored = self._bucket.head(wanted(found.outcome["artifacts"], name, sparsity)["key"])
        if stored is None:
            raise NotFound(f"The {name} of this job is not in the bucket any more.")
        return stored
