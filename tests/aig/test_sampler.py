from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from models import tiny_with

from aig import adapters, schedules
from aig.path import Transitions
from aig.sampler import Arm, Grid, Noise, Sampling, sample, sample_arms, to_uint8

PUBLISHED = [
    Arm("base", None, 1.0, "base"),
    Arm("tuned", "a"),
    *(Arm(schedule, "a", 1.0, schedule) for schedule in ("linear", "power:2", "power:4", "step:0.6")),
]
PROMPTS, SEEDS = ["a red star", "a blue heart", "a green cross"], [0, 1, 2]
FEW = Sampling(steps=5, guidance=3.0)


@pytest.fixture(scope="module")
def model():
    return tiny_with("a", "b")


PAPER = Sampling(steps=25, guidance=1.0, block=1)


def test_the_published_arms_need_199_predictions_where_separate_loops_need_222_and_the_published_script_300(model):
    cost = sample_arms(model, ["a red star"], [0], PUBLISHED, sampling=PAPER).cost
    assert cost.counts() == {"predictions": 199, "separate": 222, "published": 300}


@pytest.mark.parametrize("measured", [False, True])
def test_the_cost_of_separate_loops_is_what_a_loop_for_each_arm_really_makes(model, measured):
    """Counted where the model is called: a model with one arm at a time shares nothing."""
    alone = [sample_arms(model, ["a red star"], [0], [arm], sampling=PAPER, measure_path=measured) for arm in PUBLISHED]
    together = sample_arms(model, ["a red star"], [0], PUBLISHED, sampling=PAPER, measure_path=measured).cost
    assert together.separate == sum(samples.cost.predictions for samples in alone)
    assert [samples.cost.separate for samples in alone] == [samples.cost.predictions for samples in alone]
    if not measured:  # base, tuned and step make one each, the others both but at u = 0
        assert [samples.cost.predictions for samples in alone] == [25, 25, 49, 49, 49, 25]
    assert together.predictions < together.separate < together.published == 300


def test_shared_trajectories_equal_separate_ones_bit_for_bit(model):
    arms = [*PUBLISHED, Arm("half", "a", 0.5), Arm("b linear", "b", 1.0, "linear")]
    together = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW)
    for arm in arms:
        alone = sample_arms(model, PROMPTS, SEEDS, [arm], sampling=FEW)
        assert torch.equal(together.latents[arm.name], alone.latents[arm.name]), arm.name


def test_weight_zero_gives_the_base_image_and_weight_one_the_tuned_one_bit_for_bit(model):
    arms = [Arm("zero", "a", 1.0, "constant:0"), Arm("one", "a", 1.0, "constant:1"), Arm("no lora", "a", 0.0, "tuned")]
    images = {arm.name: sample(model, PROMPTS, arm, sampling=FEW) for arm in [*arms, *PUBLISHED[:2]]}
    assert torch.equal(images["zero"], images["base"])
    assert torch.equal(images["no lora"], images["base"])
    assert torch.equal(images["one"], images["tuned"])
    assert not torch.allclose(images["base"], images["tuned"], atol=1e-2)


def test_the_base_arm_equals_a_model_that_never_had_an_adapter(model):
    plain = sample(tiny_with(), PROMPTS, PUBLISHED[0], sampling=FEW)
    assert torch.equal(sample(model, PROMPTS, PUBLISHED[0], sampling=FEW), plain)


FUSED = replace(FEW, passes=2, fuse=True)


