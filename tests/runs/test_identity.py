"""What tells models, rewards, adapters and images apart: the content of what was loaded, and nothing beside it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from flipping import flip

from aig import digests, models
from aig.models import files
from aig.world import weights
from pipelines import config as configuration
from pipelines.commands import preflight
from pipelines.config import ConfigError
from pipelines.study import trainings
from pipelines.train import records

FAMILIES = ("sd", "sdxl", "sd3", "flux")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AIG_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(digests, "_known", {})


@pytest.fixture(params=FAMILIES)
def folder(request, family_folder, tmp_path):
    return Path(shutil.copytree(family_folder(request.param), tmp_path / "model"))


def flip_each(paths, fingerprint):
    """The fingerprints with a byte of one file changed, one file after another."""
    found = []
    for path in paths:
        flip(path)
        found.append(fingerprint())
        flip(path)
    return found


def state(pipe):
    return {
        f"{name}.{key}": value
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }


def test_the_loaded_files_alone_load_the_same_pipeline(folder, tmp_path):
    found = files.loaded(folder)
    for path in found:
        target = tmp_path / "alone" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    whole, alone = (
        DiffusionPipeline.from_pretrained(place, use_safetensors=True) for place in (folder, tmp_path / "alone")
    )
    assert state(whole).keys() == state(alone).keys()
    assert all(torch.equal(state(whole)[key], value) for key, value in state(alone).items())
    assert alone.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert alone.scheduler.config == whole.scheduler.config


def test_a_byte_of_any_loaded_file_changes_the_fingerprint(folder):
    before, paths = models.fingerprint(folder), files.loaded(folder)
    assert {path.suffix for path in paths} >= {".safetensors", ".json"}
    if folder.joinpath("model_index.json") in paths:
        paths.remove(folder / "model_index.json")  # which might not be JSON any more
    after = flip_each(paths, lambda: models.fingerprint(folder))
    assert before not in after
    assert len(set(after)) == len(paths)
    assert models.fingerprint(folder) == before


def test_every_file_of_the_embedded_model_counts(tmp_path):
    tiny = Path(shutil.copytree(weights.folder("tiny"), tmp_path / "tiny"))
    assert set(files.loaded(tiny)) == {path for path in tiny.rglob("*") if path.is_file()}
    assert models.fingerprint(tiny) == models.fingerprint("tiny")
    after = flip_each(files.loaded(tiny)[1:], lambda: models.fingerprint(tiny))
    assert models.fingerprint("tiny") not in after


def test_files_beside_the_loaded_ones_change_nothing(folder):
    before = models.fingerprint(folder)
    for part in [path for path in folder.iterdir() if path.is_dir()]:
        for name in ("README.md", "model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors",
                     "pytorch_model.bin", "diffusion_pytorch_model.bin", "flax_model.msgpack", "model.onnx",
                     "diffusion_pytorch_model.safetensors.index.fp16.json"):  # fmt: skip
            (part / name).write_bytes(b"another")
    for name in ("README.md", ".gitattributes", "picture.png", "single-file.safetensors"):
        (folder / name).write_bytes(b"another")
    (folder / "extra").mkdir()
    (folder / "extra" / "config.json").write_text("{}")
    assert models.fingerprint(folder) == before


def test_a_part_that_the_family_leaves_out_does_not_count(family_folder, tmp_path):
    sd = Path(shutil.copytree(family_folder("sd"), tmp_path / "sd"))
    index = json.loads((sd / files.INDEX).read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (sd / files.INDEX).write_text(json.dumps(index))
    before = models.fingerprint(sd)
    (sd / "safety_checker").mkdir()
    (sd / "safety_checker" / "config.json").write_text("{}")
    (sd / "safety_checker" / "model.safetensors").write_bytes(b"weights")
    assert models.fingerprint(sd) == before


def test_a_variant_is_known_by_its_own_files_and_by_the_plain_ones_of_parts_without_it(family_folder, tmp_path):
    folder = Path(shutil.copytree(family_folder("sdxl"), tmp_path / "sdxl"))
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    for part in ("unet", "vae", "text_encoder"):  # not text_encoder_2
        getattr(pipe, part).save_pretrained(folder / part, variant="fp16", safe_serialization=True)
    names = {
        path.relative_to(folder).as_posix() for path in files.loaded(folder, "fp16") if path.suffix == ".safetensors"
    }
    assert names == {
        "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors", "text_encoder_2/model.safetensors",
    }  # fmt: skip
    both = [models.fingerprint(folder, variant=variant) for variant in (None, "fp16")]
    flip(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert models.fingerprint(folder, variant="fp16") == both[1]
    assert models.fingerprint(folder) != both[0]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_every_shard_counts_and_so_does_their_index(family_folder, tmp_path, variant):
    folder = Path(shutil.copytree(family_folder("flux"), tmp_path / "flux"))
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    for part in ("transformer", "text_encoder_2"):
        for old in (folder / part).glob("*.safetensors"):
            old.unlink()
        getattr(pipe, part).save_pretrained(
            folder / part, variant=variant, safe_serialization=True, max_shard_size="20KB"
        )
    whole = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, variant=variant)
    assert all(torch.equal(value, state(pipe)[key]) for key, value in state(whole).items())
    found = [path for path in files.loaded(folder, variant) if path.parent.name in ("transformer", "text_encoder_2")]
    assert set(found) == {path for part in ("transformer", "text_encoder_2") for path in (folder / part).iterdir()}
    assert len(found) > 8
    shards = [path for path in found if path.suffix == ".safetensors"]
    before = models.fingerprint(folder, variant=variant)
    assert before not in flip_each(shards, lambda: models.fingerprint(folder, variant=variant))


def test_a_folder_and_the_hubs_cache_of_one_model_have_one_fingerprint(family_folder, tmp_path, monkeypatch):
    plain = family_folder("sd")
    snapshot = in_hub_cache(plain, tmp_path / "models--owner--sd")
    hashed = []
    monkeypatch.setattr(digests, "_hashed", lambda path, known=digests._hashed: hashed.append(path) or known(path))
    there = files.fingerprint(snapshot)
    assert not [path for path in hashed if path.suffix == ".safetensors"]
    assert there == files.fingerprint(plain)
    (snapshot / "unet" / "diffusion_pytorch_model.fp16.safetensors").symlink_to("../../../blobs/" + "0" * 64)
    assert files.fingerprint(snapshot) == there
    link = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    other = tmp_path / "models--owner--sd" / "blobs" / ("f" * 64)
    other.write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(f"../../../blobs/{other.name}")
    assert files.fingerprint(snapshot) != there


def in_hub_cache(folder, repository):
    """A folder's files as the hub's cache holds them: links to blobs, weights by SHA-256 and the rest by git's hash."""
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = digests.of_file(path)
        blob = repository / "blobs" / (name if path.suffix == ".safetensors" else name[:40])
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def settled(path, content):
    """A file that has not changed for a minute."""
    path.write_bytes(content)
    before = path.stat().st_mtime - 60
    os.utime(path, (before, before))
    return path


