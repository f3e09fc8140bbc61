"""Rewards against the published pipelines on tiny weights, finite differences, and what is bad input."""

import warnings
from types import SimpleNamespace

import pytest
import reward_models as tiny
import torch
from published_rewards import PUBLISHED, published_pickscore
from torchmetrics.functional.multimodal import clip_score
from transformers import AutoModel, AutoProcessor, CLIPModel

from aig import rewards
from aig.rewards import WeightedSum
from aig.vision import clip, preprocess

FAMILIES = ("pickscore", "hpsv2", "hpsv2.1", "clip", "open-clip", "aesthetic", "imagereward")
SIZES = [(64, 64), (64, 91), (97, 64)]
# Also upsampled, of the tower's own size, and odd: the crop of 45 x 33 has 11 px to lose.
MORE_SIZES = [*SIZES, (20, 20), (20, 51), (32, 32), (45, 33)]
PROMPTS = tiny.PROMPTS
# What tokenizers clean, and more tokens than any of them keeps.
TEXTS = [*PROMPTS[:4], "Caf\u00e9 &amp; Cr\u00e8me,\n THE  city's <b>rain</b>", " ".join(PROMPTS * 4)]
WORLD = ["a red star", "a blue heart"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where the tiny weights of each family are."""
    path = tmp_path_factory.mktemp("rewards")
    folder = tiny.clip_folder(path / "clip")
    config, first = tiny.open_clip_files(path, seed=1)
    _, second = tiny.open_clip_files(path, seed=2)
    blip_file, bert = tiny.imagereward_files(path)
    return SimpleNamespace(
        folder=folder,
        config=config,
        first=first,
        second=second,
        blip=blip_file,
        bert=bert,
        head=tiny.aesthetic_file(path),
    )


@pytest.fixture(scope="module")
def specs(files):
    """The mapping that loads each family's tiny weights, with the towers kept in memory for the tests to share."""
    hps = {"architecture": str(files.config)}
    mappings = {
        "pickscore": {"name": "pickscore", "weights": str(files.folder)},
        "hpsv2": {"name": "hpsv2", "weights": str(files.first), **hps},
        "hpsv2.1": {"name": "hpsv2.1", "weights": str(files.second), **hps},
        "clip": {"name": "clip", "weights": str(files.folder)},
        "open-clip": {"name": "clip", "weights": str(files.first), **hps, "label": "open-clip"},
        "aesthetic": {"name": "aesthetic", "weights": str(files.head), "architecture": str(files.folder)},
        "imagereward": {"name": "imagereward", "weights": str(files.blip), "processor": str(files.bert)},
    }
    kept = [rewards.load(mapping) for mapping in mappings.values()]
    yield mappings
    kept.clear()


# --- the published protocols ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.* were truncated")
def test_reports_equal_what_the_authors_compute(name, files, specs):
    reward, published = rewards.load(specs[name]), PUBLISHED[name](files)
    for size in MORE_SIZES:
        images = tiny.pictures(len(TEXTS), *size)
        scores, expected = rewards.report(reward, tiny.saved(images), TEXTS), published(images, TEXTS)
        assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-5 * float(expected.std())), size


@pytest.mark.parametrize("kind", ["report", "float"])
def test_hps_refuses_what_its_authors_neither_resize_nor_pad(kind, specs):
    reward, images = rewards.load(specs["hpsv2.1"]), tiny.pictures(2, 20, tiny.SIZE)
    with pytest.raises(rewards.InputError, match=r"'hpsv2.1' has no score for images of 20 x 32 px"):
        rewards.report(reward, tiny.saved(images), WORLD) if kind == "report" else reward(images, WORLD)


