"""Prompts: which train and which judge, how many do both, and the published formats of files of them.

Only the embedded world has captions of its own: there a number takes the first training or held-out ones, by the key.
Reading a file loads neither torch nor Ray.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import VALIDATION_SEEDS, Config, ConfigError
from pipelines.study import trainings

EMBEDDED = "tiny"
"""The model that has captions of its own."""
TRAIN, EVALUATE, SEARCH, HELD_OUT = "train.prompts", "evaluate.prompts", "search.prompts", "search.held_out"
CAPTIONS = {TRAIN: "training", EVALUATE: "held-out", SEARCH: "training", HELD_OUT: "held-out"}
"""Which of the embedded world's captions a number takes: none that judge were trained on."""


# --- which prompts ----------------------------------------------------------------------------------------------------


def resolve_prompts(config: Config, key: str) -> list[str]:
    """The prompts of a key of `CAPTIONS`: a list as given, a file's, or the first N built-in captions."""
    value = _value(config, key)
    if isinstance(value, str):
        return read(value, key)
    if not isinstance(value, int):
        if not value:
            raise ConfigError(f"{key} is []: give at least one prompt")
        return list(value)
    check_given(config, key)
    from aig.world import scenes  # loads torch

    known = scenes.training_prompts() if CAPTIONS[key] == "training" else scenes.held_out_prompts()
    if value > len(known):
        raise ConfigError(
            f"{key} is {value}: the embedded world has {len(known)} {CAPTIONS[key]} captions; give fewer, or a list "
            "of prompts"
        )
    return known[:value]


def validation_prompts(config: Config) -> list[str]:
    """The prompts of a validation, which are training prompts."""
    return resolve_prompts(config, TRAIN)[: config.train.validate_prompts]


def validation_seeds(config: Config) -> list[int]:
    """The noise seed indices of a validation's prompts, which no evaluation uses."""
    return [VALIDATION_SEEDS + index for index in range(config.train.validate_seeds)]


def missing(config: Config, *keys: str) -> list[str]:
    """The keys that are numbers of captions though the model has none."""
    return [key for key in keys if isinstance(_value(config, key), int) and config.model.name != EMBEDDED]


def check_given(config: Config, *keys: str) -> None:
    """ConfigError if prompts are missing."""
    if absent := missing(config, *keys):
        numbers = ", ".join(f"{key}={_value(config, key)}" for key in absent)
        example = " ".join(f"{key}=FILE" for key in absent)
        raise ConfigError(
            f"{' and '.join(absent)} must be given: a number ({numbers}) counts captions of the embedded world, and "
            f"model.name is {config.model.name}; give a list of prompts or a file ({FORMATS}), as in {example}"
        )


def check_prompts(config: Config, *keys: str) -> None:
    """ConfigError if prompts are missing or cannot be read, before a model is downloaded for them."""
    check_given(config, *keys)
    for key in keys:
        resolve_prompts(config, key)


def _value(config: Config, key: str) -> int | str | tuple[str, ...]:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


# --- what trains and what judges --------------------------------------------------------------------------------------


def shared(judging: Sequence[str], selecting: Sequence[str]) -> list[str]:
    """The prompts of `judging` that `selecting` has too, ignoring white space and case."""
    known = {_plain(prompt) for prompt in selecting}
    return [prompt for prompt in judging if _plain(prompt) in known]


def prompt_lists(config: Config) -> dict[str, Any]:
    """How many prompts train, validate and judge, and how many of those that judge train or validate too, as JSON.

    `train` is None, and what follows it missing, if the run trains nothing.
    """
    judging = resolve_prompts(config, EVALUATE)
    counts: dict[str, Any] = {"evaluate": len(judging), "train": None, "elsewhere": len(config.evaluate.adapters)}
    if not trainings.references(config):
        return counts
    training = resolve_prompts(config, TRAIN)
    validating = training[: config.train.validate_prompts]
    numbers = all(isinstance(_value(config, key), int) for key in (TRAIN, EVALUATE))
    return counts | {
        "split": "embedded" if numbers else "given",
        "train": len(training),
        "overlap": len(shared(judging, training)),
        "validate": len(validating),
        "overlap_validate": len(shared(judging, validating)),
    }


def describe(counts: Mapping[str, Any]) -> str:
    """`prompt_lists` as a sentence."""
    judging, training = counts["evaluate"], counts["train"]
    unknown = "what adapters from elsewhere were trained on is not known"
    if training is None:
        return f"Judged on {judging} prompts; {unknown}."
    if counts["split"] == "embedded":
        text = f"Trained on {training} captions of the embedded world, judged on {judging} held-out ones"
    else:
        text = f"Trained on {training} prompts, judged on {judging}"
    if counts["overlap"]:
        text += (
            f", of which {counts['overlap']} were trained on too ({counts['overlap_validate']} of them in validations, "
            "with other noise) and say nothing of new prompts"
        )
    else:
        text += ": none is in both"
    return f"{text}; {unknown}." if counts["elsewhere"] else f"{text}."


