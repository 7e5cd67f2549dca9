"""The JSON Schema of rule files, as it is shipped."""

from __future__ import annotations

from pathlib import Path

SCHEMA_FILE = Path(__file__).with_name("rules-v1.schema.json")


def schema_text() -> str:
    """Return the JSON Schema of rule files, as shipped."""
    return SCHEMA_FILE.read_text(encoding="utf-8")
