"""Every check there is. ``python -m tests.distributed.checks FOLDER`` runs them: a line of JSON for each."""

import sys
from pathlib import Path

from tests.distributed import adafisher, checkpoints, communication, sharding, state, wrappers  # noqa: F401 (they register their checks)
from tests.distributed.processes import CHECKS, main

__all__ = ["CHECKS"]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
