"""What results say of themselves, and how they are written and read."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import results
from results import arm, difference, plane, study

from pipelines.config import ConfigError
from pipelines.front import names
from pipelines.front.loading import read_front, write_front
from pipelines.front.results import Claim
from pipelines.rewards import scores
from pipelines.runs.directory import FRONT_FORMAT, RunDir
from pipelines.show.estimates import Estimate


@pytest.fixture
def files(tmp_path):
    """A run's directory with a front.json."""
    files = RunDir(tmp_path)
    write_front(files, results.front(study(plane("fragile", difference("aig", "kl", math.nan, None)))))
    return files


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_results_are_read_as_they_were_written_and_nan_is_null_in_between(files):
    claim = Claim("gold", "down", "peak", Estimate(-0.1, math.nan, 0.0), {0: -0.2, 1: math.nan})
    arms = (arm("base", "base", metrics={"vendi": Estimate(2.0)}), arm("m", "aig", members=("a", "b"), k=1, lr=0.1))
    own = plane("gold", difference("aig", "kl", 0.5, "ahead"), points={"base": (Estimate(1, 0, 2), Estimate(math.nan))})
    made = results.front(study(plane(), own, claims=(claim,), arms=arms, dominance=((0.0, 1.0), (0.5, 0.0))))
    write_front(files, made)
    text = files.front.read_text()
    assert "NaN" not in text and json.loads(text)["studies"][0]["claims"][0]["estimate"] == [-0.1, None, 0.0]
    np.testing.assert_equal(asdict(read_front(files)), asdict(made))


@pytest.mark.parametrize("made", [None, FRONT_FORMAT - 1, FRONT_FORMAT + 1])
def test_results_of_another_version_are_refused_with_the_command_that_makes_them_anew(files, made):
    edit(files.front, lambda content: content.pop("format") if made is None else content.update(format=made))
    with pytest.raises(ConfigError) as error:
        read_front(files)
    said = f"front.json was written by another version (format {made or 1}, not {FRONT_FORMAT}): run `python -m "
    assert str(error.value).startswith(f"{said}pipelines front --config {files.root}/config.yaml`")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("level"), "front.json has no level: run"),
        (lambda c: c.update(studies=[]), "front.json has no studies: run"),
        (
            lambda c: c["studies"][0].update(k="x"),
            "front.json is wrong at studies[0].k: 'x', input should be a valid i",
        ),
        (
            lambda c: c["studies"][0]["planes"]["fragile"]["differences"][0].update(verdict="better"),
            "front.json is wrong at studies[0].planes.fragile.differences[0].verdict: 'better', input should be",
        ),
        (
            lambda c: c["studies"][0]["arms"][1].update(metrics={"vendi": ["high", 1, 2]}),
            "front.json is wrong at studies[0].arms[1].metrics.vendi[0]: 'high', input should be a valid number",
        ),
    ],
)
def test_an_error_names_the_file_the_place_and_the_fix_in_one_line(files, change, said):
    edit(files.front, change)
    with pytest.raises(ConfigError) as error:
        read_front(files)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert ": run `python -m pipelines front --config " in str(error.value)


@pytest.mark.parametrize(
    ("claim", "asserted", "denied"),
    [
        (("fragile", "up", "base"), "proxy reward rises (tuned − base)", "proxy reward does not rise (tuned − base)"),
        (
            ("robust", "up", "base"),
            "held-out reward rises (tuned − base)",
            "held-out reward does not rise (tuned − base)",
        ),
        (("vendi", "down", "base"), "diversity falls (tuned − base)", "diversity does not fall (tuned − base)"),
        (
            ("accuracy", "down", "base"),
            "prompt accuracy falls (tuned − base)",
            "prompt accuracy does not fall (tuned − base)",
        ),
        (
            ("gold", "down", "peak"),
            "gold falls under its peak along training (tuned − peak)",
            "gold does not fall under its peak along training (tuned − peak)",
        ),
    ],
)
def test_a_claim_is_stated_and_denied_in_words(claim, asserted, denied):
    made = Claim(*claim, Estimate(1.0))
    assert (study().statement(made), study().statement(made, "does not")) == (asserted, denied)
    assert study().statement(made, difference=False) == asserted.rpartition(" (")[0]


def test_what_was_not_trained_here_has_no_proxy():
    elsewhere = study(k=None, train_seeds=(), name="mine")
    assert elsewhere.statement(Claim("fragile", "up", "base", Estimate(1.0))) == "fragile reward rises (tuned − base)"
    assert elsewhere.role_of("fragile") == "fragile reward" and study().role_of("fragile") == "proxy"
    assert elsewhere.title == "mine, an adapter from elsewhere, by fragile reward"


def test_settings_in_which_studies_differ_are_in_their_titles():
    assert study(varied={"lr": 3e-4, "rank": 8}).title == (
        "fragile reward, K = 1, learning rate 0.0003, rank 8, training seed 0"
    )


def test_the_distance_to_the_base_is_a_kl_if_sampling_has_one_and_else_a_path_length():
    def measured(*metrics):
        return study(arms=(arm("base", "base", metrics={name: Estimate(0.0) for name in metrics}),)).distance

    assert (measured("path", "kl_to_base"), measured("path"), measured("vendi")) == ("kl_to_base", "path", None)


def test_a_flipped_difference_is_the_other_familys():
    one = difference("kl", "aig", -0.5, "behind", arms=(3, 5), by_seed={0: -0.4, 1: -0.6})
    other = one.flipped
    assert (other.a, other.b, other.verdict, other.arms) == ("aig", "kl", "ahead", (5, 3))
    assert other.by_seed == {0: 0.4, 1: 0.6} and other.flipped == one
    assert other.estimate == pytest.approx((0.5, 0.2, 0.8))
    assert replace(one, verdict="undecided").flipped.verdict == "undecided"


def test_the_gold_rewards_column_has_one_name():
    assert names.GOLD == scores.GOLD
