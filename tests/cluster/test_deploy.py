"""The cluster files: what can be known to be right without a cloud."""

import copy
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from aig.world import weights
from pipelines import config as configuration
from pipelines.cluster.connect import Cluster, Need, largest, needs
from pipelines.config import ConfigError
from pipelines.evaluate import pools
from pipelines.train.launch import room_for
from tune.search.workers import size

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_LIMIT = 5 * 2**20

# The fields of KubeRay's ray.io/v1 types, as its API reference lists them (v1.5); those of pods are Kubernetes' own.
KUBERAY = {
    "RayClusterSpec": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
    },
    "AutoscalerOptions": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
        "upscalingMode", "version", "volumeMounts",
    },
    "HeadGroupSpec": {
        "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template",
    },
    "WorkerGroupSpec": {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
        "replicas", "resources", "scaleStrategy", "suspend", "template",
    },
    "RayJobSpec": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
        "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
}  # fmt: skip


def documents(name):
    return {document["kind"]: document for document in yaml.safe_load_all((ROOT / "deploy" / name).read_text())}


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def kuberay():
    return documents("raycluster.yaml")["RayCluster"]


@pytest.fixture(scope="module")
def run_instances():
    """The shape of the parameters that EC2's RunInstances documents."""
    return ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances").input_shape


def ec2_errors(node_config, shape):
    # The provider adds the counts itself.
    return ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape).generate_report()


def test_cluster_yaml_passes_rays_own_offline_validation(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_validation_refuses_an_unknown_key_of_the_cluster(cluster):
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**cluster, "idle_minutes": 5}))


@pytest.mark.parametrize("node", ["head", "train", "evaluate"])
def test_every_node_config_holds_documented_parameters_of_ec2(cluster, run_instances, node):
    assert ec2_errors(cluster["available_node_types"][node]["node_config"], run_instances) == ""


def test_a_misspelled_parameter_of_ec2_is_found(cluster, run_instances):
    node_config = cluster["available_node_types"]["evaluate"]["node_config"]
    assert "InstanceMarketOption" in ec2_errors({**node_config, "InstanceMarketOption": {}}, run_instances)


@pytest.mark.parametrize("node", ["head", "train", "evaluate"])
def test_instance_types_and_market_are_among_those_that_ec2_has(cluster, run_instances, node):
    node_config = cluster["available_node_types"][node]["node_config"]
    assert node_config["InstanceType"] in run_instances.members["InstanceType"].enum
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType", "spot")
    assert market in run_instances.members["InstanceMarketOptions"].members["MarketType"].enum


def test_evaluation_alone_runs_on_spot_nodes_and_all_workers_start_from_none(cluster):
    types = cluster["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"evaluate"}
    assert all(kind["min_workers"] == 0 for name, kind in types.items() if name != "head")


def test_the_head_listens_on_localhost_and_every_node_asks_for_the_token(cluster):
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_run_configuration_asks_for_nodes_that_both_clusters_have(cluster, kuberay):
    config = configuration.load(file=ROOT / "deploy" / "gpu.yaml")
    types = cluster["available_node_types"]
    groups = {group["groupName"]: group for group in kuberay["spec"]["workerGroupSpecs"]}
    named = ("train", config.train.node), ("evaluate", config.evaluate.node), ("evaluate", config.search.node)
    for node_type, name in named:
        assert name in types[node_type]["resources"]
        # KubeRay hands the value to a shell, so it stands in two pairs of quotes.
        assert name in yaml.safe_load(yaml.safe_load(groups[node_type]["rayStartParams"]["resources"]))


def test_the_actors_of_the_run_configuration_fit_into_the_largest_cluster(cluster):
    config = configuration.load(file=ROOT / "deploy" / "gpu.yaml")
    counts = {node: cluster["available_node_types"][node]["max_workers"] for node in ("train", "evaluate")}
    # KubeRay's nodes have 7 CPUs, those of cluster.yaml 8.
    assert config.ray.grows_to == {
        "CPU": 7 * sum(counts.values()), "GPU": sum(counts.values()), "train": counts["train"],
        "spot": counts["evaluate"],
    }  # fmt: skip
    grown = Cluster(config.ray.grows_to, started=False, dashboard=None)
    assert pools.generators(config, grown).start == config.evaluate.generators
    assert room_for(config, grown) >= config.sweep.max_concurrent
    assert size(config, grown) == config.search.workers


@pytest.mark.parametrize("group", ["head", "train", "evaluate"])
def test_every_pod_of_the_raycluster_is_one_that_kubernetes_takes(kuberay, group):
    spec = kuberay["spec"]
    groups = {"head": spec["headGroupSpec"], **{g["groupName"]: g for g in spec["workerGroupSpecs"]}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, **groups[group]["template"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)


def test_a_misspelled_field_of_a_pod_is_found(kuberay):
    template = copy.deepcopy(kuberay["spec"]["headGroupSpec"]["template"])
    template["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, **template}, "1.33", strict=True
        )


def test_the_claim_of_the_run_folder_is_one_that_kubernetes_takes():
    kubernetes_validate.validate(documents("raycluster.yaml")["PersistentVolumeClaim"], "1.33", strict=True)


def test_raycluster_and_rayjob_have_kuberays_fields_alone(kuberay):
    spec, job = kuberay["spec"], documents("rayjob.yaml")["RayJob"]
    assert set(spec) <= KUBERAY["RayClusterSpec"]
    assert set(spec["autoscalerOptions"]) <= KUBERAY["AutoscalerOptions"]
    assert set(spec["headGroupSpec"]) <= KUBERAY["HeadGroupSpec"]
    assert all(set(group) <= KUBERAY["WorkerGroupSpec"] for group in spec["workerGroupSpecs"])
    assert set(job["spec"]) <= KUBERAY["RayJobSpec"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": kuberay["metadata"]["name"]}


def test_the_raycluster_names_the_version_of_ray_that_is_pinned(kuberay):
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={kuberay['spec']['rayVersion']}" in pins


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """What `ray job submit --working-dir .` would ship."""
    path = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(ROOT), path, include_gitignore=True)
    return path


def test_the_package_of_a_submitted_job_is_small(package):
    size = package.stat().st_size
    print(f"the package of a submitted job has {size / 2**20:.2f} MB")
    assert size < PACKAGE_LIMIT


def test_a_shipped_copy_of_the_code_finds_the_installed_worlds_weights(package, tmp_path, monkeypatch):
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    assert not (tmp_path / "aig" / "world" / "weights").exists()
    assert (tmp_path / "pipelines" / "presets" / "demo.yaml").exists()
    installed = SimpleNamespace(
        read_text=lambda name: json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": True}}),
        locate_file=lambda name: tmp_path / "site-packages",
    )
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "aig" / "world" / "weights.py"))
    monkeypatch.setattr(weights, "distribution", lambda name: installed)
    assert weights.folder("tiny") == ROOT / "aig" / "world" / "weights" / "tiny"


