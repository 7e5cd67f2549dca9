"""The ways that rules are run: in memory, to files of each format, verified, compared, through a view, loaded."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remapkit.api.ruleset import compile_rules
from remapkit.cli import app as cli
from remapkit.compute.remapped_reader import Remapped
from remapkit.diagnostics.errors import RemapkitError
from remapkit.formats.detect import open_checkpoint
from remapkit.loading import load_into
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name
from remapkit.tensors.spec import TensorSpec

Tensors = Mapping[str, tuple[TensorSpec, bytes]]


class Refused(Exception):
    """The code of what a way was refused with."""


def state_dict(given: Tensors) -> dict[str, torch.Tensor]:
    """The tensors in memory; raises KeyError for dtypes that torch has no name for."""
    return {fqn: tensor_of(spec, raw) for fqn, (spec, raw) in given.items()}


def tensor_of(spec: TensorSpec, raw: bytes) -> torch.Tensor:
    dtype = TORCH_DTYPES[spec.dtype]
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(spec.shape)


def found(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[TensorSpec, bytes]]:
    return {
        fqn: (
            TensorSpec(get_dtype_name(each.dtype), tuple(each.shape)),
            each.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for fqn, each in tensors.items()
    }


def in_file(path: Path) -> dict[str, tuple[TensorSpec, bytes]]:
    """What a file holds, recorded ties included, by the readers that the tests of formats hold against torch's."""
    with open_checkpoint(path) as reader:
        header = reader.header()
        got = {fqn: (header[fqn], b"".join(bytes(chunk) for chunk in reader.chunks(fqn))) for fqn in header}
        ties = {name: kept for name, kept in header.metadata.items() if kept in header and "." in name}
        return {**got, **{name: got[kept] for name, kept in ties.items() if not name.startswith("remapkit")}}


def in_memory(text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any]:
    return found(compile_rules(read_text(text))(state_dict(given)))


def _command(*arguments: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = cli.main([*arguments, "--format", "json"])
    if status:
        said = json.loads(out.getvalue() or "{}")
        raise Refused(*[each["code"] for each in said["diagnostics"] if each["severity"] == "error"][:1])


def applied(suffix: str, *options: str) -> Callable[..., Mapping[str, Any]]:
    def way(text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any]:
        rules, output = folder / "r.yaml", folder / f"out{suffix}"
        rules.write_text(text)
        for old in folder.glob("out*"):
            old.unlink()
        _command("apply", str(rules), str(source), "-o", str(output), *options)
        index = folder / f"out{suffix}.index.json"
        return in_file(index if index.exists() else output)

    return way


def compared(text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any]:
    """`diff --rules-a` against the file that was written is silent."""
    made = applied(".safetensors", "--untie")(text, source, folder, given)
    _command("diff", str(source), str(folder / "out.safetensors"), "--rules-a", str(folder / "r.yaml"))
    return made


def viewed(text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any]:
    with open_checkpoint(source) as reader:
        plan = make_plan(compile_rules(read_text(text)), reader.header())
        plan.raise_for_problems()
        view = Remapped(reader, plan)
        header = view.header()
        return {fqn: (header[fqn], b"".join(bytes(chunk) for chunk in view.chunks(fqn))) for fqn in header}


def loaded(from_memory: bool) -> Callable[..., Mapping[str, Any]]:
    def way(text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any]:
        rules = compile_rules(read_text(text))
        plan = rules.plan(state_dict(given) if from_memory else source)
        plan.raise_for_problems()
        model = nn.Module()
        for fqn, spec in plan.target.items():
            *path, leaf = fqn.split(".")
            inner = model
            for step in path:
                if not hasattr(inner, step):
                    inner.add_module(step, nn.Module())
                inner = getattr(inner, step)
            inner.register_buffer(leaf, torch.empty(spec.shape, dtype=TORCH_DTYPES[spec.dtype], device="meta"))
        load_into(model, state_dict(given) if from_memory else source, rules)
        return found(model.state_dict())

    return way


WAYS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "in memory": in_memory,
    "safetensors": applied(".safetensors"),
    "verified": applied(".safetensors", "--verify", "--untie"),
    "pth": applied(".pth", "--verify"),
    "shards": applied(".safetensors", "--shard-size", "200", "--verify"),
    "diff": compared,
    "view": viewed,
    "load_into": loaded(from_memory=False),
    "load_into from memory": loaded(from_memory=True),
}


def outcome(name: str, text: str, source: Path, folder: Path, given: Tensors) -> Mapping[str, Any] | str:
    """What a way makes, or the code that it refuses with."""
    try:
        return WAYS[name](text, source, folder, given)
    except Refused as refused:
        return str(refused)
    except RemapkitError as error:
        return error.diagnostics[0].code


def without_torch(given: Tensors) -> Iterator[str]:
    """The tensors that torch has no name for: no way but those from file to safetensors can have them."""
    return (fqn for fqn, (spec, _) in given.items() if spec.dtype not in TORCH_DTYPES)
