"""Runs in an object store: mirrored here, pushed at every commit, continued from anywhere; against an S3 server."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bare_training
import boto3
import measured_runs
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from pipeline_toys import HERE, overrides
from pyarrow import fs
from toy_search import ToyDraw, knapsack, toy_plan
from waiting import wait_for

from aig.models import TinyModel
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands.session import Session
from pipelines.config import ConfigError, uris
from pipelines.evaluate import generate
from pipelines.evaluate import images as dataset
from pipelines.evaluate.scorers import PART, Scorer
from pipelines.runs import identity, mirror
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve_images
from pipelines.study.trainings import adapter_key
from pipelines.train import checkpoints
from tune.search.run import CANDIDATES, PICTURE, RESULT, search

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint():
    """host:port of an S3 server in this process, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        yield "{}:{}".format(*server.get_host_and_port())
        server.stop()


@pytest.fixture(scope="module")
def client(endpoint):
    return boto3.client("s3", endpoint_url=f"http://{endpoint}")


@pytest.fixture
def storage(endpoint, client, tmp_path, monkeypatch):
    """The URI of an empty bucket, with mirrors of its own."""
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "WAITS", ())
    bucket = f"runs-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    return uri_of(endpoint, f"{bucket}/some/where")


def uri_of(endpoint, place):
    return f"s3://{place}?scheme=http&endpoint_override={endpoint}&region=us-east-1"


def keys(client, storage):
    """What lies in the bucket of a storage, by its name under the prefix; without what stands for folders."""
    bucket, _, prefix = storage.removeprefix("s3://").partition("?")[0].partition("/")
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"].removeprefix(f"{prefix}/") for entry in found if not entry["Key"].endswith("/")}


def at(storage, name="run"):
    return RunDir.at(uris.joined(storage, name))


@pytest.fixture
def run(storage):
    """The mirror of a run."""
    found = at(storage)
    found.root.mkdir(parents=True)
    return found


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def elsewhere(storage, monkeypatch, tmp_path):
    """The mirror of the same run on another machine, from now on the one that counts."""
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "another"))
    return at(storage)


def test_names_beneath_a_uri_come_before_its_query_and_are_parted_again():
    uri = uris.joined("s3://bucket/prefix/?scheme=http&region=x", "a run")
    assert uri == "s3://bucket/prefix/a%20run?scheme=http&region=x"
    assert uris.parted(uri) == ("s3://bucket/prefix?scheme=http&region=x", "a run")
    assert uris.joined("hdfs:///", "run") == "hdfs:///run" and uris.joined("s3://bucket", "run") == "s3://bucket/run"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://host/runs", "scheme 'ftp' is unknown.*s3, gs"),
        ("s3://", "names no bucket: give s3://BUCKET/PREFIX"),
        ("s3://me:secret@bucket/runs", "holds a password.*by environment"),
    ],
)
def test_a_storage_that_cannot_be_one_is_refused_with_its_fix_and_without_its_secret(uri, expected):
    with pytest.raises(ConfigError, match=f"run.storage.*{expected}") as error:
        configuration.load("smoke", None, [f"run.storage={uri}"])
    assert "me:secret" not in str(error.value)


def test_a_file_uri_is_the_folder_itself(tmp_path):
    found = configuration.load("smoke", None, [f"run.storage=file://{tmp_path}/runs"])
    assert RunDir.of(found).root == tmp_path / "runs" / "smoke" and RunDir.of(found).mirror is None
    identity.claim_directory(found)
    assert identity.of_run(f"file://{tmp_path}/runs/smoke").directory == RunDir.of(found).root


def test_what_is_committed_is_in_the_store_at_once_and_comes_to_another_machine(
    run, storage, client, monkeypatch, tmp_path
):
    run.write_json(run.root / "sweep.json", {"errored": {}})
    run.push(write(run.root / "curves" / "a.jsonl", "1\n"))
    write(run.root / ".lock", "")
    run.push(run.root)
    assert keys(client, storage) == {"run/sweep.json", "run/curves/a.jsonl"}
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    assert (other.root / "sweep.json").read_bytes() == (run.root / "sweep.json").read_bytes()
    assert (other.root / "curves" / "a.jsonl").read_text() == "1\n"


