"""`prune`: the whole service from the command line. Imports no torch, no FastAPI and no boto3 until they are used."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, NoReturn

import typer

from cli import console, gate, local, looking, operating, results, submitting

app = typer.Typer(
    name="prune",
    help="Send a trained network, get it back sparse. Which service: --url or PRUNING_URL; the key: PRUNING_API_KEY.",
    epilog="Exit codes: 0 done, 1 the job failed or there was a problem, 2 usage, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    url: Annotated[
        str | None, typer.Option(envvar="PRUNING_URL", help="Base URL of the service.", show_default=False)
    ] = None,
    retry_seconds: Annotated[
        float, typer.Option(envvar="PRUNING_RETRY_SECONDS", min=0, help="How long a request that fails is repeated.")
    ] = 30.0,
) -> None:
    """Send a trained network, get it back sparse. Which service: --url or PRUNING_URL; the key: PRUNING_API_KEY."""
    console.WHERE = console.Where(url=url, retry_seconds=retry_seconds)


for function in (
    operating.up,
    submitting.submit,
    submitting.plan,
    looking.jobs,
    looking.job,
    looking.wait,
    looking.cancel,
    looking.delete,
    results.download,
    results.report,
    results.verify,
    local.run,
    looking.algorithms,
    gate.gate,
):
    app.command()(function)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
#: Their options are those of the modules they run, which read them themselves.
for passing in (operating.masks, operating.export, operating.keys, operating.quotas):
    app.command(add_help_option=False, context_settings=_PASSED_ON)(passing)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise console.Terminated


def main() -> None:
    """Run the command."""
    signal.signal(signal.SIGTERM, _terminated)
    app(prog_name="prune")


if __name__ == "__main__":
    main()
