"""The command `fisheropt`: puts the commands together; each has a module of its own in `fisheropt_lab.commands`."""

from __future__ import annotations

import sys

import typer
from typer.exceptions import Abort, TyperException

from fisheropt_lab.commands.ablate import ABLATE_EXAMPLES, ablate
from fisheropt_lab.commands.compare import COMPARE_EXAMPLES, compare
from fisheropt_lab.commands.diagnose import diagnose
from fisheropt_lab.commands.info import info
from fisheropt_lab.commands.report import plot, report
from fisheropt_lab.commands.results import results
from fisheropt_lab.commands.show import SHOW_EXAMPLES, show
from fisheropt_lab.commands.studying import INTERRUPTED
from fisheropt_lab.commands.train import TRAIN_EXAMPLES, train
from fisheropt_lab.commands.verdict import verdict
from fisheropt_lab.errors import LabError

BAD_INPUT = 2  # exit code

app = typer.Typer(
    help="Train with optimizers built on Fisher information, and compare them with the ones you use today.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=COMPARE_EXAMPLES)(compare)
app.command(epilog=ABLATE_EXAMPLES)(ablate)
app.command()(diagnose)
app.command(epilog=TRAIN_EXAMPLES)(train)
app.command(epilog=SHOW_EXAMPLES)(show)
app.command()(verdict)
app.command()(results)
app.command()(plot)
app.command()(report)
app.command()(info)


def main() -> None:
    """Run the command. What the user can put right is one line on stderr and exit code 2, never a traceback."""
    try:
        code = app(prog_name="fisheropt", standalone_mode=False)
    except (LabError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        print(f"fisheropt: {' '.join(message.split())}", file=sys.stderr)
        code = BAD_INPUT
    except (Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code)
