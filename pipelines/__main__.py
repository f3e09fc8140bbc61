"""The command line: `aig COMMAND [--preset NAME] [--config FILE] [section.key=value ...]`, or `python -m pipelines`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from pipelines.cluster.errors import root_cause
from pipelines.commands.options import parse
from pipelines.commands.session import Session
from pipelines.commands.table import COMMANDS
from pipelines.config import ConfigError, RunError
from pipelines.show.program import command_line

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
EXTRA = ("ray", "optuna", "pandas", "matplotlib", "jinja2", "tensorboard")  # what `pip install aig` alone leaves out


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a failure, 2 for bad input, 130 for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    typed = command_line(*argv)
    debug, begun = "--debug" in argv, time.monotonic()
    try:
        arguments = parse(argv)
        command = COMMANDS[arguments.command]
        with Session(command.resolve(arguments), typed, arguments) as session:
            command.run(session)
        if session.result:
            stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in session.seconds.items())
            print(f"Done in {time.monotonic() - begun:.0f} s: {stages}. {session.result}")
        return 0
    except KeyboardInterrupt:
        print(f"\ninterrupted: nothing is lost but the last minutes; resume with: {typed}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return explain(error)


def explain(error: Exception) -> int:
    """Print an error as one line on stderr; returns the exit code: only a ConfigError is bad input.

    An error that nobody foresaw is called internal: a ValueError of ours says nothing of the input.
    """
    of_ray, text = any(kind.__module__.startswith("ray.") for kind in type(error).__mro__), " ".join(str(error).split())
    if isinstance(error, ConfigError) and not of_ray:
        print(f"error: {text}", file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA:
        print(f"failed: the package {error.name} is not installed: pip install 'aig[ray]' brings it", file=sys.stderr)
        return FAILED
    # A FloatingPointError is what a training came to: an image, a score or a gradient that is not finite.
    if of_ray or isinstance(error, (RunError, OSError, FloatingPointError)):
        print(f"failed: {root_cause(error)} (--debug shows where)", file=sys.stderr)
    else:
        print(f"internal error: {type(error).__name__}: {text} (--debug shows the traceback)", file=sys.stderr)
    return FAILED


def script() -> NoReturn:
    """The program `aig`."""
    # As with `python -m`: a reward `package.module:callable` may lie in the folder where the command is typed.
    sys.path.insert(0, os.getcwd())
    _run()


def _run() -> NoReturn:
    # A parent may have started us with Ctrl-C ignored, as shells do in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # `ray job stop`, a spot node's notice, a batch system's time limit: they end a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    _run()
