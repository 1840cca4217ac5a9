"""The baseline of polling: one FastAPI route that answers with a fixed job. ``uvicorn benchmarks.bare_api:app``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI

app = FastAPI()
_JOB: dict[str, Any] = json.loads(Path(os.environ["BARE_JOB"]).read_text("utf-8"))


@app.get("/jobs/{id}")
async def get(id: str) -> Any:
    """Return the job."""
    del id
    return _JOB