@torch.no_grad()
def test_the_clip_score_is_torchmetrics_without_its_clip_at_zero(files, specs):
    images, reward = tiny.saved(tiny.pictures(6, tiny.SIZE, tiny.SIZE)), rewards.load(specs["clip"])
    scores = rewards.report(reward, images, PROMPTS)
    processor = AutoProcessor.from_pretrained(files.folder)
    model = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    plain = SimpleNamespace(  # torchmetrics 1.9 wants tensors, transformers 5 gives objects that hold them
        config=model.config,
        to=lambda device: plain,
        get_image_features=lambda pixels: model.get_image_features(pixels).pooler_output,
        get_text_features=lambda ids, mask: model.get_text_features(ids, mask).pooler_output,
    )
    theirs = [clip_score(*pair, lambda: (plain, processor)) for pair in zip(images, PROMPTS, strict=True)]
    assert scores.min() < 0 < scores.max()
    assert torch.allclose(scores.clamp(min=0), torch.stack(theirs), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_transformers_default_processor_differs_from_pickscores_by_rounding_alone(files, specs):
    reward, todays = rewards.load(specs["pickscore"]), published_pickscore(files, backend="default")
    for size in MORE_SIZES:
        images = tiny.pictures(len(PROMPTS), *size)
        scores, rounded = rewards.report(reward, tiny.saved(images), PROMPTS), todays(images, PROMPTS)
        assert (scores - rounded).abs().max() < 0.005 * scores.std(), size


@pytest.mark.parametrize("name", FAMILIES)
def test_the_differentiable_path_is_within_a_hundredth_of_the_scores_spread(name, specs):
    reward, prompts = rewards.load(specs[name]), [PROMPTS[0]] * 32
    for size in SIZES:
        images = tiny.pictures(32, *size)
        reported = rewards.report(reward, tiny.saved(images), prompts)
        assert (reward(images, prompts) - reported).square().mean().sqrt() < 0.01 * reported.std(), size


@pytest.mark.parametrize("name", [*FAMILIES, "sum"])
def test_rounded_straight_through_every_images_score_is_within_a_hundredth_of_the_spread(name, specs):
    reward = rewards.load([specs["pickscore"], specs["hpsv2"]] if name == "sum" else specs[name])
    images, prompts = tiny.pictures(32, *SIZES[-1]), [PROMPTS[0]] * 32
    reported = rewards.report(reward, tiny.saved(images), prompts)
    plain = reward(images, prompts)
    reward.round_through()
    rounded = reward(images, prompts)
    assert (rounded - reported).abs().max() < 0.01 * reported.std()
    assert (rounded - reported).square().mean() < 0.2 * (plain - reported).square().mean()


def test_rounding_has_the_gradient_of_no_rounding():
    images = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rounded = preprocess.round_through(images)
    assert torch.allclose(rounded, (images * 255).round() / 255, rtol=0, atol=1e-15)
    (gradient,) = torch.autograd.grad((rounded**2).sum(), images)
    assert torch.allclose(gradient, 2 * rounded)


@pytest.mark.parametrize("name", [*FAMILIES, "fragile", "sum"])
def test_gradients_equal_finite_differences_in_float64(name, specs):
    spec = [specs["pickscore"], specs["hpsv2"]] if name == "sum" else specs.get(name, name)
    statistics = {"pickscore": (1.0, 2.0), "hpsv2": (3.0, 4.0)} if name == "sum" else None
    reward = rewards.load(spec, dtype=torch.float64, statistics=statistics)
    prompts, shape = (WORLD, (32, 32)) if name == "fragile" else (PROMPTS[:2], (40, 56))
    images = tiny.pictures(2, *shape).double() * 0.8 + 0.1
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (reward(images + sign * step * direction, prompts).sum() for sign in (1, -1))
    slope = (gradient * direction).sum()
    assert gradient.flatten(1).abs().amax(dim=1).min() > 0
    assert torch.allclose((ahead - behind) / (2 * step), slope, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_depends_on_its_own_image_and_prompt_alone(name, specs):
    images = tiny.pictures(len(PROMPTS), 64, 91)
    together = rewards.load(specs[name])(images, PROMPTS)
    alone = []
    for row, prompt in enumerate(PROMPTS):
        reward = rewards.load(specs[name])
        getattr(reward, "clip", SimpleNamespace()).texts = clip.ByPrompt()  # nothing remembered of the batch
        alone.append(reward(images[row : row + 1], [prompt]))
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-5 * float(together.std()))


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "imagereward"])
def test_a_prompt_that_was_scored_before_scores_the_same(name, specs):
    images = tiny.pictures(len(PROMPTS), 64, 64)
    reward = rewards.load(specs[name])
    first, again = (reward(images, PROMPTS) for _ in range(2))
    assert torch.equal(first, again)
    mixed = reward(images.flip(0), PROMPTS[::-1]).flip(0)
    assert torch.allclose(first, mixed, rtol=1e-5)


