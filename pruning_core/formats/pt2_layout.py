"""What is where in a ``.pt2`` archive. torch.export.save has written three layouts, all of which are read.

Torch 2.4 to 2.7 put ``serialized_exported_program.json`` beside files of ``torch.save``; torch 2.8 put such files in
the folders that archives have now; since torch 2.9 weights are raw records with a table in JSON. Such files
are read as `torch_file` reads any: their pickles are screened, and their tensors are views of their records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pruning_core.errors import ModelError, PruningError, UnsupportedModel
from pruning_core.formats.archive import Archive
from pruning_core.formats.pt2_weights import Payload, read_table
from pruning_core.formats.torch_file import read_tensors

EXPORT_ADVICE = (
    "Write the file with torch.export.save(torch.export.export(model.eval(), ...), path) of torch 2.4 or later."
)
#: The graph in the layout of torch 2.4 to 2.7, and its weights.
_GRAPH_24 = "serialized_exported_program.json"
_WEIGHTS_24, _CONSTANTS_24 = "serialized_state_dict.pt", "serialized_constants.pt"
#: All that is there in that layout. Sample inputs and extra files are never opened.
_KNOWN_24 = rf"{re.escape(_GRAPH_24)}|serialized_(state_dict|constants|example_inputs)\.pt|version|extra_files/.+"
#: Members that may be there since torch 2.8, below the archive's one folder.
_KNOWN = (
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment|models/[^/]+\.json|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/weights/[^/]+_weights_config\.json|data/constants/[^/]+_constants_config\.json"
    r"|data/(weights|constants|sample_inputs)/[^/]+\.pt|extra/.+"
)
#: What else torch.export.load would look at, and why we do not.
_REFUSED = (
    (r"data/constants/(custom|opaque)_obj_.*", "custom (pickled) objects"),
    (r"data/aotinductor/.*", "compiled code"),
    (r".*\.(so|dll|dylib|o|cpp|cubin|pyd)", "compiled code"),
)


@dataclass(frozen=True)
class Layout:
    """What is where in a checked archive.

    Attributes:
        archive: The archive; members of files within it are members of it too.
        model: Full name of the JSON graph.
        weights: Payloads of parameters and persistent buffers by name.
        constants: Payloads of the rest by name.
    """

    archive: Archive
    model: str
    weights: dict[str, Payload]
    constants: dict[str, Payload]

    @property
    def payloads(self) -> dict[str, Payload]:
        """All of them; parameters come first where a name occurs in both tables."""
        return {**self.constants, **self.weights}


def read_layout(path: Path) -> Layout:
    """Check an archive and its tables of weights.

    Raises:
        ModelError: It is broken or hostile.
        UnsupportedModel: It holds pickles of anything but tensors, compiled code or anything unknown.
    """
    archive = Archive(path)
    if _GRAPH_24 in archive.members:
        for name in archive.members:
            _check(name, name, _KNOWN_24)
        return _saved(archive, _GRAPH_24, _WEIGHTS_24, _CONSTANTS_24)
    root = _root(archive)
    inner = [name.removeprefix(root) for name in archive.members]
    for name in inner:
        _check(name, root + name, _KNOWN)
    for name, value in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        found = bytes(archive.view(root + name, 64))
        if found.strip() != value:
            raise UnsupportedModel(
                f"The archive's {name} is not supported.", expected=value.decode(), received=repr(found)
            )
    models = [name.removeprefix("models/").removesuffix(".json") for name in inner if name.startswith("models/")]
    if len(models) != 1:
        raise UnsupportedModel("The archive should hold one model.", expected=1, received=len(models))
    graph = f"{root}models/{models[0]}.json"
    weights, constants = f"{root}data/weights/", f"{root}data/constants/"
    saved = [name for name in inner if name.endswith(".pt") and not name.startswith(("data/sample_inputs/", "extra/"))]
    if saved:
        wanted = {f"{folder}{models[0]}.pt" for folder in (weights, constants)}
        if not {root + name for name in saved} <= wanted or any(name.endswith("_config.json") for name in inner):
            raise UnsupportedModel(
                "The archive holds weights in two forms, or of another model.",
                expected=sorted(wanted),
                received=saved[:9],
                advice=EXPORT_ADVICE,
            )
        return _saved(archive, graph, f"{weights}{models[0]}.pt", f"{constants}{models[0]}.pt")
    return Layout(
        archive,
        graph,
        read_table(archive, f"{weights}{models[0]}_weights_config.json", weights, "weight_"),
        read_table(archive, f"{constants}{models[0]}_constants_config.json", constants, "tensor_"),
    )


def _root(archive: Archive) -> str:
    roots = {name.split("/", 1)[0] for name in archive.members}
    if len(roots) != 1 or not all("/" in name for name in archive.members):
        raise ModelError(
            "The archive's members are not in one folder.", expected="one folder", received=sorted(roots)[:9]
        )
    return roots.pop() + "/"


def _check(inner: str, name: str, known: str) -> None:
    """Refuse a member that should not be there."""
    for pattern, what in _REFUSED:
        if re.fullmatch(pattern, inner) and not inner.startswith(("data/sample_inputs/", "extra/", "extra_files/")):
            raise UnsupportedModel(f"The archive holds {what}.", received=name, advice=EXPORT_ADVICE)
    if not re.fullmatch(known, inner):
        raise UnsupportedModel("The archive has a member that is not known.", received=name, advice=EXPORT_ADVICE)


def _saved(archive: Archive, graph: str, weights: str, constants: str) -> Layout:
    """Return the layout of an archive whose tensors are in files of torch.save."""
    found: list[dict[str, Payload]] = []
    whole = archive
    for name in (weights, constants):
        inside = archive.within(name)
        try:
            payloads = read_tensors(inside, f"The member {name!r}")
        except PruningError as error:
            error.advice = EXPORT_ADVICE
            raise
        whole = whole.joined(name, inside)
        found.append({key: replace(item, record=f"{name}/{item.record}") for key, item in payloads.items()})
    return Layout(whole, graph, *found)
