"""The command line: parse the arguments, run one module of `commands/`, show its outcome, return an exit code.

Exit codes: 0 success, 1 the input failed a check, 2 bad usage or unreadable input, 3 a bug in remapkit,
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from remapkit.cli.command_parser import EXIT_UNABLE, Parser, find_format
from remapkit.cli.parser import make_parser

EXIT_BUG = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_streams()
    _outlive_the_working_directory()
    parser = make_parser()
    Parser.format = find_format(sys.argv[1:] if arguments is None else arguments)
    try:
        args = parser.parse_args(arguments)
    finally:
        Parser.format = None  # of all parsers: the next one may be asked in another format
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return _run_command(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        return _report_bug()


def _outlive_the_working_directory() -> None:
    """If the working directory was deleted, import torch in another one: one of its libraries would abort."""
    try:
        os.getcwd()  # noqa: PTH109 - pathlib is not imported yet
    except OSError:
        from remapkit.files import torch_import as elsewhere

        elsewhere.import_in_root("torch")


def _open_streams() -> None:
    """Redirect closed streams (`2>&-`) to the null device, and escape characters that an encoding lacks.

    Closed descriptors are filled first: otherwise the next opened file would get the number, and with it everything
    that a library prints there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run_command(args: argparse.Namespace) -> int:
    from importlib import import_module

    if args.command == "apply" and not (args.dry_run or args.in_place):
        _read_ahead(args.checkpoint[0])
    from remapkit.cli import render as report
    from remapkit.diagnostics.errors import RemapkitError
    from remapkit.diagnostics.log import log_nothing

    try:
        with log_nothing():
            outcome = import_module(f"remapkit.cli.commands.{args.command}").run(args)
    except RemapkitError as error:
        found, exit_code = error, error.exit_code
        return _show_result(lambda: report.show_error(found.diagnostics, args.format, exit_code), exit_code)
    except KeyboardInterrupt:
        # A command changes files only in its last step, which ignores interrupts.
        print("interrupted: nothing was changed", file=sys.stderr)
        return EXIT_INTERRUPTED
    return _show_result(lambda: report.show_outcome(outcome, args.format), int(outcome.exit_code))


_FIRST, _STEP = 256 << 20, 128 << 10


def _read_ahead(path: str) -> None:
    """Let the kernel read the beginning of a checkpoint while this process is still importing modules.

    Only a hint; for a file that is not cached it saves a third of a second of disk time.
    """
    from stat import S_ISREG
    from threading import Thread

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(path)  # noqa: PTH116 - pathlib is not imported yet
            if not S_ISREG(found.st_mode):
                return
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                for offset in range(0, min(found.st_size, _FIRST), _STEP):
                    os.posix_fadvise(fd, offset, _STEP, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    if hasattr(os, "posix_fadvise"):
        Thread(target=ask, name="remapkit read-ahead", daemon=True).start()


def _show_result(show: Callable[[], None], exit_code: int) -> int:
    """Print, and keep the exit code even if that fails."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has exited (`| head`), which does not change the verdict.
        _silence_stdout()
    except OSError as error:
        _silence_stdout()
        print(f"the result could not be printed: {error.strerror or error}", file=sys.stderr)
        return exit_code or EXIT_UNABLE
    return exit_code


def _silence_stdout() -> None:
    """Discard the buffered output: otherwise the interpreter would fail to flush it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug() -> int:
    import traceback

    from remapkit.diagnostics.version import VERSION
    from remapkit.diagnostics.wording import escape_line

    print("\n".join(map(escape_line, traceback.format_exc().splitlines())), file=sys.stderr)
    print(
        f"\nThis is a bug in remapkit {VERSION}, not in what you gave it. Please report it with the lines above.",
        file=sys.stderr,
    )
    return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())
