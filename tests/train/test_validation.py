"""What a validation reports, and its picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_toys import overrides

from aig.sampler import Arm, sample_arms, to_uint8
from aig.world.tiny import build_pipeline
from pipelines import config as configuration
from pipelines.runs.directory import RunDir
from pipelines.train import validation
from pipelines.train.validation import Validation
from pipelines.train.worker import Training

PROMPTS = ["a red star", "a blue heart"]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training that has not begun, of an untrained model; one of its rewards has a name of its own."""
    folder = tmp_path_factory.mktemp("validation")
    build_pipeline(0).save_pretrained(folder / "untrained")
    mine = ["rewards.define={mine: {name: 'pipeline_toys:constant'}}", "evaluate.rewards=['pipeline_toys:red', mine]"]
    more = [f"train.prompts=[{', '.join(PROMPTS)}]", "train.validate_seeds=3"]
    return Training(
        configuration.load("smoke", None, [*overrides(folder / "untrained", folder), *mine, *more]), is_first=True
    )


@pytest.fixture(scope="module")
def found(training):
    return validation.validate(training.config, training.model, training.scores, training.draft.sampling, 0)


def test_every_reward_of_the_evaluation_is_in_the_curve(found):
    row = found.row
    assert row["scores"].keys() == {"pipeline_toys-red", "mine", "gold"}
    assert row["scores"]["mine"] == row["held_out"] == 3.0
    assert row["reward"] == row["scores"]["pipeline_toys-red"] and row["gold"] == row["scores"]["gold"]


def test_what_ray_is_told_are_numbers_by_readable_names(found):
    told = validation.metrics({**found.row, "loss": None})
    names = {"reward", "held_out", "gold", "diversity", "path", "left_out"}
    assert told.keys() == names | {"scores/pipeline_toys-red", "scores/mine", "scores/gold"}
    assert told["scores/mine"] == 3.0


def test_the_picture_is_of_the_images_that_were_scored_prompts_by_seeds(training, found, tmp_path):
    path = tmp_path / "new" / "step-000000.png"
    found.write(RunDir(path.parent), path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        pixels, prompts = np.asarray(image), json.loads(image.text["prompts"])
    assert prompts == PROMPTS and pixels.shape == (2 * 32, 3 * 32, 3)
    for p, prompt in enumerate(PROMPTS):
        for seed in range(3):
            samples = sample_arms(
                training.model,
                [prompt],
                [configuration.VALIDATION_SEEDS + seed],
                [Arm("base", None, 1.0, "base")],
                0,
                training.draft.sampling,
            )
            wanted = to_uint8(training.model.decode(samples.latents["base"]).detach())[0]
            tile = pixels[32 * p : 32 * (p + 1), 32 * seed : 32 * (seed + 1)]
            assert np.abs(tile.astype(int) - wanted.numpy()).max() <= 1


def test_large_images_are_shrunk_in_the_picture_and_keep_shape_and_mean(tmp_path):
    images = torch.randint(0, 256, (2, 3, 3, 256, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = validation._small(images)
    assert small.shape == (2, 3, 3, 64, 128) and small.dtype == torch.uint8
    torch.testing.assert_close(small.float().mean((2, 3, 4)), images.float().mean((2, 3, 4)), atol=0.6, rtol=0)
    Validation({}, small, PROMPTS).write(RunDir(tmp_path), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * 128, 2 * 64)
