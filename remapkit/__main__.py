"""`python -m remapkit`."""

from __future__ import annotations

import sys

from remapkit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