def test_an_object_of_several_parts_arrives_whole(run, storage, client, monkeypatch, tmp_path):
    content = os.urandom(12 * 2**20)  # pyarrow uploads 10 MiB at once
    (run.root / "large").write_bytes(content)
    run.push(run.root / "large")
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    assert (other.root / "large").read_bytes() == content


def test_files_without_content_and_with_odd_names_arrive(run, storage, monkeypatch, tmp_path):
    names = ("empty", "a b+c%20é?.txt", "red-k1@2/w=1&x")
    for name in names:
        run.push(write(run.root / name, "" if name == "empty" else name))
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    assert {p.relative_to(other.root).as_posix() for p in other.root.rglob("*") if p.is_file()} == set(names)
    assert (other.root / "empty").read_bytes() == b"" and (other.root / names[1]).read_text() == names[1]


def test_where_files_show_while_they_are_written_they_are_written_under_another_name(monkeypatch, tmp_path):
    """As in HDFS; a folder stands for it here."""
    store = tmp_path / "store"
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_opened", lambda uri: (fs.LocalFileSystem(), str(store)))
    run = at("hdfs://host/runs")
    run.push(write(run.root / "folder" / "file", "whole"))

    def dies(source, target, **_):
        Path(target).write_text("ha")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fs, "copy_files", dies)
        with pytest.raises(KeyboardInterrupt):
            run.push(write(run.root / "folder" / "file", "another"))
    assert (store / "folder" / "file").read_text() == "whole"
    run.pull(run.root)
    assert (run.root / "folder" / "file").read_text() == "whole"
    assert run.names(run.root / "folder") == ["file"]
    run.push(write(run.root / "folder" / "file", "another"))
    assert (store / "folder" / "file").read_text() == "another"


def test_what_is_the_same_is_neither_pushed_nor_pulled_again(run, storage, monkeypatch, tmp_path):
    for name in "abc":
        write(run.root / "board" / name, name)
    moved = []
    for name in ("_upload", "_download"):
        original = getattr(mirror.Mirror, name)

        def counted(self, file, *more, original=original):
            moved.append(file.name)
            return original(self, file, *more)

        monkeypatch.setattr(mirror.Mirror, name, counted)
    run.push(run.root / "board")
    run.push(run.root / "board")
    run.pull(run.root)
    assert sorted(moved) == ["a", "b", "c"]
    write(run.root / "board" / "b", "longer")
    run.push(run.root / "board")
    assert moved[3:] == ["b"]
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    other.pull(other.root)
    assert sorted(moved[4:]) == ["a", "b", "c"] and (other.root / "board" / "b").read_text() == "longer"


def test_a_mirror_becomes_what_the_store_has(run, storage, monkeypatch, tmp_path):
    """Files of a process that died before it pushed them are no more than those that another machine removed."""
    for name in ("kept", "removed"):
        run.push(write(run.root / "images" / name, "old"))
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    other.mirror.remove(other.root / "images" / "removed")
    other.push(write(other.root / "images" / "kept", "newer"))
    write(run.root / "adapters" / "unpushed" / "adapter.json", "{}")
    write(run.root / ".lock", "")
    run.pull(run.root)
    there = {path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file()}
    assert there == {"images/kept", ".lock"} and (run.root / "images" / "kept").read_text() == "newer"
    assert not (run.root / "adapters" / "unpushed").exists()


def test_patterns_and_exceptions_choose_what_is_pulled(run, storage, monkeypatch, tmp_path):
    for name in ("adapters/a/w", "adapters/a@2/w", "adapters/b/w", "images/part", "ray/tune/x", "config.yaml"):
        run.push(write(run.root / name, name))
    other = elsewhere(storage, monkeypatch, tmp_path)

    def there():
        return {path.relative_to(other.root).as_posix() for path in other.root.rglob("*") if path.is_file()}

    other.pull(other.root / "adapters", "a", "a@*")
    assert there() == {"adapters/a/w", "adapters/a@2/w"}
    other.pull(other.root, without=mirror.APART)
    assert there() == {"adapters/a/w", "adapters/a@2/w", "adapters/b/w", "config.yaml"}
    run.mirror.remove(run.root / "adapters" / "a")
    other.pull(other.root / "adapters", "b*")
    assert "adapters/a/w" in there()
    other.pull(other.root / "adapters")
    assert "adapters/a/w" not in there() and "config.yaml" in there()


