"""Faults in what commands do with adapters: what is one, what it is held against, what is written beside it."""

from __future__ import annotations

from tests.mutation.fault import Fault

COMMANDS = ("tests/adapters/test_cli.py",)
PYTHON = ("tests/api/test_adapters.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "the shapes of an adapter are not held against the model",
        "adapters/fit.py",
        "and not module.is_loose and not _do_matrices_fit(module, header, weight):",
        "and module.is_loose and not _do_matrices_fit(module, header, weight):",
        "an adapter of another size fails its check",
        COMMANDS,
    ),
    Fault(
        "tensors of no module of the model pass the check of an adapter",
        "api/follow.py",
        "problems=(*_report_unknown(fit, model), *_report_misfits(fit, model))",
        "problems=(*_report_misfits(fit, model),)",
        "an adapter with a module that the model lacks fails its check",
        COMMANDS,
    ),
    Fault(
        "a missing matrix is not noticed",
        "adapters/fit.py",
        'if ("up" in own or "down" in own) and not',
        'if ("up" in own and "down" in own) and not',
        "an adapter with half of a module fails its check",
        COMMANDS,
    ),
    Fault(
        "the config gets its name before the weights are written",
        "api/outputs.py",
        "return self.write(plan, moves, reader, outputs), beside.commit()",
        "return (done := beside.commit()) and (self.write(plan, moves, reader, outputs), done)",
        "the config and the weights are written together or not at all",
        COMMANDS,
    ),
    Fault(
        "the config of the input is replaced",
        "write/beside.py",
        "if target.exists() and any(target.samefile(path) for path in self._inputs):",
        "if False:",
        "no input is ever written",
        COMMANDS,
    ),
    Fault(
        "the prefix of an adapter is always a root",
        "api/adapter_options.py",
        "    if (prefix := find_prefix(root)) is not None:\n",
        "    if (prefix := find_prefix(None)) is not None:\n",
        "--root chooses among the models of an adapter file",
        COMMANDS,
    ),
    Fault(
        "a prefix is never a root of weights",
        "api/adapter_options.py",
        "            if is_adapter(reader.header()):\n                return reader, prefix",
        "            if True:\n                return reader, prefix",
        "--root takes the weights below a prefix that adapters have too",
        COMMANDS,
    ),
    Fault(
        "an adapter is held against the weights of its source",
        "api/follow.py",
        'model = target if held.how == "exact" else',
        'model = self.base if held.how == "exact" else',
        "the result is checked against the target's model",
        COMMANDS,
    ),
    Fault(
        "options of adapters are ignored for other checkpoints",
        "api/follow.py",
        "    if not options.given:\n        return\n",
        "    return\n",
        "--adapter-format with a plain checkpoint is refused",
        COMMANDS,
    ),
    Fault(
        "rules that take an adapter's tensors are derived from",
        "api/adapter_options.py",
        "return not any(rules.match(fqn) for fqn in names if find_adapter_module(fqn) is not None)",
        "return True",
        "rules written for an adapter are applied as they are",
        PYTHON,
    ),
    Fault(
        "a direct check says nothing of misfits",
        "api/follow.py",
        "    if fit.misfits:\n",
        "    if False:\n",
        "what does not fit is named",
        ("tests/adapters/test_cli.py",),
    ),
    Fault(
        "check takes adapters of other sizes",
        "api/follow.py",
        "        lenient = variants and not fits_whole(",
        "        lenient = not fits_whole(",
        "every shape fits",
        ("tests/adapters/test_cli.py",),
    ),
)
