"""How the command line is called: `aig` if it was started so, else `python -m pipelines`."""

import shlex
import sys
from pathlib import Path

SCRIPT, MODULE = "aig", ("python", "-m", "pipelines")


def command_line(*arguments: object) -> str:
    """What to type for a command: `command_line("front", "--preset", "demo")`."""
    program = (SCRIPT,) if Path(sys.argv[0]).stem == SCRIPT else MODULE
    return shlex.join([*program, *map(str, arguments)])