def test_a_folder_whose_push_was_cut_off_is_not_there_until_it_is_pushed_again(
    run, storage, client, monkeypatch, tmp_path
):
    folder = run.root / "adapters" / "red"
    for name in ("adapter.json", "config.json", "weights"):
        write(folder / name, name)
    original, calls = mirror.Mirror._upload, []

    def dies(self, file):
        calls.append(file.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.Mirror, "_upload", dies)
        with pytest.raises(KeyboardInterrupt):
            run.push_whole(folder)
    assert "run/adapters/red/adapter.json" in keys(client, storage)
    other = elsewhere(storage, monkeypatch, tmp_path)
    other.pull(other.root)
    assert not (other.root / "adapters" / "red").exists()
    write(other.root / "adapters" / "red" / "weights", "retrained")
    other.push_whole(other.root / "adapters" / "red")
    assert keys(client, storage) == {"run/adapters/red/weights"}
    run.pull(run.root)
    assert [path.name for path in folder.iterdir()] == ["weights"]


def test_a_replacement_whose_push_was_cut_off_loses_neither_folder_where_the_same_machine_goes_on(
    storage, client, monkeypatch
):
    found = configuration.load("smoke", None, [f"run.storage={storage}"])
    identity.claim_directory(found)
    run = RunDir.of(found)
    folder = run.root / "adapters" / "red@best"
    for name in ("adapter.json", "weights"):
        write(folder / name, "old")
    run.push_whole(folder)
    for name in ("adapter.json", "weights"):
        write(folder / name, "new!")
    original = mirror.Mirror._upload

    def dies(self, file):
        original(self, file)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mirror.Mirror, "_upload", dies)
        with pytest.raises(KeyboardInterrupt):
            run.push_whole(folder)
    assert not run.mirror._remote_files(folder)
    with Session(found, "a command", argparse.Namespace()) as session:
        session.open()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"adapter.json": "new!", "weights": "new!"}
    assert set(run.mirror._remote_files(folder)) == {"adapter.json", "weights"}
    assert not any(name.endswith(mirror.INCOMPLETE) for name in keys(client, storage))


def test_a_run_is_read_without_touching_what_a_process_here_works_on(run):
    run.push(write(run.root / "sweep.json", "pushed"))
    write(run.root / "sweep.json", "about to be pushed")
    with run.lock():
        run.refresh()
        assert (run.root / "sweep.json").read_text() == "about to be pushed"
    run.refresh()
    assert (run.root / "sweep.json").read_text() == "pushed"


def test_a_mirror_in_which_a_process_works_is_neither_brought_up_to_date_nor_set_aside_by_another(storage, capsys):
    found = configuration.load("smoke", None, [f"run.storage={storage}"])
    with identity.lock_directory(found):
        identity.claim_directory(found)
        write(RunDir.of(found).root / "adapters" / "red" / "weights", "about to be pushed")
        RunDir.of(found).mirror.remove(RunDir.of(found).root)  # as if nothing had been pushed yet
        before = {path: path.stat().st_mtime_ns for path in RunDir.of(found).root.rglob("*")}
        assert main(["front", "--preset", "smoke", f"run.storage={storage}", "front.level=0.5"]) == 2
        assert "another process is working in s3://" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in RunDir.of(found).root.rglob("*")} == before