def an_actor(one):
    return Need("an actor", one, {"CPU": "its.cpus", "GPU": "its.gpus", "memory": "its.memory", "tpu": "its.node"})


def test_the_room_of_a_cluster_is_that_of_its_scarcest_resource():
    cluster = Cluster({"CPU": 64, "GPU": 5, "spot": 4}, started=False, dashboard=None)
    assert cluster.room(an_actor(needs(2, 0.75, "spot")), Need("another", {"GPU": 1}, {})) == 5
    assert cluster.room(an_actor(needs(20))) == 3
    assert Cluster({"CPU": 64, "memory": 7.5 * 2**30}, False, None).room(an_actor(needs(1, memory=2))) == 3


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (needs(100), r"100 CPU \(its.cpus\), and the cluster has 64 CPU: lower its.cpus"),
        (needs(1, 6), r"6 GPU \(its.gpus\), and the cluster has 5 GPU: lower its.gpus"),
        (needs(1, 0, "tpu"), r"the resource tpu \(its.node\), and the cluster has no tpu: name another its.node"),
        (
            needs(1, memory=1.5),
            r"1.5 GiB of memory \(its.memory\), and the cluster has 0 GiB of memory: lower its.memory",
        ),
    ],
)
def test_what_could_never_run_is_refused_with_the_resource_and_what_there_is(wanted, named):
    cluster = Cluster({"CPU": 64, "GPU": 5}, started=False, dashboard=None)
    with pytest.raises(ConfigError, match=f"an actor needs {named}"):
        cluster.room(an_actor(wanted))


def test_a_training_worker_that_fits_no_single_node_is_refused_however_large_they_are_together():
    nodes = ({"CPU": 4.0, "memory": 2.0 * 2**30},) * 4
    together = {"CPU": 16.0, "memory": 8.0 * 2**30}
    cluster = Cluster(together, started=False, dashboard=None, nodes=nodes)
    large = configuration.load(overrides=["train.memory_per_worker=3"])
    said = r"3 GiB of memory \(train.memory_per_worker\) on one node, and the largest node has 2 GiB of memory: lower"
    with pytest.raises(ConfigError, match=said):
        room_for(large, cluster)
    assert room_for(configuration.load(overrides=["train.memory_per_worker=2"]), cluster) == 4


def test_a_full_cluster_has_no_more_nodes_than_it_may_have_in_all(tmp_path):
    kinds = {"head": {"resources": {"CPU": 2}}, "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 10}}
    described = {"max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump(described))
    assert largest(tmp_path / "bootstrap.yaml") == {"CPU": 2 + 3 * 4, "GPU": 3}
    assert largest(tmp_path / "none.yaml") == {}


def test_amounts_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"ray\.grows_to is .*: give numbers by resource"):
        configuration.load(overrides=["ray.grows_to={CPU: many}"])
