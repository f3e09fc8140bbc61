"""The command line: `python -m pipelines COMMAND [--preset NAME] [--config FILE] [section.key=value ...]`."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from aig import folders
from pipelines import config as configuration
from pipelines.cluster.errors import root_cause
from pipelines.config import Config, ConfigError, RunError, given
from pipelines.runs import identity, mirror
from pipelines.show.progress import stage

if TYPE_CHECKING:
    from aig.models import Model
    from pipelines.cluster.connect import Cluster
    from pipelines.study.resolved import Drawable, Resolved

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class Session:
    """One invocation: its configuration, the command as it was typed, the seconds of its stages.

    What it holds, the run's directory and Ray, it lets go at its end.
    """

    def __init__(self, config: Config, command: str, arguments: argparse.Namespace) -> None:
        self.config, self.command, self.arguments = config, command, arguments
        self.result = f"Run directory: {mirror.shown(config.directory)}"
        if mirror.is_mirror(config.directory):
            self.result += f", mirrored in {config.directory}"
        self.seconds: dict[str, float] = {}
        self.held = ExitStack()
        self.cluster: Cluster | None = None
        self.locked = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    def bring(self) -> None:
        """Of a run that is kept elsewhere, before anything is read: make its mirror ours, and what the store has."""
        root = self.config.directory
        if mirror.is_mirror(root):
            self.lock()
            mirror.complete(root)
            mirror.pull(root, without=mirror.APART)

    def claim(self) -> None:
        """Make the run's directory ours until the end: no second process works in it meanwhile.

        What has been seen of it before is checked again, and nothing is written before.
        """
        self.lock()
        identity.claim_directory(self.config)

    def lock(self) -> None:
        """Hold the run's lock, on this machine."""
        if not self.locked:
            self.held.enter_context(identity.lock_directory(self.config))
            self.locked = True
            for parent in (self.config.directory, self.config.directory / "adapters"):
                folders.recover_all(parent)

    def claim_existing(self) -> None:
        """The same for a command that works on what others left."""
        if not (self.config.directory / configuration.CONFIG_FILE).exists():
            raise ConfigError(
                f"there is no run in {mirror.shown(self.config.directory)}: run `python -m pipelines sweep` with "
                "the same configuration first"
            )
        self.claim()

    def connect(self) -> Cluster:
        """Ray, connected or started when it is first needed: a run with nothing left to do needs none."""
        from pipelines.cluster.connect import connected

        if self.cluster is None:
            # A trial that a scheduler stops is cleaned up after with the dashboard's help.
            settings = self.config.ray
            if self.config.sweep.scheduler != "none":
                settings = replace(settings, dashboard=True)
            self.cluster = cluster = self.held.enter_context(connected(settings))
            dashboard = f", dashboard at {cluster.dashboard}" if cluster.dashboard else ""
            where = "started here" if cluster.started else "running already"
            sizes = [f"{cluster.resources.get(name, 0):g} logical {name}s" for name in ("CPU", "GPU")]
            found = [size for size in sizes if not size.startswith("0 ")] or ["a cluster without CPUs"]
            print(f"Ray: {', '.join(found)}, {where}{dashboard}")
        return self.cluster


# The commands import what they need themselves: --help and a misspelled key answer at once, without torch and Ray.


def run_train(session: Session) -> None:
    config = session.config
    with stage("check", session.seconds):
        from pipelines.commands import check
        from pipelines.runs.directory import RunDir
        from pipelines.show.progress import trainings
        from pipelines.study.trainings import adapter_key
        from pipelines.train import checkpoints, records
        from pipelines.train.launch import room_for, train

        check.check_training(config, sweep=False)
    tell_prompts(config)
    session.claim()
    files, key = RunDir.of(config), adapter_key(config.train)
    if records.is_finished(config):
        checkpoints.discard(files.checkpoints(key))  # a kill just after the end leaves them
        print(f"Finished already: {mirror.shown(files.adapters / key)}{stopped_line(config)}")
        return
    cluster = session.connect()
    room_for(config, cluster)
    normalize(session, lambda: cluster)
    with stage("train", session.seconds), trainings(files.progress, [key], partial(mirror.glance, files.progress)):
        folder = train(config)
    mirror.pull(files.adapters, key, f"{key}@*")
    print(f"Adapter: {mirror.shown(folder)}{stopped_line(config)}")


def tell_prompts(config: Config) -> None:
    """Which prompts train and which judge, and how many do both."""
    from pipelines.study import prompts

    print(prompts.told(prompts.prompt_lists(config)))