def test_prompts_are_embedded_once(specs, monkeypatch):
    reward = rewards.load(specs["hpsv2"])
    reward.clip.texts = clip.ByPrompt()
    seen = []
    embed = reward.clip._embed_new
    monkeypatch.setattr(reward.clip, "_embed_new", lambda prompts: seen.append(prompts) or embed(prompts))
    for prompts in (["a", "b", "a"], ["b", "c", "a"]):
        reward(tiny.pictures(3, 32, 32), prompts)
    assert seen == [["a", "b"], ["c"]]


def test_a_prompt_first_seen_in_inference_mode_can_be_trained_on_later(specs):
    images = tiny.pictures(1, 32, 32)
    reward = rewards.load(specs["pickscore"])
    with torch.inference_mode():
        reward(images, ["never seen before"])
    images.requires_grad_()
    reward(images, ["never seen before"]).sum().backward()
    assert images.grad.abs().max() > 0


def matmul(images, prompts):
    """A user's reward of an operation that autocast would cast."""
    return images.flatten(1) @ torch.linspace(0, 1, images[0].numel())


OTHERS = {
    "fragile": "fragile", "robust": "robust", "gold": "gold", "gold_a": "gold_a", "sum": "0.3*fragile + 2*robust",
    "own": "test_rewards:matmul",
}  # fmt: skip


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_autocast_around_a_reward_does_not_change_its_scores(name, specs):
    size, prompts = (32, WORLD * 3) if name in OTHERS else (64, PROMPTS)
    images, reward = tiny.pictures(6, size, size), rewards.load(specs.get(name) or OTHERS[name])
    plain = reward(images, prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward(images, prompts), plain)
        reports = rewards.report(reward, tiny.saved(images), prompts)
    assert torch.equal(reports, rewards.report(reward, tiny.saved(images), prompts))


def test_a_temperature_is_that_of_the_checkpoint_whatever_the_towers_compute_in(tmp_path):
    folder, config = tiny.clip_folder(tmp_path / "clip", torch.float32), tmp_path / "tiny.json"
    model = CLIPModel.from_pretrained(folder)
    model.logit_scale.data.fill_(torch.log(torch.tensor(100.0)))
    model.save_pretrained(folder)
    assert rewards.load({"name": "pickscore", "weights": str(folder)}, dtype=torch.bfloat16).scale == pytest.approx(100)
    _, checkpoint = tiny.open_clip_files(tmp_path, dtype=torch.float32)
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["logit_scale"].fill_(torch.log(torch.tensor(100.0)))
    torch.save(state, checkpoint)
    sources = clip.clip_sources(str(checkpoint), str(config))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        loaded = clip.load_clip(str(config), sources, dtype=dtype)
        assert loaded.logit_scale.item() == pytest.approx(100)
        assert loaded.dtype == loaded.model.visual.conv1.weight.dtype == dtype


