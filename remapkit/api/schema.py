"""`remapkit.schema`: the JSON Schema of rule files."""

from __future__ import annotations

from remapkit.rulefile.read import schema_text


def schema() -> str:
    """Return the JSON Schema of rule files, as text.

    >>> import json
    >>> json.loads(schema())["$schema"]
    'https://json-schema.org/draft/2020-12/schema'
    """
    return schema_text()