def stopped_line(config: Config) -> str:
    """What is to be said of an adapter whose training a guard has stopped."""
    from pipelines.study import limits
    from pipelines.study import trainings as planned

    found = planned.stopped(config)
    return "" if found is None else f" ({limits.told(found)})"


def print_plan(config: Config) -> None:
    from pipelines.train import dry_run

    print("\n".join(dry_run.lines(dry_run.make(config))))


def run_sweep(session: Session) -> None:
    whole = not session.arguments.train_only
    with stage("check", session.seconds):
        from pipelines.commands import check

        model = check.check_study(session.config) if whole else check.check_training(session.config, sweep=True)
    tell_prompts(session.config)
    session.claim()
    do_sweep(session, model if whole else None, session.arguments.retry_errored)
    if whole:
        conclude(do_evaluate(session, model))


def normalize(session: Session, connect: Callable[[], Cluster]) -> None:
    """The statistics of weighted sums, measured where they are missing; most runs have no sum and need none."""
    from pipelines.study.statistics import ensure

    ensure(session.config, connect)


def do_sweep(session: Session, model: Model | None, retry_errored: bool = False) -> None:
    """Train what is left. With the model of an evaluation that follows, it needs room on the cluster, too."""
    with stage("sweep", session.seconds):
        from tune.sweep.run import concurrency, ended, sweep, table

        def connect() -> Cluster:
            cluster = session.connect()
            concurrency(session.config, cluster)
            if model is not None:
                evaluation_connect(session, model)()
            normalize(session, lambda: cluster)
            return cluster

        found = sweep(session.config, connect, retry_errored)
        print("\n".join(filter(None, (table(found.rows), ended(found.record)))))
    found.check()


def run_evaluate(session: Session) -> None:
    with stage("check", session.seconds):
        from pipelines.commands import check

        model = check.check_evaluation(session.config, trained=True)
    tell_prompts(session.config)
    session.claim()
    study = do_evaluate(session, model)
    if session.arguments.adapter:
        do_report(session)
    conclude(study)


def do_evaluate(session: Session, model: Model) -> Resolved:
    study = do_generate(session, model)
    do_measure(session, study)
    do_front(session, study)
    return study


def do_generate(session: Session, model: Model) -> Drawable:
    with stage("generate", session.seconds):
        from pipelines.evaluate import external, pools
        from pipelines.evaluate.generate import generate
        from pipelines.study.resolved import resolve_images

        external.bring(session.config)
        connect = evaluation_connect(session, model)
        normalize(session, connect)
        study = resolve_images(session.config, model.defaults)
        for line in study.notes:
            print(line)
        generate(study, connect, pools.host_memory(model))
    return study


def evaluation_connect(session: Session, model: Model) -> Callable[[], Cluster]:
    """Connects, and refuses a cluster that has no room for the evaluation."""
    from pipelines.evaluate import pools

    def connect() -> Cluster:
        cluster = session.connect()
        pools.check(session.config, cluster, pools.host_memory(model))
        return cluster

    return connect


def conclude(study: Resolved) -> None:
    """Tell of what failed, after everything that could be done; an error where that is more than may fail."""
    from pipelines.evaluate import failures

    failures.conclude(study)


def do_measure(session: Session, study: Drawable, everything: bool = False) -> None:
    with stage("measure", session.seconds):
        from pipelines.evaluate.images import read
        from pipelines.measure.measure import UNNEEDED, measure, summary

        images = read(study, without=UNNEEDED)
        counts = {name: getattr(images, name) for name in ("found", "expected", "missing", "failed", "duplicate")}
        told = "Images: {found} of {expected} found, {missing} missing, {duplicate} duplicate"
        print((f"{told}, {{failed}} left out." if images.failed else f"{told}.").format(**counts))
        measure(study, images, session.command, session.connect)
        print(summary(study, everything))


def run_measure(session: Session) -> None:
    with stage("check", session.seconds):
        from aig.models.empty import empty
        from pipelines.study.prompts import EVALUATE, check_prompts
        from pipelines.study.resolved import resolve_images

        check_prompts(session.config, EVALUATE)
        # Its sampling is part of the names of the images' files; its weights are not needed.
        with given("model.name"):
            model, _ = empty(session.config.model.name, session.config.model.revision)
    session.claim_existing()
    do_measure(session, resolve_images(session.config, model.defaults), everything=True)