def test_a_world_reward_computes_in_float32_at_least():
    images = tiny.pictures(2, 32, 32)
    short = rewards.WorldReward("fragile", dtype=torch.bfloat16)
    assert torch.equal(short(images, WORLD), rewards.load("fragile")(images, WORLD))


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_scores_are_near_and_in_float32(name, specs):
    images, prompts = tiny.pictures(32, 64, 64), [PROMPTS[0]] * 32
    exact = rewards.load(specs[name])(images, prompts)
    short = rewards.load(specs[name], dtype=torch.bfloat16)(images, prompts)
    assert short.dtype == torch.float32
    error = (short - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.1


# --- sharing and memory ---------------------------------------------------------------------------------------------


def test_rewards_of_one_checkpoint_share_its_tower_and_its_forward(specs, monkeypatch):
    names = ("pickscore", "clip", "aesthetic")
    loaded = {name: rewards.load(specs[name]) for name in names}
    assert len({id(reward.clip) for reward in loaded.values()}) == 1
    tower, calls = loaded["clip"].clip, []
    features = tower._image_features
    monkeypatch.setattr(tower, "_image_features", lambda pixels: calls.append(pixels.shape) or features(pixels))
    images = tiny.pictures(6, 64, 64)
    together = rewards.report_all(loaded, tiny.saved(images), PROMPTS)
    rewards.load([specs[name] for name in names])(images, PROMPTS)
    assert len(calls) == 2
    for name in names:
        assert torch.equal(together[name], rewards.report(loaded[name], tiny.saved(images), PROMPTS))


@pytest.mark.parametrize("name", [*FAMILIES, "fragile"])
def test_checkpointing_keeps_the_gradient_and_holds_less(name, specs):
    prompts = WORLD if name == "fragile" else PROMPTS[:2]
    images = tiny.pictures(2, 32, 32).requires_grad_()

    def gradient_and_held(reward):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
            score = reward(images, prompts).sum()
        return torch.autograd.grad(score, images)[0], sum(held)

    reward = rewards.load(specs.get(name, name), dtype=torch.float64)
    plain, much = gradient_and_held(reward)
    reward.checkpoint()
    recomputed, less = gradient_and_held(reward)
    assert torch.allclose(plain, recomputed, rtol=1e-6)
    assert less < 0.7 * much


# --- weighted sums --------------------------------------------------------------------------------------------------


def test_a_weighted_sum_is_that_of_z_scores(specs):
    images = tiny.pictures(6, 64, 64)
    parts = {name: rewards.load(specs[name])(images, PROMPTS) for name in ("pickscore", "hpsv2")}
    statistics = {"pickscore": (2.0, 0.5), "hpsv2": (-20.0, 4.0)}
    terms = [{**specs["pickscore"], "weight": 0.25}, {**specs["hpsv2"], "weight": 0.75}]
    total = rewards.load(terms, statistics=statistics)
    expected = 0.25 * (parts["pickscore"] - 2) / 0.5 + 0.75 * (parts["hpsv2"] + 20) / 4
    assert torch.allclose(total(images, PROMPTS), expected, rtol=1e-5)
    assert total.range == (-3.0, 3.0)
    columns = total.columns(images, PROMPTS)
    assert all(torch.equal(columns[name], parts[name]) for name in parts)
    assert torch.equal(total.combine(columns), total(images, PROMPTS))


def test_without_statistics_a_weighted_sum_is_raw_and_in_words():
    total = rewards.load("0.5*fragile + 2*robust")
    images = tiny.pictures(2, 32, 32)
    raw = 0.5 * rewards.load("fragile")(images, WORLD) + 2 * rewards.load("robust")(images, WORLD)
    assert torch.allclose(total(images, WORLD), raw)
    assert total.name == "0.5*fragile + 2*robust"
    assert total.range == (12.5, 62.5)


def test_a_component_of_which_less_is_better_enters_with_the_opposite_sign():
    def darkness(images, prompts):
        return 1 - images.mean(dim=(1, 2, 3))

    darkness.higher_is_better = False
    total = WeightedSum({"darkness": rewards.FunctionReward(darkness, "darkness")}, {"darkness": 2.0})
    images = tiny.pictures(2, 32, 32)
    assert torch.allclose(total(images, WORLD), -2 * darkness(images, WORLD))


def test_a_sum_reports_through_its_components_processors(specs):
    images = tiny.saved(tiny.pictures(6, 64, 91))
    names = ("pickscore", "hpsv2.1")
    total = rewards.load([specs[name] for name in names])
    expected = sum(rewards.report(rewards.load(specs[name]), images, PROMPTS) for name in names)
    assert torch.allclose(rewards.report(total, images, PROMPTS), expected)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"fragile": (0, 1)}, "statistics lack robust"),
        ({"fragile": (0, 1), "robust": (1, 0)}, "robust has mean 1 and standard deviation 0"),
        ({"fragile": (0, float("nan")), "robust": (1, 1)}, "fragile has mean 0 and standard deviation nan"),
    ],
)
def test_statistics_that_cannot_normalize_are_refused(statistics, message):
    with pytest.raises(ValueError, match=message):
        rewards.load("fragile + robust", statistics=statistics)


