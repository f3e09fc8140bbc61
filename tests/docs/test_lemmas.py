"""The example of Lemma 1: closed forms on the grid, and what the diffusion model in the plane shows."""

from __future__ import annotations

import pytest
import torch

from examples import lemmas


@pytest.fixture(scope="module")
def world():
    return lemmas.grid_world()


def reached(world, kl_weight, **settings):
    _, base, reward = world
    *_, last = lemmas.ascend(base, reward, kl_weight, **settings)
    return last


def test_without_a_penalty_ascent_ends_in_the_point_mass_at_the_argmax(world):
    _, base, reward = world
    entropies = [lemmas.entropy(p) for p in lemmas.ascend(base, reward, 0.0)]
    assert base[reward.argmax()] < base.max() / 5  # the base hardly has the best state
    assert reached(world, 0.0)[reward.argmax()] > 1 - 1e-9
    assert entropies[0] > 3 and entropies[-1] < 1e-9


@pytest.mark.parametrize("kl_weight", lemmas.KL_WEIGHTS)
def test_with_a_penalty_ascent_ends_in_the_tilted_base(world, kl_weight):
    _, base, reward = world
    tilted = base * (reward / kl_weight).exp()
    torch.testing.assert_close(reached(world, kl_weight), tilted / tilted.sum(), rtol=0, atol=1e-6)


def test_no_other_distribution_has_a_higher_objective(world):
    _, base, reward = world
    p = reached(world, 0.5)

    def objective(q):
        return (q @ reward - 0.5 * (q @ (q / base).log())).item()

    generator = torch.Generator().manual_seed(0)
    nearby = [(p.log() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)).softmax(0) for _ in range(50)]
    assert max(map(objective, nearby)) < objective(p)


@pytest.mark.parametrize("w", lemmas.MIX_WEIGHTS)
def test_weight_w_on_the_optimum_of_a_kl_weight_is_the_optimum_of_that_weight_over_w(world, w):
    _, base, reward = world
    mix = lemmas.mixed(base, lemmas.optimum(base, reward, 0.8), w)
    torch.testing.assert_close(mix, lemmas.optimum(base, reward, 0.8 / w), rtol=1e-12, atol=1e-15)


@pytest.fixture(scope="module")
def study():
    return lemmas.compare(lemmas.train_base(steps=1500), steps=60, points=300, shown=2)


def test_the_tuned_model_collapses_and_its_gold_falls_while_the_proxy_rises(study):
    base, tuned = study.curves["base"][0], study.curves["tuned (KL 0)"]
    assert base.modes == lemmas.MODES and base.on_data > 0.8
    assert tuned[60].occupancy < base.occupancy - 0.5 and tuned[60].spread < base.spread - 0.5
    assert tuned[60].proxy > base.proxy + 2 and tuned[60].gold < base.gold
    assert max(m.gold for m in tuned.values()) > base.gold + 0.1


def test_a_kl_penalty_and_annealing_keep_modes_that_the_tuned_model_lost(study):
    base, tuned, kl, aig = (
        lemmas.Measures.of(study.points[name]) for name in ("base", "tuned (KL 0)", "KL 10", "AIG power:4 on KL 0")
    )
    assert kl.modes == lemmas.MODES > tuned.modes
    assert kl.gold > base.gold and kl.proxy > base.proxy
    assert tuned.occupancy < aig.occupancy < base.occupancy


def test_a_trajectory_ends_in_the_arm_s_own_point(study):
    for name, path in study.trajectories.items():
        assert path.shape == (lemmas.PointModel.defaults.steps + 1, 2, 2)
        torch.testing.assert_close(path[-1], study.points[name][:2].flatten(1), rtol=0, atol=1e-3)
