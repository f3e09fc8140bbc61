from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from models import load, tiny_with

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


def in_weight_space(arms):
    return [replace(arm, space="weight") if arm.name in ("linear", "power:2", "power:4") else arm for arm in arms]


def test_the_published_arms_in_weight_space_need_132_predictions(model):
    """25 each of base and tuned, 24 each of the annealed ones, which begin as the base, and the last 10 of the step."""
    cost = sample_arms(model, ["a red star"], [0], in_weight_space(PUBLISHED), sampling=PAPER).cost
    assert cost.counts() == {"predictions": 25 + 25 + 3 * 24 + 10, "separate": 6 * 25, "published": 300}


def test_weight_space_draws_the_images_of_a_lora_whose_matrices_are_scaled_at_each_step(model):
    """Against a loop of its own, which multiplies B by the weight; only rounding differs."""
    arm = Arm("beyond", "a", schedule="ramp:0.3,3", space="weight")
    grid = Grid(model, FEW)
    x = grid.start(Noise(PROMPTS, SEEDS, 0, model.latent_shape).initial(), model)
    condition = model.encode(PROMPTS)
    ups = [layer.lora_B["a"].weight for layer in model.denoiser.modules() if "a" in getattr(layer, "lora_B", ())]
    own = [up.detach().clone() for up in ups]
    try:
        with torch.no_grad():
            for i, w in enumerate(grid.weights(arm.curve)):
                for up, values in zip(ups, own, strict=True):
                    up.copy_(w * values)
                x = grid.step(i, model.predict(x, grid.times[i], condition, ["a"] * 3, FEW.guidance), x)
    finally:
        with torch.no_grad():
            for up, values in zip(ups, own, strict=True):
                up.copy_(values)
    ours = sample_arms(model, PROMPTS, SEEDS, [arm], sampling=FEW).latents["beyond"]
    assert torch.allclose(ours, x, atol=2e-4)
    assert not torch.allclose(
        ours, sample_arms(model, PROMPTS, SEEDS, [PUBLISHED[0]], sampling=FEW).latents["base"], atol=1e-2
    )


def test_the_two_spaces_agree_to_second_order_in_the_adapter():
    """Their predictions differ by O(|BA|^2): an adapter of a tenth brings them a hundred times closer."""
    distances = []
    for scale in (1.0, 0.1):
        model = tiny_with("a")
        arms = [Arm(space, "a", scale, "constant:2", space=space) for space in ("prediction", "weight")]
        one, other = sample_arms(model, PROMPTS, SEEDS, arms, sampling=replace(FEW, steps=1)).latents.values()
        distances.append(float((one - other).norm()))
    assert distances[0] / distances[1] == pytest.approx(100, rel=0.5)


def test_scales_share_a_state_as_long_as_they_are_equal(model):
    """A LoRA at scale 1/2 is a constant weight of 1/2 in weight space; a curve that starts like another shares that."""
    half = [Arm("scaled", "a", 0.5), Arm("constant", "a", schedule="constant:0.5", space="weight")]
    samples = sample_arms(model, PROMPTS, SEEDS, half, sampling=FEW)
    assert torch.equal(samples.latents["scaled"], samples.latents["constant"])
    assert samples.cost.predictions == 5
    late = [Arm(f"{w}", "a", schedule=f"piecewise:0.6=1|0.8={w}", space="weight") for w in (2, 3)]
    assert sample_arms(model, PROMPTS, SEEDS, late, sampling=FEW).cost.predictions == 4 + 2


def test_a_coin_takes_one_model_a_step_by_each_images_own_seed(model):
    arms = [Arm("coin", "a", schedule="coin:constant:0.5")]
    samples = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    heads = torch.stack([noise.coin(i) < 0.5 for i in range(5)])
    assert 0 < heads.sum() < heads.numel()
    assert samples.cost.predictions == samples.cost.separate == 5
    grid = Grid(model, FEW)
    for image in range(3):
        x = grid.start(noise.initial(), model)[image : image + 1]
        condition = model.encode(PROMPTS[image : image + 1])
        for i in range(5):
            route = "a" if heads[i, image] else adapters.BASE
            with torch.no_grad():
                x = grid.step(i, model.predict(x, grid.times[i], condition, [route], FEW.guidance), x)
        assert torch.allclose(samples.latents["coin"][image], x[0], atol=2e-4)


def test_a_coins_image_has_the_same_bits_in_any_batch_and_beside_any_arms(model):
    arms = [Arm("coin", "a", schedule="coin:linear"), *PUBLISHED, Arm("other", "a", schedule="coin:power:2")]
    together = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW).latents["coin"]
    alone = [
        sample_arms(model, [p], [s], arms[:1], sampling=FEW).latents["coin"][0]
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))


def test_the_share_of_heads_is_the_weight():
    noise = Noise(["a red star"] * 4000, list(range(4000)), 0, (1, 1, 1))
    assert float((noise.coin(3) < 0.3).float().mean()) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


