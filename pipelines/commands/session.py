"""One invocation of a command: its configuration, the run's directory and Ray."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines import config as configuration
from pipelines.config import Config, ConfigError
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.show import progress
from pipelines.show.program import command_line

if TYPE_CHECKING:
    from pipelines.cluster.connect import Cluster


class Session:
    """One invocation: its configuration, the command as it was typed, the seconds of its stages.

    At its end it lets go of the run's directory and of Ray.
    """

    def __init__(self, config: Config, command: str, arguments: argparse.Namespace) -> None:
        self.config, self.command, self.arguments = config, command, arguments
        self.result = ""
        """What the last line says of a command's outcome; a command that leaves it empty ends without that line."""
        self.seconds: dict[str, float] = {}
        self.held = ExitStack()
        self.cluster: Cluster | None = None
        self.locked = False

    @property
    def run(self) -> RunDir:
        """The run's directory."""
        return RunDir.of(self.config)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Print that a stage begins and how long it took."""
        return progress.stage(name, self.seconds)

    def open(self) -> None:
        """Check that the configuration fits the run's directory, and bring a remote run's mirror up to date."""
        run = identity.check_directory(self.config)
        self.result = f"Run directory: {run.shown()}"
        if run.mirror is not None:
            self.result += f", mirrored in {run.root}"
            self.lock()
            run.bring()

    def claim(self) -> None:
        """Lock the run's directory until the session ends, check it again, and write its configuration."""
        self.lock()
        identity.claim_directory(self.config)

    def claim_existing(self) -> None:
        """The same for a command that works on what others left."""
        if not (self.run.root / configuration.CONFIG_FILE).exists():
            raise ConfigError(
                f"there is no run in {self.run.shown()}: run `{command_line('sweep')}` with the same configuration "
                "first"
            )
        self.claim()

    def lock(self) -> None:
        """Hold the run's lock on this machine, and put back what a killed writer left aside."""
        if not self.locked:
            self.held.enter_context(identity.lock_directory(self.config))
            self.locked = True
            self.run.recover()

    def connect(self, dashboard: bool = False) -> Cluster:
        """Ray, connected or started on the first call: a run with nothing left to do needs none.

        With `dashboard` a cluster that is started here has one, whatever ray.dashboard says.
        """
        from pipelines.cluster.connect import connected

        if self.cluster is None:
            settings = replace(self.config.ray, dashboard=dashboard or self.config.ray.dashboard)
            self.cluster = cluster = self.held.enter_context(connected(settings))
            where = "started here" if cluster.started else "running already"
            address = f", dashboard at {cluster.dashboard}" if cluster.dashboard else ""
            sizes = [f"{cluster.resources.get(name, 0):g} logical {name}s" for name in ("CPU", "GPU")]
            sizes = [size for size in sizes if not size.startswith("0 ")] or ["a cluster without CPUs"]
            print(f"Ray: {', '.join(sizes)}, {where}{address}")
        return self.cluster
