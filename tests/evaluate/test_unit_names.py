"""What units' names and images' ids depend on: all that their images and scores come from, and nothing else."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import bare_training
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reward_models
import torch
from feature_models import dinov2_folder
from flipping import flip
from measured_runs import build, measured, settings
from pipeline_toys import overrides
from safetensors.torch import load_file, save_file

from aig import adapters, digests, rewards
from aig.metrics import features
from aig.models import TinyModel
from aig.world import weights
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import preflight
from pipelines.config import ConfigError
from pipelines.evaluate import generate
from pipelines.evaluate import images as dataset
from pipelines.front import compare, front
from pipelines.measure import measure, table
from pipelines.report.reading import read_run
from pipelines.rewards import names as reward_names
from pipelines.runs import directory
from pipelines.runs.directory import IMAGES_FORMAT, RunDir
from pipelines.runs.files import write_json
from pipelines.score import folder as score_folder
from pipelines.study import models, statistics, trainings
from pipelines.study.resolved import resolve, resolve_images
from tune.search.store import Store

TOY = "def score(images, prompts):\n    return images.mean((1, 2, 3))\n"


@pytest.fixture(autouse=True)
def settled_anew():
    """Digests as a new process finds them."""

    def forget():
        for known in (reward_names._digest, reward_names._features_digest, models.fingerprint):
            known.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The file of a module with a reward `own_toy:score`."""
    path = tmp_path / "modules" / "own_toy.py"
    path.parent.mkdir()
    path.write_text(TOY)
    monkeypatch.syspath_prepend(path.parent)
    yield path
    sys.modules.pop("own_toy", None)


def lora(alpha="1", **changes):
    tensors = {"unet.a.lora_A.weight": torch.arange(6.0).reshape(2, 3), "unet.a.lora_B.weight": torch.ones(3, 2)}
    return {**tensors, **changes}, {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha}), "format": "pt"}


def saved(path, tensors, metadata):
    save_file(tensors, path, metadata)
    return path


def test_adapters_of_equal_tensors_have_one_digest_in_whatever_order_they_were_written(tmp_path):
    tensors, metadata = lora()
    many = {**metadata, **{f"key{i}": str(i) for i in range(20)}}
    written = [saved(tmp_path / f"{i}.safetensors", tensors, many) for i in range(10)]
    backwards = saved(tmp_path / "b.safetensors", dict(reversed(tensors.items())), dict(reversed(many.items())))
    assert len({path.read_bytes() for path in written}) > 1  # safetensors writes the header's entries in any order
    assert len({adapters.digest(path) for path in [*written, backwards]}) == 1


@pytest.mark.parametrize(
    ("more", "alpha"),
    [
        ({"unet.a.lora_B.weight": torch.tensor([[1.0, 1], [1, 1], [1, 1.0000001]])}, "1"),
        ({"unet.a.lora_A.weight": torch.arange(6.0).reshape(3, 2)}, "1"),
        ({"unet.a.lora_B.weight": torch.ones(3, 2).view(torch.int32)}, "1"),
        ({"unet.b.lora_B.weight": torch.ones(3, 2)}, "1"),
        ({}, "2"),
    ],
    ids=["value", "shape", "dtype", "name", "alpha"],
)
def test_an_adapter_that_does_something_else_has_another_digest(tmp_path, more, alpha):
    one, other = saved(tmp_path / "a.safetensors", *lora()), saved(tmp_path / "b.safetensors", *lora(alpha, **more))
    assert adapters.digest(one) != adapters.digest(other)


@pytest.mark.parametrize(
    "spoil", [lambda c: c[:4], lambda c: c[:50], lambda c: c[:-1], lambda c: c + b"x", bytes.upper]
)
def test_an_adapter_that_is_cut_off_is_said_to_be(tmp_path, spoil):
    path = saved(tmp_path / "pytorch_lora_weights.safetensors", *lora())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"pytorch_lora_weights\.safetensors: the adapter's weights are corrupt"):
        adapters.digest(tmp_path)


@pytest.fixture
def drawn(tmp_path):
    """`drawn(overrides, ...)`: units of the smoke preset with these settings and an adapter of this value."""
    return lambda *asked, **given: generate.units(studied(tmp_path, *asked, **given))


