"""Averaged adapters: the sum of the members' products, layer by layer."""

import pytest
import torch
from denoisers import FAMILIES, fresh, predict, randomize, tuned
from peft import LoraConfig

from aig import adapters
from aig.adapters.routing import base_weight, lora_layers


def pair(family):
    """A denoiser with LoRAs of other ranks, scales and layers."""
    denoiser = tuned(family)
    adapters.attach(denoiser, "b.2", rank=3, alpha=9, targets="everywhere")
    randomize(denoiser, "b.2", seed=1)
    return denoiser


def folded(denoiser, name):
    """What an adapter adds to each layer's weight."""
    own = [base_weight(layer).clone() for layer in lora_layers(denoiser)]
    with adapters.fusing(denoiser) as fuser:
        fuser.switch(adapters.key(name))
        return [base_weight(layer) - weight for layer, weight in zip(lora_layers(denoiser), own, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soup_adds_the_weighted_sum_of_its_members_to_every_layer(family):
    denoiser = pair(family)
    adapters.soup(denoiser, "soup", {"a": 0.7, "b.2": -0.4})
    a, b, soup = (folded(denoiser, name) for name in ("a", "b.2", "soup"))
    assert sum(not x.any() for x in a) > 0  # a layer that only one of them has
    for x, y, both in zip(a, b, soup, strict=True):
        assert torch.allclose(both, 0.7 * x - 0.4 * y, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soup_of_one_adapter_predicts_as_that_adapter(family):
    denoiser = pair(family)
    adapters.soup(denoiser, "soup", {"a": 1})
    adapters.soup(denoiser, "more", {"b.2": 2})
    rows = predict(denoiser, ["a", "soup", adapters.scaled(denoiser, "b.2", 2), "more"])
    again = predict(denoiser, ["soup", "a", "more", adapters.scaled(denoiser, "b.2", 2)])
    assert torch.allclose(rows, again, atol=1e-5)
    assert (rows - predict(denoiser, [adapters.BASE] * 4)).abs().max() > 1e-2


def test_a_soup_is_a_copy_that_its_members_training_does_not_move():
    denoiser = pair("sd")
    adapters.soup(denoiser, "soup", {"a": 0.5, "b.2": 0.5})
    before = predict(denoiser, ["soup"] * 4)
    randomize(denoiser, "a", seed=2)
    assert torch.equal(predict(denoiser, ["soup"] * 4), before)


def test_a_scaled_member_counts_at_its_scale():
    denoiser = pair("sd")
    adapters.soup(denoiser, "one", {adapters.scaled(denoiser, "a", 0.5): 1.0})
    adapters.soup(denoiser, "other", {"a": 0.5})
    assert torch.allclose(predict(denoiser, ["one"] * 4), predict(denoiser, ["other"] * 4), atol=1e-6)


def test_a_saved_soup_predicts_the_same_after_loading(tmp_path):
    denoiser = pair("sd")
    adapters.soup(denoiser, "soup", {"a": 0.5, "b.2": 0.5})
    adapters.load(ours := fresh("sd"), adapters.save(denoiser, "soup", tmp_path / "soup", {}), "again")
    assert torch.allclose(predict(ours, ["again"] * 4), predict(denoiser, ["soup"] * 4), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "has LoRA biases")]
)
def test_adapters_that_are_no_plain_loras_are_refused(settings, reason):
    denoiser = tuned("sd")
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"], **settings), adapter_name="other")
    with pytest.raises(ValueError, match=rf"soup 'soup': adapter 'other' .*{reason}"):
        adapters.soup(denoiser, "soup", {"a": 0.5, "other": 0.5})


def test_full_copies_are_refused():
    denoiser = tuned("sd")
    adapters.full(denoiser, "copy")
    with pytest.raises(ValueError, match="'copy' is a full copy"):
        adapters.soup(denoiser, "soup", {"a": 0.5, "copy": 0.5})


@pytest.mark.parametrize(
    ("name", "weights", "reason"),
    [
        ("soup", {}, "has no adapters"),
        ("soup", {"a": float("nan")}, "has to be finite"),
        ("soup", {"c": 1.0}, "'c' is not loaded"),
        ("a", {"a": 1.0}, "in use"),
    ],
)
def test_a_soup_that_cannot_be_made_is_refused(name, weights, reason):
    with pytest.raises(ValueError, match=reason):
        adapters.soup(tuned("sd"), name, weights)