def test_a_failing_store_is_tried_again_and_then_named(run, monkeypatch):
    monkeypatch.setattr(mirror, "WAITS", (0.0, 0.0))
    tries = []

    def work():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("the connection is gone")
        return "there"

    assert run.patiently(run.root / "x", work) == "there"
    tries.clear()
    monkeypatch.setattr(mirror, "WAITS", (0.0,))
    with pytest.raises(mirror.StorageError, match=r"some/where/run/x: .*connection is gone.*same command again"):
        run.patiently(run.root / "x", work)
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda uri: uri.replace("s3://runs-", "s3://none-"), "NO_SUCH_BUCKET.*: create the bucket"),
        (lambda uri: f"{uri}&bogus=1", "bogus.*: give a URI with options that pyarrow"),
    ],
    ids=["no bucket", "an unknown option"],
)
def test_a_store_that_cannot_be_used_is_refused_with_its_reason_and_fix(change, expected, storage):
    found = configuration.load("smoke", None, [f"run.storage={change(storage)}"])
    with pytest.raises(ConfigError, match=f"run.storage: s3://.*{expected}"):
        identity.check_directory(found)


def test_a_store_that_does_not_answer_is_given_up_after_seconds(storage, monkeypatch):
    monkeypatch.setattr(mirror, "CHECK_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = uri_of("{}:{}".format(*silent.getsockname()), "bucket/x")
        with pytest.raises(ConfigError, match=r"no answer in 0\.2 seconds"):
            identity.check_directory(configuration.load("smoke", None, [f"run.storage={uri}"]))


class Refusing(BaseHTTPRequestHandler):
    """A store that lets nobody in."""

    protocol_version = "HTTP/1.1"

    def refuse(self):
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = refuse  # noqa: N815

    def log_message(self, *_):
        pass


def test_missing_credentials_are_told_of_with_where_they_go(storage):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = configuration.load("smoke", None, [f"run.storage={uri_of(f'127.0.0.1:{server.server_port}', 'bucket/x')}"])
    try:
        with pytest.raises(ConfigError, match=r"ACCESS_DENIED.*give credentials.*AWS_ACCESS_KEY_ID.*on every node"):
            identity.check_directory(found)
    finally:
        server.shutdown()
        server.server_close()


def test_a_run_of_another_configuration_is_refused_as_locally_and_a_foreign_folder_too(storage, client):
    first = configuration.load("smoke", None, [f"run.storage={storage}"])
    identity.claim_directory(first)
    assert "smoke/config.yaml" in keys(client, storage)
    shutil.rmtree(RunDir.of(first).root)
    other = configuration.load("smoke", None, [f"run.storage={storage}", "run.seed=1"])
    with pytest.raises(ConfigError, match=r"run 'smoke' in s3://.* was made with run.seed = 0, not 1: choose another"):
        identity.check_directory(other)
    foreign = configuration.load("smoke", None, [f"run.storage={storage}", "run.name=foreign"])
    RunDir.of(foreign).root.mkdir(parents=True)
    RunDir.of(foreign).push(write(RunDir.of(foreign).root / "thesis.txt", "mine"))
    with pytest.raises(ConfigError, match=r"s3://.*/foreign is not empty and holds no config.yaml of ours"):
        identity.check_directory(foreign)


def test_the_mirror_of_a_run_that_is_gone_from_the_store_is_kept_and_not_taken_for_the_run(storage, client, capsys):
    found = configuration.load("smoke", None, [f"run.storage={storage}"])
    identity.claim_directory(found)
    RunDir.of(found).push(write(RunDir.of(found).root / "adapters" / "red" / "weights", "dear"))
    RunDir.of(found).mirror.remove(RunDir.of(found).root)
    assert list(identity.check_directory(found).root.iterdir()) == []
    kept = Path(capsys.readouterr().out.split()[-1])
    assert (kept / "adapters" / "red" / "weights").read_text() == "dear" and (kept / "config.yaml").exists()
    identity.claim_directory(found)
    assert keys(client, storage) == {"smoke/config.yaml"} and "is empty" not in capsys.readouterr().out


def test_a_run_knows_its_storage_by_the_uri_that_it_is_found_at(storage):
    made = configuration.load("smoke", None, [f"run.storage={storage}"])
    identity.claim_directory(made)
    shutil.rmtree(RunDir.of(made).root)
    found = identity.of_run(uris.joined(storage, "smoke"))
    assert found == made and RunDir.of(found).root == RunDir.of(made).root
    with pytest.raises(ConfigError, match=r"s3://.*/none is no run \(it has no config.yaml\)"):
        identity.of_run(uris.joined(storage, "none"))


def test_a_local_run_is_neither_pushed_nor_pulled(tmp_path):
    run, path = RunDir(tmp_path), write(tmp_path / "x", "1")
    before = path.stat()
    for function in (run.push, run.push_whole, run.pull, run.glance):
        function(path)
    run.refresh()
    run.bring()
    assert path.stat() == before and run.shown(path) == run.storage_path(path) == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """A training in a local folder."""
    single = configured(model, tmp_path_factory.mktemp("undisturbed"))
    bare_training.run(single)
    return single


def configured(model, storage):
    return bare_training.configured(model, storage, evaluate__prompts=2)


def check_same(single, other):
    weights, _ = bare_training.check_same(single, other)
    assert len(weights) == 2


def versions(client, storage, part):
    """When each object whose name has this in it was written, and its content's hash."""
    bucket = storage.removeprefix("s3://").partition("/")[0]
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {
        entry["Key"]: (entry["LastModified"], entry["ETag"])
        for entry in found
        if part in entry["Key"] and entry["Size"]
    }


def test_a_training_goes_on_elsewhere_from_the_last_whole_checkpoint_in_the_store(
    model, storage, client, undisturbed, monkeypatch, tmp_path, recwarn
):
    single = configured(model, storage)
    with pytest.raises(bare_training.Killed):
        bare_training.run(single, dies_after=2)
    run = RunDir.of(single)
    checkpointed = run.checkpoints(adapter_key(single.train))
    first, second = sorted(RunDir.of(single).names(checkpointed))
    assert not checkpointed.exists()  # but in the store
    bucket, key = RunDir.of(single).place(checkpointed / second / checkpoints.STATE)[1].split("/", 1)
    client.put_object(Bucket=bucket, Key=key, Body=b"cut off")
    snapshot = versions(client, storage, "@3/")
    assert len(snapshot) == 2

    shutil.rmtree(RunDir.of(single).root)
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "another"))
    (warning,) = checkpoints.newest(run, checkpointed)[1]
    assert f"{second} is skipped" in warning and f"going on from {first}, step 2" in warning
    bare_training.run(single)
    # What was kept before the kill is as old as it was: the step that it is of was made again, and it was not.
    assert versions(client, storage, "@3/") == snapshot
    check_same(single, undisturbed)
    shutil.rmtree(RunDir.of(single).root)
    RunDir.of(single).pull(RunDir.of(single).root)
    check_same(single, undisturbed)
    checkpoints.discard(run, checkpointed)
    assert run.names(checkpointed) == []