def studied(storage, *asked, value=1.0, name="run"):
    """The smoke preset with these settings, whose adapters are of this value."""
    found = configuration.load(
        "smoke", None, [f"run.storage={storage}", f"run.name={name}", "sweep.kl_weights=[0]", *asked]
    )
    for arm in resolve(found).arms:
        if arm.arm.adapter is not None:
            folder = RunDir.of(found).adapters / arm.arm.adapter
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"a": torch.full((1,), value)}, folder / adapters.WEIGHTS)
    return resolve_images(found, TinyModel.defaults)


def ids(units):
    return [name for unit in units for name in unit.ids]


def base_ids(units):
    return [generate.image_id(unit.origins[0], unit.prompt, seed) for unit in units for seed in unit.seeds]


def test_every_image_of_a_run_has_an_id_of_its_own(drawn):
    units = drawn()
    arms = len(units[0].origins)
    assert len(set(ids(units))) == len(ids(units)) == arms * sum(len(unit.seeds) for unit in units)


@pytest.mark.parametrize(
    "asked",
    [
        "run.seed=1", "model.guidance=2", "model.steps=4", "model.eta=0.5", "model.scheduler=euler",
        "model.negative='a red star'", "model.dtype=bfloat16", "model.height=64",
    ],
)  # fmt: skip
def test_runs_that_draw_otherwise_share_no_id(drawn, asked):
    assert not set(ids(drawn())) & set(ids(drawn(asked)))


def test_runs_on_another_model_share_no_id(drawn, model):
    prompts = "evaluate.prompts=[a red circle, an orange square]"
    assert not set(ids(drawn(prompts))) & set(ids(drawn(prompts, f"model.name={model}")))


def test_runs_with_other_adapters_of_the_same_name_share_the_ids_of_the_base_alone(drawn):
    one, other = drawn(), drawn(value=2.0, name="other")
    assert set(ids(one)) & set(ids(other)) == set(base_ids(one)) == set(base_ids(other))
    assert not {unit.name for unit in one} & {unit.name for unit in other}


@pytest.mark.parametrize("asked", ["evaluate.rewards=[robust]", "evaluate.gold=robust", "evaluate.max_rows=3"])
def test_images_that_are_scored_or_batched_otherwise_keep_their_ids(drawn, asked):
    assert ids(drawn()) == ids(drawn(asked, name="other"))
    assert sorted(ids(drawn())) == sorted(ids(drawn("evaluate.group=1", name="other")))


def test_the_table_has_the_ids_of_the_units_in_their_order(tmp_path):
    study = studied(tmp_path)
    unit = generate.units(study)[0]
    content = {**unit.row(), "cost": "{}", "image": [b""] * len(unit.ids)}
    content |= dict.fromkeys((generate.PIXEL_STD, *generate.DISTANCES))
    pictures = generate.Evaluation(study).pictures(content)
    assert pictures.ids == unit.ids == pictures.columns["id"].to_pylist()


def test_a_callables_module_is_part_of_the_names_and_of_no_id(drawn, toy, settled_anew):
    asked = ("evaluate.rewards=['own_toy:score']",)
    before = drawn(*asked)
    assert drawn(*asked) == before
    toy.write_text(TOY.replace("mean", "amax"))
    settled_anew()
    after = drawn(*asked)
    assert not {unit.name for unit in before} & {unit.name for unit in after}
    assert ids(before) == ids(after)


def test_a_callable_counts_with_the_module_that_defines_it(tmp_path, toy):
    (toy.parent / "own_names.py").write_text("from own_toy import score\nother = score\n")
    try:
        before = [digests.of_callable(f"own_names:{name}") for name in ("score", "other")]
        assert before[0] != before[1]
        toy.write_text(TOY + "# more\n")
        assert digests.of_callable("own_names:score") not in before
    finally:
        sys.modules.pop("own_names")


def pretrained(tmp_path, kind):
    """A reward or an extractor of tiny weights: what gives its digest, and the files that it reads."""
    if kind == "clip":
        folder = reward_models.clip_folder(tmp_path / "clip")
        spec = {"name": "clip", "weights": str(folder)}
        names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
        return (lambda: rewards.digests(spec)["clip"]), [folder / name for name in names if (folder / name).exists()]
    if kind == "hpsv2":
        architecture, file = reward_models.open_clip_files(tmp_path)
        spec = {"name": "hpsv2", "weights": str(file), "architecture": str(architecture)}
        return (lambda: rewards.digests(spec)["hpsv2"]), [architecture, file]
    if kind == "imagereward":
        file, tokenizer = reward_models.imagereward_files(tmp_path)
        spec = {"name": "imagereward", "weights": str(file), "processor": str(tokenizer)}
        return (lambda: rewards.digests(spec)["imagereward"]), [file, tokenizer / "vocab.txt"]
    folder = dinov2_folder(tmp_path / "dinov2")
    spec = {"name": "dinov2", "weights": str(folder)}
    return (lambda: features.digest(spec)), [
        folder / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    ]