def _plain(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()


# --- files ------------------------------------------------------------------------------------------------------------

FORMATS = ".txt, .tsv, .csv, .json, .jsonl, .parquet"
COLUMNS = ("prompt", "caption", "text")
"""Names of a column of prompts, in upper or lower case."""
SHOWN = 12  # columns in a message


class _WrongFileError(ValueError):
    """What is wrong with a file's content, and the fix."""


def read(path: str, key: str) -> list[str]:
    """The distinct prompts of a file; ConfigError if it cannot be read or has fewer than two.

    A text file has one per line, a table (.tsv, .csv, .parquet, .jsonl, .json) one column of `COLUMNS`; .json may be a
    list of texts instead. Blank prompts are left out.
    """
    file = Path(path).expanduser()
    try:
        texts = READERS.get(file.suffix.lower(), _lines)(file)
        distinct = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if len(distinct) < 2:
            raise _WrongFileError(f"has {len(distinct)} prompts: give at least two, one per line, row or entry")
    except _WrongFileError as error:
        raise ConfigError(f"{key}: {path} {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, csv.Error, json.JSONDecodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{key}: {path} cannot be read ({reason}): give a file of prompts ({FORMATS}) or a list"
        ) from error
    return distinct


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first prompt


def _lines(file: Path) -> list[str]:
    """Lines end in line feed, carriage return or both; str.splitlines would split at U+2028 and others too."""
    return re.split(r"\r\n|\n|\r", _text(file))


def _tab_separated(file: Path) -> list[str]:
    """Quotes are ordinary characters: PartiPrompts has unescaped ones inside prompts."""
    rows = [line.split("\t") for line in _lines(file)]
    return _of_table(rows, "tabs")


def _comma_separated(file: Path) -> list[str]:
    rows = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    return _of_table(list(rows), "commas, unless quoted,")


def _of_table(rows: list[list[str]], between: str) -> list[str]:
    filled = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if not filled:
        raise _WrongFileError(f"is empty: give a header with {_a_column()}, and a row per prompt")
    (_, header), *body = filled
    place = header.index(_column(header))
    for number, row in body:
        if len(row) > len(header):
            raise _WrongFileError(
                f"has {len(row)} cells in row {number} and {len(header)} columns: {between} separate them; mend the row"
            )
        if place >= len(row):
            raise _WrongFileError(f"has no {header[place]!r} in row {number}: fill it in, or leave the row out")
    return [row[place] for _, row in body]


def _json_list(file: Path) -> list[str]:
    content = json.loads(_text(file))
    if not isinstance(content, list):
        raise _WrongFileError("is JSON, and no list: give a list of texts, or of objects with a field 'prompt'")
    return _of_entries(content, "entry")


def _json_lines(file: Path) -> list[str]:
    entries = []
    for number, line in enumerate(_lines(file), 1):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise _WrongFileError(f"is no JSON in line {number} ({error.msg}): give an object per line") from error
    return _of_entries(entries, "object")


def _of_entries(entries: list[Any], what: str) -> list[str]:
    """The texts themselves, or the objects' column of prompts."""
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return _texts(entries, what)
    column = _column(list(dict.fromkeys(name for entry in entries for name in entry)))
    return _texts([entry.get(column) for entry in entries], f"{column!r} of {what}")


def _parquet(file: Path) -> list[str]:
    with file.open("rb") as opened:  # a missing file raises what it does for other formats
        column = _column(pq.read_schema(opened).names)
    return _texts(pq.read_table(file, columns=[column])[column].to_pylist(), f"{column!r} of row")


def _texts(values: Sequence[Any], what: str) -> list[str]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
            raise _WrongFileError(f"has {shown} as {what} {number}: a prompt is a text; mend it, or leave it out")
    return list(values)


def _column(names: Sequence[str]) -> str:
    """The only column of prompts."""
    fitting = [name for name in names if name.strip().lower() in COLUMNS]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise _WrongFileError(f"has several columns of prompts ({', '.join(fitting)}): leave one of them, or rename it")
    shown = [repr(name) if len(name) <= 40 else f"{name[:40]!r}..." for name in names[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise _WrongFileError(f"has no column of prompts, but {', '.join(shown)}{more}: name one {' or '.join(COLUMNS)}")


def _a_column() -> str:
    return f"a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".tsv": _tab_separated,
    ".csv": _comma_separated,
    ".json": _json_list,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
