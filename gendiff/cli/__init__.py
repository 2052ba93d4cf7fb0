"""The command `gendiff`. One file per command; each imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gendiff.app.command_line import remember
from gendiff.errors import GendiffError, WeightsNotFoundError

from .convert import app as convert_app
from .data import app as data_app
from .demo import build_demo
from .evaluate import app as evaluate_app
from .list import list_everything
from .sample import app as sample_app
from .show import show_path
from .train import train_recipe

# What a user can cause by what they typed; everything else is a fault of the program and exits with 1.
USER_ERRORS = (GendiffError, ValueError, OSError, KeyError, ImportError, FloatingPointError)

app = typer.Typer(
    name="gendiff",
    help="Sample, train and inspect diffusion pipelines.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A new command: one file beside this one, one line here.
app.command("demo")(build_demo)
app.command("list")(list_everything)
app.command("show")(show_path)
app.command("train")(train_recipe)
app.add_typer(convert_app, name="convert")
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(sample_app, name="sample")


def _print_version(wanted: bool) -> None:
    if wanted:
        import gendiff

        typer.echo(f"gendiff {gendiff.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, 2 for anything the user can mend, 3 for weights that are not on this machine, 1 for a fault of ours.

    Args:
        arguments: what was typed after `gendiff`; None for `sys.argv`.
    """
    typed = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in typed
    typed = [argument for argument in typed if argument != "--debug"]
    remember(typed)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result = app(typed, prog_name="gendiff", standalone_mode=False)
        except typer.Abort:  # how typer before 0.29 reports Ctrl-C; later ones return 130
            return 130
        except Exception as error:
            if debug:
                raise
            return _report(error)
    # Outside standalone mode, typer returns the code of `typer.Exit` instead of exiting with it.
    return result if isinstance(result, int) else 0


def _report(error: Exception) -> int:
    if hasattr(error, "format_message"):  # a usage error of typer
        context: Any = getattr(error, "ctx", None)
        path = context.command_path if context else "gendiff"
        return _say(f"{error.format_message()} (try '{path} --help')", 2)  # type: ignore[attr-defined]
    if isinstance(error, USER_ERRORS):
        code = 3 if isinstance(error, WeightsNotFoundError) else 2
        return _say(_message(error), code) if _is_main_process() else code
    return _say(f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)", 1)


def _is_main_process() -> bool:
    """Of those a launcher started, which all meet what the user can mend; one line about it is enough."""
    accelerate = sys.modules.get("accelerate.state")
    return accelerate is None or not accelerate.PartialState._shared_state.get("process_index")


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    # str() of a KeyError is the repr of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return str(message) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}", 0)


def _say(message: str, code: int) -> int:
    print("gendiff:", " ".join(message.split()), file=sys.stderr)
    return code
