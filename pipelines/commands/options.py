"""The command line's arguments, and its help."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from pipelines.commands import keys
from pipelines.commands.table import COMMANDS
from pipelines.config import ConfigError
from pipelines.show.program import command_line

EXAMPLES = {
    "demo": "the whole path, in minutes on two CPU cores",
    "demo --preset demo-full": "the same, thoroughly, in some hours; rerun to resume",
    "train train.kl_weight=1 train.steps=100": "one adapter",
    "train --preset sd14 --dry-run": "what that would take, without a download",
    "sweep run.name=mine sweep.kl_weights='[0, 1, 10]'": "",
    "report run.name=mine sweep.kl_weights='[0, 1, 10]'": "",
    "evaluate --adapter mine=lora.safetensors run.name=mine": "",
    "status demo": "what that run has and lacks",
    "search --preset demo search.trials=192": "better schedules for the demo's adapter",
    "score my-images --reward hpsv2.1": "any images with prompts",
    "measure ~/aig-runs/mine": "the same measures again, configured by the run",
    "compare ~/aig-runs/mine ~/aig-runs/other": "",
}
NOTES = """
The same command resumes an interrupted run and repeats nothing that is done.
A run lives in run.storage/run.name (by default under ~/aig-runs) and keeps its configuration. run.storage may be an
object store such as s3://bucket/prefix: see docs/cluster.md.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


class Help(argparse.Action):
    """Print the help with the keys that fit some patterns; they are looked up no sooner."""

    def __init__(self, *, patterns: Sequence[str], preset: str | None, **named: Any) -> None:
        super().__init__(nargs=0, **named)
        self.patterns, self.preset = patterns, preset

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *given: Any) -> NoReturn:
        preset = self.preset or getattr(namespace, "preset", None)
        listed = f"\n{keys.text(self.patterns, preset)}\n" if self.patterns else ""
        print(f"{parser.format_help()}{listed}", end="")
        parser.exit()


def _add_help(parser: Parser, reads: Sequence[str], preset: str | None) -> None:
    some = "show this and the keys that it reads" if reads else "show this"
    parser.add_argument("-h", "--help", action=Help, patterns=reads, preset=preset, help=some)
    parser.add_argument("--help-all", action=Help, patterns=keys.ALL, preset=preset, help="show this and every key")


def parser(preset: str | None = None) -> Parser:
    """The parser of a command line; its help shows the keys as `preset` sets them."""
    examples = [f"  {command_line()} {line:<44} {text}".rstrip() for line, text in EXAMPLES.items()]
    top = Parser(
        prog=command_line(),
        description="Tune a text-to-image model to a reward, guide it between base and tuned, draw the Pareto front.",
        epilog="\n".join(["examples:", *examples, NOTES]),
    )
    _add_help(top, (), preset)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.short, description=textwrap.fill(command.long, 100))
        _add_help(sub, command.reads, preset)
        command.options(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, options and overrides in any order."""
    arguments, rest = parser(_preset(argv)).parse_known_args(argv)
    wrong = [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]
    if wrong:
        kind = "option" if wrong[0].startswith("-") else "argument"
        raise ConfigError(f"unknown {kind} {wrong[0]} (see {command_line(arguments.command, '--help')})")
    if rest:
        # argparse takes one unbroken run of positional arguments, and leaves what stands after a later option.
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _preset(argv: Sequence[str]) -> str | None:
    """The preset that a command line names, before or after --help."""
    early = Parser()
    early.add_argument("--preset")
    return early.parse_known_args(argv)[0].preset
