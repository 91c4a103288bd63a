"""What each process of a test runs under torchrun: the command `fisheropt` with each of several lists of arguments.

One launch serves them all, because starting processes costs more than the training they do.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from fisheropt_lab import cli


def main(lists: list[list[str]]) -> None:
    dist.init_process_group("gloo")
    for arguments in lists:
        sys.argv = ["fisheropt", *arguments]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
    dist.destroy_process_group()
    os._exit(0)  # no process waits for another's interpreter to wind down


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