def test_workers_on_other_machines_bring_what_they_read_and_leave_what_they_make_in_the_store(
    model, storage, undisturbed, monkeypatch, tmp_path
):
    single = configured(model, storage)
    bare_training.run(single)
    study = resolve_images(single, TinyModel.defaults)
    wanted, job = generate.units(study), pickle.dumps(generate.Evaluation(study))
    rows = [unit.row() for unit in wanted]
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "generator"))
    drawn = generate.Generator(pickle.loads(pickle.dumps(study)))(pa.Table.from_pylist(rows))
    for row, unit in enumerate(wanted):
        monkeypatch.setenv("AIG_CACHE", str(tmp_path / f"scorer-{row}"))
        Scorer(pickle.loads(job))(drawn.slice(row, 1))
        assert [path.stem for path in RunDir.of(single).images.iterdir()] == [f"part-{unit.name}"]
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "driver"))
    RunDir.of(single).pull(RunDir.of(single).root, without=mirror.APART)
    images = dataset.read(study)
    assert (images.missing, images.duplicate) == (0, 0) and images.found == len(study.arms) * 4


def test_measures_fronts_and_comparisons_of_runs_in_a_store_are_those_of_local_ones(
    storage, client, monkeypatch, tmp_path, capsys
):
    for place in (tmp_path / "runs", storage):
        for name, gain in (("one", 1.0), ("other", 0.5)):
            found = measured_runs.build(measured_runs.settings(place, f"run.name={name}"), gain=gain)
            RunDir.of(found).push(RunDir.of(found).adapters)
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "another"))
    left = {}
    for place in (str(tmp_path / "runs"), storage):
        one, other = (uris.joined(place, n) if uris.is_uri(place) else f"{place}/{n}" for n in ("one", "other"))
        asked = ["--preset", "smoke", *measured_runs.given(place), "run.name=one"]
        assert main(["measure", one]) == main(["measure", other]) == 0
        assert main(["compare", one, other]) == 0
        assert main(["front", *asked]) == main(["status", one]) == 0
        root = identity.of_run(one).directory
        left[place] = {name: (root / name).read_bytes() for name in ("metrics.parquet", "per_prompt.parquet")}
        left[place]["front"] = json.loads((root / "front.json").read_text())
        compared = identity.of_run(other).directory / "comparisons" / "one.parquet"
        left[place]["compared"] = compared.read_bytes()
        said = capsys.readouterr().out
        assert "metrics    there\nfront      there\nreport     missing" in said
    ours, theirs = left.values()
    assert ours == theirs
    assert {"one/table.csv", "one/front.json", "other/comparisons/one.parquet"} <= keys(client, storage)
    assert "one/.lock" not in keys(client, storage)


