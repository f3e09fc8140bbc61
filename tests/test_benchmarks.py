"""The benchmarks run; what they measure is theirs."""

from __future__ import annotations

import json
import sys

import pytest
from pipeline_toys import overrides
from safetensors.torch import load_file

from aig import adapters
from aig.models import TinyModel
from aig.world.tiny import build_pipeline
from benchmarks import gpu, metrics, pipeline, scale, training, watching
from pipelines import config as configuration
from pipelines.evaluate import generate, scorers
from pipelines.study.resolved import resolve_images
from pipelines.train import worker


def test_the_gpu_benchmark_runs_at_tiny_size_and_writes_what_it_prints(tmp_path, capsys):
    arguments = ["--size", "tiny", "--device", "cpu", "--steps", "1", "--batches", "1", "--no-compile", "--peak", "1"]
    rows = gpu.main([*arguments, "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == rows
    printed = capsys.readouterr().out
    for model in ("sd14", "sdxl"):
        found = {row["case"]: row for row in rows if row["model"] == model and "skipped" not in row}
        assert set(found) == {
            "base, batch 1", "AIG, one pass, batch 1", "AIG, two passes, batch 1", "AIG, two copies, batch 1",
            "DRaFT K = 1, batch 1",
        }  # fmt: skip
        assert all(row["images_a_second"] > 0 and row["utilization"] > 0 for row in found.values())
        # One step at u = 0 is the base's alone, whatever the passes; gradients cost more.
        flops = {case: row["tflop"] for case, row in found.items()}
        assert flops["AIG, one pass, batch 1"] == flops["base, batch 1"]
        assert flops["DRaFT K = 1, batch 1"] > 2 * flops["base, batch 1"]
        assert any(line.lstrip().startswith(model) and "skipped: --no-compile" in line for line in printed.splitlines())


def test_what_the_time_does_not_allow_is_skipped_with_a_word(capsys):
    rows = gpu.main(["sd14", "--size", "tiny", "--device", "cpu", "--steps", "1", "--batches", "1", "--minutes", "0"])
    assert rows
    assert all("the time is over" in row["skipped"] for row in rows)


@pytest.mark.parametrize("arguments", [["sd15"], ["sd14", "--device", "cuda:99"]])
def test_an_unknown_model_or_a_missing_device_is_refused(arguments, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert "known: sd14, sdxl" in capsys.readouterr().err or arguments[0] == "sd14"


def test_the_real_sizes_have_the_published_numbers_of_parameters():
    for name, millions in (("sd14", 859.5), ("sdxl", 2567.5)):
        pipe = gpu.pipeline(name, False, "meta", gpu.torch.bfloat16)
        assert sum(p.numel() for p in pipe.unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
        assert sum(p.numel() for p in pipe.vae.parameters()) / 1e6 == pytest.approx(83.65, abs=0.01)
    assert sum(p.numel() for p in pipe.text_encoder_2.parameters()) / 1e6 == pytest.approx(694.7, abs=0.1)


WORK = """
import multiprocessing, pathlib, sys, time
def burn(seconds):
    begun = time.process_time()
    while time.process_time() < begun + seconds: pass
if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for i in range(4):
            burn(0.2)
            pool.map(burn, [0.3])
            (folder / f"part-{i}").touch()
"""


def test_cpu_time_is_counted_of_all_processes_and_an_image_from_the_first_batch_to_the_last(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, str(tmp_path / "work.py"), str(tmp_path / "parts")]
    used = watching.watch(command, tmp_path, "parts/part-*", 8, 2)
    assert used.steady == pytest.approx(0.25, rel=0.25)  # half a second a batch of two
    assert used.whole >= 1.9


def test_a_watched_command_that_fails_is_an_error_with_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match="No module named nowhere"):
        watching.watch([sys.executable, "-m", "nowhere"], tmp_path, "part-*", 8, 2)


def test_the_metrics_benchmark_compares_equal_scores_and_counts_every_row():
    mine, other = metrics.ours(200), metrics.theirs(200)
    assert mine["scores"] == pytest.approx(other["scores"], rel=1e-12)
    assert len(set(mine["scores"])) == 4
    found = metrics.moments(metrics.BATCH // 4 * 5)
    assert found["rows"] == metrics.BATCH // 4 * 5
    assert found["trace"] == pytest.approx(metrics.WIDTH, rel=0.01)


def test_the_bare_loop_that_ray_train_is_measured_against_makes_the_same_adapter(tmp_path):
    given = [*training.arguments(tmp_path, 2, 1), "train.batch=3"]
    found = configuration.load("demo", None, given)
    training.bare_loop(found)
    ours = worker.Training(found, is_first=False)
    for step in (1, 2, 3):
        ours.advance(0, 1)
        saved = load_file(found.directory / "adapters" / f"loop@{step}" / adapters.WEIGHTS)
    trained = sorted(parameter.detach().flatten()[:1].item() for parameter in ours.parameters)
    assert sorted(tensor.flatten()[:1].item() for tensor in saved.values()) == trained
    # Three snapshots, between whose times two steps of three images were made.
    times = sorted(path.stat().st_mtime for path in found.directory.glob("adapters/*/adapter.json"))
    assert training.images_a_second(found) == pytest.approx(2 * 3 / (times[2] - times[0]))


def test_separate_loops_make_the_same_images_and_the_published_ones_nearly_by_both_predictions_at_every_step(tmp_path):
    build_pipeline(0).save_pretrained(tmp_path / "untrained")
    toys = [text for text in overrides(tmp_path / "untrained", tmp_path) if not text.startswith("run.storage")]
    found = pipeline.run_configuration(tmp_path, 1, [*toys, *pipeline.PUBLISHED, "model.steps=3"])
    study = resolve_images(found, TinyModel.defaults)
    unit = generate.units(study)[0]
    row = {**unit.row(), "seeds": list(unit.seeds[:2])}
    kinds = (generate.Generator, pipeline.Separate, pipeline.Published)
    shared, separate, published = (kind(study).draw([row], False)[0] for kind in kinds)
    assert separate["image"] == shared["image"] and len(shared["image"]) == 6 * 2
    for ours, theirs in zip(shared["image"], published["image"], strict=True):
        # Weights that are nudged off 0 and 1 change a level here and there.
        assert abs(scorers.from_png(ours).astype(int) - scorers.from_png(theirs)).max() <= 1


def test_sleeping_generators_go_through_the_real_plan(tmp_path, ray_cluster):
    build_pipeline(0).save_pretrained(tmp_path / "untrained")
    # One scorer writes one file after another: two may write two within a tick of the clock, between which is no rate.
    more = [f"model.name={tmp_path / 'untrained'}", "train.prompts=[a red star]"]
    more += ["evaluate.generators=2", "evaluate.scorers=1"]
    found = scale.simulate(tmp_path, 200, scale.Napper, more)
    assert (found.images, found.units) == (2 * 8 * 10, 2)
    assert found.disk > 0 and min(found.driver) > 0 and found.share > 0
