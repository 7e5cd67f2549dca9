"""Faults in `remapkit/sources/` and in the readers' roots: which part of a checkpoint is read, and its names."""

from __future__ import annotations

from tests.mutation.fault import Fault

ROOTS = ("tests/sources/test_roots.py",)
COMMANDS = ("tests/sources/test_commands.py",)
MEMORY = ("tests/sources/test_nested_memory.py",)
EVERYWHERE = ("tests/sources/test_same_everywhere.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "extra state is a part of the weights",
        "formats/nested_memory.py",
        'extra = isinstance(key, str) and get_leaf(key) == "_extra_state"',
        "extra = False",
        "extra state in memory is left alone",
        MEMORY,
    ),
    Fault(
        "a named root is not passed on",
        "formats/nested_memory.py",
        "chosen = choose_state_dict(PickleContent(value, 0, ()), root, False)",
        "chosen = choose_state_dict(PickleContent(value, 0, ()), None, False)",
        "nested dicts are read under the root that is named",
        MEMORY,
    ),
    Fault(
        "an open reader has no declared root",
        "sources/open.py",
        "roots = declared if options.root is None else [options.root]",
        "roots = [] if options.root is None else [options.root]",
        "a declared root is taken from an open reader too",
        MEMORY,
    ),
    Fault(
        "explain takes any root",
        "api/explain.py",
        "if rules.match(name) or declared:",
        "if rules.match(name):",
        "where roots are declared, no other is taken",
        EVERYWHERE,
    ),
    Fault(
        "diff names the root on the wrong side",
        "api/diff.py",
        '((names_a, names_b, "b", rules[1]), (names_b, names_a, "a", rules[0]))',
        '((names_a, names_b, "a", rules[1]), (names_b, names_a, "b", rules[0]))',
        "the option of a hint is that of the side it is about",
        EVERYWHERE,
    ),
    Fault(
        "an error without its number",
        "diagnostics/errors.py",
        "kinds = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}",
        "kinds = {FileNotFoundError: errno.ENOENT}",
        "errors of the system have their numbers",
        EVERYWHERE,
    ),
    Fault(
        "text for programs",
        "cli/app.py",
        'return next((each for each in written if each in ("json", "github")), None)',
        "return None",
        "wrong arguments are JSON under --format json",
        EVERYWHERE,
    ),
    Fault(
        "a root ends within a segment",
        "formats/renamed.py",
        'prefix = f"{root}." if root else ""',
        "prefix = root",
        "a root is whole segments",
        ROOTS,
    ),
    Fault(
        "two keys become one in silence",
        "formats/renamed.py",
        "if len(names) < len(below):",
        "if False:",
        "keys that become one are an error",
        ROOTS,
    ),
    Fault(
        "parts of segments are stripped",
        "formats/renamed.py",
        r"(?:{words})(?:\.|(?=\n)|\Z)",
        r"(?:{words})\.?",
        "only whole segments are taken out",
        ROOTS,
    ),
    Fault(
        "records keep their old names",
        "formats/renamed.py",
        "metadata[name] = new[kept]",
        "metadata[name] = kept",
        "names that are recorded as tied follow their tensors",
        ROOTS,
    ),
    Fault(
        "the bytes of another key",
        "formats/renamed.py",
        "return self.reader.extent(self._names[fqn])",
        "return self.reader.extent(next(iter(self._names.values())))",
        "a renamed tensor has its own bytes",
        COMMANDS,
    ),
    Fault(
        "copies are joined",
        "formats/state_dict.py",
        "return chosen if whole and not _has_copies(chosen.entries) else None",
        "return chosen if whole else None",
        "averaged weights beside the weights are not a part of them",
        ROOTS,
    ),
    Fault(
        "an optimizer's names are a root",
        "tensors/roots.py",
        "return _TRAINERS_OWN.search(path) is not None",
        "return False",
        "no help proposes what a trainer keeps",
        ROOTS,
    ),
    Fault(
        "an incomplete set is read",
        "formats/sharded.py",
        "        if shards.missing:\n",
        "        if False:\n",
        "missing shards are an error",
        ROOTS,
    ),
    Fault(
        "rules never see a private name",
        "sources/open.py",
        "private = [name for name in PRIVATE_NAMES if name not in said]",
        "private = list(PRIVATE_NAMES)",
        "rules that speak of a private name see it",
        ROOTS,
    ),
    Fault(
        "the first root, whether it exists or not",
        "sources/open.py",
        'if any(problem.code != "RK416" for problem in error.diagnostics):',
        "if error.diagnostics:",
        "of several roots the first that exists is taken",
        ROOTS,
    ),
)
