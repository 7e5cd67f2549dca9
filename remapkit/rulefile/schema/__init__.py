"""The JSON Schema of rule files, and what departs from it in words."""