def test_fused_adapters_give_the_routed_images_and_leave_the_weights_as_they_were(model):
    weights = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    arms = [*PUBLISHED, Arm("half", "a", 0.5), Arm("b linear", "b", 1.0, "linear")]
    routed = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW, measure_path=True)
    fused = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FUSED, measure_path=True)
    assert fused.cost.predictions == routed.cost.predictions
    for arm in arms:
        assert (fused.latents[arm.name] - routed.latents[arm.name]).abs().max() < 1e-4
        assert torch.allclose(fused.path[arm.name], routed.path[arm.name], rtol=1e-3)
        alone = sample_arms(model, PROMPTS, SEEDS, [arm], sampling=FUSED).latents[arm.name]
        assert torch.equal(fused.latents[arm.name], alone), arm.name
    assert torch.equal(fused.latents["base"], routed.latents["base"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.denoiser.state_dict().items())


def test_weights_come_back_when_a_fused_forward_fails(model):
    layer = model.denoiser.down_blocks[0].resnets[0].conv1.base_layer
    before = layer.weight.data_ptr()
    with pytest.raises(RuntimeError, match="stop"), adapters.fusing(model.denoiser) as fuser:
        fuser.switch("a")
        assert layer.weight.data_ptr() != before
        raise RuntimeError("stop")
    assert layer.weight.data_ptr() == before


def test_one_forward_equals_two_passes(model):
    one = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=FEW)
    two = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=replace(FEW, passes=2))
    assert two.cost.forwards > one.cost.forwards
    for name, latents in one.latents.items():
        assert (latents - two.latents[name]).abs().max() < 1e-5


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [0, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2, 1]])
def test_an_image_depends_on_neither_batch_size_nor_order(model, order):
    arms = [PUBLISHED[0], PUBLISHED[2], Arm("half", "a", 0.5)]
    reference = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW)
    other = sample_arms(model, [PROMPTS[i] for i in order], [SEEDS[i] for i in order], arms, sampling=FEW)
    for arm in arms:
        assert torch.equal(other.latents[arm.name], reference.latents[arm.name][order])


def test_an_image_does_not_depend_on_the_size_of_a_forward(model):
    whole = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=FEW)
    chunked = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=replace(FEW, max_rows=8))
    assert chunked.cost.forwards > whole.cost.forwards
    for name, latents in whole.latents.items():
        assert torch.equal(latents, chunked.latents[name])


def test_noise_depends_on_run_seed_prompt_and_seed_index_alone():
    noise = Noise(["a", "b", "a"], [0, 0, 1], 7, (2, 3))
    assert torch.equal(Noise(["a"], [1], 7, (2, 3)).initial()[0], noise.initial()[2])
    assert torch.equal(noise.at_step(4), noise.at_step(4))
    draws = [*noise.initial(), *noise.at_step(0), *Noise(["a"], [0], 8, (2, 3)).initial()]
    assert all(not torch.equal(x, y) for i, x in enumerate(draws) for y in draws[:i])


def test_stochastic_sampling_gives_every_arm_the_same_noise(model):
    stochastic = replace(FEW, eta=1.0)
    arms = [Arm("base", None, 1.0, "base"), Arm("zero", "a", 1.0, "constant:0")]
    out = sample_arms(model, PROMPTS, SEEDS, arms, sampling=stochastic).latents
    assert torch.equal(out["base"], out["zero"])
    assert not torch.allclose(out["base"], sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW).latents["base"])


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_latents_equal_those_of_the_diffusers_pipeline(model, eta):
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    ours = sample_arms(model, PROMPTS, SEEDS, PUBLISHED[:1], sampling=Sampling(steps=5, guidance=3.0, eta=eta))
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.disable_adapters()

    class Replay:
        """Stands in for the generator: hands out our noise step by step."""

        step = 0

    def replayed(shape, generator=None, device=None, dtype=None, layout=None):
        Replay.step += 1
        return noise.at_step(Replay.step - 1).to(dtype)

    from diffusers.schedulers import scheduling_ddim

    original, scheduling_ddim.randn_tensor = scheduling_ddim.randn_tensor, replayed
    try:
        theirs = pipe(
            PROMPTS, num_inference_steps=5, guidance_scale=3.0, eta=eta, latents=noise.initial(), output_type="latent"
        ).images
    finally:
        scheduling_ddim.randn_tensor = original
        pipe.unet.enable_adapters()
    assert (ours.latents["base"] - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_path_length_is_zero_for_the_base_and_does_not_change_the_images(model):
    plain = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=FEW)
    measured = sample_arms(model, PROMPTS, SEEDS, PUBLISHED, sampling=FEW, measure_path=True)
    assert measured.path["base"].abs().max() == 0
    assert measured.path["tuned"].min() > measured.path["power:4"].max() > 0
    assert measured.cost.predictions > plain.cost.predictions
    for name, latents in plain.latents.items():
        assert torch.equal(latents, measured.latents[name])


