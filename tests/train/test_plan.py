"""The dry run's figures are those of the training itself, and of the published models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch.utils.flop_counter import FlopCounterMode

from aig import adapters, draft
from aig.models import TinyModel
from aig.models.empty import parameters
from aig.world.tiny import build_pipeline
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.study import models
from pipelines.train import dry_run, objective

SIZES = {"sd14": 859.5, "sdxl": 2567.5, "sd3": 2028.3, "flux": 11901.4}  # million parameters of the denoiser


def red(images, prompts):
    return (images[:, 0] - images[:, 1:].mean(1)).flatten(1).mean(1)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.k=3", "train.kl_weight=1"],
        ["train.lv=2"],
        ["train.method=full"],
        ["train.kl_steps=all", "train.kl_weight=1", "train.k=2"],
        ["train.kl_steps=early", "train.kl_weight=1", "train.lv=2"],
    ],
)
def test_the_plan_counts_what_a_training_step_does(overrides, monkeypatch):
    asked = configuration.load(None, None, ["train.batch=8", "train.micro_batch=4", "model.steps=6", *overrides])
    made = dry_run.make(asked)
    model = models.load_model(asked)
    train = asked.train
    objective.attach(train, model.denoiser)
    tensors = adapters.parameters(model.denoiser, "tuned")
    assert made.trained == sum(tensor.numel() for tensor in tensors)
    rows = []
    predict = TinyModel.predict

    def counted(self, x_t, *rest):
        rows.append(len(x_t))
        return predict(self, x_t, *rest)

    monkeypatch.setattr(TinyModel, "predict", counted)
    settings = objective.draft_config(asked, model)
    settings = replace(settings, sampling=replace(settings.sampling, fuse=False))
    with FlopCounterMode(display=False) as counter:
        draft.train_step(model, red, "tuned", ["a red star"] * 8, list(range(8)), settings)
    assert made.predictions == sum(rows)
    assert made.rows == 2 * sum(rows)
    assert made.operations == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_the_plan_counts_what_the_path_kl_asks_of_a_multistep_scheduler(tmp_path, monkeypatch):
    pipe = build_pipeline(0)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, final_sigmas_type="sigma_min")
    pipe.save_pretrained(tmp_path)
    asked = ["train.batch=4", "model.steps=6", "model.scheduler=sde-dpm", "train.k=2", "train.kl_weight=1"]
    asked = configuration.load(None, None, [f"model.name={tmp_path}", *asked, "train.kl=path"])
    made, model, rows = dry_run.make(asked), models.load_model(asked), []
    objective.attach(asked.train, model.denoiser)
    predict = TinyModel.predict
    monkeypatch.setattr(TinyModel, "predict", lambda self, x, *rest: rows.append(len(x)) or predict(self, x, *rest))
    draft.train_step(model, red, "tuned", ["a red star"] * 4, list(range(4)), objective.draft_config(asked, model))
    assert made.predictions == sum(rows) == 4 * (6 + 2 + 1)


def test_a_dry_run_refuses_a_path_kl_without_noise(capsys):
    more = ["model.eta=1", "train.kl=path", "train.kl_weight=1"]
    assert main(["train", "--dry-run", "--preset", "sd3", *more[1:]]) == 2
    assert "adds none in step" in capsys.readouterr().err
    assert main(["train", "--dry-run", "--preset", "sd14", *more]) == 0


@pytest.mark.parametrize("preset", SIZES)
def test_published_presets_are_planned_without_a_download(preset, capsys):
    made = dry_run.make(configuration.load(preset))
    assert (parameters(made.model.denoiser) - made.trained) / 1e6 == pytest.approx(SIZES[preset], abs=0.1)
    assert {tensor.device.type for tensor in made.model.denoiser.parameters()} == {"meta"}
    train = made.config.train
    assert made.predictions == train.batch * made.config.model.steps  # K = 1 and no KL: one prediction a step and image
    assert made.activations > 2**30
    assert made.download > 0
    text = "\n".join(dry_run.lines(made))
    assert f"M parameters (LoRA rank {train.rank}, attention) beside" in text
    for part in ("to download", "images/s are needed", f"{train.batch} images", "GiB", made.config.model.name):
        assert part in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_held_activations_are_about_what_autograd_holds(dtype):
    asked = configuration.load(
        None, None, ["train.batch=4", "train.micro_batch=4", "model.steps=2", f"model.dtype={dtype}"]
    )
    model = models.load_model(asked)
    adapters.attach(model.denoiser, "tuned", asked.train.rank, asked.train.alpha, asked.train.targets)
    tensors = adapters.parameters(model.denoiser, "tuned")
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.denoiser.parameters(), *tensors]}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    settings = objective.draft_config(asked, model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        draft.train_step(model, red, "tuned", ["a red star"] * 4, list(range(4)), settings)
    assert dry_run.make(asked).activations == pytest.approx(sum(held.values()), rel=0.2)


def test_sd14_fits_the_24_gib_that_its_preset_is_made_for():
    made = dry_run.make(configuration.load("sd14"))
    assert 4 * 2**30 < made.weights + made.states + made.activations < 24 * 2**30


def test_sharded_workers_hold_a_part_of_what_is_trained_each():
    alone, sharded = (
        dry_run.lines(
            dry_run.make(configuration.load(None, None, ["train.method=full", f"train.num_workers={workers}"]))
        )
        for workers in (1, "[4, 8]")
    )
    assert "4 to 8, which share each step's images, and what is trained" in "\n".join(sharded)
    sizes = [
        next(line for line in lines if line.startswith("memory")).partition("optimizer ")[2]
        for lines in (alone, sharded)
    ]
    first, second = (float(size.split()[0]) for size in sizes)
    millions = f"{dry_run.make(configuration.load(None, None, ['train.method=full'])).trained / 1e6:,.0f} M"
    assert f"M parameters (every weight) beside {millions} frozen ones" in "\n".join(alone)
    assert second == pytest.approx(first / 4, rel=0.01)


@pytest.mark.parametrize(
    ("override", "each"),
    [("train.optimizer=adamw", 16), ("train.ema=0.999", 20), ("train.optimizer=adamw-8bit", 10),
     ("model.dtype=bfloat16", 16), ("train.method=full", 16)],
)  # fmt: skip
def test_weights_gradients_moments_and_their_average_are_counted_in_float32(override, each):
    made = dry_run.make(configuration.load(None, None, [override]))
    assert made.states == made.trained * each
    text = "\n".join(dry_run.lines(made))
    assert ("; averaged, with the start at 0.9 of the weight" in text) == ("ema" in override)  # 0.999^100 = 0.905


def test_a_dry_run_prints_and_leaves_nothing(tmp_path, capsys):
    assert main(["train", "--dry-run", f"run.storage={tmp_path}", "train.kl_weight=1"]) == 0
    assert "KL weight 1" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=nobody/nothing", "nobody/nothing"),
        ("train.k=99", "draft.k = 99"),
        ("model.height=33", "multiple of"),
        ("model.eta=0.5", "needs DDIM"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line_and_exit_code_2(override, message, tmp_path, capsys):
    extra = ["model.scheduler=euler"] if "eta" in override else []
    assert main(["train", "--dry-run", f"run.storage={tmp_path}", override, *extra]) == 2
    assert message in capsys.readouterr().err
