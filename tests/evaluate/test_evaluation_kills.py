"""An evaluation whose actors, driver and nodes are killed has the files of an undisturbed one, byte for byte."""

import json
import os
import random
import subprocess
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest
from evaluations import actors, arguments, by_hand, files, save_lora
from pipeline_toys import HERE
from waiting import wait_for

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.evaluate import failures
from pipelines.runs.directory import RunDir

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

pytestmark = pytest.mark.kills

STARS = 4  # of 24 captions, which a reward refuses
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder of a model, and a LoRA file for it."""
    folder = tmp_path_factory.mktemp("models")
    return folder / "untrained", save_lora(folder / "untrained", folder / "mine.safetensors")


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The images dataset, file by file, as it is without Ray."""
    found = by_hand(configuration.load("smoke", None, arguments(*inputs, tmp_path_factory.mktemp("undisturbed"))[2:]))
    assert len(found) == 24 - STARS
    return found


def parts(found):
    return sorted(RunDir.of(found).images.glob("part-*.parquet"))


@pytest.mark.timeout(280)
def test_a_killed_generator_and_a_killed_scorer_change_nothing_and_a_poison_prompt_ends_no_run(
    ray_cluster, inputs, undisturbed, tmp_path, capsys
):
    given = arguments(*inputs, tmp_path)
    found, killed = configuration.load("smoke", None, given[2:]), []

    def kill():
        for kind, made in (("Generator", 1), ("Scorer", 5)):
            while len(parts(found)) < made or not actors(kind):
                time.sleep(0.02)
            process = actors(kind)[0]
            process.kill()
            killed.append((kind, len(parts(found))))

    threading.Thread(target=kill, daemon=True).start()
    assert main(["evaluate", *given]) == 1
    assert [kind for kind, made in killed if made < len(undisturbed)] == ["Generator", "Scorer"]
    assert files(found) == undisturbed

    rows = failures.read(RunDir.of(found))
    assert {row["stage"] for row in rows} == {"scored"} and all("star" in row["prompt"] for row in rows)
    assert len(rows) == STARS and {row["error"] for row in rows} == {"RuntimeError: a star has no brightness"}
    said = capsys.readouterr()
    assert f"{STARS} of 24 groups of images failed, and {STARS} prompts are left out" in said.err
    assert "Images: 160 of 192 found, 0 missing, 0 duplicate, 32 left out." in said.out
    check = json.loads(RunDir.of(found).arms.read_text())["check"]
    images = 4 * 2  # arms and seeds
    assert check["found"] == 20 * images and check["failed"] == STARS * images and check["missing"] == 0
    assert check["expected"] == 24 * images and len(check["prompts_left_out"]) == STARS
    front = json.loads(RunDir.of(found).front.read_text())
    assert front["prompts"] == 20 and front["studies"][0]["name"] == "mine"


def kill_a_driver(found, given, made, seconds, log):
    """The same evaluation by a process of its own, on the tests' cluster; killed so many seconds after it has made so
    many units, or, where that is None, after its start."""
    import ray

    command = [sys.executable, "-m", "pipelines", "evaluate", *given]
    command.append(f"ray.address={ray.get_runtime_context().gcs_address}")
    before = len(parts(found))
    driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    if made is not None:
        wait_for(lambda: len(parts(found)) >= before + made, driver, log)
    time.sleep(seconds)
    driver.kill()
    driver.wait()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("moments", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_again_and_again_leaves_what_the_next_one_goes_on_from(
    moments, ray_cluster, inputs, undisturbed, tmp_path
):
    given = arguments(*inputs, tmp_path)
    found, rng = configuration.load("smoke", None, given[2:]), random.Random(moments)
    with (tmp_path / "log").open("w+") as log:
        for moment in range(moments):
            before = {path: path.stat().st_mtime_ns for path in parts(found)}
            # Two in the middle of the work; of many, others before it, while modules, Ray and models are loaded.
            early = moment % 3 != 0 and moments > 2
            kill_a_driver(found, given, None if early else 1, rng.uniform(0, 10) if early else rng.uniform(0, 0.5), log)
            assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(parts(found)) < len(undisturbed), "there was nothing left to kill"
    assert main(["evaluate", *given]) == 1
    assert files(found) == undisturbed
    ids = [name for path in parts(found) for name in pq.read_table(path, columns=["id"])["id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 20 * 4 * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pool_grows_onto_a_node_that_comes_and_loses_nothing_with_one_that_goes(inputs, tmp_path):
    more = {"evaluate__prompts": 32, "evaluate__seeds": 8, "evaluate__group": 8, "model__steps": 12}
    whole = by_hand(configuration.load("smoke", None, arguments(*inputs, tmp_path / "whole", **more)[2:]))
    given = arguments(*inputs, tmp_path / "runs", **more, evaluate__generators="null")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
    script = subprocess.run(
        [sys.executable, HERE / "growing.py", *given], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=540,
    )  # fmt: skip
    assert script.returncode == 0, script.stderr[-3000:]
    seen = json.loads(script.stdout.splitlines()[-1])
    assert seen == {"generators": {"one node": [1], "two nodes": [1, 2]}, "code": 1}
    assert files(configuration.load("smoke", None, given[2:])) == whole
