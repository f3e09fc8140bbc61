"""Preprocessing against PIL pipelines of other libraries, weights that are found or refused, and what is shared."""

import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import reward_models as tiny
import torch
import torchvision.transforms.v2 as transforms
from huggingface_hub import constants
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from aig import vision
from aig.vision import Preprocess, Source, Views, blip, clip_transformers, preprocess
from aig.vision.shared import ByPrompt

SIZES = [(64, 64), (64, 91), (97, 64), (45, 32), (32, 32), (20, 51)]
MODES = {"crop": "shortest", "pad": "longest", "stretch": "squash"}
MEAN, STD = preprocess.CLIP_MEAN, preprocess.CLIP_STD


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny.clip_folder(tmp_path_factory.mktemp("vision") / "clip")


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    return tiny.open_clip_files(tmp_path_factory.mktemp("hps"))


def pil(images):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny.saved(images)]


# --- preprocessing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", MODES)
def test_reports_are_preprocessed_as_open_clip_does(fit, size):
    images = tiny.pictures(2, *size)
    theirs = image_transform(32, False, MEAN, STD, MODES[fit], "bicubic")
    expected = torch.stack([theirs(picture) for picture in pil(images)])
    assert torch.allclose(Preprocess((32, 32), fit).report(tiny.saved(images)), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_reports_are_preprocessed_as_transformers_does(size):
    images = tiny.pictures(2, *size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ours = clip_transformers.preprocess_of(processor)
    expected = processor(pil(images), return_tensors="pt")["pixel_values"]
    assert torch.allclose(ours.report(tiny.saved(images)), expected, atol=1e-6)
    assert torch.allclose(replace(ours, own=None).report(tiny.saved(images)), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", MODES)
def test_the_differentiable_path_is_within_rounding_of_pil(fit, size):
    images = tiny.pictures(4, *size)
    step = Preprocess((32, 32), fit, mean=(0.0,) * 3, std=(1.0,) * 3)
    error = (step(images) - step.report(tiny.saved(images))).abs() * 255
    # Rounding to 8 bits three times by 0.5, a bicubic pass amplifying what came before it by up to 1.4. Where the
    # aspect changes much, Pillow may begin with the columns, which clamps an overshoot elsewhere.
    assert error.mean() < 0.5 and error.max() < (2.5 if fit == "stretch" else 0.5 * (1 + 1.4 + 1.4**2))


def test_a_resize_before_a_smaller_crop_is_torchvisions():
    images = tiny.pictures(2, 80, 111)
    theirs = transforms.Compose(
        [transforms.Resize(48), transforms.CenterCrop((32, 40)), transforms.Normalize(MEAN, STD)]
    )
    ours = Preprocess((32, 40), shortest=48, interpolation="bilinear")
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_resize_is_torchvisions_in_reports_too(size):
    images = tiny.saved(tiny.pictures(2, *size))
    step = Preprocess((32, 32), "pad", mean=(0.0,) * 3, std=(1.0,) * 3, as_tensor=True)
    height, width = step.resized(*size)
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.functional.resize(images.float() / 255, [height, width], bicubic)
    top, left = (32 - height) // 2, (32 - width) // 2
    for pixels in (step.report(images), step(images.float() / 255), Views(images.float() / 255, True).pixels(step)):
        assert torch.allclose(pixels[..., top : top + height, left : left + width], theirs, atol=1e-6)
        pixels[..., top : top + height, left : left + width] = 0
        assert not pixels.any()


def bicubic_rows(old, new):
    """The matrix (new, old) of an antialiased bicubic resize: Keys' kernel with a = -1/2 (Keys 1981, eq. 4), stretched
    by old/new where that is more than 1, its weights normalized."""
    stretch = max(old / new, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new
    x = ((torch.arange(old, dtype=torch.float64) + 0.5) - centres[:, None]).abs() / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [(64, 91), (20, 51), (12, 20)])
def test_a_tensor_resize_is_keys_bicubic_and_overshoots(size):
    board = (torch.arange(size[0])[:, None] // 4 + torch.arange(size[1]) // 4).remainder(2).double()
    step = Preprocess((32, 32), "pad", mean=(0.0,) * 3, std=(1.0,) * 3, as_tensor=True)
    height, width = step.resized(*size)
    expected = bicubic_rows(size[0], height) @ board @ bicubic_rows(size[1], width).T
    found = step.resize(board.expand(1, 3, *size))
    assert torch.allclose(found[0, 0], expected, rtol=0, atol=1e-9)
    assert expected.min() < -0.02 and expected.max() > 1.02


def test_the_longest_side_of_a_tensor_resize_rounds_as_hpsv2_does():
    step = Preprocess((224, 224), "pad", as_tensor=True)
    for long, short in ((384, 210), (320, 85), (576, 297), (1216, 832), (512, 512), (100, 33)):
        scale = 224 / float(long)
        assert step.resized(long, short) == (224, round(short * scale))
        assert step.resized(short, long) == (round(short * scale), 224)
    assert replace(step, as_tensor=False).resized(384, 210) == (224, 122)  # open_clip's


def test_padding_is_black_before_it_is_normalized():
    wide = Preprocess((32, 32), "pad")(torch.ones(1, 3, 16, 32))
    black = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    assert torch.allclose(wide[0, :, 0, 0], black)
    assert torch.allclose(wide[0, :, 8, 0], torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]))


def test_a_resize_never_leaves_the_unit_range():
    board = (torch.arange(64)[:, None] // 8 + torch.arange(64) // 8).remainder(2).float().expand(1, 3, 64, 64)
    small = preprocess.resize(board, (37, 37))
    assert small.min() == 0 and small.max() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fit": "shrink"}, "fit 'shrink' is unknown"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos' is unknown"),
        ({"shortest": 16}, "does not fit into a shortest side of 16"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocess((32, 32), **wrong)


def test_a_processor_with_other_steps_is_refused():
    with pytest.raises(ValueError, match="does not resize"):
        clip_transformers.preprocess_of(CLIPImageProcessorPil(do_normalize=False))
    with pytest.raises(ValueError, match="is not understood"):
        clip_transformers.preprocess_of(CLIPImageProcessorPil(do_center_crop=False))


def test_images_are_resized_once_a_size_and_normalized_once_a_protocol(monkeypatch):
    sizes = []
    original = preprocess.resize
    monkeypatch.setattr(
        preprocess, "resize", lambda images, size, *more: sizes.append(size) or original(images, size, *more)
    )
    views = Views(tiny.pictures(2, 64, 64))
    crop, pad = Preprocess((32, 32)), Preprocess((32, 32), "pad")
    assert views.pixels(crop) is views.pixels(Preprocess((32, 32)))
    assert views.pixels(pad) is not views.pixels(crop)
    views.pixels(Preprocess((24, 24)))
    assert sizes == [(32, 32), (24, 24)]


# --- backbones ------------------------------------------------------------------------------------------------------


def test_one_checkpoint_is_one_module_while_it_is_in_use(clip_folder):
    sources = vision.clip_sources(str(clip_folder))
    first, second = (vision.load_clip(None, sources) for _ in range(2))
    assert first is second
    assert vision.load_clip(None, sources, dtype=torch.float64) is not first
    model = weakref.ref(first.model)
    del first, second
    gc.collect()
    assert model() is None  # nothing holds the memory of a reward that is no longer used


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_towers_are_frozen_in_eval_mode_and_fp32_whatever_the_checkpoint(clip_folder, hps, library):
    architecture, weights = (None, clip_folder) if library == "transformers" else hps
    stored = load_file(clip_folder / "model.safetensors") if architecture is None else torch.load(weights)["state_dict"]
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    name = None if architecture is None else str(architecture)
    model = vision.load_clip(name, vision.clip_sources(str(weights), name)).model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key].to(value.dtype)), key


def test_features_may_come_as_a_tensor_or_in_an_object():
    class Output:
        pooler_output = torch.ones(2, 3)

    assert torch.equal(clip_transformers.features_of(Output()), torch.ones(2, 3))
    assert torch.equal(clip_transformers.features_of(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_a_folder_of_the_hubs_open_clip_format_is_read(hps, tmp_path):
    architecture, checkpoint = hps
    state = torch.load(checkpoint)["state_dict"]
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    clips = [
        vision.load_clip(str(architecture), vision.clip_sources(str(place), str(architecture)))
        for place in (checkpoint, tmp_path)
    ]
    assert torch.equal(*(clip.embed_texts(tiny.PROMPTS) for clip in clips))


def test_an_open_clip_architecture_is_a_known_name_or_a_file(hps):
    with pytest.raises(ValueError, match="'ViT-Q' is neither a model of open_clip"):
        vision.load_clip("ViT-Q", vision.clip_sources(str(hps[1]), "ViT-Q"))


def test_a_checkpoint_file_without_an_architecture_is_refused(hps):
    with pytest.raises(ValueError, match="is a file, which needs an architecture"):
        vision.load_clip(None, vision.clip_sources(str(hps[1])))


def test_weights_of_another_architecture_are_refused(hps, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(hps[0].read_text().replace('"embed_dim": 16', '"embed_dim": 8'))
    with pytest.raises(ValueError, match="does not fit the architecture"):
        vision.load_clip(str(other), vision.clip_sources(str(hps[1]), str(other)))


def test_a_checkpoint_that_holds_code_is_not_unpickled(hps, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"state_dict": Code()}, protocol=2))
    with pytest.raises(ValueError, match="does not fit"):
        vision.load_clip(str(hps[0]), vision.clip_sources(str(tmp_path / "bad.pt"), str(hps[0])))
    assert not (tmp_path / "trace").exists()


def test_a_folder_with_a_parameter_missing_is_refused(clip_folder, tmp_path):
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit CLIPModel.*visual_projection\.weight"):
        vision.load_clip(None, vision.clip_sources(str(tmp_path)))


def test_values_by_prompt_are_bounded_and_the_least_used_leave_first():
    asked = []

    def compute(prompts):
        asked.append(prompts)
        return [prompt.upper() for prompt in prompts]

    values = ByPrompt(2)
    assert values.get(["a", "b", "a"], compute) == ["A", "B", "A"]
    assert values.get(["a"], compute) == ["A"]
    assert values.get(["c"], compute) == ["C"]  # b leaves
    assert values.get(["a", "b"], compute) == ["A", "B"]
    assert values.get(["d", "e", "f"], compute) == ["D", "E", "F"]  # more than are kept
    assert asked == [["a", "b"], ["c"], ["b"], ["d", "e", "f"]]
    assert len(values) == 2


# --- BLIP -----------------------------------------------------------------------------------------------------------


def published_blip():
    state = tiny.blip_state()
    return {key.removeprefix("blip."): value for key, value in state.items() if key.startswith("blip.")}


def test_each_of_blips_weights_goes_to_its_transformers_name():
    state = published_blip()
    model = blip.from_published(state)
    del state["text_encoder.embeddings.position_ids"]  # a counter that BLIP stores among its weights
    loaded = {"visual_encoder": model.vision.state_dict(), "text_encoder": model.text.state_dict()}
    assert sum(map(len, loaded.values())) == len(state)
    for key, value in state.items():
        tower, _, name = key.partition(".")
        assert torch.equal(loaded[tower][blip.renamed(name) if tower == "visual_encoder" else name], value)


def test_an_unknown_parameter_of_blip_is_named():
    with pytest.raises(KeyError, match=r"blocks\.0\.norm3"):
        blip.renamed("blocks.0.norm3.weight")


def test_blip_equals_the_modules_it_was_published_with():
    pixels = torch.randn(3, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0], [2, 11, 12, 13, 14, 3]])
    mask = (ids != 0).long()
    with torch.no_grad():
        expected = tiny.published_blip(tiny.blip_state())(pixels, ids, mask)
        assert torch.allclose(blip.from_published(published_blip())(pixels, ids, mask), expected, atol=1e-5)


