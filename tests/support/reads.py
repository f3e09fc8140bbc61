"""Which configuration keys a command reads in this process, against those that its help lists."""

import dataclasses
import sys
from pathlib import Path

from pipelines import config as configuration
from pipelines.commands import keys
from pipelines.commands.table import COMMANDS
from pipelines.config.fields import Section

ROOT = Path(__file__).parents[2]
KEYS = [f"{name}.{item.name}" for name, kind in configuration.SECTIONS.items() for item in dataclasses.fields(kind)]
SCHEMA = str(ROOT / "pipelines" / "config" / "schema.py")
READERS = tuple(str(ROOT / folder) for folder in ("pipelines", "tune"))
# These load, copy and compare all keys alike.
EXEMPT = (str(ROOT / "pipelines" / "config"), str(ROOT / "pipelines" / "runs" / "identity.py"))


def watch(monkeypatch):
    """A dict that fills with what commands read without listing it: {"front reads train.lr": "FILE:LINE"}."""
    unlisted, running = {}, []

    def getattribute(self, name):
        if running and not name.startswith("_"):
            key, (command, listed) = f"{type(self).__name__.lower()}.{name}", running[-1]
            if key in KNOWN and key not in listed and (place := reader(sys._getframe(1))):
                unlisted.setdefault(f"{command} reads {key}", place)
        return object.__getattribute__(self, name)

    def watched(name, command):
        listed = frozenset(keys.matching(command.reads, KEYS))

        def run(session):
            running.append((name, listed))
            try:
                command.run(session)
            finally:
                running.pop()

        return dataclasses.replace(command, run=run)

    monkeypatch.setattr(Section, "__getattribute__", getattribute, raising=False)
    for name, command in COMMANDS.items():
        if command.reads:  # the others take no keys
            monkeypatch.setitem(COMMANDS, name, watched(name, command))
    return unlisted


KNOWN = frozenset(KEYS)


def reader(frame):
    """The file and line of the application that reads a key, itself or by a property of its section."""
    while frame.f_code.co_filename == SCHEMA:
        frame = frame.f_back
    file = frame.f_code.co_filename
    return f"{file}:{frame.f_lineno}" if file.startswith(READERS) and not file.startswith(EXEMPT) else None
