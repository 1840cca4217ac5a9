"""Does every network that exports work? One row per class: export, read, forward, gradients, prune, write, reload.

    python -m benchmarks.zoo [--only NAME ...] [--jobs 2] [--limit 90] [--output FILE.md] [--rows FILE.json]

Each class runs in a process of its own with a time limit. Tiny configurations, random weights, float32 as people have
it. ``=`` says equal to the bit, ``~`` equal within `TOLERANCE` of the largest value; what the reader refuses is listed
with its reason. ``--rows`` keeps what works: a run that was stopped goes on, and what did not work is tried again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor

from benchmarks import zoo_models
from benchmarks.zoo_table import TOLERANCE, Row, markdown
from pruning_core.calibration import Dataset
from pruning_core.errors import PruningError, UnsupportedModel
from pruning_core.formats import read_model, write_model
from pruning_core.network import Network
from pruning_core.pipeline import finish, prune
from pruning_core.recipe import Recipe

RECIPES: tuple[dict[str, Any], ...] = (
    {"select": {"algorithm": "magnitude", "sparsity": 0.5}},
    {"select": {"algorithm": "wanda", "sparsity": 0.5, "pattern": {"scope": "layer"}}},
)


def flat(value: Any) -> list[Tensor]:
    """Return the tensors of a nest of dictionaries and sequences, as torch.export orders them."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def compared(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Return ``=`` or ``~``, or raise AssertionError."""
    assert len(got) == len(wanted), f"{len(got)} tensors, not {len(wanted)}"
    if all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)):
        return "="
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape, f"shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"{a.dtype}, not {b.dtype}"
        scale = b.double().abs().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-3) if b.numel() else 1.0
        gap = (a.double() - b.double()).nan_to_num(0.0, 0.0, 0.0).abs()
        assert not b.numel() or float(gap.max() / scale) <= TOLERANCE, f"differs by {float(gap.max() / scale):.1e}"
    return "~"


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """Return a scalar that every output has a part in."""
    parts = [o for o in outputs if o.is_floating_point() and o.numel() and o.requires_grad]
    return sum(
        ((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in parts), torch.zeros(())
    )


def exported(module: torch.nn.Module, inputs: tuple[Any, ...], path: Path) -> str:
    """Write the archive: with a free batch where the network lets one, else fixed; return which."""
    free = torch.utils._pytree.tree_map(lambda _: {0: torch.export.Dim("batch", min=2, max=64)}, inputs)
    if isinstance(module, zoo_models.Answer):
        free = (free,)  # its one argument is *inputs
    try:
        program = torch.export.export(module, inputs, dynamic_shapes=free)
        kind = "free"
    except Exception:
        program = torch.export.export(module, inputs)
        kind = "fixed"
    torch.export.save(program, path)
    return kind


def examine(case: zoo_models.Case, folder: Path, row: Row) -> None:
    """Fill a row step by step; whatever is raised belongs to the step that ``row["at"]`` names."""
    torch.manual_seed(0)
    row["at"] = "build"
    module, inputs = case.make()
    wanted = flat(module(*inputs))
    row["at"] = "export"
    row["export"] = exported(module, inputs, folder / "model.pt2")
    row["at"] = "read"
    network = read_model(folder / "model.pt2")
    row["read"] = "yes"
    row["layers"] = str(len(network.layers))
    given = flat(inputs)
    row["at"] = "forward"
    row["forward"] = compared([t.detach() for t in network.run(given)], [t.detach() for t in wanted])
    row["at"] = "gradients"
    loss(wanted).backward()
    own = own_backwards(wanted)
    try:
        row["gradients"] = gradients(module, network, given)
    except AssertionError as error:
        if not own:
            raise
        module.zero_grad()
        for function in own:  # from here on autograd goes through what it computes
            function.apply = partial(function.forward, Mock())
        loss(flat(module(*inputs))).backward()
        row["gradients"] = gradients(module, network, given)
        called = ", ".join(function.__name__ for function in own)
        row["note"] = (
            f"{called} has a backward that is not the derivative of its forward ({error}), and that no exported graph "
            "keeps; compared with the derivative of its forward"
        )
    row["at"] = "prune"
    pruned = network
    if network.layers:
        for recipe in RECIPES:
            pruned = finish(prune(network, Dataset(inputs=tuple(given)), Recipe.parse(recipe))).network
        row["prune"] = "yes"
    else:
        row["prune"] = "no layer"
    row["at"] = "write"
    write_model(pruned, folder / "model.pt2", folder / "pruned.pt2")
    row["write"] = "yes"
    row["at"] = "reload"
    try:
        again = torch.export.load(folder / "pruned.pt2").module()
    except Exception as error:
        if loads(folder / "model.pt2"):
            raise
        row["reload"] = compared(read_model(folder / "pruned.pt2").run(given), pruned.run(given)) + " (read here)"
        row["note"] = f"torch.export.load does not read the file that torch.export.save wrote either: {error}"
    else:
        with torch.no_grad():
            row["reload"] = compared(pruned.run(given), flat(again(*inputs)))
    row["at"] = ""


def loads(path: Path) -> bool:
    """Return whether torch can read an archive that it wrote."""
    try:
        torch.export.load(path)
    except Exception:
        return False
    return True


def own_backwards(outputs: Sequence[Tensor]) -> set[Any]:
    """Return the ``autograd.Function`` classes that the outputs went through."""
    found: set[Any] = set()
    seen: set[Any] = set()
    todo = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                found.add(type(node)._forward_cls)  # type: ignore[attr-defined]
            todo += [following for following, _ in node.next_functions if following is not None]
    return found


def gradients(module: torch.nn.Module, network: Network, given: Sequence[Tensor]) -> str:
    """Compare the gradient in every parameter with that of the module, which autograd has found."""
    leaves = {n: t.clone().requires_grad_() for n, t in network.weights.items() if t.is_floating_point()}
    found = torch.autograd.grad(loss(network.run(given, leaves)), [*leaves.values()], allow_unused=True)
    own = dict(zip(leaves, found, strict=True))
    parameters = {n: p for n, p in module.named_parameters() if n in own}
    assert parameters, "no parameter in common"
    pairs = [(own[n], p.grad, p) for n, p in parameters.items()]
    none = torch.zeros
    scale = max(
        (float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None and p.numel()), default=1.0
    )
    a = [g / scale if g is not None else none(p.shape, dtype=p.dtype) for g, _, p in pairs]
    b = [g / scale if g is not None else none(p.shape, dtype=p.dtype) for _, g, p in pairs]
    return compared([torch.cat([t.reshape(-1).double() for t in a])], [torch.cat([t.reshape(-1).double() for t in b])])


def _examined(case: zoo_models.Case, row: Row) -> None:
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        examine(case, Path(folder), row)


def _child(work: Callable[[zoo_models.Case, Row], None], case: zoo_models.Case, pipe: Any) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 - the process ends with it
    row: Row = {"name": case.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            work(case, row)
        except UnsupportedModel as error:
            row["refused"] = error.detail
        except PruningError as error:
            row["error"] = f"{type(error).__name__}: {error.detail}"
        except BaseException as error:
            row["error"] = f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
            row["trace"] = traceback.format_exc()[-3000:]
    pipe.send(row)
    pipe.close()


def apart(work: Callable[[zoo_models.Case, Row], None], case: zoo_models.Case, limit: float) -> Row:
    """Let a function fill a network's row in a fork of this process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, case, theirs), daemon=True)
    process.start()
    theirs.close()
    row: Row = {"name": case.name, "at": "?", "error": f"not done within {limit:.0f} s"}
    try:
        if ours.poll(limit):
            row = ours.recv()
    except EOFError:
        row["error"] = "the process died"
    if process.is_alive() and "not done" in row.get("error", ""):
        process.kill()
    process.join()
    return row


def main() -> int:
    """Run the zoo and write the table; the status says whether one that exports fails without being refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=90)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "zoo.md")
    parser.add_argument("--rows", type=Path)
    chosen = parser.parse_args()
    kept = json.loads(chosen.rows.read_text("utf-8")) if chosen.rows and chosen.rows.exists() else {}
    cases = [c for c in zoo_models.chosen() if not chosen.only or c.name in chosen.only]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        rows = []
        for row in pool.map(lambda case: kept.get(case.name) or apart(_examined, case, chosen.limit), cases):
            rows.append(row)
            if chosen.rows and row.get("reload"):
                kept[row["name"]] = row
                chosen.rows.write_text(json.dumps(kept), "utf-8")
            state = "refused: " + row["refused"] if row.get("refused") else row.get("error", "works")
            print(f"{len(rows)}/{len(cases)} {row['name']}: {row.get('at') or ''} {state[:150]}", flush=True)
            if chosen.only and row.get("trace"):
                print(row["trace"])
            if not chosen.only and (
                len(rows) % 10 == 0 or len(rows) == len(cases)
            ):  # a run that is stopped leaves a table
                chosen.output.write_text(markdown(rows), "utf-8")
    return int(any(r.get("export") and not r.get("reload") and not r.get("refused") for r in rows))


if __name__ == "__main__":
    sys.exit(main())
