"""`remapkit.learn_through`: rules derived from what a converter, code that exists, does to a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.api.inputs import list_files_read
from remapkit.api.ruleset import checked
from remapkit.authoring import learn as authoring
from remapkit.authoring.settle import By
from remapkit.authoring.verify_pack import find_wrong_targets
from remapkit.authoring.verify_relation import has_equal_bytes
from remapkit.authoring.write_rules import check_name_and_source
from remapkit.compute.move_bytes import read_target_chunks
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.formats.options import make_read_options
from remapkit.plans.moves import Move
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.authoring.through import Conversion


@dataclass(frozen=True, slots=True)
class ThroughReport:
    """The rule file that `learn_through` derived, and what the converter was seen to do.

    `learned` has the text and the result for every key; `source` and `target` are the headers of the source and of
    what the converter returned. `collisions` are the keys that it leads to one target, the one that stays last;
    `vanished` are keys that it uses for nothing, `kept` those whose names it leaves alone, `constant` targets whose
    values come from no key, `unstable` targets that two runs on the same values fill differently.
    """

    learned: authoring.Learned
    source: StateDictSpec
    target: StateDictSpec
    collisions: Mapping[str, tuple[str, ...]]
    vanished: tuple[str, ...]
    kept: tuple[str, ...]
    constant: tuple[str, ...]
    unstable: tuple[str, ...]
    output: Path | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        read = len(self.learned.pairs) + len({fqn for each in self.learned.relations for fqn in each.sources})
        made = len(self.learned.pairs) + sum(len(each.targets) for each in self.learned.relations)
        return f"rules that map {read} of {len(self.source)} keys to {made} of {len(self.target)}"

    @property
    def text(self) -> str:
        """The rule file."""
        return self.learned.text


@checked
def learn_through(
    through: str,
    source: SourceLike,
    output: str | Path | None = None,
    *,
    arg: Mapping[str, Any] | None = None,
    name: str | None = None,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
    force: bool = False,
) -> ThroughReport:
    """Derive the rules that do what a converter does: any function from state dict to state dict.

    It is run on unique random values for every tensor of the source, so that the result shows where each comes from.
    Naming a converter runs its code, as importing it would.

    Args:
        through: The converter: `py:package.module:function`, or `file.py:NAME`. Instead of a function also a mapping,
            or a list of pairs, of regular expressions applied with `re.sub` in order, or a mapper like vLLM's.
        source: The source: a checkpoint, or its manifest; the values of a checkpoint are not read.
        output: The file to write, with the manifests of both sides in `keys/` next to it; without it only the text is
            returned.
        arg: Keyword arguments for the converter.
        name: The name of the pack; by default that of the file, else `learned`.
        root: Where the state dict is in a checkpoint that holds several.
        strip, strict_pickle, allow_expand, follow_links: How the source is read; see `open_checkpoint`.
        force: Replace the files if they exist.

    Returns:
        `ThroughReport`. The rules are proven for all keys. Its `diagnostics` say what the converter does wrong, and
        what no rule takes; they are logged too (logger `remapkit`).

    Raises:
        UsageError: There is no such converter, it fails on the source or returns no state dict, or no correct rules
            can be written.
        UnreadableCheckpoint: A source that cannot be read.
        UnwritableOutput: A file that cannot be written, or exists (`OutputExists`). Nothing was changed.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "mine.py").write_text("RENAMES = {r'^layers': 'h', r'gamma$': 'weight'}")
    >>> tensor = {"dtype": "F32", "shape": [8]}
    >>> import remapkit
    >>> header = {f"layers.{n}.gamma": remapkit.TensorSpec("F32", (8,)) for n in range(3)}
    >>> from remapkit.formats.manifest import write_manifest
    >>> write_manifest(remapkit.StateDictSpec(header), folder / "source.json")
    >>> learn_through(f"{folder}/mine.py:RENAMES", folder / "source.json").learned.pairs["layers.1.gamma"]
    'h.1.weight'
    """
    from remapkit.authoring.through import run_converter  # torch
    from remapkit.models.converter import resolve_converter

    arguments = dict(locals())
    name = name or ("learned" if output is None else Path(output).stem)
    output = None if output is None else Path(output)
    with open_source(source, make_read_options(root, strip, strict_pickle, allow_expand, follow_links)) as reader:
        header, sources = reader.header(), list_files_read(arguments, reader, but=("output",))
    path = Path(through.rpartition(":")[0])
    sources = [*sources, path] if not through.startswith("py:") and path.is_file() else sources
    check_name_and_source(name, header)
    found = run_converter(resolve_converter(through, arg), header)
    learned = _learn_rules(name, header, found, output)
    if output is not None:
        manifests = zip(_name_manifests(output), (header, found.target), strict=True)
        texts = {output.parent / file: manifest_json(each) for file, each in manifests}
        write_texts({**texts, output: learned.text}, force=force, sources=sources, folders=[output.parent / "keys"])
    diagnostics = (*_report_converter(found, header), *_report_left_out(learned, found, header))
    log_diagnostics(diagnostics)
    return ThroughReport(
        *(learned, header, found.target, found.collisions, found.vanished, found.kept, found.constant),
        *(found.unstable, output, diagnostics),
    )


def _name_manifests(output: Path) -> tuple[str, str]:
    return f"keys/{output.stem}.source.json", f"keys/{output.stem}.target.json"


def _learn_rules(name: str, header: StateDictSpec, found: Conversion, output: Path | None) -> authoring.Learned:
    """Write the rules, and run them: nothing is returned that does not make the converter's bytes.

    Raises `UsageError`: RK680 if no rule takes a key, RK681 if the rules make anything else.
    """
    known: dict[tuple[object, ...], bool] = {}

    def replay(move: Move) -> bool:
        key = (move.sources, move.target, repr(move.ops))
        if key not in known:
            made = read_target_chunks(move, found.source)
            known[key] = has_equal_bytes(made, found.result.chunks(move.target))
        return known[key]

    where: tuple[str | None, str | None] = (None, None) if output is None else _name_manifests(output)
    try:
        learned = authoring.learn(name, header, found.target, found.pairing, *where, found.relations, replay)
    except UsageError as error:
        if error.diagnostics[0].code != "RK625":
            raise
        lines = [line for each in _report_converter(found, header) for line in (each.title, *each.notes)]
        title = f"no rule does what the converter does: {found.target.name} has no tensor that follows from one key"
        help = ("check with one key of the source what the converter makes of it",)
        raise UsageError(Diagnostic("RK680", title, notes=tuple(lines), help=help)) from error
    claimed = {*learned.pairs.values(), *(fqn for each in learned.relations for fqn in each.targets)}
    wrong = list(find_wrong_targets(learned.text, found.source, found.result, claimed))
    if wrong:
        title = f"{count_noun(len(wrong), 'target')} of the rules differ from the converter's; nothing was written"
        help = ("please report this with the converter and the manifest of the source",)
        raise UsageError(Diagnostic("RK681", title, notes=(list_names(wrong),), help=help))
    return learned


def _report_converter(found: Conversion, source: StateDictSpec) -> Iterator[Diagnostic]:
    """Yield what the converter does that its author may not know."""
    if found.collisions:
        lines = [f"{', '.join(fqns)} -> {target}" for target, fqns in found.collisions.items()]
        lost = {fqn for fqns in found.collisions.values() for fqn in fqns[:-1]}
        title = f"the converter leads several keys to one target and loses {count_noun(len(lost), 'tensor')}"
        yield _warn("RK672", title, lines, source.name, "the last key named stays; the rules take it alone")
    if found.vanished:
        title = f"the converter uses {count_noun(len(found.vanished), 'key')} of {len(source)} for nothing"
        yield _warn("RK672", title, found.vanished, source.name, "if that is right, name them under `drop:`")
    if found.unclear:
        title = f"whether the converter uses {count_noun(len(found.unclear), 'key')} was not found out"
        yield _warn("RK672", title, found.unclear, source.name, "the rule file lists them in comments")
    if found.constant:
        title = (
            f"{count_noun(len(found.constant), 'target')} of the converter come from no key: always the same values"
        )
        yield _warn("RK672", title, found.constant, found.target.name, "let the model create them")
    if found.unstable:
        title = f"{count_noun(len(found.unstable), 'target')} of the converter differ from run to run"
        yield _warn("RK672", title, found.unstable, found.target.name, "a converter must do the same in every run")
    for names, what in ((found.kept, "the converter leaves the names of"), (found.beside, "not tensors, ignored:")):
        if names:
            title = f"{what} {count_noun(len(names), 'key')}" + (" alone" if names is found.kept else "")
            yield _note("RK672", title, names)


def _report_left_out(learned: authoring.Learned, found: Conversion, source: StateDictSpec) -> Iterator[Diagnostic]:
    """Yield what no rule takes although the converter does something with it."""
    said = {*found.vanished, *found.unclear, *(fqn for fqns in found.collisions.values() for fqn in fqns)}
    help = "the rule file lists them in comments: write rules for them"
    for fqns, header in ((learned.only_a, source), (learned.only_b, found.target)):
        left = [fqn for fqn in fqns if fqn not in said and fqn not in found.constant]
        if left:
            title = f"no rule takes {count_noun(len(left), 'key')} of {len(header)}: the converter changes values"
            yield _warn("RK629", title, left, header.name, help)
    for by in By:
        pairs = [f"{fqn} -> {each.target}" for fqn, each in learned.settled.items() if each.by is by]
        if pairs:
            title = f"{count_noun(len(pairs), 'pair')} too small to decide by value; paired because {by.value}"
            yield _note("RK628", title, pairs)
    for reason in dict.fromkeys(each.by for each in learned.relations if each.by):
        made = [fqn for each in learned.relations if each.by == reason for fqn in each.targets]
        title = f"{count_noun(len(made), 'target')} too small to decide by value; operations chosen because {reason}"
        yield _note("RK628", title, made)
    if learned.undecided:
        title = f"{count_noun(len(learned.undecided), 'key')} undetermined: too small for values of their own"
        yield _warn("RK628", title, list(learned.undecided), source.name, help)
    if learned.open_b:
        title = f"no rule produces {count_noun(len(learned.open_b), 'target')} whose values the source has"
        yield _warn("RK628", title, list(learned.open_b), found.target.name, help)
    if learned.unsaid:
        title = f"no rule can express {count_noun(len(learned.unsaid), 'pair')}"
        lines = [f"{fqn} -> {target}" for fqn, target in learned.unsaid.items()]
        yield _warn("RK656", title, lines, source.name, help)


def _note(code: str, title: str, names: Sequence[str]) -> Diagnostic:
    values = {"keys": list(names)}
    return Diagnostic(code, title, notes=(list_names(list(names)),), severity=Severity.NOTE, values=values)


def _warn(code: str, title: str, names: Sequence[str], place: str, help: str) -> Diagnostic:
    note = (list_names(list(names)),)
    values = {"keys": list(names)}
    return Diagnostic(code, title, notes=note, help=(help,), place=place, severity=Severity.WARNING, values=values)