def test_an_arms_own_guidance_is_that_of_the_sampling_and_none_outside_its_interval(model):
    five = replace(FEW, guidance=5.0)
    own = sample_arms(model, PROMPTS, SEEDS, [Arm("own", "a", guidance=5.0), Arm("plain", "a")], sampling=FEW)
    assert torch.equal(
        own.latents["own"], sample_arms(model, PROMPTS, SEEDS, [Arm("x", "a")], sampling=five).latents["x"]
    )
    assert own.cost.predictions == 10
    grid = Grid(model, FEW)
    x, condition = grid.start(Noise(PROMPTS, SEEDS, 0, model.latent_shape).initial(), model), model.encode(PROMPTS)
    with torch.no_grad():
        for i in range(5):
            guidance = 5.0 if 0.2 <= i / 5 < 0.8 else 1.0
            x = grid.step(i, model.predict(x, grid.times[i], condition, ["a"] * 3, guidance), x)
    arm = Arm("interval", "a", guidance=5.0, interval=(0.2, 0.8))
    assert torch.allclose(sample_arms(model, PROMPTS, SEEDS, [arm], sampling=FEW).latents["interval"], x, atol=2e-4)


def test_autoguidance_mixes_against_another_adapter(model):
    arm = Arm("auto", "a", schedule="constant:2", against="b")
    grid = Grid(model, FEW)
    x, condition = grid.start(Noise(PROMPTS, SEEDS, 0, model.latent_shape).initial(), model), model.encode(PROMPTS)
    with torch.no_grad():
        for i in range(5):
            weak, strong = (model.predict(x, grid.times[i], condition, [name] * 3, FEW.guidance) for name in "ba")
            x = grid.step(i, weak + 2 * (strong - weak), x)
    assert torch.allclose(sample_arms(model, PROMPTS, SEEDS, [arm], sampling=FEW).latents["auto"], x, atol=2e-4)


@pytest.mark.parametrize(
    "arm",
    [
        Arm("weight", "a", schedule="ramp:0.3,3", space="weight"),
        Arm("coin", "a", schedule="coin:linear"),
        Arm("guided", "a", schedule="power:2", guidance=6.0, interval=(0.0, 0.5)),
        Arm("auto", "a", schedule="constant:2", against="b"),
    ],
    ids=lambda arm: arm.name,
)
@pytest.mark.parametrize("passes", [1, 2])
def test_new_arms_cost_as_much_measured_as_a_loop_of_their_own_makes(model, arm, passes):
    plain = replace(FEW, passes=passes)
    for measured in (False, True):
        cost = sample_arms(model, PROMPTS, SEEDS, [arm], sampling=plain, measure_path=measured).cost
        assert cost.predictions == pytest.approx(cost.separate)


def test_weight_space_refuses_a_full_copy():
    full = load("tiny")
    adapters.full(full.denoiser, "copy")
    with pytest.raises(ValueError, match="full copy of the denoiser, and space = 'weight' needs a LoRA"):
        sample_arms(full, PROMPTS, SEEDS, [Arm("x", "copy", schedule="linear", space="weight")], sampling=FEW)


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
    with pytest.raises(ValueError, match=r"lora_scale = 65 must be in \[0, 64\]"):
        Arm("x", "a", 65)
    with pytest.raises(ValueError, match="space = 'latent' must be one of prediction, weight"):
        Arm("x", "a", space="latent")
    with pytest.raises(ValueError, match=r"guidance = 0.5 must be at least 1"):
        Arm("x", "a", guidance=0.5)
    with pytest.raises(ValueError, match=r"interval = \(0.6, 0.4\) must be two rising numbers"):
        Arm("x", "a", interval=(0.6, 0.4))
    with pytest.raises(ValueError, match=r"'ramp:0.5,auto' has no weight yet: it follows from the adapter's path"):
        sample_arms(model, PROMPTS, SEEDS, [Arm("x", "a", schedule="ramp:0.5,auto")])
    with pytest.raises(ValueError, match="a coin takes predictions of two models; leave space='weight' out"):
        Arm("x", "a", schedule="coin:linear", space="weight")
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


def test_every_way_to_carry_a_schedule_out_has_an_id_of_its_own():
    arm = Arm("x", "a", schedule="power:2")
    others = [
        replace(arm, **change)
        for change in ({"space": "weight"}, {"guidance": 5.0}, {"interval": (0.2, 0.8)}, {"against": "b"})
    ]
    assert len({other.id for other in [arm, *others]}) == 5


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


def test_an_arms_seed_offset_gives_the_images_of_later_seed_indices(model):
    arms = [Arm("now", "a", schedule="linear"), Arm("later", "a", schedule="linear", seed_offset=4)]
    samples = sample_arms(model, PROMPTS, SEEDS, arms, sampling=FEW, measure_path=True)
    later = sample_arms(model, PROMPTS, [seed + 4 for seed in SEEDS], arms[:1], sampling=FEW, measure_path=True)
    assert torch.equal(samples.latents["later"], later.latents["now"])
    assert torch.equal(samples.path["later"], later.path["now"])
    assert samples.cost.predictions == 2 * later.cost.predictions
    assert arms[0].id == Arm("x", "a", schedule="linear").id != arms[1].id
    with pytest.raises(ValueError, match="seed_offset = -1 must be at least 0"):
        Arm("x", "a", seed_offset=-1)
