"""Load the downloaded model with plain ``torch.export.load`` and say what was gained.

The accuracies are measured here, on the held-out digits, independently of the report; magnitude pruning at the same
sparsity is done here too. Loading an archive with ``torch.export.load`` can run code from it: do it, as here, only
with a file that you made yourself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch


def accuracy(program: torch.export.ExportedProgram, folder: Path) -> float:
    """Return the fraction of the held-out digits that this program names right."""
    with np.load(folder / "validation.npz") as held_out, torch.no_grad():
        prediction = program.module()(torch.from_numpy(held_out["x"])).argmax(1)
        return (prediction == torch.from_numpy(held_out["y"])).double().mean().item()


def matrices(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """Return the weights of the linear and convolution layers."""
    return [weight.data for weight in program.parameters() if weight.dim() > 1]


def main(folder: Path) -> int:
    dense = torch.export.load(folder / "digits.pt2")
    pruned = torch.export.load(folder / "digits-pruned.pt2")
    before, after = accuracy(dense, folder), accuracy(pruned, folder)
    zeros = sum(int((weight == 0).sum()) for weight in matrices(pruned))
    count = sum(weight.numel() for weight in matrices(pruned))

    weights = matrices(dense)
    size = torch.cat([weight.abs().flatten() for weight in weights])
    threshold = size.kthvalue(max(zeros, 1)).values
    for weight in weights:
        weight.mul_(weight.abs() > threshold)
    magnitude = accuracy(dense, folder)

    report = json.loads((folder / "report.json").read_text("utf-8"))
    (file,) = report["files"]
    print(
        f"""
accuracy on 540 held-out digits   dense {before:7.2%}   magnitude {magnitude:7.2%}   CHITA {after:7.2%}
sparsity, measured                {zeros / count:.2%}  ({zeros} of {count} weights are zero)
file size                         before {file["size_bytes_before"]:,} bytes   after {file["size_bytes"]:,}
file size, zstd                   before {file["compressed_bytes_before"]:,} bytes   after {file["compressed_bytes"]:,}
file size, compact form           after {file["compact_bytes"]:,} bytes
speed                             {file["speedup"]}
seconds per stage                 """,
        end="",
    )
    print("   ".join(f"{stage['name']} {stage['seconds']:.2f}" for stage in report["pruning"]["stages"]))
    if after < magnitude:
        print("CHITA did worse than magnitude pruning here: that should not be", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
