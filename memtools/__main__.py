"""``python -m memtools``."""

import sys

from memtools.cli import main

if __name__ == "__main__":
    sys.exit(main())
