"""The command line: every mistake is one line that names it and the fix, with exit code 2 and nothing left behind."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pipeline_toys import HERE, overrides
from waiting import wait_for

from aig.world.tiny import build_pipeline
from pipelines.__main__ import main
from pipelines.cluster import connect
from pipelines.cluster.connect import Cluster
from pipelines.show.program import command_line

ROOT = Path(__file__).parents[2]


def environment():
    return {**os.environ, "PYTHONPATH": str(HERE)}


def command(*arguments):
    return [sys.executable, "-m", "pipelines", *map(str, arguments)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["demoo"], "invalid choice: 'demoo'"),
        (["demo", "--preset", "demmo"], "the presets are demo, demo-full, flux, map, nats"),
        (["sweep", "--presett", "demo"], "unknown option --presett"),
        (["sweep", "--preset", "demo", "train.stepz=3"], "did you mean 'train.steps'?"),
        (["sweep", "train.steps=3", "--preset", "demo", "train.lr=-1"], "train.lr is -1.0: give a number above 0"),
        (["report"], "there is no run in"),
        (["front"], "there is no run in"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, expected, tmp_path, capsys):
    if arguments and arguments[0] != "demoo":
        arguments = [*arguments, f"run.storage={tmp_path}/storage"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("evaluate.schedules=[cubic:2]", "evaluate.schedules: schedule 'cubic:2' is not known"),
        ("evaluate.schedules=[power:-1]", "evaluate.schedules: schedule power: p = -1"),
        ("sweep.rewards=[fragille]", "sweep.rewards: reward 'fragille' is not known; did you mean 'fragile'?"),
        ("sweep.rewards=['nowhere:to_be_found']", "cannot be imported"),
        ("sweep.rewards=['0.5*fragile + 0.5*gold']", "sweep.rewards: reward 'gold' exists to judge"),
        ("sweep.rewards=[pickscore]", "sweep.rewards: reward 'pickscore' needs"),
        (
            "evaluate.features=incepton",
            "evaluate.features: features 'incepton' are not known; did you mean 'inception'?",
        ),
        ("model.name=nowhere", "model.name: "),
        ("sweep.ks=[99]", "train: draft.k = 99"),
        ("evaluate.prompts=[a red star, a beige dodecahedron]", "evaluate.prompts: "),
        ("train.prompts=33", "train.prompts must be given: a number (train.prompts=33) counts captions"),
        ("evaluate.early_stops=[3]", "there is no snapshot of step 3"),
        ("train.kl=path", "train: draft.kl = 'path' needs noise in each of the last 1 of"),
    ],
)
def test_what_only_the_libraries_can_know_is_found_before_ray_starts(wrong, expected, model, tmp_path, capsys):
    kl = {"sweep__kl_weights": "[0, 1]"}
    assert main(["demo", "--preset", "smoke", *overrides(model, tmp_path / "storage", **kl), wrong]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "storage").exists()


def test_a_penalty_that_a_search_would_draw_is_tried_out_too(model, tmp_path, capsys):
    asked = {"sweep__kl_weights": "[0, 1]", "sweep__search": "random", "train__kl": "path", "model__eta": 1}
    assert main(["demo", "--preset", "smoke", *overrides(model, tmp_path / "storage", **asked)]) == 2
    assert "(DDIMScheduler, eta = 1) adds none in step" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_in_float16_without_a_loss_scaler_is_refused(method, tmp_path, capsys):
    storage = f"run.storage={tmp_path / 'storage'}"
    assert main(["train", "--preset", "smoke", storage, f"train.method={method}", "model.dtype=float16"]) == 2
    err = capsys.readouterr().err
    assert "float16" in err and "bfloat16" in err and "float32" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train.num_workers=[1, 5]"], "train.num_workers is 5 and train.batch 4: give each worker an image"),
        (["train.parallel=fsdp", "train.num_workers=2"], "train.parallel is fsdp, which shards what full fine-tuning"),
        (["train.method=full", "train.num_workers=2", "train.on_nan=skip"], "train.on_nan is skip and the 2 workers"),
        (["train.keep_best=true", "evaluate.rewards=['pipeline_toys:red']"], "train.keep_best is true and"),
    ],
)
def test_what_does_not_go_together_with_several_workers_is_refused(given, expected, model, tmp_path, capsys):
    assert main(["train", "--preset", "smoke", *overrides(model, tmp_path / "storage"), *given]) == 2
    assert expected in capsys.readouterr().err


def test_corrupt_weights_are_named_before_ray_starts(tmp_path, capsys):
    folder = tmp_path / "broken"
    build_pipeline(0).save_pretrained(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["demo", "--preset", "smoke", *overrides(folder, tmp_path / "storage")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: model.name: ") and "weights are corrupt" in err and err.count("\n") == 1
    assert not (tmp_path / "storage").exists()


def test_evaluating_what_was_not_trained_says_how_to_train_it(model, tmp_path, capsys):
    assert main(["evaluate", "--preset", "smoke", *overrides(model, tmp_path / "storage")]) == 2
    assert "is not trained: run `python -m pipelines sweep`" in capsys.readouterr().err


def test_hints_name_the_program_as_it_was_started(monkeypatch):
    for started, program in (("/x/pipelines/__main__.py", "python -m pipelines"), ("/usr/bin/aig", "aig")):
        monkeypatch.setattr(sys, "argv", [started])
        assert command_line("front", "--config", Path("a b")) == f"{program} front --config 'a b'"
    sources = [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "tune").rglob("*.py")]
    assert [str(path) for path in sources if "`python -m pipelines " in path.read_text().partition('"""\n\n')[2]] == []


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match=r"stepz"):
        main(["sweep", "--debug", "train.stepz=3"])


