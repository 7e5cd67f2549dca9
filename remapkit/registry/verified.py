"""Witnesses: the record of what was verified by value for a pack, stored next to it as `NAME.witness.json`.

A witness contains the digest of its rules. If the rules have changed since, it is stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files.strict_json import read_json_file
from remapkit.files.text import Opened, write_texts
from remapkit.rules.model import CompiledRules

SUFFIX = ".witness.json"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified, how, for which rules (`digest`), and with which library versions."""

    digest: str
    verified: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]

    def describe_state(self, rules: CompiledRules) -> str:
        """Return a word for the table of packs: what was compared, or that the witness is stale."""
        if self.digest != rules.digest:
            return "stale"
        return ", ".join(dict.fromkeys(str(entry["by"]) for entry in self.verified)) or "no"


def witness_path(rules: Path) -> Path:
    """Return the path of a rule file's witness, in the same folder.

    >>> str(witness_path(Path("rules/wan22_pth.yaml")))
    'rules/wan22_pth.witness.json'
    """
    return rules.with_name(rules.stem + SUFFIX)


def read_witness(rules: Path) -> Verification | None:
    """Return the witness of a rule file; None if there is none or it cannot be read."""
    try:
        witness = read_json_file(witness_path(rules))
        return Verification(str(witness["digest"]), tuple(map(dict, witness["verified"])), dict(witness["versions"]))
    except (UnreadableCheckpoint, ValueError, KeyError, TypeError):
        return None


def write_witness(
    rules: CompiledRules,
    verified: Mapping[str, Any],
    versions: Mapping[str, str],
    sources: Iterable[Path | Opened] = (),
) -> Path:
    """Add a verification to the witness of a rule file; entries for other rules (another digest) are removed."""
    assert rules.file.path is not None
    old = read_witness(rules.file.path)
    current = old.verified if old is not None and old.digest == rules.digest else ()
    kept = [entry for entry in current if entry["by"] != verified["by"]]
    witness = {
        "rules": rules.name,
        "digest": rules.digest,
        "verified": sorted([*kept, dict(verified)], key=lambda entry: str(entry["by"])),
        "versions": dict(sorted(versions.items())),
    }
    path = witness_path(rules.file.path)
    text = json.dumps(witness, indent=2, ensure_ascii=False) + "\n"
    # An existing witness is always replaced: the option to write one implies that.
    write_texts({path: text}, force=True, sources=[rules.file.path, *sources])
    return path
