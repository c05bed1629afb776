"""The command ``feddat``: one file a command, each imported when it is called."""

import os
import sys

import typer
import typer.core

from . import answer, check, doors, export, run, runs, settings
from .refusal import Refusal
from .words import TakesSettings

# Otherwise help says `\[default: 0]`, escaped for a markup that is off here.
typer.core.HAS_RICH = False
app = typer.Typer(
    name="feddat",
    help="Federated fine-tuning of multi-modal foundation models.",
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click itself does
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run", cls=TakesSettings)(run.run)
app.add_typer(runs.app, name="runs")
app.command("report")(runs.report)
app.command("answer")(answer.answer)
app.command("check", cls=TakesSettings)(check.check)
app.command("export")(export.export)
app.command("settings")(settings.settings)
doors.open_all(app)


def main() -> None:
    """Run the command; what it refuses is its last line, and the exit code is not 0."""
    try:
        app()
    except Refusal as refusal:
        sys.stdout.flush()
        print(f"feddat: {refusal}", file=sys.stderr)
        sys.exit(refusal.code)
    except BrokenPipeError:
        # Whoever read has enough; Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