# --- specifications -------------------------------------------------------------------------------------------------


def test_a_sum_in_words_is_parsed():
    terms = rewards.parse("0.5*pickscore+ 1e-1 * hpsv2.1 + my.module:score + -2e+1*clip")
    assert [(term.name, term.weight) for term in terms] == [
        ("pickscore", 0.5), ("hpsv2.1", 0.1), ("my.module:score", 1.0), ("clip", -20.0),
    ]  # fmt: skip


def test_lists_names_and_mappings_nest():
    terms = rewards.parse(["0.5*clip + aesthetic", {"name": "clip", "weights": "/mine", "weight": 2, "label": "mine"}])
    assert [(term.column, term.weight) for term in terms] == [("clip", 0.5), ("aesthetic", 1.0), ("mine", 2)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("picscore", "'picscore' is not known; did you mean 'pickscore'"),
        ("half*clip", "'half' is no number"),
        ("", "'' is not known"),
        ([], "an empty list"),
        ({"weights": "/mine"}, "the key 'name' is missing"),
        ({"name": "clip", "wheights": "/mine"}, "unknown key 'wheights'; did you mean 'weights'"),
        ({"name": "clip", "weight": "much"}, "weight must be a finite number"),
        ({"name": "clip", "weights": 3}, "weights must be a text"),
        ({"name": "fragile", "weights": "/mine"}, "are for the pretrained rewards"),
        ("clip + 2*clip", "clip occurs twice"),
        ("nowhere:score", "cannot be imported"),
    ],
)
def test_a_wrong_specification_says_what_is_right(spec, message):
    with pytest.raises(ValueError, match=message):
        rewards.load(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "pickscore", "architecture": "ViT-H-14"}, "takes no architecture"),
        ({"name": "hpsv2", "processor": "/mine"}, "takes no processor"),
        ({"name": "imagereward", "architecture": "ViT-H-14"}, "leave architecture out"),
    ],
)
def test_a_key_that_a_reward_does_not_take_is_refused_before_anything_is_loaded(spec, message):
    with pytest.raises(ValueError, match=message):
        rewards.needed(spec)


