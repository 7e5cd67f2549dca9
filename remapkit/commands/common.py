"""What several commands share: opening sources, finding rule files and what they declare."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.checkpoint import Reader, open_checkpoint
from remapkit.library import find_rules, packs
from remapkit.spec import StateDictSpec
from remapkit.targets import read_header

if TYPE_CHECKING:
    from remapkit.rules import RuleSet


def known_source(rules: RuleSet) -> StateDictSpec | None:
    """The manifest that a pack declares as its source, if it does."""
    written = rules.file.source_keys
    return read_header(beside(rules, written.value)) if written is not None else None


def beside(rules: RuleSet, path: str) -> Path:
    """A path that a rule file names is relative to that file."""
    return (rules.file.path.parent if rules.file.path else Path()) / path


def open_source(path: Path, args: Namespace) -> Reader:
    return open_checkpoint(path, root=args.root, strict_pickle=args.strict_pickle, allow_expand=args.allow_expand)


def rule_paths(args: Namespace) -> list[Path]:
    return [find_rules(name) for name in args.rules] or [pack.path for pack in packs()]