def test_a_search_goes_on_elsewhere_and_draws_nothing_twice(storage, client, monkeypatch, tmp_path):
    asked = ("search.trials=16", "search.generation=8", "search.seed=3")
    whole = ToyDraw(knapsack)
    expected = json.loads(search(toy_plan(tmp_path / "local", *asked), whole).read_text())
    before, after = ToyDraw(knapsack, stop_after=5), ToyDraw(knapsack)
    with pytest.raises(KeyboardInterrupt):
        search(toy_plan(storage, *asked), before)
    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "another"))
    made = toy_plan(storage, *asked)
    RunDir.of(made.config).pull(RunDir.of(made.config).root)
    assert json.loads(search(made, after).read_text()) == expected
    assert before.units + after.units == whole.units
    found = {name for name in keys(client, storage) if name.startswith("run/")}
    names = {row["name"] for row in expected["schedules"] if row["found"]}
    assert found == {
        *(f"run/search/toy/{n}" for n in ("settings.json", "evaluations.jsonl", RESULT, PICTURE, CANDIDATES)),
        *(f"run/schedules/{name}.json" for name in names),
    }


def test_a_store_that_is_gone_in_the_middle_ends_what_needs_it_and_loses_what_was_not_put_there(
    endpoint, client, storage, monkeypatch
):
    """A second server on a port of its own goes and comes back; what moto's servers of one process hold is shared."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    run = at(storage.replace(endpoint, f"{host}:{port}"))
    images = run.images
    images.parent.mkdir(parents=True)
    units = [images / PART.format(unit=name) for name in "ab"]
    run.write_parquet(units[0], pa.table({"id": ["a"]}))
    server.stop()
    with pytest.raises(mirror.StorageError, match=r"part-b\.parquet: .*[Cc]onnect.*: bring the store within reach"):
        run.write_parquet(units[1], pa.table({"id": ["b"]}))
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    again.start()
    try:
        assert units[1].exists()
        run.pull(images)
        assert [path.name for path in images.iterdir()] == [units[0].name]
        run.write_parquet(units[1], pa.table({"id": ["b"]}))
        assert keys(client, storage) == {f"run/images/{unit.name}" for unit in units}
    finally:
        again.stop()


KILLED = {
    "train__steps": 12, "train__snapshot_every": 6, "evaluate__prompts": 10, "evaluate__groups_at_once": 1,
    "evaluate__rewards": "['pipeline_toys:red', 'pipeline_toys:unhurried']",
}  # fmt: skip
LOCAL_RAY = {"ray__address": "local", "ray__num_cpus": 4, "ray__object_store_mb": 150}


def start(command, given, cache, log):
    """A command as a process of its own, with a mirror of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "AIG_CACHE": str(cache)}
    command = [sys.executable, "-m", "pipelines", command, "--preset", "smoke", *map(str, given)]
    return subprocess.Popen(
        command, cwd=HERE.parents[1], env=environment, stdout=log, stderr=log, start_new_session=True
    )