@pytest.mark.parametrize("i", [0, 2, 4])
def test_a_transitions_kl_is_that_of_its_two_gaussians(model, i):
    grid = Grid(model, Sampling(steps=5, guidance=1.0, eta=0.8))
    x, v, w = (torch.randn(1, 3, dtype=torch.float64) for _ in range(3))
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    mean, other = grid.step(i, v, x, zero), grid.step(i, w, x, zero)
    deviation = (grid.step(i, v, x, one) - mean)[0, 0]
    ours = Transitions(grid).step(i, x, v, w).item()
    if deviation < 1e-6:  # the last step is deterministic
        assert grid.deviation(i) == ours == 0
        return
    gaussians = [torch.distributions.Normal(m, deviation) for m in (mean, other)]
    assert ours == pytest.approx(torch.distributions.kl_divergence(*gaussians).sum().item(), rel=1e-3)


def test_bytes_are_rounded_to_nearest():
    images = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2, -0.1]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255, 0]


def test_bad_arms_and_sampling_are_refused_with_their_reason(model):
    with pytest.raises(ValueError, match="did you mean 'power'"):
        Arm("x", "a", 1.0, "powr:2")
    with pytest.raises(ValueError, match="lora_scale"):
        Arm("x", "a", 1.5)
    with pytest.raises(ValueError, match="needs an adapter"):
        Arm("x", None, 1.0, "linear")
    with pytest.raises(ValueError, match="distinct"):
        sample_arms(model, PROMPTS, SEEDS, [PUBLISHED[0], PUBLISHED[0]])
    with pytest.raises(ValueError, match="not loaded"):
        sample_arms(model, PROMPTS, SEEDS, [Arm("x", "absent")])
    with pytest.raises(ValueError, match="grammar"):
        sample_arms(model, ["a zebra"], [0], PUBLISHED[:1])
    with pytest.raises(ValueError, match=r"sampling\.steps"):
        Sampling(steps=0, guidance=3.0)
    with pytest.raises(ValueError, match=r"sampling\.fuse"):
        Sampling(steps=5, guidance=3.0, fuse=True)


def test_an_arms_id_is_its_content_not_its_name():
    assert Arm("x", "a", 0.5).id == Arm("y", "a", 0.5).id != Arm("x", "a", 0.25).id


def test_the_ids_of_known_schedules_stay_what_they_were():
    assert [Arm("x", "a", 0.5).id, Arm("x", "a", 1.0, "power:2@time").id] == ["9035e67fca76588e", "e485286d65a3bb15"]


def test_an_arms_id_follows_the_values_of_the_users_own_curve(monkeypatch):
    ids = {Arm("x", "a", 1.0, text).id for text in ("math:sqrt", "math:sin", "power:0.5")}
    assert len(ids) == 3
    monkeypatch.setattr("math.sqrt", lambda u: u)
    assert Arm("x", "a", 1.0, "math:sqrt").id not in ids


def test_an_own_function_travels_with_its_arm_and_a_known_schedule_by_its_text(monkeypatch):
    arms = [Arm("x", "a", 1.0, text) for text in ("math:sqrt", "power:2")]
    sent = pickle.dumps(arms)
    monkeypatch.setattr(schedules, "parse", {"power:2": schedules.power(2)}.__getitem__)
    there = pickle.loads(sent)
    assert there == arms and [arm.curve(0.25) for arm in there] == [0.5, 0.0625]
    assert there[0].id == arms[0].id


def test_the_users_own_curve_gives_the_images_of_the_same_formula_bit_for_bit(model):
    arms = [Arm("own", "a", 1.0, "math:sqrt"), Arm("closed", "a", 1.0, "power:0.5")]
    own, closed = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW).latents.values()
    assert torch.equal(own, closed)


def test_routing_refuses_disabled_adapters_and_unknown_names(model):
    x, embeddings = torch.zeros(1, 12, 16, 16), model.encode(["a red star"]).embeddings
    with pytest.raises(ValueError, match="'misspelled' is not loaded"), adapters.routed(model.denoiser, ["misspelled"]):
        model.denoiser(x, 500, embeddings)
    model.denoiser.disable_adapters()
    try:
        with pytest.raises(RuntimeError, match="enable_adapters"), adapters.routed(model.denoiser, ["a"]):
            model.denoiser(x, 500, embeddings)
    finally:
        model.denoiser.enable_adapters()
