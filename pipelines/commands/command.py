"""What a command is: what it does, which arguments it takes, which configuration it works on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from pipelines import config as configuration
from pipelines.commands.session import Session
from pipelines.config import Config


def configured(parser: argparse.ArgumentParser, preset: str | None = None) -> None:
    """Add the arguments that make a configuration: a preset, a file and single keys."""
    known = ", ".join(configuration.presets())
    parser.add_argument("--preset", metavar="NAME", default=preset, help=f"start from a preset: {known}")
    parser.add_argument("--config", metavar="FILE", help="then apply a YAML file such as {train: {steps: 50}}")
    overridden(parser)


def overridden(parser: argparse.ArgumentParser) -> None:
    """Add single keys."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="then set single keys, values as YAML"
    )


def load(arguments: argparse.Namespace) -> Config:
    """The configuration that `configured` arguments make."""
    return configuration.load(arguments.preset, arguments.config, arguments.overrides)


@dataclass(frozen=True)
class Command:
    run: Callable[[Session], None]
    """Imports what it needs itself: --help and a misspelled key answer at once, without torch and Ray."""
    short: str
    """What it does, in a line for the list of commands."""
    long: str
    """The same in a paragraph, for its own help."""
    reads: tuple[str, ...]
    """Patterns of the keys that it reads, as its help lists them; none if it takes no keys."""
    options: Callable[[argparse.ArgumentParser], None] = configured
    """Adds its arguments."""
    resolve: Callable[[argparse.Namespace], Config] = load
    """Makes its configuration of them."""
