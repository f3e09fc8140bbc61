"""`score`: any folder of images, by any rewards."""

import argparse
from pathlib import Path

from pipelines.commands import keys
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session

READS = (
    "run.storage", "rewards.define", *keys.of("evaluate", "scorers scorer_cpus scorer_gpus node score_batch threads"),
    *keys.of("front", "bootstrap level seed interval"), "ray.*",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", type=Path, help="a folder of images, or a metadata or parquet file")
    parser.add_argument(
        "--reward", metavar="NAME", action="append", required=True,
        help="pickscore, hpsv2.1, ..., package.module:callable, a name of rewards.define, or a sum such as "
        "'0.5*pickscore + 0.5*hpsv2.1'; repeat it for more",
    )  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="a .jsonl, .csv or .parquet with file_name, text")
    parser.add_argument(
        "--prompt-column", metavar="NAME", help="column of the prompts; default: prompt, text or caption"
    )
    parser.add_argument(
        "--file-column", metavar="NAME", help="column of the paths; default: file_name, file, path or image"
    )
    parser.add_argument(
        "--group-column", metavar="NAME", help="column of groups, such as HPSv2's styles; default: group"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="parquet file for the scores; default: under run.storage/scores"
    )
    configured(parser)


def run(session: Session) -> None:
    given = session.arguments
    with session.stage("check"):
        from pipelines.score import folder, listing

        names = listing.Names(given.file_column, given.prompt_column, given.group_column)
        request = folder.Request(given.source, tuple(dict.fromkeys(given.reward)), given.prompts, names, given.out)
        images, columns, files = folder.check(session.config, request)
        prompted = sum(bool(image.prompt) for image in images.images)
        without = "" if prompted == len(images.images) else f", {len(images.images) - prompted} of them without prompts"
        print(f"{len(images.images)} images in {given.source}{without}.")
        if images.unlisted:
            print(f"{images.unlisted} other image files there have no prompt in the metadata, and are left out.")
    session.result = f"Scores: {files.out}"
    with session.stage("score"):
        table, now = folder.score(session.config, images, columns, files, session.connect)
    if not now:
        print("All of them were scored already.")
    from pipelines.score.means import means, summary

    front = session.config.front
    print(summary(means(table, [*columns.parts, *columns.sums], front), front.level))
    if columns.sums:
        print(f"{', '.join(columns.sums)}: the raw weighted sum, since there is no base model here to z-score by.")
    failed = folder.failures(table)
    if failed:
        print(session.result)
        more = f"; and {len(failed) - 5} more, see the column error" if len(failed) > 5 else ""
        raise folder.ScoreError(f"{len(failed)} of {len(table)} images have no score: {'; '.join(failed[:5])}{more}")


COMMAND = Command(
    run, "score any folder of images",
    "Score the images of FOLDER with one or more rewards. It finds their prompts in metadata.jsonl, .csv or "
    ".parquet there (columns file_name and text, as in Hugging Face's imagefolder), or beside the images in "
    "parquet files, as in a run's images/; a reward that reads no prompt, such as aesthetic, needs none. Writes a "
    "parquet file with one row per image, and prints each reward's mean over the prompts with its interval. The "
    "same command resumes after an interruption.",
    READS, options,
)  # fmt: skip
