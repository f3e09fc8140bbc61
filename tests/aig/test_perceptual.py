import sys
import types
from itertools import combinations

import numpy as np
import pytest
import torch

from aig.metrics import mean_pairwise_perceptual_distance, perceptual


def brightness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A stand-in distance: the difference of mean values."""
    return (a - b).mean((1, 2, 3)).abs()


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_perceptual_diversity_is_the_mean_distance_over_all_pairs_of_different_images(batch):
    values = [0.0, 0.1, 0.4, 0.4, 1.0]
    images = torch.tensor(values)[:, None, None, None].expand(5, 3, 8, 8)
    expected = np.mean([abs(a - b) for a, b in combinations(values, 2)])
    assert mean_pairwise_perceptual_distance(images, brightness, batch=batch) == pytest.approx(expected, rel=1e-6)


def test_perceptual_diversity_refuses_one_image_and_values_that_are_not_finite():
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\): give at least two"):
        mean_pairwise_perceptual_distance(torch.zeros(1, 3, 8, 8), brightness)
    with pytest.raises(ValueError, match="images hold values that are not finite"):
        mean_pairwise_perceptual_distance(torch.full((2, 3, 8, 8), torch.nan), brightness)
    with pytest.raises(ValueError, match="one finite number per pair"):
        mean_pairwise_perceptual_distance(torch.zeros(3, 3, 8, 8), lambda a, b: (a - b).mean())


@pytest.mark.parametrize("name", ["lpips", "dreamsim"])
def test_a_distance_whose_package_is_missing_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"'{name}' needs a package.*pip install {name}"):
        perceptual.load(name)


def test_an_unknown_distance_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'ssim' is not known \(known: lpips, dreamsim\)"):
        perceptual.load("ssim")


def test_weights_that_are_not_at_hand_are_an_error_that_says_so(monkeypatch):
    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=offline))
    with pytest.raises(ValueError, match=r"'dreamsim' has no weights at hand \(no route to host\)"):
        perceptual.load("dreamsim")


def test_lpips_gets_images_in_its_zero_to_one_convention_and_gives_one_number_a_pair(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            assert normalize
            return brightness(a, b)[:, None, None, None]

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Network))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert mean_pairwise_perceptual_distance(images, perceptual.load("lpips")) == pytest.approx(
        mean_pairwise_perceptual_distance(images, brightness)
    )


def test_dreamsim_gets_224_pixels_and_its_lost_batch_dimension_comes_back(monkeypatch):
    def network(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape[1:] == b.shape[1:] == (3, 224, 224)
        assert float(a.min()) >= 0 and float(a.max()) <= 1
        return brightness(a, b).squeeze()

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=lambda **_: (network, None)))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    assert mean_pairwise_perceptual_distance(images, perceptual.load("dreamsim")) > 0
