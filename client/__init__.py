"""A client of the pruning service, for programs: `Client` blocks, `AsyncClient` does not.

::

    with Client() as service:
        model = service.upload("model", "net.pt2")
        data = service.upload("dataset", "calibration.npz")
        job = service.create_job(model.id, data.id, {"select": {"algorithm": "chita", "sparsity": 0.9}})
        service.wait_job(job.id).check()
        service.download(job.id, "model", "net-pruned.pt2")

It knows the service by its HTTP contract only, and repeats safely what a broken connection cut off.
"""

from client.aio import AsyncClient
from client.errors import ClientError, DigestMismatch, NotOffered, Problem, StillRunning, Unreachable
from client.models import Algorithm, Algorithms, Event, Job, Plan, ReportDocument, Upload
from client.retries import Retry
from client.sync import Client

__all__ = [
    "Algorithm",
    "Algorithms",
    "AsyncClient",
    "Client",
    "ClientError",
    "DigestMismatch",
    "Event",
    "Job",
    "NotOffered",
    "Plan",
    "Problem",
    "ReportDocument",
    "Retry",
    "StillRunning",
    "Unreachable",
    "Upload",
]