def run_compare(session: Session) -> None:
    with stage("compare", session.seconds):
        from pipelines.front.compare import compare, summary
        from pipelines.study.resolved import resolve

        first = identity.of_run(session.arguments.run_a)
        mirror.refresh(first.directory)
        session.claim_existing()
        found = compare(resolve(first), resolve(session.config), shared=session.arguments.shared)
        print(summary(found, mirror.shown(first.directory), mirror.shown(session.config.directory)))
    print(f"Comparison: {found.path}")


def run_front(session: Session) -> None:
    from pipelines.study.resolved import resolve

    session.claim_existing()
    do_front(session, resolve(session.config))


def do_front(session: Session, study: Resolved) -> None:
    with stage("front", session.seconds):
        from pipelines.front.front import summary, write_front

        path = write_front(study)
    print(summary(path))
    print(f"Front: {path}; every arm with its settings and measures: {path.with_name('table.csv')}")


def run_report(session: Session) -> None:
    session.claim_existing()
    do_report(session)


def do_report(session: Session) -> None:
    with stage("report", session.seconds):
        from pipelines.report import write_report

        mirror.pull(session.config.directory / "images")
        path = write_report(session.config.directory)
    print(f"Report: {path}")


def run_search(session: Session) -> None:
    with stage("check", session.seconds):
        from pipelines.commands import check
        from tune.search import plan

        plan.check_given(session.config)
        made = plan.make(session.config, check.check_evaluation(session.config, trained=False))
    session.claim()
    with stage("search", session.seconds):
        from tune.search import findings
        from tune.search.run import search
        from tune.search.workers import Pool

        path = search(made, Pool(made, session.connect))
    print(findings.summary(path))
    print(f"Search: {path}, found schedules in {session.config.directory / 'schedules'}")


def run_demo(session: Session) -> None:
    with stage("check", session.seconds):
        from pipelines.commands import check

        model = check.check_study(session.config)
    tell_prompts(session.config)
    session.claim()
    do_sweep(session, model)
    study = do_evaluate(session, model)
    do_report(session)
    conclude(study)


def run_check(session: Session) -> None:
    config = session.config
    session.result = "Nothing was started or written."
    with stage("check", session.seconds):
        from pipelines.commands import check

        model = check.check_study(config)
    tell_prompts(config)
    if session.arguments.weights:
        with stage("weights", session.seconds):
            for line in check.check_weights(config, model):
                print(line)


def weights_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--weights", action="store_true", help="load every reward wholly, one after another, and score")


def run_score(session: Session) -> None:
    given = session.arguments
    with stage("check", session.seconds):
        from pipelines.score import folder as score_folder
        from pipelines.score import listing

        names = listing.Names(given.file_column, given.prompt_column, given.group_column)
        request = score_folder.Request(
            given.source, tuple(dict.fromkeys(given.reward)), given.prompts, names, given.out
        )
        found, columns, files = score_folder.check(session.config, request)
        prompted = sum(bool(image.prompt) for image in found.images)
        without = "" if prompted == len(found.images) else f", {len(found.images) - prompted} of them without prompts"
        print(f"{len(found.images)} images in {given.source}{without}.")
        if found.unlisted:
            print(f"{found.unlisted} other image files there have no prompt in the metadata, and are left out.")
    session.result = f"Scores: {files.out}"
    with stage("score", session.seconds):
        table, now = score_folder.score(session.config, found, columns, files, session.connect)
    if not now:
        print("All of them were scored already.")
    from pipelines.score.means import means, summary

    front = session.config.front
    print(summary(means(table, [*columns.parts, *columns.sums], front), front.level))
    if columns.sums:
        print(f"{', '.join(columns.sums)}: the raw weighted sum, since there is no base model here to z-score by.")
    failed = score_folder.failures(table)
    if failed:
        print(session.result)
        more = f"; and {len(failed) - 5} more, see the column error" if len(failed) > 5 else ""
        raise score_folder.ScoreError(
            f"{len(failed)} of {len(table)} images have no score: {'; '.join(failed[:5])}{more}"
        )


def score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", type=Path, help="of images, or a metadata or parquet file")
    parser.add_argument(
        "--reward", metavar="NAME", action="append", required=True,
        help="pickscore, hpsv2.1, ..., package.module:callable, a name of rewards.define, or a sum as "
        "'0.5*pickscore + 0.5*hpsv2.1'; give it again for another",
    )  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="a .jsonl, .csv or .parquet with file_name, text")
    parser.add_argument("--prompt-column", metavar="NAME", help="its column of prompts: prompt, text or caption")
    parser.add_argument("--file-column", metavar="NAME", help="its column of paths: file_name, file, path or image")
    parser.add_argument("--group-column", metavar="NAME", help="its column of groups, as HPSv2's styles: group")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the scores' parquet file: under run.storage/scores")


