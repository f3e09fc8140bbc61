"""What every test may lean on: no network, no Ray but our own, few threads."""

import os

import pytest
import torch


def pytest_configure():
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # with tokens on, Ray writes one to the home directory
    os.environ.pop("RAY_ADDRESS", None)  # neither the tests nor their subprocesses run on a user's cluster
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")))


def pytest_collection_modifyitems(items):
    """Processes take whole files: those that start Ray take longest, and one that came last would run alone."""
    with_ray = {item.path for item in items if "ray_cluster" in item.fixturenames}
    items.sort(key=lambda item: item.path not in with_ray)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def listed_keys(monkeypatch):
    """A command that a test runs in this process reads no configuration key but those that its help lists."""
    from reads import watch

    unlisted = watch(monkeypatch)
    yield
    assert not unlisted, f"not in the READS of pipelines/commands/*.py: {unlisted}"


@pytest.fixture(scope="session")
def ray_cluster():
    """Ray with 4 logical CPUs: what this process has already, else one of our own that is stopped at the end."""
    import ray  # here, so that tests of aig alone run where Ray is not installed

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",  # a new one, even beside a cluster that runs on this host
        num_cpus=4,
        object_store_memory=300 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of an untrained model of the embedded world's classes, saved once a session."""
    from aig.world.tiny import build_pipeline  # here, so that tests without a model stay quick to start

    folder = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """`family_folder("sdxl")`: the folder of that family's tiny pipeline, built once a session."""
    from families import build  # here, so that tests without a model stay quick to start

    folders = {}

    def folder(family):
        if family not in folders:
            folders[family] = build(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return folder