@pytest.mark.parametrize("kind", ["clip", "hpsv2", "imagereward", "dinov2"])
def test_a_byte_of_any_file_that_a_reward_or_an_extractor_reads_changes_its_digest(tmp_path, kind):
    digest, files = pretrained(tmp_path, kind)
    before, after = digest(), []
    for path in files:
        flip(path)
        after.append(digest())
        flip(path)
    assert len(files) > 1 and len({before, *after}) == 1 + len(files)
    for name in ("README.md", "flax_model.msgpack", "model.fp16.safetensors", "other.json"):
        files[0].with_name(name).write_bytes(b"another")
    assert digest() == before


def test_the_shards_of_a_rewards_weights_count(tmp_path):
    folder = reward_models.clip_folder(tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / shard, {"format": "pt"})
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    spec = {"name": "clip", "weights": str(folder)}
    before = rewards.digests(spec)
    flip(folder / "b.safetensors")
    assert rewards.digests(spec) != before


def test_the_embedded_rewards_are_known_by_their_shipped_weights(tmp_path, monkeypatch):
    names = ("fragile", "robust", "gold", "gold_a", "gold_b")
    before = {name: rewards.digests(name)[name] for name in names} | {"features": features.digest("world")}
    assert len(set(before.values())) == len(before) and rewards.digests("world")["world"] == before["fragile"]
    folder = shutil.copytree(weights.folder(), tmp_path / "weights")
    flip(folder / "judge_b.safetensors")
    weights.seal(folder)
    monkeypatch.setattr(weights, "_beside_or_installed", lambda: folder)
    after = {name: rewards.digests(name)[name] for name in names} | {"features": features.digest("world")}
    assert {name for name in before if after[name] != before[name]} == {"gold", "gold_b"}


def test_scores_of_other_weights_are_not_taken_for_these(toy, settled_anew, tmp_path):
    images = tmp_path / "images.parquet"
    picture = reward_models.saved(reward_models.pictures(1, 8, 8))[0].permute(1, 2, 0).numpy()
    pq.write_table(pa.table({"image": [generate.to_png(picture)], "prompt": ["a"]}), images)
    found = configuration.load(None, None, [f"run.storage={tmp_path}"])
    request = score_folder.Request(images, ("own_toy:score",))
    _, _, before = score_folder.check(found, request)
    pq.write_table(
        pa.table({"id": ["a"]}).replace_schema_metadata({score_folder.KEY: before.key}), tmp_path / "out.parquet"
    )
    score_folder.check(found, replace(request, out=tmp_path / "out.parquet"))
    toy.write_text(TOY + "\n")
    settled_anew()
    _, _, after = score_folder.check(found, request)
    assert after.key != before.key and after.out != before.out
    with pytest.raises(ConfigError, match=r"holds something else: give another --out.*other weights of the rewards"):
        score_folder.check(found, replace(request, out=tmp_path / "out.parquet"))


def test_statistics_of_another_model_or_of_other_weights_are_measured_anew(
    model, toy, settled_anew, tmp_path, monkeypatch, capsys
):
    total = "0.5*own_toy:score + 0.5*pipeline_toys:red"
    asked = overrides(model, tmp_path, train__reward=f"'{total}'", train__prompts="[a red circle, a blue star]")
    found, measured = configuration.load("smoke", None, asked), []

    def measure_them(config, names):
        measured.append(sorted(names))
        return {name: {"mean": 1.0, "std": 2.0} for name in names}

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=measure_them))
    monkeypatch.setattr(statistics, "ray", SimpleNamespace(remote=lambda _: task, get=lambda result: result))

    def ensured():
        statistics.ensure(found, lambda: SimpleNamespace(room=lambda *_: 1))  # type: ignore[arg-type]
        return "measured by an earlier version, or of another model or other weights" in capsys.readouterr().out

    assert not ensured()
    assert not ensured()
    assert measured == [["own_toy-score", "pipeline_toys-red"]]
    toy.write_text(TOY + "\n")
    settled_anew()
    assert ensured()
    assert measured[1:] == [["own_toy-score"]]
    path = RunDir.of(found).reward_statistics
    write_json(path, {**json.loads(path.read_text()), "model": "another"})
    assert ensured()
    assert measured[2:] == measured[:1]