@dataclass(frozen=True)
class Command:
    """A command: what it does, in a line for the list and in a paragraph for its own help."""

    run: Callable[[Session], None]
    short: str
    long: str
    preset: str | None = None
    options: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds arguments of its own."""
    in_run: bool = True
    """Whether it works in a run's directory."""
    runs: tuple[str, ...] = ()
    """Names of arguments that are directories of runs: the last one's configuration is the command's."""


def dry_run_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dry-run", action="store_true", help="print the plan: sizes, work, memory, downloads")


def adapter_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--adapter", metavar="[NAME=]PATH", action="append", default=[],
        help="a LoRA file, or its folder, that was made elsewhere, in the place of the sweep's adapters; give it again "
        "for another. Ends with the report",
    )  # fmt: skip


def sweep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--retry-errored", action="store_true", help="train those alone that failed before")
    sub.add_argument("--train-only", action="store_true", help="end with the trainings; evaluate does the rest")


def shared_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--shared", action="store_true", help="leave out prompts that only one of the runs has")


COMMANDS = {
    "check": Command(
        run_check, "find what is wrong with a configuration, starting nothing",
        "Check everything that sweep and evaluate check before they start: keys, prompts, schedules, the model, and "
        "whether the rewards' weights are here or can be downloaded. With --weights they are downloaded and loaded "
        "wholly, and score an image each.", options=weights_option, in_run=False,
    ),
    "train": Command(
        run_train, "train one adapter (train.*)",
        "Tune the model to train.reward with DRaFT and keep the adapter, snapshots along the way and a training curve.",
        options=dry_run_option,
    ),
    "sweep": Command(
        run_sweep, "train an adapter for every setting of sweep.*, and evaluate each as evaluate.* says",
        "Train an adapter for every reward, K, KL weight, learning rate, LoRA rank and training seed of sweep.*, or "
        "for those that a search draws (sweep.search); then evaluate each under every LoRA scale and AIG schedule of "
        "evaluate.*, all in one table. What is finished is left alone, what was interrupted goes on. Trials that fail "
        "are listed and stop no other, but the evaluation waits for them: --retry-errored runs them again.",
        options=sweep_options,
    ),
    "evaluate": Command(
        run_evaluate, "draw and score every arm's images, and measure them",
        "Draw every arm (base, tuned, early stops, KL weights, LoRA scales, AIG schedules) on the same prompts and "
        "noise, score the images, measure reward and diversity and find the Pareto fronts. Needs the sweep's adapters; "
        "or, with --adapter, nothing but a LoRA file of anyone's for model.name: its LoRA scales and schedules are the "
        "arms then. evaluate.adapters=[NAME=PATH] puts such a file beside the sweep's adapters. A sweep does the same "
        "after its trainings, but for --train-only.",
        options=adapter_option,
    ),
    "measure": Command(
        run_measure, "measure a run's images again, from its directory alone",
        "Measure the images of a run that evaluate drew, by the configuration in its directory; keys of measure.* and "
        "front.* may be changed. evaluate does the same at its end.", runs=("run",),
    ),
    "compare": Command(
        run_compare, "compare two runs arm by arm, paired over prompts",
        "Differences of RUN_B less RUN_A, for the arms that both have, with intervals; both have to be measured, on "
        "the same prompts, seeds, noise and features.", runs=("run_a", "run_b"), options=shared_option,
    ),
    "front": Command(
        run_front, "find the Pareto fronts and their intervals",
        "Find the Pareto fronts of reward against diversity, with intervals, from what evaluate measured.",
    ),
    "report": Command(
        run_report, "write the report",
        "Write report/index.html, one page that works offline, and PNGs of its figures.",
    ),
    "search": Command(
        run_search, "search schedules for an adapter, and validate them",
        "Search the schedules of one trained adapter (search.adapter) for reward and diversity, at the cost of "
        "inference, and validate the best on prompts that the search has not seen. They are kept as "
        "schedules/NAME.json, for evaluate.schedules=['file:PATH'] and aig.annealed(pipe, 'file:PATH').",
    ),
    "demo": Command(
        run_demo, "sweep, evaluate, front and report, in one go",
        "Everything from training to the report. The preset is demo unless you name another.", "demo",
    ),
    "score": Command(
        run_score, "score any folder of images",
        "Score the images of FOLDER by one or more rewards. Their prompts stand in its metadata.jsonl, .csv or "
        ".parquet (columns file_name and text, as Hugging Face's imagefolder has them), or beside the images in "
        "parquet files, as in a run's images/; a reward that reads no prompt, as aesthetic, needs none. Writes a "
        "parquet file with a row an image, and prints each reward's mean over the prompts with its interval. The same "
        "command goes on after an interruption.",
        options=score_options, in_run=False,
    ),
}  # fmt: skip

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