def kill(driver, happened, log):
    """End it when that has happened, and not before."""
    try:
        wait_for(happened, driver, log)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()


def finish(command, given, cache, log):
    assert start(command, given, cache, log).wait() == 0, (log.seek(0), log.read()[-3000:])


def drawn(single):
    """Every image with its scores, by what it is of: the units' names hash files of weights, whose headers vary."""
    rows = dataset.read(resolve_images(single, TinyModel.defaults)).table.to_pylist()
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_in_a_store_is_finished_from_another_machine_and_makes_nothing_twice(
    model, storage, client, tmp_path, monkeypatch, capsys
):
    given = overrides(model, storage, **KILLED, **LOCAL_RAY)
    with (tmp_path / "log").open("w+") as log:
        driver = start("demo", given, tmp_path / "first", log)
        kill(driver, lambda: 2 <= len(versions(client, storage, "/images/part-")) < 10, log)
        before = versions(client, storage, "/images/part-") | versions(client, storage, "/adapters/")
        finish("demo", given, tmp_path / "second", log)
        local = overrides(model, tmp_path / "runs", **KILLED, **LOCAL_RAY)
        finish("demo", local, tmp_path, log)
    after = versions(client, storage, "/smoke/")
    assert {key: after[key] for key in before} == before

    monkeypatch.setenv("AIG_CACHE", str(tmp_path / "third"))
    assert main(["status", uris.joined(storage, "smoke")]) == 0
    said = capsys.readouterr().out
    assert "1 done" in said and "images     10 of 10 units" in said and "next: nothing is missing" in said
    ours, theirs = (configuration.load("smoke", None, each) for each in (given, local))
    RunDir.of(ours).pull(RunDir.of(ours).root, without=["ray"])
    check_same(ours, theirs)
    assert drawn(ours) == drawn(theirs)
    for name in ("metrics.parquet", "per_prompt.parquet", "table.csv", "front.json"):
        assert (RunDir.of(ours).root / name).read_bytes() == (RunDir.of(theirs).root / name).read_bytes()
    left = {key.partition("/smoke/")[2].partition("/")[0] for key in after}
    assert left >= {"adapters", "curves", "images", "report", "tensorboard", "validation", "ray", "config.yaml"}
    assert not any("checkpoint_" in key for key in after)


def newest_step(run, storage):
    found = checkpoints.newest(run, storage)[0]
    return -1 if found is None else checkpoints.step_of(run, found)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_whose_driver_was_killed_goes_on_elsewhere_from_rays_checkpoint_in_the_store(
    model, storage, client, tmp_path, monkeypatch
):
    # Long enough that there is time to kill it.
    asked = {"train__reward": "pipeline_toys:unhurried", "train__steps": 24, "train__snapshot_every": 12}
    asked |= {"train__validate_every": 4, "train__checkpoint_every": 2}
    given = overrides(model, storage, **asked, **LOCAL_RAY)
    single = configuration.load("smoke", None, given)
    files, key = RunDir.of(single), adapter_key(single.train)
    points, checkpointed = files.curves, files.checkpoints(key)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with (tmp_path / "log").open("w+") as log:
        driver = start("train", given, tmp_path / "first", log)
        kill(driver, lambda: newest_step(files, checkpointed) >= 6, log)
        files.pull(points)
        begun = (points / f"{key}.jsonl").read_text().splitlines()[:2]
        finish("train", given, tmp_path / "second", log)
    RunDir.of(single).pull(RunDir.of(single).root, without=["ray"])
    # With their seconds: these validations were not made again.
    assert (points / f"{key}.jsonl").read_text().splitlines()[:2] == begun
    assert [json.loads(line)["step"] for line in begun] == [0, 4]
    other = configuration.load("smoke", None, overrides(model, tmp_path / "local", **asked))
    bare_training.run(other)
    check_same(single, other)
    assert RunDir.of(single).names(checkpointed) == []