@pytest.fixture
def counted(monkeypatch):
    """The files that were read to be hashed; all count as large."""
    read = []
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "_hashed", lambda path, known=digests._hashed: read.append(path.name) or known(path))
    return read


def test_a_large_file_is_hashed_once_a_machine(tmp_path, counted, monkeypatch):
    path = settled(tmp_path / "weights", b"weights")
    monkeypatch.setattr(digests, "SETTLED", 0)
    first = digests.of_file(path)
    assert first == hashlib.sha256(b"weights").hexdigest()
    assert [digests.of_file(path) for _ in range(2)] == [first, first]
    monkeypatch.setattr(digests, "_known", {})  # another process
    assert digests.of_file(path) == first
    assert counted == ["weights"]


def test_a_file_that_has_changed_is_hashed_anew_though_its_size_and_time_are_the_same(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 0)
    path = settled(tmp_path / "weights", b"weights")
    seen = path.stat()
    digests.of_file(path)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert digests.of_file(path) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, counted):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    digests.of_file(path)
    digests.of_file(path)
    assert counted == ["weights", "weights"]


@pytest.mark.parametrize(
    "junk", ["", "{", "[]", '"text"', '{"PATH": null}', '{"PATH": [[1], "short"]}', '{"PATH": [[], 3]}', "\x00\xff"]
)
def test_junk_in_the_cache_costs_the_hashing_and_nothing_else(tmp_path, counted, monkeypatch, junk):
    monkeypatch.setattr(digests, "SETTLED", 0)
    path, cache = settled(tmp_path / "weights", b"weights"), Path(os.environ["AIG_CACHE"]) / digests.CACHE
    cache.write_text(junk.replace("PATH", str(path)))
    for _ in range(2):
        monkeypatch.setattr(digests, "_known", {})
        assert digests.of_file(path) == hashlib.sha256(b"weights").hexdigest()
    assert counted == ["weights"]
    assert [entry.name for entry in cache.parent.iterdir()] == [digests.CACHE]


