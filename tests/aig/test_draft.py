from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from models import tiny_with

from aig import adapters, draft
from aig.draft import DraftConfig, train_step
from aig.sampler import Arm, Grid, Noise, Sampling

PROMPTS, SEEDS = ["a red star", "a blue heart", "a green cross", "a pink circle"], [3, 5, 7, 9]
FEW = Sampling(steps=4, guidance=3.0)


def smooth_reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A smooth function that prefers some places to others, so that its gradient is nowhere trivial."""
    h = torch.linspace(0, 3, images.shape[-1], dtype=images.dtype)
    return (torch.sin(3 * images) * torch.cos(h)).mean(dim=(1, 2, 3)) * 10


def gradient(model, config, prompts=PROMPTS, seeds=SEEDS, **keywords):
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    sums = train_step(model, smooth_reward, "a", prompts, seeds, config, **keywords)
    return torch.cat([p.grad.flatten() for p in parameters]), sums


@pytest.fixture(scope="module")
def model():
    return tiny_with("a")


@pytest.mark.parametrize(("k", "kl_weight"), [(1, 0.0), (3, 0.0), (1, 50.0), (3, 50.0)])
def test_the_gradient_equals_finite_differences(k, kl_weight):
    model = tiny_with("a", dtype=torch.float64)
    config = DraftConfig(FEW, k=k, kl_weight=kl_weight, micro_batch=3)
    ours, sums = gradient(model, config)
    parameters = adapters.parameters(model.denoiser, "a")
    grid, arm = Grid(model, FEW), Arm("t", "a")
    condition = model.encode(PROMPTS)
    # The steps before the last K carry no gradient: their outcome is held fixed, as in the truncated objective.
    x = draft.rollout(model, condition, Noise(PROMPTS, SEEDS, 0, model.latent_shape), arm, config, grid)

    # So are the base's predictions: the penalty pulls the tuned model to them, it does not move x_t to where they
    # agree.
    held: list[torch.Tensor] = []
    predict, calls = model.predict, itertools.count()

    def with_held_base(x_t, t, condition, names, guidance):
        if set(names) != {adapters.BASE}:
            return predict(x_t, t, condition, names, guidance)
        i = next(calls) % k
        if i == len(held):
            held.append(predict(x_t, t, condition, names, guidance))
        return held[i]

    model.predict = with_held_base

    def loss() -> float:
        with torch.no_grad():
            final, kl = draft.last_steps(model, condition, x, arm, config, grid, None)
            return (kl_weight * kl - smooth_reward(model.decode(final), PROMPTS)).mean().item()

    assert loss() == pytest.approx(sums["loss"], rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        length = torch.cat([d.flatten() for d in direction]).norm()
        direction = [d / length for d in direction]
        h = 1e-5  # so small that hardly a pixel crosses the clamp to [0, 1] on the way

        def shift(amount: float, direction=direction) -> None:
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=amount)

        shift(h)
        up = loss()
        shift(-2 * h)
        down = loss()
        shift(h)
        expected = (up - down) / (2 * h)
        assert torch.dot(ours, torch.cat([d.flatten() for d in direction])).item() == pytest.approx(expected, rel=1e-3)


def test_the_micro_batch_changes_memory_not_the_gradient(model):
    one, _ = gradient(model, DraftConfig(FEW, micro_batch=1))
    four, _ = gradient(model, DraftConfig(FEW, micro_batch=4))
    assert (one - four).abs().max() < 1e-4 * four.abs().max()


def test_shares_of_two_workers_add_up_to_the_whole_batch(model):
    whole, sums = gradient(model, DraftConfig(FEW))
    first, a = gradient(model, DraftConfig(FEW), PROMPTS[:2], SEEDS[:2], total=4)
    second, b = gradient(model, DraftConfig(FEW), PROMPTS[2:], SEEDS[2:], total=4)
    assert (first + second - whole).abs().max() < 1e-4 * whole.abs().max()
    assert a["reward"] + b["reward"] == pytest.approx(sums["reward"], rel=1e-5)


def test_lv_has_the_same_mean_gradient_as_k_1_at_the_states_that_it_draws(model):
    """E over the last step's noise: LV with n draws equals the mean of n single-draw gradients, and differs from draw
    to draw."""
    config = DraftConfig(FEW, lv=3)
    ours, _ = gradient(model, config)
    parameters = adapters.parameters(model.denoiser, "a")
    grid, arm, noise = Grid(model, FEW), Arm("t", "a"), Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    condition = model.encode(PROMPTS)
    x = draft.rollout(model, condition, noise, arm, config, grid)
    with torch.no_grad():
        x_0 = draft.last_steps(model, condition, x, arm, config, grid, None)[0]
    single = []
    for n in range(3):
        for p in parameters:
            p.grad = None
        noisy = grid.scheduler.add_noise(x_0, noise.draw(f"lv {n}"), grid.times[-1].expand(4))
        final, _ = draft.last_steps(model, condition, noisy, arm, config, grid, None)
        (-smooth_reward(model.decode(final), PROMPTS)).mean().backward()
        single.append(torch.cat([p.grad.flatten() for p in parameters]))
    mean = torch.stack(single).mean(dim=0)
    assert (ours - mean).norm() < 1e-4 * mean.norm()
    assert (single[0] - single[1]).norm() > 1e-3 * mean.norm()


def test_lv_agrees_with_k_1_in_expectation(model):
    """Over many samples both estimate one direction: what is left of their difference is the noise of the mean."""
    prompts, seeds = PROMPTS * 16, list(range(64))
    k_1, _ = gradient(model, DraftConfig(FEW, micro_batch=32), prompts, seeds)
    lv, _ = gradient(model, DraftConfig(FEW, lv=2, micro_batch=32), prompts, seeds)
    cosine = torch.dot(k_1, lv) / (k_1.norm() * lv.norm())
    assert cosine > 0.8
    assert 0.7 < lv.norm() / k_1.norm() < 1.4


def test_kl_is_zero_before_the_first_step_and_its_gradient_too():
    model = tiny_with()
    adapters.attach(model.denoiser, "a", targets="everywhere")
    with_kl, sums = gradient(model, DraftConfig(FEW, kl_weight=100.0, k=2))
    without, _ = gradient(model, DraftConfig(FEW, k=2))
    assert sums["kl"] == 0
    assert torch.equal(with_kl, without)


@pytest.mark.parametrize(("form", "eta"), [("eps_mse", 0.0), ("path", 1.0)])
def test_kl_grows_with_the_square_of_a_small_lora_scale(model, form, eta):
    sampling = replace(FEW, eta=eta)
    config = DraftConfig(sampling, k=3, kl_weight=1.0, kl=form)
    grid, condition = Grid(model, sampling), model.encode(PROMPTS)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    x = noise.initial()
    kls = []
    for scale in (0.02, 0.01):
        with torch.no_grad():
            kls.append(
                draft.last_steps(model, condition, x, Arm("t", "a", scale), config, grid, noise.at_step)[1]
                .mean()
                .item()
            )
    assert kls[0] / kls[1] == pytest.approx(4, rel=0.1)
    assert kls[1] > 0


def test_every_training_sample_depends_on_seed_step_and_index_alone():
    prompts, seeds = draft.draw(PROMPTS, 0, 5, 8)
    assert draft.draw(PROMPTS, 0, 5, 4) == (prompts[:4], seeds[:4])
    assert draft.draw(PROMPTS, 0, 6, 8)[1] != seeds
    assert draft.draw(PROMPTS, 1, 5, 8)[1] != seeds
    assert len(set(seeds)) == 8


def test_a_step_replayed_gives_the_same_bits(model):
    first, _ = gradient(model, DraftConfig(FEW, k=2, kl_weight=1.0))
    again, _ = gradient(model, DraftConfig(FEW, k=2, kl_weight=1.0))
    assert torch.equal(first, again)


def spoiled_for(spoiled: str):
    """The smooth reward, but NaN, in value and gradient, for the images of one prompt."""

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        factor = torch.tensor([float("nan") if prompt == spoiled else 1.0 for prompt in prompts])
        return smooth_reward(images, prompts) * factor.to(images)

    return reward


def test_a_score_that_is_not_finite_stops_with_its_prompt_and_seed(model):
    with pytest.raises(FloatingPointError, match=r"the reward is nan .* 'a green cross' with noise seed 7"):
        train_step(model, spoiled_for("a green cross"), "a", PROMPTS, SEEDS, DraftConfig(FEW))


@pytest.mark.parametrize("change", [{"k": 2, "kl_weight": 1.0}, {"lv": 2}])
def test_a_skipped_image_leaves_the_gradient_of_the_others(model, change):
    config = DraftConfig(FEW, micro_batch=3, on_nan="skip", **change)
    parameters = adapters.parameters(model.denoiser, "a")
    others = [0, 1, 3]
    expected, mean = gradient(model, config, [PROMPTS[i] for i in others], [SEEDS[i] for i in others])
    for p in parameters:
        p.grad = None
    sums = train_step(model, spoiled_for(PROMPTS[2]), "a", PROMPTS, SEEDS, config)
    assert sums["skipped"] == 1
    sums = draft.over_kept(parameters, sums, len(PROMPTS))
    ours = torch.cat([p.grad.flatten() for p in parameters])
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert sums == pytest.approx({**mean, "skipped": 1}, rel=1e-4)


def test_an_image_with_pixels_that_are_not_finite_is_kept_from_the_reward_and_skipped(model, monkeypatch):
    decode = model.decode

    def broken(latents):
        images = decode(latents)
        return torch.cat([images[:-1], images[-1:] * float("nan")]) if len(images) == 4 else images

    def careful(images, prompts):
        assert images.isfinite().all()
        return smooth_reward(images, prompts)

    monkeypatch.setattr(model, "decode", broken)
    sums = train_step(model, careful, "a", PROMPTS, SEEDS, DraftConfig(FEW, on_nan="skip"))
    assert sums["skipped"] == 1
    assert sums["reward"] > 0


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"micro_batch": 2}, {"lv": 2}], ids=str)
def test_an_image_that_is_skipped_counts_once_where_another_worker_fills_up_with_it(model, change):
    """Three images of two workers that have to make as many: the second one's last is the first image again."""
    config = DraftConfig(FEW, on_nan="skip", **change)
    parameters = adapters.parameters(model.denoiser, "a")
    expected, mean = gradient(model, config, PROMPTS[1:3], SEEDS[1:3])
    for p in parameters:
        p.grad = None
    shares = []
    for rows, padding in (([0, 2], 0), ([1, 0], 1)):
        prompts, seeds = [PROMPTS[row] for row in rows], [SEEDS[row] for row in rows]
        spoiled = spoiled_for(PROMPTS[0])
        shares.append(train_step(model, spoiled, "a", prompts, seeds, config, total=3, padding=padding))
    sums = {name: sum(share[name] for share in shares) for name in draft.SUMS}
    assert [share["skipped"] for share in shares] == [1, 0]
    sums = draft.over_kept(parameters, sums, 3)
    ours = torch.cat([p.grad.flatten() for p in parameters])
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert sums == pytest.approx({**mean, "skipped": 1}, rel=1e-4)


def test_a_batch_of_which_nothing_is_left_has_no_mean(model):
    parameters = adapters.parameters(model.denoiser, "a")
    sums = train_step(model, spoiled_for(PROMPTS[0]), "a", PROMPTS[:1], [0], DraftConfig(FEW, on_nan="skip"))
    mean = draft.over_kept(parameters, sums, 1)
    assert mean["skipped"] == 1
    assert mean["reward"] != mean["reward"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"k": 0}, "draft.k"), ({"k": 5}, "draft.k"), ({"lv": 2, "k": 2}, "lv"), ({"kl_weight": -1}, "kl_weight"),
     ({"kl": "reverse"}, "eps_mse"), ({"micro_batch": 0}, "micro_batch"), ({"on_nan": "hope"}, "on_nan")],
)  # fmt: skip
def test_a_bad_objective_is_refused_with_its_reason(change, said):
    with pytest.raises(ValueError, match=said):
        DraftConfig(FEW, **change)