def test_a_search_of_an_earlier_format_is_refused_with_a_word(tmp_path):
    Store(RunDir(tmp_path), tmp_path, {"seed": 0})
    with pytest.raises(ConfigError, match=r"made by another version.*format 1, not 2\): choose another search\.name"):
        Store(RunDir(tmp_path), tmp_path, {"seed": 0, "format": 2})


def test_a_training_that_was_interrupted_under_another_reward_is_refused_and_its_checkpoint_kept(
    model, toy, settled_anew, tmp_path
):
    single = bare_training.configured(model, tmp_path, train__reward="own_toy:score")
    with pytest.raises(bare_training.Killed):
        bare_training.run(single, dies_after=1)
    toy.write_text(TOY + "\n")
    settled_anew()
    there = RunDir.of(single).checkpoints(trainings.adapter_key(single.train))
    before = sorted(path.relative_to(there) for path in there.rglob("*"))
    with pytest.raises(ConfigError, match=r"was made by other weights, or other code, of the reward own_toy-score"):
        bare_training.run(single)
    assert sorted(path.relative_to(there) for path in there.rglob("*")) == before != []


@pytest.fixture
def earlier(tmp_path):
    """A measured run, whose measures another version made."""
    found = build(settings(tmp_path, "run.name=earlier"))
    measured(found)
    path = RunDir.of(found).arms
    listing = json.loads(path.read_text())
    assert listing.pop("format") == IMAGES_FORMAT
    path.write_text(json.dumps(listing))
    return found


def test_what_another_version_measured_is_refused_with_the_command_that_measures_it_anew(earlier, tmp_path):
    now = build(settings(tmp_path, "run.name=now"))
    said = rf"of format 2 where this one makes {IMAGES_FORMAT}: run `python -m pipelines evaluate --config .*earlier"
    for read in (
        lambda: compare.compare(resolve(earlier), resolve(now)),
        lambda: front.write_front(resolve(earlier)),
        lambda: table.read_rows(RunDir.of(earlier)),
    ):
        with pytest.raises(ValueError, match=said):
            read()
    with pytest.raises(ValueError, match=rf"another version \(format 2, not {IMAGES_FORMAT}\): run .*evaluate` again"):
        read_run(earlier.directory)


def test_status_tells_of_images_measures_and_adapters_of_another_version(earlier, capsys):
    files = RunDir.of(earlier)
    write_json(files.front, {})
    for path in files.images.glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata({"cost": "{}"}), path)
    train = trainings.trainings(earlier)[0]
    single = replace(earlier, train=train)
    for name, step in trainings.adapter_folders(single):
        write_json(files.adapters / name / "adapter.json", {"format": directory.RECORD_FORMAT, "step": step})
    write_json(files.curves / f"{trainings.adapter_key(train)}.jsonl", {})
    assert main(["status", str(earlier.directory)]) == 0
    told = capsys.readouterr().out
    assert "images     0 of 12 units" in told and "metrics    there, made by another version" in told
    assert "next: python -m pipelines evaluate" in told
    write_json(files.adapters / trainings.adapter_key(train) / "adapter.json", {"step": train.steps})
    assert main(["status", str(earlier.directory)]) == 0
    told = capsys.readouterr().out
    assert "1 earlier" in told and "next: an earlier version made this run's adapters" in told


def test_images_of_an_earlier_format_are_missing_with_a_word_about_those_that_are_there(earlier):
    folder = RunDir.of(earlier).images
    for number, path in enumerate(sorted(folder.glob("*.parquet"))):
        path.rename(folder / f"part-{number:016x}.parquet")
    images = dataset.read(resolve_images(earlier, TinyModel.defaults), without=measure.UNNEEDED)
    with pytest.raises(
        ConfigError, match="images are missing, and there are 12 groups of them that an earlier version"
    ):
        images.require_complete()


def test_a_corrupt_adapter_stops_the_check_of_an_evaluation(model, tmp_path):
    found = configuration.load("smoke", None, [*overrides(model, tmp_path), "sweep.kl_weights=[0]"])
    for arm in resolve(found).arms:
        if arm.arm.adapter is not None:
            folder = RunDir.of(found).adapters / arm.arm.adapter
            folder.mkdir(parents=True, exist_ok=True)
            (folder / adapters.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"weights are corrupt .*: delete the folder and train it again"):
        preflight.check_evaluation(found, trained=True)