def test_the_cache_forgets_files_that_are_gone_and_keeps_what_other_processes_wrote(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 0)
    first, second, gone = (settled(tmp_path / name, name.encode()) for name in ("first", "second", "gone"))
    digests.of_file(gone)
    digests.of_file(first)
    gone.unlink()
    monkeypatch.setattr(digests, "_known", {})
    digests.of_file(second)
    found = json.loads((Path(os.environ["AIG_CACHE"]) / digests.CACHE).read_text())
    assert found.keys() == {str(first), str(second)}


def test_where_the_cache_cannot_be_written_files_are_hashed(tmp_path, counted, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(digests, "SETTLED", 0)
    path = settled(tmp_path / "weights", b"weights")
    assert digests.of_file(path) == hashlib.sha256(b"weights").hexdigest()


def record_of(*overrides):
    found = configuration.load("smoke", None, overrides)
    return records.training_record(found, found.train, 4)


def test_a_training_record_has_the_digests_of_the_model_and_of_the_trained_reward():
    record = record_of("train.reward=0.5*fragile + 0.5*robust")
    assert record["model"]["fingerprint"] == models.fingerprint("tiny")
    shipped = {name: digests.of_files({f"{name}.safetensors": weights.folder() / f"{name}.safetensors"})
               for name in ("fragile", "robust")}  # fmt: skip
    assert record["train"]["reward_digests"] == shipped


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": None}, r"by an earlier version, .*\(format 1, now 2\)"),
        ({"format": 9}, "by a later version .*format 9, this one reads 2"),
        ({"model": {"fingerprint": "other"}}, "for other weights than those of model.name=tiny"),
        ({"train": {"reward_digests": {"fragile": "other"}}}, "by other weights, or other code, of the reward fragile"),
        ({"train": {"lr": 3.0}}, "by another configuration .train.lr = 3.0, not"),
    ],
)
def test_an_adapter_that_was_made_otherwise_is_refused_with_the_reason_and_the_fix(tmp_path, changed, said):
    found = configuration.load("smoke", None, [f"run.storage={tmp_path}", "train.reward=fragile"])
    record = records.training_record(found, found.train, found.train.steps)
    for key, value in changed.items():
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
    record = {key: value for key, value in record.items() if value is not None}
    folder = found.directory / "adapters" / trainings.adapter_key(found.train)
    folder.mkdir(parents=True)
    (folder / "adapter.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"was made {said}.*another run\.name and keep it.*delete the folder"):
        preflight.check_training(found, sweep=False)
    assert (folder / "adapter.json").exists()
