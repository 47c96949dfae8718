"""The `tuili` command: finds its subcommands, and turns every failure into one line and an exit code.

0 done, 1 failed, 2 wrong usage or a refused file, 3 some rows of a job failed, 130 interrupted. Subcommands live one
per file in `commands/`, each with a function `command`, and import what they need when they run.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

import tuili
from tuili.checks import shown
from tuili.cli import commands
from tuili.cli.terminal import is_debugging, is_plain, report_error
from tuili.errors import TuiliError
from tuili.registry import discover

INTERRUPTED = 130
_COLLECT_AFTER = 10_000  # new objects: starting makes hundreds of thousands that stay
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EBADF)  # a full disk under it, or it was closed from the start
_CommandLineError = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps it


def build_app(wanted: str | None = None) -> typer.Typer:
    """The application with every command of `tuili.cli.commands`, or, to start sooner, only the one wanted."""
    app = typer.Typer(
        name="tuili",
        rich_markup_mode=None if is_plain(sys.stdout) else "rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name, module in discover(commands, wanted).items():
        app.command(name, cls=getattr(module, "COMMAND_CLASS", None))(module.command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, without the program's name; None takes the process's. Returns the exit code."""
    _open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = build_app(next(iter(arguments), None))(args=arguments, prog_name="tuili", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader left
        return 1
    except Exception as error:
        if is_debugging():
            raise
        return _reported(error)


def program() -> NoReturn:
    """The process: main(), and its end."""
    gc.set_threshold(_COLLECT_AFTER)
    codes = [1]  # of a main() that raises
    atexit.register(_leave, codes)  # before any other, so that it is called last
    codes.append(main())
    sys.exit(codes[-1])


def _leave(codes: Sequence[int]) -> None:
    """Ends the process as it is while threads are at work that nobody waits for.

    One that comes back from a library's native code to an interpreter that is being taken apart would fall over it.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(codes[-1])


def _open_standard_streams() -> None:
    """Puts something where a standard stream is closed, so that no file of ours is taken for one.

    Nothing comes from it, messages go nowhere, and what is written to standard output fails: nobody would get it.
    """
    for name, mode, access in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _drop_output() -> None:
    """Lets what is still buffered go nowhere: flushing it at exit would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reported(error: Exception) -> int:
    if isinstance(error, _CommandLineError):
        report_error(error.format_message())  # type: ignore[attr-defined]
        return 2
    if isinstance(error, TuiliError):
        report_error(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        report_error("out of memory")
        return 1
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS and error.filename is None:
        report_error(f"standard output: {error.strerror}")
        _drop_output()
        return 1
    if isinstance(error, OSError) and error.filename is not None:
        report_error(f"{shown(str(error.filename))}: {error.strerror}")
        return 1
    report_error(f"internal error, {type(error).__name__}: {error} (TUILI_DEBUG=1 shows where)")
    return 1


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tuili {tuili.__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run open large language models on your own hardware."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


if __name__ == "__main__":
    program()
