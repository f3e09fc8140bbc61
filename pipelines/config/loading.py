"""Reading a configuration: a preset, a YAML file, and overrides over both."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import schema
from pipelines.config.errors import ConfigError, given
from pipelines.config.schema import SECTIONS, Config
from pipelines.config.values import coerce, nearest, one_line, plain

PRESETS = Path(__file__).parents[1] / "presets"
CONFIG_FILE = "config.yaml"


def load(preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge a preset, a YAML file over it, and `section.key=value` overrides over both.

    ConfigError names what is wrong and the fix.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if preset is not None:
        merge(values, read_yaml(_preset_path(preset)), f"preset {preset}")
    if file is not None:
        merge(values, read_yaml(Path(file).expanduser()), str(file))
    for text in overrides:
        merge(values, parse_override(text), text)
    for key in SCHEDULES:
        if key in values["evaluate"]:
            values["evaluate"][key] = tuple(_without_file(key, text) for text in values["evaluate"][key])
    if "adapters" in values["evaluate"]:
        values["evaluate"]["adapters"] = tuple(map(_named_path, values["evaluate"]["adapters"]))
    return build(values)


def build(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration of checked values, by section."""
    return Config(**{name: SECTIONS[name](**values[name]) for name in SECTIONS})  # type: ignore[arg-type]


SCHEDULES = ("schedules", "kl_schedules")  # of `evaluate`


def _without_file(key: str, text: str) -> str:
    """The content of a schedule file, LABEL=CURVE: neither workers elsewhere nor a later rerun need the file."""
    if not text.startswith("file:"):
        return text
    from aig import schedules  # with torch, which most configurations need not wait for

    with given(f"evaluate.{key}"):
        schedule = schedules.parse(text)
    name = schedules.format_name(schedule)
    return f"{schedule.label}={name}" if schedule.label else name


def _named_path(text: str) -> str:
    """Complete NAME=PATH: the path absolute, a missing name taken from the file or its folder."""
    name, equals, given = text.partition("=")
    if not equals or "/" in name:
        name, given = "", text
    path = Path(given).expanduser().absolute()
    if not name:
        name = path.parent.name if path.stem in ANONYMOUS else path.stem if path.suffix == ".safetensors" else path.name
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")
    return f"{name}={path}" if given else text


ANONYMOUS = ("pytorch_lora_weights", "diffusion_pytorch_model", "adapter_model")  # say nothing


def presets() -> list[str]:
    """Names of the presets that come with the program."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as plain lists, dicts and scalars, for a YAML file."""
    return {
        name: {key: list(v) if isinstance(v, tuple) else v for key, v in section.items()}
        for name, section in dataclasses.asdict(config).items()
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`."""
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    merge(merged, values, CONFIG_FILE)
    return build(merged)


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def describe(config: Config) -> dict[str, tuple[str, str]]:
    """Every key with its value, as YAML on one line, and its meaning: the docstring under its field."""
    described = {}
    for node in ast.parse(Path(schema.__file__).read_text()).body:
        if not isinstance(node, ast.ClassDef) or node.name.lower() not in SECTIONS:
            continue
        name = node.name.lower()
        for item, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(doc, ast.Expr):
                value = plain(getattr(getattr(config, name), item.target.id))
                line = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
                described[f"{name}.{item.target.id}"] = (line, " ".join(ast.literal_eval(doc.value).split()))
    return described


def _preset_path(name: str) -> Path:
    if name not in presets():
        raise ConfigError(
            f"preset {name!r} is unknown{nearest(name, presets())}: the presets are {', '.join(presets())}"
        )
    return PRESETS / f"{name}.yaml"


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot read this configuration ({getattr(error, 'strerror', error)}): check the path"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({one_line(error)}): correct the file") from error


def parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"{text!r} is not an override: write section.key=value, as in train.steps=50")
    try:
        return {section: {name: yaml.safe_load(value)}}
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is not valid YAML ({one_line(error)})") from error


def merge(into: dict[str, dict[str, Any]], given: Any, source: str) -> None:
    """Set the values of `given` in `into`; ConfigError names `source` and the nearest known key."""
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: give a mapping of sections, as in 'train: {{steps: 50}}'")
    for name, values in given.items():
        if name not in SECTIONS:
            every = [*SECTIONS, *_keys()]
            raise ConfigError(
                f"{source}: unknown key {name!r}{nearest(str(name), every)}: the sections are {', '.join(SECTIONS)}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {name} is {values!r}: give a mapping of its keys")
        hints = typing.get_type_hints(SECTIONS[name])
        known = [item.name for item in dataclasses.fields(SECTIONS[name])]  # type: ignore[arg-type]
        for key, value in values.items():
            if key not in known:
                near = nearest(f"{name}.{key}", [f"{name}.{k}" for k in known]) or nearest(str(key), _keys())
                raise ConfigError(f"{source}: unknown key '{name}.{key}'{near}")
            into[name][key] = coerce(f"{name}.{key}", value, hints[key])


def _keys() -> list[str]:
    return [f"{name}.{item.name}" for name, section in SECTIONS.items() for item in dataclasses.fields(section)]  # type: ignore[arg-type]
