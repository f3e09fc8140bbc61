"""Feature extractors against the libraries and processors that they stand for."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from feature_models import dinov2_folder, inception_file
from PIL import Image
from reward_models import SIZE, clip_folder, open_clip_files, saved
from reward_models import pictures as drawn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models.inception import Inception3, Inception_V3_Weights
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, Dinov2Model

from aig import rewards
from aig.metrics import features
from aig.metrics.features import inception


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def clip_path(folder):
    return clip_folder(folder / "clip")


@pytest.fixture(scope="module")
def dinov2_path(folder):
    return dinov2_folder(folder / "dinov2")


@pytest.fixture(scope="module")
def fid_file(folder):
    return inception_file(folder, "inception")


@pytest.fixture(scope="module")
def fid(fid_file):
    return features.load({"name": "inception", "weights": str(fid_file)})


def pictures(count, height, width):
    return saved(drawn(count, height, width))


def as_pil(images):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def distance(ours, theirs):
    """Of features, over their spread."""
    return float((ours - theirs).norm() / (theirs - theirs.mean(0)).norm())


def test_inception_equals_torch_fidelitys_extractor_bit_for_bit_on_8_bit_images(fid, fid_file):
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(fid_file))
    images = pictures(2, 40, 33)
    wanted = theirs(images)[0]
    assert torch.equal(features.report(fid, images), wanted)
    assert distance(fid(images / 255), wanted) < 1e-4
    assert wanted.shape == (2, 2048) and float(wanted.std(0).mean()) > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (64, 512), (299, 299), (512, 333)])
def test_inceptions_resize_is_that_of_tensorflow_1_bit_for_bit(size):
    images = pictures(2, *size).float()
    wanted = interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    assert torch.equal(inception.resize(images, (299, 299)), wanted)


def test_a_checkpoint_that_is_not_inceptions_is_refused_by_its_path(folder):
    other = folder / "other.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"features 'inception': the checkpoint .*other\.pth does not fit"):
        features.load({"name": "inception", "weights": str(other)})


def test_torchvisions_inception_equals_torchvisions_own_pipeline(folder):
    file = inception_file(folder, "inception-torchvision")
    ours = features.load({"name": "inception-torchvision", "weights": str(file)})
    net = Inception3(transform_input=True, init_weights=False)
    net.load_state_dict(torch.load(file, weights_only=True))
    net.fc = torch.nn.Identity()
    images = pictures(2, 60, 45)
    transform = Inception_V3_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        wanted = net.eval()(torch.stack([transform(picture) for picture in as_pil(images)]))
    assert torch.equal(features.report(ours, images), wanted)
    assert distance(ours(images / 255), wanted) < 0.02


def test_dinov2_weights_that_are_cut_off_or_another_models_are_refused_by_their_folder(
    dinov2_path, clip_path, tmp_path
):
    short = shutil.copytree(dinov2_path, tmp_path / "short")
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"features 'dinov2': .*short cannot be loaded .* give a folder"):
        features.load({"name": "dinov2", "weights": str(short)})
    shutil.copy(clip_path / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"the weights in .*short do not fit Dinov2Model \(\d+ parameters"):
        features.load({"name": "dinov2", "weights": str(short)})


@pytest.mark.parametrize("size", [(SIZE, SIZE), (53, 41), (96, 128)])
def test_dinov2_is_the_class_token_of_the_models_own_processor(dinov2_path, size):
    ours = features.load({"name": "dinov2", "weights": str(dinov2_path)})
    images = pictures(3, *size)
    pixels = BitImageProcessorPil.from_pretrained(dinov2_path)(as_pil(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = Dinov2Model.from_pretrained(dinov2_path).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    assert torch.allclose(features.report(ours, images), wanted, atol=1e-5)
    assert distance(ours(images / 255), wanted) < 0.02
    assert (ours.dimension, ours.input_size) == (24, (SIZE, SIZE)) and "shortest side to 37" in ours.resize


def test_clip_features_are_the_unit_embeddings_of_the_models_own_processor(clip_path):
    ours = features.load({"name": "clip", "weights": str(clip_path)})
    images = pictures(3, 64, 48)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_path)(as_pil(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(clip_path, dtype=torch.float32).get_image_features(pixel_values=pixels)
    wanted = getattr(wanted, "pooler_output", wanted)
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    assert torch.allclose(features.report(ours, images), wanted, atol=1e-5)
    assert distance(ours(images / 255), wanted) < 0.02


def test_a_clip_that_is_a_reward_too_is_loaded_once(clip_path, folder):
    config, checkpoint = open_clip_files(folder)
    for spec in ({"weights": str(clip_path)}, {"weights": str(checkpoint), "architecture": str(config)}):
        extractor = features.load({"name": "clip", **spec})
        reward = rewards.load({"name": "clip", **spec})
        assert extractor._extract.__self__ is reward.clip
        assert extractor(torch.rand(2, 3, 40, 40)).shape == (2, extractor.dimension) == (2, 16)


def test_world_takes_any_size_and_leaves_its_own_alone():
    world = features.load("world")
    images = pictures(2, 32, 32)
    assert torch.equal(features.report(world, images), world(images / 255))
    large = torch.nn.functional.interpolate(images / 255, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert distance(world(large), world(images / 255)) < 0.1
    assert (world.dimension, world.input_size) == (64, (32, 32)) and "32x32" in world.resize


def flat(images):
    return images.flatten(1)[:, :7]


flat.dimension = 7
flat.input_size = (8, 8)


def wrong(images):
    return images.flatten(1)


wrong.dimension = 3


def test_a_callable_of_ones_own_says_its_dimension_and_is_held_to_it():
    ours = features.load({"name": f"{__name__}:flat", "label": "mine"})
    images = pictures(2, 8, 8)
    assert torch.equal(features.report(ours, images), flat(images / 255))
    assert (ours.name, ours.dimension, ours.input_size, ours.resize) == ("mine", 7, (8, 8), "its own")
    with pytest.raises(ValueError, match=r"must be a tensor \(2, 3\), one row per image, not \(2, 192\)"):
        features.load(f"{__name__}:wrong")(images / 255)


@pytest.mark.parametrize("name", ["inception", "inception-torchvision", "dinov2", "clip"])
def test_offline_one_error_says_what_to_get_from_where_and_to_which_path(name, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for ask in (features.needed, features.load):
        with pytest.raises(
            ValueError, match=f"^features '{name}' needs .* from https://.* cannot be downloaded"
        ) as info:
            ask(name)
        assert "bring the result to that path" in str(info.value) and "set 'weights'" in str(info.value)


def test_weights_in_torch_hubs_cache_are_found(fid_file, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.FILE).symlink_to(fid_file)
    assert features.needed("inception") == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("dinov3", "features 'dinov3' are not known; did you mean 'dinov2'"),
        ({"name": "dinov2", "weight": "x"}, "unknown key 'weight'; did you mean 'weights'"),
        ({"weights": "x"}, "the key 'name' is missing"),
        (
            {"name": "dinov2", "architecture": "ViT-B-32"},
            "take no architecture; leave it out, or set weights, processor",
        ),
        ({"name": "world", "weights": "x"}, "take no weights; leave it out"),
        ({"name": "clip", "weights": 3}, "weights must be a text or left out, got 3"),
        ("nowhere.at_all:function", "cannot be loaded .* needs package.module:callable with .dimension"),
        ({"name": "dinov2", "weights": "/nowhere/at/all"}, "features 'dinov2': there is no /nowhere/at/all"),
    ],
)
def test_a_wrong_specification_is_refused_with_the_fix(spec, said):
    with pytest.raises(ValueError, match=said):
        features.load(spec)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floats in \\[0, 1\\], got torch.uint8: images / 255"),
        (torch.zeros(3, 8, 8), r"give images \(B, 3, H, W\) as a tensor, got \(3, 8, 8\)"),
        (torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), torch.nan)]), r"rows \[1\] have NaN or lie outside"),
        (torch.full((1, 3, 8, 8), 255.0), r"rows \[0\] have NaN or lie outside"),
    ],
)
def test_what_is_no_image_is_refused_with_its_rows(images, said):
    extractor = features.load(f"{__name__}:flat")
    with pytest.raises(ValueError, match=said):
        extractor(images)


def test_a_report_takes_8_bit_images_alone():
    with pytest.raises(ValueError, match=r"a report takes images .* uint8"):
        features.report(features.load(f"{__name__}:flat"), torch.zeros(1, 3, 8, 8))


def test_a_specification_means_the_same_as_name_mapping_or_object():
    spec = features.parse("dinov2")
    assert spec == features.parse({"name": "dinov2"}) == features.parse(spec)
    assert replace(spec, label="mine").title == "mine"