def test_a_second_process_in_the_same_run_is_refused(model, tmp_path, capsys):
    import fcntl

    from pipelines import config as configuration
    from pipelines.runs import identity

    arguments = overrides(model, tmp_path)
    path = identity.claim_directory(configuration.load("smoke", None, arguments)).root
    with (path / identity.LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["report", "--preset", "smoke", *arguments]) == 2
    assert "another process is working in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "keys", "expected"),
    [
        ("sweep", {"evaluate__scorer_gpus": 1}, "a scorer needs 1 GPU (evaluate.scorer_gpus) on one node"),
        ("sweep", {"evaluate__generator_cpus": 5}, "a generator needs 5 CPU (evaluate.generator_cpus) on one node"),
        ("demo", {"evaluate__node": "spot"}, "a scorer needs the resource spot (evaluate.node) on one node"),
        ("sweep", {"train__cpus_per_worker": 5}, "a training needs 5 CPU (train.cpus_per_worker) on one node"),
        ("train", {"train__cpus_per_worker": 5}, "a training needs 5 CPU (train.cpus_per_worker) on one node"),
    ],
)
def test_a_cluster_without_room_for_a_later_stage_is_refused_before_the_first(
    command, keys, expected, model, tmp_path, monkeypatch, capsys
):
    nodes = ({"CPU": 4.0}, {"CPU": 4.0})

    @contextmanager
    def connected(settings):
        yield Cluster({"CPU": 8.0}, False, None, nodes=nodes)

    monkeypatch.setattr(connect, "connected", connected)
    assert main([command, "--preset", "smoke", *overrides(model, tmp_path, **keys)]) == 2
    err = capsys.readouterr().err
    assert expected in err and "the largest node has" in err and err.count("\n") == 1
    assert not (tmp_path / "smoke" / "adapters").exists()


@pytest.mark.kills
@pytest.mark.timeout(280)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_leave_a_resumable_run_and_no_process(model, tmp_path, number):
    arguments = overrides(model, tmp_path, train__steps=2000, ray__address="local")
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command("sweep", "--preset", "smoke", *arguments),
            cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            checkpoints = tmp_path / "smoke" / "ray" / "train"
            wait_for(lambda: any(checkpoints.glob("*/checkpoint_*/state.pt")), process, log)
            family = psutil.Process(process.pid).children(recursive=True)
            assert any("raylet" in child.name() for child in family)
            process.send_signal(number)
            assert process.wait(60) == 130
        finally:
            process.kill()
        log.seek(0)
        said = log.read()
    assert "interrupted" in said and "resume with: python -m pipelines sweep --preset smoke" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
