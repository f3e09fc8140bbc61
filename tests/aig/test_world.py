"""The embedded world: exact scenes and captions, its tokenizer, codec and schedule, and the shipped networks."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from aig.world import check_scores, networks, scenes, tiny, train, train_scores, training, weights
from aig.world.codec import SpaceToDepth
from aig.world.training import generator_for

REWARDS = ("fragile", "robust")
JUDGES = ("judge_a", "judge_b")


@pytest.fixture(scope="module")
def nets():
    return {name: weights.load(name) for name in networks.BUILDERS}


def plain_scenes(n: int, shape: int) -> scenes.Scenes:
    """Upright solid shapes on solid grounds, without haze or blur."""
    drawn = scenes.sample_scenes(n, generator_for(shape), shape=torch.full((n,), shape))
    zero = torch.zeros(n)
    return replace(drawn, texture=zero.long(), pattern=zero.long(), rotation=zero, haze=zero, blur=zero)


# --- scenes ---------------------------------------------------------------------------------------------------------

HEART = 0.54
AREAS = {
    "circle": math.pi * 0.86**2,
    "square": (2 * 0.76) ** 2,
    "triangle": 3 * math.sqrt(3) * 0.56**2,
    "star": 5 * 0.47 * 1.08 * math.sin(math.pi / 5),
    "cross": 2 * 4 * 0.95 * 0.34 - 4 * 0.34**2,
    "heart": (4 + math.pi) * HEART**2,
}


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_rendered_object_has_the_area_place_and_colours_of_its_factors(shape):
    size, n = 96, 12
    drawn = plain_scenes(n, scenes.SHAPES.index(shape))
    black, white = (replace(drawn, rgb=torch.full((n, 3), value)) for value in (0.0, 1.0))
    alpha = (scenes.render(white, size) - scenes.render(black, size))[:, 0]  # (N, H, W): how much is object
    area = alpha.sum(dim=(1, 2)) * (2 / size) ** 2 / drawn.radius**2
    # A star's tip can leave the image: only whole objects have the full area.
    whole = (alpha[:, [0, -1]].sum(dim=(1, 2)) + alpha[:, :, [0, -1]].sum(dim=(1, 2))) == 0
    assert whole.any()
    assert torch.allclose(area[whole], torch.tensor(AREAS[shape]), rtol=0.015)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    x = (alpha.sum(1) * axis).sum(1) / alpha.sum(dim=(1, 2))
    y = (alpha.sum(2) * -axis).sum(1) / alpha.sum(dim=(1, 2))
    assert torch.allclose(x[whole], drawn.x[whole], atol=0.01)
    if shape != "heart":  # a heart's centroid is not the point that it is drawn around
        assert torch.allclose(y[whole], drawn.y[whole], atol=0.01)

    image = scenes.render(drawn, size).movedim(1, -1)  # (N, H, W, 3)
    for i in range(n):
        assert torch.allclose(image[i][alpha[i] == 1], drawn.rgb[i], atol=1e-5)
        assert torch.allclose(image[i][alpha[i] == 0], drawn.ground[i], atol=1e-5)


def test_haze_mixes_the_mean_background_into_a_scene():
    clear = plain_scenes(8, 0)
    image = scenes.render(clear)
    hazy = scenes.render(replace(clear, haze=torch.full((8,), 0.3)))
    assert torch.allclose(hazy, torch.lerp(image, clear.ground[:, :, None, None].expand_as(image), 0.3), atol=1e-5)


def test_blur_of_zero_changes_nothing_and_blur_keeps_the_mean():
    image = scenes.render(scenes.sample_scenes(4, generator_for(1)))
    assert torch.equal(scenes.gaussian_blur(image, torch.zeros(4)), image)
    blurred = scenes.gaussian_blur(image, torch.full((4,), 0.9))
    assert torch.allclose(blurred.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=0.01)


def test_scenes_depend_on_their_generator_alone():
    one, same, other = (scenes.render(scenes.sample_scenes(4, generator_for(*key))) for key in ((1, 2), (1, 2), (2, 1)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_caption_is_parsed_back_to_what_it_asks():
    for colour in scenes.COLOURS:
        for shape in scenes.SHAPES:
            for tone in (None, *scenes.TONES):
                request = scenes.Request(colour, shape, tone)
                assert scenes.parse_caption(str(request)) == request


def test_captions_are_true_of_their_scenes():
    drawn = scenes.sample_scenes(200, generator_for(3))
    texts = scenes.captions(drawn, generator_for(4), tone_share=0.5)
    assert train_scores.holds(drawn, texts).diagonal().all()


@pytest.mark.parametrize(
    "caption",
    ["", "red star", "a star", "a star red", "a grey star", "a red dog", "a red star on a", "a red star on a dark sea",
     "a red star on a blue background", "a red star on a dark background now"],
)  # fmt: skip
def test_a_caption_outside_the_grammar_is_refused_with_the_grammar(caption):
    with pytest.raises(ValueError, match="grammar") as error:
        scenes.parse_caption(caption)
    assert repr(caption) in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "each_colour", "each_shape"),
    [(scenes.all_prompts, {6}, {8}), (scenes.training_prompts, {4}, {5, 6}), (scenes.held_out_prompts, {2}, {2, 3})],
)
def test_every_colour_and_shape_is_in_a_list_of_prompts_and_any_prefix_is_balanced(prompts, each_colour, each_shape):
    asked = [scenes.parse_caption(prompt) for prompt in prompts()]
    for values, key, counts in ((scenes.COLOURS, "colour", each_colour), (scenes.SHAPES, "shape", each_shape)):
        for n in range(1, len(asked) + 1):
            found = [sum(getattr(p, key) == value for p in asked[:n]) for value in values]
            assert max(found) - min(found) <= 1
        assert set(found) == counts


def test_no_caption_is_in_both_halves_of_the_split_and_each_is_in_one():
    training, held_out = scenes.training_prompts(), scenes.held_out_prompts()
    assert (len(training), len(held_out)) == (32, 16) and not set(training) & set(held_out)
    every = {str(scenes.Request(colour, shape)) for colour in scenes.COLOURS for shape in scenes.SHAPES}
    assert set(training) | set(held_out) == every == set(scenes.all_prompts()) and len(every) == 48


def test_utility_read_from_exact_factors_is_the_scenes_utility():
    drawn = scenes.sample_scenes(64, generator_for(5))
    texts = scenes.captions(scenes.sample_scenes(64, generator_for(6)), generator_for(7), tone_share=0.5)
    certain = {
        name: 100.0 * torch.nn.functional.one_hot(getattr(drawn, name), len(values)).float()
        for name, values in networks.CLASSES.items()
    }
    read = networks.Factors(**certain, **{name: getattr(drawn, name) for name in networks.NUMBERS}, extras={})
    requests = [scenes.parse_caption(text) for text in texts]
    assert torch.allclose(networks.utility_of(read, texts), scenes.scene_utility(drawn, requests), atol=1e-5)


# --- the text-to-image model's parts --------------------------------------------------------------------------------


def test_each_word_of_the_world_is_one_token_of_its_own():
    tokenizer = tiny.build_tokenizer()
    tokens = [tokenizer(word).input_ids[1:-1] for word in tiny.WORDS]
    assert all(len(ids) == 1 for ids in tokens)
    assert len({ids[0] for ids in tokens}) == len(tiny.WORDS)
    longest = tokenizer("an orange triangle on a light background").input_ids
    assert len(longest) == 9 <= tiny.TEXT_LENGTH


def test_the_tokenizer_numbers_its_tokens_alike_every_time():
    # The networks' embeddings are by token: the trainer's own order of single letters differs from call to call.
    first = tiny.build_tokenizer().get_vocab()
    assert all(tiny.build_tokenizer().get_vocab() == first for _ in range(5))
    assert [first[f"{word}</w>"] for word in ("a", "an", "on", "background")] == [28, 40, 70, 107]


def test_the_codec_is_exactly_invertible():
    codec = SpaceToDepth()
    images = torch.rand(3, 3, 32, 32, generator=generator_for(8)) * 2 - 1
    latents = codec.encode(images).latent_dist.mode()
    assert latents.shape == (3, 12, 16, 16)
    assert torch.equal(codec.decode(latents).sample, images)


def test_scaled_latents_of_the_data_have_about_unit_variance():
    codec = SpaceToDepth()
    images = scenes.render(scenes.sample_scenes(256, generator_for(9))) * 2 - 1
    latents = codec.encode(images).latent_dist.mode() * codec.config["scaling_factor"]
    assert 0.7 < latents.std().item() < 1.3


def test_the_noise_schedule_is_the_warped_cosine_and_ends_in_noise():
    scheduler = tiny.build_scheduler()
    assert isinstance(scheduler, DDIMScheduler)
    s = torch.arange(1, 1001) / 1000
    closed = torch.sin(math.pi / 2 * (1 - s) ** tiny.WARP) ** 2
    assert torch.allclose(scheduler.alphas_cumprod, closed.float(), atol=1e-4)
    assert scheduler.alphas_cumprod[-1] < 1e-4
    assert (scheduler.alphas_cumprod.diff() < 0).all()


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_a_rewards_gradient_equals_finite_differences(name):
    reward = networks.build(name, seed=1).double().eval()
    images = torch.rand(2, 3, 32, 32, generator=generator_for(10), dtype=torch.float64, requires_grad=True)
    texts = ["a red star", "a blue heart on a dark background"]
    (gradient,) = torch.autograd.grad(reward(images, texts).sum(), images)
    direction = torch.randn(images.shape, generator=generator_for(11), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (reward(images + sign * step * direction, texts).sum() for sign in (1, -1))
    assert gradient.abs().max() > 0
    assert torch.allclose((ahead - behind) / (2 * step), (gradient * direction).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_a_score_depends_on_its_own_image_and_caption_alone(nets, name):
    images = scenes.render(scenes.sample_scenes(4, generator_for(12)))
    texts = ["a red star", "a blue heart", "a red star", "a pink cross on a light background"]
    together = nets[name](images, texts)
    alone = torch.cat([nets[name](images[i : i + 1], [texts[i]]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_robust_rewards_low_pass_removes_a_checkerboard():
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float().expand(1, 3, 32, 32)
    assert torch.allclose(networks.LowPass()(board), torch.full_like(board, 0.5), atol=1e-6)


@pytest.mark.parametrize("name", [*REWARDS, "gold"])
def test_wrong_images_and_captions_are_refused(nets, name):
    net = nets[name] if name in nets else weights.load(name)
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="must be"):
        net(torch.rand(1, 3, 64, 64), ["a red star"])
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        net(image, ["a red star", "a red star"])
    with pytest.raises(ValueError, match="grammar"):
        net(image, ["a red dog"])


def test_gold_is_the_mean_of_both_judges(nets):
    gold = weights.load("gold")
    drawn = scenes.sample_scenes(16, generator_for(13))
    images, texts = scenes.render(drawn), scenes.captions(drawn, generator_for(14))
    each = torch.stack([nets[name].gold(images, texts) for name in JUDGES])
    assert torch.allclose(gold.each(images, texts), each, atol=1e-5)
    assert torch.allclose(gold(images, texts), each.mean(0), atol=1e-5)
    assert torch.equal(gold.hits(images, texts), torch.stack([nets[name].hits(images, texts) for name in JUDGES]))


def test_augmentation_keeps_range_and_reports_the_blur_it_adds():
    drawn = scenes.sample_scenes(64, generator_for(15))
    images, told = train_scores.augment(scenes.render(drawn), drawn, 1.0, generator_for(16))
    assert images.shape == (64, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (told.blur >= drawn.blur).all()
    assert (told.blur > drawn.blur).any()
    untouched, same = train_scores.augment(scenes.render(drawn), drawn, 0.0, generator_for(16))
    assert torch.allclose(untouched, scenes.render(drawn), atol=1e-5)
    assert torch.allclose(same.blur, drawn.blur)


def test_a_noisy_preference_follows_the_utility_at_the_noise_ceiling():
    pairs = train_scores.draw_preferences(4096, generator_for(17))
    ceiling = (pairs.better == (pairs.label > 0.5)).float().mean().item()
    assert abs(ceiling - 0.84) < 4 * math.sqrt(0.84 * 0.16 / 4096)


# --- shipped weights ------------------------------------------------------------------------------------------------


def binomial(p: float, n: int) -> float:
    """Three standard errors of a share p of n."""
    return 3 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("name", REWARDS)
def test_a_shipped_reward_is_within_three_points_of_the_noise_ceiling(nets, name):
    found = check_scores.pair_accuracy(nets[name], 8192)
    assert found.ceiling - found.reward <= 0.03


@pytest.mark.parametrize("name", JUDGES)
def test_a_shipped_judge_reads_shape_colour_and_gold(nets, name):
    n = 1024
    table = check_scores.factor_accuracy(nets[name], n)
    assert table["shape"] >= 0.95 - binomial(0.95, n)
    assert table["colour"] >= 0.97 - binomial(0.97, n)
    assert table["gold"] > 0.9


def test_features_are_standardized_and_read_the_background(nets):
    drawn = scenes.sample_scenes(1024, generator_for(18))
    images = scenes.render(drawn)
    features = nets["features"].features(images)
    assert features.shape == (1024, 64)
    assert features.mean(0).abs().max() < 0.2
    assert (features.std(0) - 1).abs().max() < 0.2
    ground = nets["features"](images).extras["ground"]
    told = torch.corrcoef(torch.stack([ground.flatten(), drawn.ground.flatten()]))[0, 1]
    assert told > 0.9


def test_base_samples_show_the_asked_colour_and_shape(nets):
    n = 96
    images, prompts = check_scores.base_samples(weights.folder("tiny"), n, torch.device("cpu"))
    colour, shape = nets["judge_a"].hits(images, prompts).float().mean(0).tolist()
    assert colour >= 0.95 - binomial(0.95, n)
    assert shape >= 0.85 - binomial(0.85, n)


def test_shipped_networks_are_frozen_and_whole():
    weights.verify(weights.folder())
    net = weights.load("fragile")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.stat().st_size < 16e6 for p in weights.folder().rglob("*"))


@pytest.fixture
def copied(tmp_path):
    for name in ("fragile.safetensors", weights.SUMS):
        shutil.copy(weights.folder() / name, tmp_path / name)
    return tmp_path


def test_a_corrupt_file_is_refused_by_name_with_the_fix(copied):
    path = copied / "fragile.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"fragile\.safetensors is corrupt.*reinstall the package"):
        weights.load("fragile", copied)


def test_a_missing_file_and_missing_sums_are_refused(copied):
    with pytest.raises(ValueError, match=r"robust\.safetensors is missing.*reinstall"):
        weights.load("robust", copied)
    (copied / weights.SUMS).unlink()
    with pytest.raises(ValueError, match=r"SHA256SUMS\.json is missing.*seal"):
        weights.load("fragile", copied)


def test_weights_of_another_network_are_refused_even_when_sealed(copied):
    (copied / "fragile.safetensors").rename(copied / "judge_a.safetensors")
    weights.seal(copied)
    with pytest.raises(ValueError, match="does not fit the network 'judge_a'"):
        weights.load("judge_a", copied)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown network 'fragil'.*fragile, robust"):
        weights.load("fragil")


def test_sealing_covers_files_in_folders(tmp_path):
    (tmp_path / "tiny" / "unet").mkdir(parents=True)
    (tmp_path / "tiny" / "unet" / "config.json").write_text("{}")
    train.main(["seal", "--weights", str(tmp_path)])
    weights.verify(tmp_path, "tiny")
    (tmp_path / "tiny" / "unet" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tiny.unet.config\.json is corrupt"):
        weights.verify(tmp_path, "tiny")


# --- training -------------------------------------------------------------------------------------------------------


def short(name: str) -> training.Recipe:
    groups = {"pretrain": 2, "group": 4, "groups": 4} if name in REWARDS else {}
    return replace(train_scores.RECIPES[name], steps=4, batch=8, warmup=2, checkpoint_every=2, **groups)


@pytest.mark.parametrize("name", ["robust", "judge_a"])
def test_training_resumed_after_an_interruption_equals_an_undisturbed_one(tmp_path, monkeypatch, name):
    cpu = torch.device("cpu")
    whole = train_scores.train(name, short(name), tmp_path / "whole", cpu)

    losses_name = "reward_losses" if name == "robust" else "factor_losses"
    losses = getattr(train_scores, losses_name)

    def interrupted(net, config, step, device):
        if step == 3:
            raise KeyboardInterrupt
        return losses(net, config, step, device)

    with monkeypatch.context() as patch:
        patch.setattr(train_scores, losses_name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_scores.train(name, short(name), tmp_path / "broken", cpu)
    resumed = train_scores.train(name, short(name), tmp_path / "broken", cpu)
    assert resumed.read_bytes() == whole.read_bytes()


def test_groups_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch 60 must be a multiple of group 16"):
        train_scores.RewardConfig(batch=60)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    cpu = torch.device("cpu")
    train_scores.train("judge_a", short("judge_a"), tmp_path, cpu)
    with pytest.raises(ValueError, match=r"judge_a\.ckpt was made with seed=13"):
        train_scores.train("judge_a", replace(short("judge_a"), seed=99), tmp_path, cpu)


def test_training_without_a_folder_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["fragile"])
    assert error.value.code == 2
    assert "needs --out" in capsys.readouterr().err
