"""Every public name of the library has a docstring with an example, and the examples run."""

import doctest
import inspect
import re
import tempfile
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import aig

PACKAGES = [
    "aig",
    *(f"aig.{name}" for name in ("adapters", "metrics", "metrics.features", "models", "pareto", "rewards", "vision")),
]
PRETRAINED = "its pretrained weights are not in the package; its tests build small ones"
WITHOUT_EXAMPLE = {
    "aig.models.FluxModel": PRETRAINED,
    "aig.models.StableDiffusion3Model": PRETRAINED,
    "aig.models.StableDiffusionModel": PRETRAINED,
    "aig.models.StableDiffusionXLModel": PRETRAINED,
    "aig.models.Model": "a protocol, which every model of aig.load meets",
    "aig.vision.Clip": PRETRAINED,
    "aig.vision.load_clip": PRETRAINED,
}


def public_objects() -> dict[str, Any]:
    """Functions and classes by their full public names; constants and types carry no docstring of their own."""
    names = {f"{package}.{name}": package for package in PACKAGES for name in import_module(package).__all__}
    objects = {full: getattr(import_module(package), full.rpartition(".")[2]) for full, package in names.items()}
    return {full: each for full, each in objects.items() if inspect.isclass(each) or inspect.isfunction(each)}


PUBLIC = public_objects()
EXAMPLES = {
    full: doctest.DocTestFinder(recurse=False).find(each, full, globs={})[0].examples for full, each in PUBLIC.items()
}
SHOWN = [example for examples in EXAMPLES.values() for example in examples]


def has_example(full: str) -> bool:
    """Whether an example uses the name by its path (`aig.metrics.Moments`), prints one, or calls what returns it."""
    name = full.rpartition(".")[2]
    returned = (str(each.__annotations__.get("return")) for other, each in PUBLIC.items() if EXAMPLES[other])
    return any(
        re.search(rf"{re.escape(full)}\b", example.source) or f"{name}(" in example.want for example in SHOWN
    ) or any(re.search(rf"\b{name}\b", kind) for kind in returned)


def test_every_public_name_has_a_docstring():
    assert [full for full, each in PUBLIC.items() if not (each.__doc__ or "").strip()] == []


def test_every_public_name_has_an_example_or_a_reason_for_none():
    names = {each: [full for full in PUBLIC if PUBLIC[full] is each] for each in PUBLIC.values()}
    without = {all_[-1] for all_ in names.values() if not any(EXAMPLES[full] or has_example(full) for full in all_)}
    assert without == set(WITHOUT_EXAMPLE)


@pytest.mark.parametrize("full", [full for full, examples in EXAMPLES.items() if examples])
def test_an_example_runs(full):
    module = inspect.getmodule(PUBLIC[full])
    globs = {**vars(module), "aig": aig, "np": np, "torch": torch, "tempfile": tempfile}
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[full], full, globs=globs)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)


def test_the_lazy_names_are_the_exported_ones():
    assert sorted(aig._HOME) == sorted(aig.__all__)
    assert all(callable(getattr(aig, name)) for name in aig.__all__)
    assert all(isinstance(getattr(aig, name), ModuleType) for name in aig._MODULES)