# --- where weights are ----------------------------------------------------------------------------------------------


def test_a_file_and_a_complete_folder_are_found(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.bin").write_text("")
    folder = Source("reward 'x'", str(tmp_path), ("a.json", "b.safetensors|b.bin"))
    assert vision.fetch(folder) == tmp_path
    assert vision.missing([folder, replace(folder, place=str(tmp_path / "a.json"))]) == []


def test_a_folder_that_lacks_a_file_says_which(tmp_path):
    with pytest.raises(ValueError, match=r"reward 'x': the folder .* \(weights\) has no a\.json or b\.json"):
        vision.fetch(Source("reward 'x'", str(tmp_path), ("a.json|b.json",)))


def test_a_path_that_does_not_exist_is_no_hub_id(tmp_path):
    for place in (str(tmp_path / "none"), "./none/here", "weights/none.pt"):
        with pytest.raises(ValueError, match="there is no"):
            vision.fetch(Source("reward 'x'", place, ("a.pt",)))


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0")
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert vision.fetch(Source("reward 'x'", "some/model", ("config.json",))) == snapshot
    with pytest.raises(ValueError, match=r"needs config\.json, model\.bin"):
        vision.fetch(Source("reward 'x'", "some/model", ("config.json", "model.bin")))


def test_offline_one_error_says_what_to_get_from_where_to_which_path(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first = Source("reward 'x'", "some/model", ("a.pt",))
    second = Source("reward 'y'", "https://example.org/some%2Bhead.pth", ("head.pth",), key="weights")
    with pytest.raises(ValueError) as caught:
        vision.missing([first, second, first])
    message = str(caught.value)
    for part in ("reward 'x' needs a.pt", "https://huggingface.co/some/model", "hf download some/model a.pt"):
        assert message.count(part) == 1
    assert constants.HF_HUB_CACHE in message
    for part in ("reward 'y' needs head.pth", "some+head.pth", "curl -Lo", "'weights'"):
        assert part in message
