"""The version of remapkit; `pyproject.toml` reads it from here, so that no command has to ask the installation."""

VERSION = "0.1.0"
