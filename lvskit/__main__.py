"""`python -m lvskit` is `lvskit`."""

from __future__ import annotations

import sys

from lvskit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
