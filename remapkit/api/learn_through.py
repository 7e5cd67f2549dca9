"""`remapkit.learn_through`: rules derived from what a converter, code that exists, does to a source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from remapkit.diagnostics.wording import count_noun, join_words, list_names, show_key
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.formats.options import make_read_options
from remapkit.plans.moves import Move
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.authoring.through import Conversion
    from remapkit.authoring.write_constants import Fill


_USUAL = "the rules do what it does for random numbers of the source's dtypes; check what it does for your checkpoint"


@dataclass(frozen=True, slots=True)
class ThroughReport:
    """The rule file that `learn_through` derived, and what the converter was seen to do.

    `learned` has the text and the result for every key; `source` and `target` are the headers of the source and of
    what the converter returned. `collisions` are the keys that it leads to one target, the one that stays last;
    `vanished` are keys that it uses for nothing, `kept` those whose names it leaves alone, `constant` targets whose
    values come from no key, `added` those of them that the rules make under `add:`, and `unstable` targets that two
    runs on the same values fill differently.
    """

    learned: authoring.Learned
    source: StateDictSpec
    target: StateDictSpec
    collisions: Mapping[str, tuple[str, ...]]
    vanished: tuple[str, ...]
    kept: tuple[str, ...]
    constant: tuple[str, ...]
    unstable: tuple[str, ...]
    added: tuple[str, ...] = ()
    output: Path | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        read = len(self.learned.pairs) + len({fqn for each in self.learned.relations for fqn in each.sources})
        made = len(self.learned.pairs) + sum(len(each.targets) for each in self.learned.relations) + len(self.added)
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
    progress: Callable[[int, int], None] | None = None,
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
        progress: Called before each run with the bytes converted so far, and those expected in all.

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
    found = run_converter(resolve_converter(through, arg), header, progress)
    where: tuple[str | None, str | None] = (None, None) if output is None else _name_manifests(output)
    learned, added = _learn_rules(_Study(name, header, found, where))
    if output is not None:
        manifests = zip(map(str, where), (header, found.target), strict=True)
        texts = {output.parent / file: manifest_json(each) for file, each in manifests}
        write_texts({**texts, output: learned.text}, force=force, sources=sources, folders=[output.parent / "keys"])
    diagnostics = (*_report_converter(found, header, added), *_report_left_out(learned, found, header))
    log_diagnostics(diagnostics)
    return ThroughReport(
        *(learned, header, found.target, found.collisions, found.vanished, found.kept, found.constant),
        *(found.unstable, added, output, diagnostics),
    )


def _name_manifests(output: Path) -> tuple[str, str]:
    return f"keys/{output.stem}.source.json", f"keys/{output.stem}.target.json"


@dataclass(frozen=True, slots=True)
class _Study:
    """A conversion that rules are learned from, and the names of the file to write."""

    name: str
    source: StateDictSpec
    found: Conversion
    where: tuple[str | None, str | None]
    known: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def replay(self, move: Move) -> bool:
        """Return whether a move gives the bytes that the converter gives; each is run once."""
        key = (move.sources, move.target, repr(move.ops))
        if key not in self.known:
            made = read_target_chunks(move, self.found.source)
            self.known[key] = has_equal_bytes(made, self.found.result.chunks(move.target))
        return self.known[key]

    def learn(self, added: Collection[str] = ()) -> authoring.Learned:
        """Derive the rules of all but the targets `added`.

        Raises `UsageError`: RK680 if no rule takes a key.
        """
        found, pairing = self.found, self.found.pairing
        specs = {fqn: spec for fqn, spec in found.target.items() if fqn not in added}
        target = StateDictSpec(specs, name=found.target.name)
        pairing = replace(pairing, only_b=tuple(fqn for fqn in pairing.only_b if fqn not in added))
        try:
            return authoring.learn(self.name, self.source, target, pairing, *self.where, found.relations, self.replay)
        except UsageError as error:
            if error.diagnostics[0].code != "RK625":
                raise
            lines = [line for each in _report_converter(found, self.source) for line in (each.title, *each.notes)]
            title = f"no rule does what the converter does: {target.name} has no tensor that follows from one key"
            help = ("check with one key of the source what the converter makes of it",)
            raise UsageError(Diagnostic("RK680", title, notes=tuple(lines), help=help)) from error

    def can_add(self, learned: authoring.Learned, fills: Mapping[str, Fill]) -> bool:
        """Return whether rules with these fills are as sound as without."""
        from remapkit.authoring.write_constants import add_fills  # torch

        text = add_fills(learned.text, fills, self.found.target)
        made = {*learned.pairs.values(), *(fqn for each in learned.relations for fqn in each.targets), *fills}
        specs = {fqn: spec for fqn, spec in self.found.target.items() if fqn in made}
        target = self.found.target if len(made) == len(self.found.target) else StateDictSpec(specs)
        return not authoring.find_text_problems(text, self.source, target)

    def find_wrong(self, learned: authoring.Learned, added: Collection[str] = ()) -> list[str]:
        """Run the rules; return the targets of which they make anything else than the converter."""
        claimed = {*learned.pairs.values(), *(fqn for each in learned.relations for fqn in each.targets), *added}
        return list(find_wrong_targets(learned.text, self.found.source, self.found.result, claimed))


def _learn_rules(study: _Study) -> tuple[authoring.Learned, tuple[str, ...]]:
    """Write the rules, and run them: nothing is returned that does not make the converter's bytes.

    Also returned are the targets that come from nothing and are under `add:`: none if the file with them is not as
    sound as without. Raises `UsageError`: RK680 if no rule takes a key, RK681 if the rules make
    anything else.
    """
    from remapkit.authoring.write_constants import MOST, add_fills, find_fills  # torch

    found = study.found
    fills = find_fills(found.result, found.constant)
    if 0 < len(fills) <= MOST:
        base = study.learn(fills)
        for some in _choose_fills(study, base, fills):
            if some and study.can_add(base, some):
                learned = base if some is fills else study.learn(some)
                learned = replace(learned, text=add_fills(learned.text, some, found.target))
                if not study.find_wrong(learned, some):
                    return learned, tuple(some)
    learned = study.learn()
    wrong = study.find_wrong(learned)
    if wrong:
        title = f"{count_noun(len(wrong), 'target')} of the rules differ from the converter's; nothing was written"
        help = ("please report this with the converter and the manifest of the source",)
        raise UsageError(Diagnostic("RK681", title, notes=(list_names(wrong),), help=help))
    return learned, ()


def _choose_fills(study: _Study, base: authoring.Learned, fills: Mapping[str, Fill]) -> Iterator[Mapping[str, Fill]]:
    """Yield all of them, then those that can be added singly: one proof for each."""
    yield fills
    if len(fills) > 1:
        yield {fqn: fill for fqn, fill in fills.items() if study.can_add(base, {fqn: fill})}


def _report_converter(found: Conversion, source: StateDictSpec, added: Collection[str] = ()) -> Iterator[Diagnostic]:
    """Yield what the converter does that its author may not know."""
    if found.collisions:
        lines = [f"{', '.join(fqns)} -> {target}" for target, fqns in found.collisions.items()]
        lost = {fqn for fqns in found.collisions.values() for fqn in fqns[:-1]}
        title = f"the converter leads several keys to one target and loses {count_noun(len(lost), 'tensor')}"
        yield _warn("RK672", title, lines, source.name, "the last key named stays; the rules take it alone")
    if found.vanished:
        one, total = len(found.vanished) == 1, len(source)
        title = f"the converter uses {count_noun(len(found.vanished), 'key')} of {total} for nothing"
        help = f"if that is right, name {'it' if one else 'them'} under `drop:`"
        yield _warn("RK672", title, found.vanished, source.name, help)
    if found.unclear:
        title = f"whether the converter uses {count_noun(len(found.unclear), 'key')} was not found out"
        yield _warn("RK672", title, found.unclear, source.name, "the rule file lists them in comments")
    if made := [fqn for fqn in found.constant if fqn in added]:
        title = f"{_count_come(made)} from no key: the rules make {'it' if len(made) == 1 else 'them'} under `add:`"
        yield _note("RK672", title, made)
    if left := [fqn for fqn in found.constant if fqn not in added]:
        title = f"{_count_come(left)} from no key: the same values in each of {found.runs} runs"
        yield _warn("RK672", title, left, found.target.name, "let the model create what the rules do not make")
    if found.unstable:
        verb = "differs" if len(found.unstable) == 1 else "differ"
        title = f"{count_noun(len(found.unstable), 'target')} of the converter {verb} from run to run"
        yield _warn("RK672", title, found.unstable, found.target.name, "a converter must do the same in every run")
    if found.doubts:
        lines = [f"{each.given}: {join_words(map(show_key, each.targets), 3)}" for each in found.doubts]
        title = "the converter does something else for other values or dtypes than the rules do"
        yield _warn("RK672", title, lines, found.target.name, _USUAL)
    if found.reads:
        title = "what the converter does may depend on values: its code reads them"
        yield _warn("RK672", title, found.reads, source.name, _USUAL)
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


def _count_come(names: Sequence[str]) -> str:
    return f"{count_noun(len(names), 'target')} of the converter {'comes' if len(names) == 1 else 'come'}"


def _warn(code: str, title: str, names: Sequence[str], place: str, help: str) -> Diagnostic:
    note = (list_names(list(names)),)
    values = {"keys": list(names)}
    return Diagnostic(code, title, notes=note, help=(help,), place=place, severity=Severity.WARNING, values=values)