def test_what_is_needed_is_checked_without_loading(specs, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert rewards.needed(list(specs.values())) == []
    assert rewards.needed("fragile + gold") == []
    with pytest.raises(ValueError) as caught:
        rewards.needed("0.5*pickscore + 0.5*hpsv2.1")
    for part in ("hf download yuvalkirstain/PickScore_v1 config.json", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("aesthetic", "weights", "do not have the keys of a published linear head"),
        ("imagereward", "weights", "does not have the weights of a BLIP"),
        ("hpsv2", "weights", "does not fit the architecture"),
    ],
)
def test_a_file_with_other_weights_is_refused(name, key, message, specs, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        rewards.load({**specs[name], key: str(tmp_path / "other.pt")})


def test_a_head_of_another_backbone_is_refused(specs, tmp_path):
    with pytest.raises(ValueError, match="takes 8 numbers and gets 16"):
        rewards.load({**specs["aesthetic"], "weights": str(tiny.aesthetic_file(tmp_path, width=8))})


@pytest.mark.parametrize("name", ["gold", "gold_a", "0.5*fragile + 0.5*gold"])
def test_gold_scores_and_is_never_trained_on(name):
    reward = rewards.load(name)
    assert reward(tiny.pictures(2, 32, 32), WORLD).shape == (2,)
    with pytest.raises(ValueError, match="exists to judge and is never tuned to"):
        rewards.check_trainable(reward)


def test_a_reward_without_gradient_scores_and_is_not_trained_on():
    def brightness(images, prompts):
        return images.detach().mean(dim=(1, 2, 3))

    brightness.differentiable = False
    reward = rewards.FunctionReward(brightness, "brightness")
    assert reward(tiny.pictures(2, 8, 8), WORLD).shape == (2,)
    with pytest.raises(ValueError, match="'brightness' is not differentiable"):
        rewards.check_trainable(reward)


def test_world_is_the_embedded_default():
    images = tiny.pictures(2, 32, 32)
    assert torch.equal(rewards.load("world")(images, WORLD), rewards.load("fragile")(images, WORLD))


# --- bad input ------------------------------------------------------------------------------------------------------

GOOD = tiny.pictures(2, 32, 32)


def broken(value):
    images = GOOD.clone()
    images[1, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "prompts", "message", "rows"),
    [
        (broken(float("nan")), WORLD, r"rows \[1\] have NaN or lie outside", (1,)),
        (broken(1.5), WORLD, r"images in \[0, 1\].*highest 1\.5", (1,)),
        (GOOD * 2 - 1, WORLD, "needs images / 2 \\+ 0.5", (0, 1)),
        (GOOD[0], WORLD, r"images \(B, 3, H, W\) as a tensor, got \(3, 32, 32\)", ()),
        (GOOD[:, :1], WORLD, r"got \(2, 1, 32, 32\)", ()),
        (GOOD[:0], [], r"got \(0, 3, 32, 32\)", ()),
        (tiny.saved(GOOD), WORLD, "got torch.uint8.*aig.rewards.report", ()),
        (GOOD.numpy(), WORLD, "as a tensor, got ndarray", ()),
        (GOOD, ["a red star"], "2 images, 1 prompts", ()),
        (GOOD, "a red star", "one string", ()),
        (GOOD, ["a red star", " "], r"the prompts of rows \[1\] are empty", (1,)),
    ],
)
def test_bad_input_is_named(images, prompts, message, rows):
    with pytest.raises(rewards.InputError, match=message) as caught:
        rewards.load("fragile")(images, prompts)
    assert caught.value.rows == rows


@pytest.mark.parametrize("images", [GOOD, tiny.saved(GOOD)[0], tiny.saved(GOOD).numpy()])
def test_a_report_takes_8_bit_images_only(images):
    with pytest.raises(rewards.InputError, match="a report takes images"):
        rewards.report(rewards.load("fragile"), images, WORLD)


def test_a_reward_of_the_image_alone_takes_empty_prompts(specs):
    assert rewards.load(specs["aesthetic"])(GOOD, ["", ""]).shape == (2,)


def test_a_function_that_does_not_return_one_score_an_image_is_refused():
    reward = rewards.FunctionReward(lambda images, prompts: images.mean(), "mean")
    with pytest.raises(ValueError, match=r"'mean' must return a tensor \(2,\)"):
        reward(GOOD, WORLD)


@pytest.mark.parametrize(("name", "limit"), [("pickscore", 77), ("hpsv2", 77), ("imagereward", 35)])
def test_long_prompts_are_truncated_with_one_warning_that_counts_them(name, limit, specs):
    reward = rewards.load(specs[name])
    long = " ".join(["fox"] * 80)
    prompts = ["a red fox", f"{long} in rain", f"{long} in snow"]
    with pytest.warns(UserWarning, match=f"2 of 3 prompts are longer than {limit} tokens.*longest has 84") as caught:
        scores = reward(tiny.pictures(1, 32, 32).expand(3, -1, -1, -1), prompts)
    assert len(caught) == 1
    assert scores[1] == scores[2]  # what differs comes after the limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(GOOD, ["a red fox", " ".join(["fox"] * (limit - 2))])


def test_which_rewards_read_the_prompt_is_known_without_their_weights():
    assert not rewards.reads_prompts("aesthetic")
    for spec in ("pickscore", "hpsv2.1", "clip", "imagereward", "fragile", "0.5*aesthetic + 0.5*clip"):
        assert rewards.reads_prompts(spec)
