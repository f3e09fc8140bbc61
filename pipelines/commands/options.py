"""The command line's arguments, and its help."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from pipelines import config as configuration
from pipelines.commands.table import COMMANDS
from pipelines.config import ConfigError

EXAMPLES = """examples:
  python -m pipelines demo                                     the whole path, in minutes on two CPU cores
  python -m pipelines demo --preset demo-full                  the same thoroughly, in some hours; rerun to resume
  python -m pipelines train train.kl_weight=1 train.steps=100  one adapter
  python -m pipelines train --preset sd14 --dry-run            what that would take, without a download
  python -m pipelines sweep run.name=mine sweep.kl_weights='[0, 1, 10]'
  python -m pipelines report run.name=mine sweep.kl_weights='[0, 1, 10]'
  python -m pipelines evaluate --adapter mine=lora.safetensors run.name=mine
  python -m pipelines status demo                              what that run has and lacks
  python -m pipelines search --preset demo search.trials=192   better schedules for the demo's adapter
  python -m pipelines score my-images --reward hpsv2.1         any images with prompts
  python -m pipelines measure ~/aig-runs/mine                  the same measures anew, configured by the run itself
  python -m pipelines compare ~/aig-runs/mine ~/aig-runs/other

The same command resumes what was interrupted and does nothing again that is done.
A run lives in run.storage/run.name (by default under ~/aig-runs); a run keeps its configuration. run.storage may be
an object store, as s3://bucket/prefix: docs/cluster.md says how.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m pipelines",
        description="Tune a text-to-image model to a reward, guide it between base and tuned, draw the Pareto front.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.short, description=command.long, epilog=keys_help(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.options(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, options and overrides in any order."""
    arguments, rest = parser().parse_known_args(argv)
    wrong = [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]
    if wrong:
        kind = "option" if wrong[0].startswith("-") else "argument"
        raise ConfigError(f"unknown {kind} {wrong[0]} (see python -m pipelines {arguments.command} --help)")
    if rest:
        # argparse takes one unbroken run of positional arguments, and leaves what stands after a later option.
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def keys_help() -> str:
    """Every configuration key with its default and what it means."""
    lines = ["keys, with their defaults before the preset:"]
    for key, (value, meaning) in configuration.describe().items():
        lines += [f"  {key}={value}", *textwrap.wrap(meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)
