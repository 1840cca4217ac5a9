"""A transformers model and its weights -> `Network`, through torch.export of a module that was built here.

The graph is taken as data, as that of a file is, and goes through the same allowlist.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning_core.errors import ModelError, PruningError, UnsupportedModel
from pruning_core.formats.hf_config import build
from pruning_core.formats.pt2 import Signature
from pruning_core.network.graph import Graph
from pruning_core.network.network import Input, Network

#: Words in a sample where the number is not free.
_LENGTH = 128
_MAX_PIXELS = 2**24
_ADVICE = "Export it yourself: torch.export.save(torch.export.export(model.eval(), ...), 'model.pt2')."


class Tokens(nn.Module):
    """A text model with its two usual inputs; returns what its head gives, or the last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits or states."""
        return _answer(self.model(input_ids=input_ids, attention_mask=attention_mask))


class Pixels(nn.Module):
    """An image model; returns what its head gives, or the last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits or states."""
        return _answer(self.model(pixel_values=pixel_values))


def _answer(found: Any) -> Tensor:
    logits: Tensor | None = getattr(found, "logits", None)
    answer: Tensor = found[0] if logits is None else logits
    return answer


def network_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
    """Return the network of a configuration and the weights of its file.

    Args:
        config: Of transformers.
        tensors: By the names of the file.

    Raises:
        ModelError: The weights are not those of the architecture.
        UnsupportedModel: The architecture cannot be exported, or uses what is not supported.
    """
    plan = _plan(json.dumps(config, sort_keys=True), tensors)
    held = {**tensors, **plan.made}
    return Network(
        graph=plan.graph,
        weights={name: held[name].detach() for name in plan.names},
        parameters=plan.parameters,
        inputs=plan.inputs,
        fixed=dict.fromkeys(plan.made, "is not in the file"),
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of a network but the weights of its file.

    Attributes:
        graph: What it computes.
        inputs: What it takes.
        names: Of its weights: the file's, where they are in the file.
        parameters: Which of them are parameters.
        made: Those that are not in the file: tables that follow from the configuration.
    """

    graph: Graph
    inputs: Sequence[Input]
    names: Sequence[str]
    parameters: Collection[str]
    made: Mapping[str, Tensor]


#: The last plan, and what it was made for. A job reads the dense file and each pruned one, of the same configuration
#: and the same shapes: building and exporting them again would give the same graph.
_last: tuple[Any, Plan] | None = None


def _plan(config: str, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan for a configuration and tensors of these names, shapes and dtypes; one is kept."""
    global _last
    wanted = (config, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    last = _last
    if last is None or last[0] != wanted:
        last = _last = (wanted, _made(json.loads(config), tensors))
    return last[1]


def _made(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Plan:
    """Build the model, put the tensors in their places and export it."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) != 1:
        raise ModelError("The weights should have one floating-point dtype.", received=sorted(map(str, dtypes)))
    dtype = dtypes.pop()
    module, own, takes, file_names = build(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    module = module.to(dtype)
    tensors = {name: tensors[given] for name, given in file_names.items()}
    _load(module, tensors)
    wrapped = Pixels(module) if takes == "pixels" else Tokens(module)
    program = _exported(wrapped, [*_examples(own, takes, dtype)])
    signature = Signature(_as_data(program), {*program.state_dict, *program.constants})
    held = {**program.constants, **program.state_dict}
    names = {node: name.removeprefix("model.") for node, name in signature.weights.items()}
    values = {names[node]: held[name] for node, name in signature.weights.items()}
    canonical = _canonical(values, tensors)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    called = {name: file_names.get(name, name) for name in dict.fromkeys(canonical.values())}
    return Plan(
        graph=signature.graph({node: called[canonical[name]] for node, name in names.items()}),
        inputs=signature.inputs,
        names=list(called.values()),
        parameters={given for name, given in called.items() if name in parameters},
        made={given: values[name].detach() for name, given in called.items() if name not in tensors},
    )


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the file's tensors in the module's places; tied names see the one tensor."""
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]): tensor for name, tensor in tensors.items() if name in own}
    if lost := [name for name, place in own.items() if id(place) not in given and place.is_floating_point()]:
        raise ModelError(f"The file has no weight {lost[0]!r}, and it is tied to none that it has.", received=lost[:20])
    whole = {name: given[id(place)] for name, place in own.items() if id(place) in given}
    parameters = {id(tensor): nn.Parameter(tensor, requires_grad=False) for tensor in whole.values()}
    for name, tensor in whole.items():
        path, _, leaf = name.rpartition(".")
        place = module.get_submodule(path)
        if leaf in place._parameters:
            place._parameters[leaf] = parameters[id(tensor)]
        else:
            place._buffers[leaf] = tensor


def _examples(config: Any, takes: str, dtype: torch.dtype) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """Yield sample inputs and which of their dimensions are free, the most general first."""
    batch = torch.export.Dim("batch", min=1, max=2**16)
    if takes == "pixels":
        size = getattr(config, "image_size", None) or 224
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        shape = (2, int(getattr(config, "num_channels", 3)), *map(int, sides[-2:]))
        if len(shape) != 4 or min(shape) < 1 or shape[1] * shape[2] * shape[3] > _MAX_PIXELS:
            raise ModelError("The config's images are of no usable size.", received=list(shape[1:]))
        pixels = torch.zeros(shape, dtype=dtype)
        yield (pixels,), ({0: batch},)
        yield (pixels[:1],), None
        return
    most = int(getattr(config, "max_position_embeddings", None) or _LENGTH)
    length = max(2, min(_LENGTH, most - 4))
    words = torch.ones((2, length), dtype=torch.int64)
    free = torch.export.Dim("length", min=2, max=max(4, most - 4))
    yield (words, words.clone()), ({0: batch, 1: free},) * 2
    yield (words, words.clone()), ({0: batch},) * 2
    yield (words[:1], words[:1].clone()), None


def _exported(module: nn.Module, examples: list[tuple[tuple[Tensor, ...], Any]]) -> torch.export.ExportedProgram:
    why = ""
    for inputs, free in examples:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                with torch.enable_grad():
                    return torch.export.export(module.eval(), inputs, dynamic_shapes=free)
            except (PruningError, MemoryError):
                raise
            except Exception as error:  # whatever the exporter does not take
                why = str(error).strip()[:300]
    raise UnsupportedModel(
        "The architecture cannot be exported with free or fixed shapes.", received=why, advice=_ADVICE
    )


def _as_data(program: torch.export.ExportedProgram) -> Any:
    """Return the graph as the JSON document that a .pt2 archive of it would have."""
    from torch._export.serde.serialize import EnumEncoder, GraphModuleSerializer, _dataclass_to_dict

    found = GraphModuleSerializer(program.graph_signature, program.module_call_graph).serialize(program.graph_module)
    return json.loads(json.dumps(_dataclass_to_dict(found), cls=EnumEncoder))  # type: ignore[no-untyped-call]


def _canonical(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> the one name of the same memory, that of the file where it has one."""
    first: dict[Any, str] = {}
    order = [*(name for name in values if name in tensors), *values]
    view = {
        name: (t.data_ptr(), t.dtype, tuple(t.shape), tuple(t.stride())) if t.numel() else name
        for name, t in values.items()
    }
    return {name: first.setdefault(view[name], name) for name in order}
