"""The user's own functions as schedules of an evaluation: their images, their identity, their refusal."""

import json
import os
import re
import sys

import pytest
from evaluations import arguments, by_hand, save_lora
from pipeline_toys import HERE

from aig.models import TinyModel
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.config import ConfigError
from pipelines.evaluate import external, generate
from pipelines.evaluate import images as dataset
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve, resolve_images

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

OWN, CLOSED = "pipeline_toys:squared", "power:2"
FEW = {
    "evaluate__prompts": 2, "evaluate__rewards": "['pipeline_toys:bright']", "evaluate__lora_scales": "[]",
    "evaluate__path_prompts": 0, "model__steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder of a model, and a LoRA file for it."""
    folder = tmp_path_factory.mktemp("models")
    return folder / "untrained", save_lora(folder / "untrained", folder / "mine.safetensors")


@pytest.fixture
def curves(tmp_path, monkeypatch):
    """`curves(body)`: the user's module own_curves, whose functions have this body."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body):
        (tmp_path / "own_curves.py").write_text(f"def tuned(u):\n    return {body}\ndef other(u):\n    return u**3\n")
        sys.modules.pop("own_curves", None)

    yield write
    sys.modules.pop("own_curves", None)


def given(inputs, storage, *schedules):
    return arguments(*inputs, storage, evaluate__schedules=json.dumps(schedules), **FEW)


def images_of(found, arm):
    rows = dataset.read(resolve_images(found, TinyModel.defaults)).table.to_pylist()
    return {(row["prompt"], row["seed_index"]): row["image"] for row in rows if row["arm"] == arm}


def test_an_own_function_draws_through_ray_the_images_of_the_same_curve_in_closed_form(inputs, tmp_path, ray_cluster):
    texts = given(inputs, tmp_path, OWN, CLOSED)
    assert main(["evaluate", *texts]) == 0
    found = configuration.load("smoke", None, texts[2:])
    own = images_of(found, f"mine+{OWN}")
    assert own == images_of(found, f"mine+{CLOSED}") != images_of(found, "mine") and len(own) == 4


def test_an_edited_function_is_other_images_and_its_neighbours_stay(inputs, tmp_path, curves):
    found = configuration.load("smoke", None, given(inputs, tmp_path, "own_curves:tuned", "own_curves:other")[2:])
    curves("u**2")
    by_hand(found)
    before = images_of(found, "mine+own_curves:tuned")
    study = resolve_images(found, TinyModel.defaults)
    curves("u * u  # the same values by other code")
    assert resolve_images(found, TinyModel.defaults) == study
    curves("u**2.5")
    edited = resolve_images(found, TinyModel.defaults)
    changed = [name for name, origin in edited.origins.items() if origin != study.origins[name]]
    assert changed == ["mine+own_curves:tuned"]
    assert not {unit.name for unit in generate.units(edited)} & {unit.name for unit in generate.units(study)}
    by_hand(found)
    after = images_of(found, "mine+own_curves:tuned")
    assert after.keys() == before.keys() and after != before


def test_kl_tuned_adapters_have_own_functions_too_and_a_constant_one_is_a_fixed_mix(tmp_path, curves):
    curves("0.25")
    found = configuration.load(
        "smoke",
        None,
        [f"run.storage={tmp_path}", "evaluate.kl_schedules=['own_curves:tuned', 'mine=own_curves:other']"],
    )
    labels = {arm.family: arm.label for arm in resolve(found).arms if arm.family.startswith("kl-")}
    assert labels == {"kl-fixed": "KL 10 + fixed mix 0.25", "kl-aig": "KL 10 + AIG mine"}


@pytest.mark.parametrize("key", ["schedules", "kl_schedules"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("own_curves:gone", "own_curves:gone' cannot be imported .*give the package.module:callable"),
        ("no_such_module:f", "no_such_module:f' cannot be imported .*give the package.module:callable"),
        (
            "own_curves:tuned",
            r"own_curves:tuned' failed at u = .*gave weight 64\..*give a function that returns",
        ),
    ],
)
def test_what_is_no_schedule_is_refused_by_key_text_reason_and_fix(curves, capsys, key, text, expected):
    curves("100 * u")
    assert main(["check", "--preset", "smoke", f"evaluate.{key}=['{text}']"]) == 2
    assert re.match(rf"error: evaluate\.{key}: schedule '{expected}", capsys.readouterr().err.splitlines()[-1])


def test_a_run_whose_function_is_gone_says_so_when_it_is_looked_at_again(inputs, tmp_path, curves):
    curves("u**2")
    found = configuration.load("smoke", None, given(inputs, tmp_path, "own_curves:tuned")[2:])
    identity.claim_directory(found)
    external.import_adapters(found)
    assert [arm.label for arm in resolve(found).arms] == ["base", "tuned", "AIG own_curves:tuned"]
    (tmp_path / "own_curves.py").unlink()
    sys.modules.pop("own_curves", None)
    with pytest.raises(ConfigError, match=r"evaluate\.schedules: schedule 'own_curves:tuned' cannot be imported"):
        resolve(found)
    assert main(["front", *given(inputs, tmp_path, "own_curves:tuned")]) == 2 and RunDir.of(found).root.exists()