STATUS = "what a run has, what is under way, failed or missing, and the next command; from its folder alone"


def print_status(run: str) -> None:
    from pipelines.commands import status

    print(status.report(status.find(run)))


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
        known = ", ".join(configuration.presets())
        if command.options is not None:
            command.options(sub)
        for argument in command.runs:
            sub.add_argument(argument, metavar=argument.upper(), help="the directory of a run, or its URI")
        if not command.runs:
            sub.add_argument("--preset", metavar="NAME", default=command.preset, help=f"start from a preset: {known}")
            sub.add_argument("--config", metavar="FILE", help="then take what a YAML file sets, {train: {steps: 50}}")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("overrides", nargs="*", metavar="section.key=value", help="then single keys, values as YAML")
    sub = commands.add_parser("status", help="what a run has and lacks", description=f"Print {STATUS}.")
    sub.add_argument("run", metavar="RUN", help="a run's folder or URI, or its name in the default storage")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(overrides=[])
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, options and overrides in any order."""
    arguments, rest = parser().parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]} (see python -m pipelines {arguments.command} --help)")
    if rest and arguments.command == "status":
        raise ConfigError(f"status takes one run, and {rest[0]!r} is one more (see python -m pipelines status --help)")
    # argparse takes one unbroken run of positional arguments, and leaves what stands after a later option.
    arguments.overrides += rest
    return arguments


def resolve(arguments: argparse.Namespace) -> Config:
    """The configuration that the arguments ask for: a run's own, or that of preset, file and overrides."""
    runs = COMMANDS[arguments.command].runs
    if runs:
        return identity.of_run(getattr(arguments, runs[-1]), arguments.overrides)
    given = getattr(arguments, "adapter", None)
    # First, so that an override can bring the sweep back.
    only = ["sweep.rewards=[]", f"evaluate.adapters={json.dumps(given)}"] if given else []
    return configuration.load(arguments.preset, arguments.config, [*only, *arguments.overrides])


def keys_help() -> str:
    """Every configuration key with its default and what it means."""
    lines = ["keys, with their defaults before the preset:"]
    for key, (value, meaning) in configuration.describe().items():
        lines += [f"  {key}={value}", *textwrap.wrap(meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a failure, 2 for bad input, 130 for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "pipelines", *argv])
    debug, begun = "--debug" in argv, time.monotonic()
    try:
        arguments = parse(argv)
        if arguments.command == "status":
            print_status(arguments.run)
            return 0
        config = resolve(arguments)
        if getattr(arguments, "dry_run", False):
            print_plan(config)
            return 0
        if COMMANDS[arguments.command].in_run:
            identity.check_directory(config)
        with Session(config, command, arguments) as session:
            if COMMANDS[arguments.command].in_run:
                session.bring()
            COMMANDS[arguments.command].run(session)
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in session.seconds.items())
        print(f"Done in {time.monotonic() - begun:.0f} s: {stages}. {session.result}")
        return 0
    except KeyboardInterrupt:
        print(f"\ninterrupted: nothing is lost but the last minutes; resume with: {command}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return explain(error)


def explain(error: Exception) -> int:
    """One line on stderr, and the exit code: only a ConfigError is bad input, all else a failure.

    What nobody has foreseen, in this process, is told as what it is: a ValueError of ours says nothing of the input.
    """
    of_ray, text = any(kind.__module__.startswith("ray.") for kind in type(error).__mro__), " ".join(str(error).split())
    if isinstance(error, ConfigError) and not of_ray:
        print(f"error: {text}", file=sys.stderr)
        return BAD_INPUT
    # A FloatingPointError is what a training came to: an image, a score or a gradient that is not finite.
    if of_ray or isinstance(error, (RunError, OSError, FloatingPointError)):
        print(f"failed: {root_cause(error)} (--debug shows where)", file=sys.stderr)
    else:
        print(f"internal error: {type(error).__name__}: {text} (--debug shows the traceback)", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    # A parent may have started us with Ctrl-C ignored, as shells do in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # `ray job stop`, a spot node's notice, a batch system's time limit: they end a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
