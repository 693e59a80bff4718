"""deploy/kuberay and deploy/serve.yaml against the schemas of KubeRay, Kubernetes and Ray Serve, and our own code."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.runtime_env import RuntimeEnv
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from actors.ingress import from_manifest
from framegrove.cluster import placement
from framegrove.cluster.placement import AWAITED_GPU, Role, bundle, fits
from framegrove.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT / "tests" / "kuberay"
CORE = "io.k8s.api.core.v1."


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return loaded


def check(manifest: dict[str, Any], kind: str) -> None:
    """Raise ValidationError for what KubeRay or Kubernetes would refuse."""
    definitions = json.loads((SCHEMAS / "pods.json").read_text(encoding="utf-8"))
    definitions |= yaml.safe_load((SCHEMAS / "kuberay.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": definitions}).validate(manifest)


def as_ray_reads_it(spec: dict[str, Any]) -> dict[str, Any]:
    """The groups of a cluster as Ray's autoscaler derives them from what KubeRay hands it."""
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "default"}, "spec": spec})
    groups: dict[str, Any] = config["available_node_types"]
    return groups


CLUSTER = load("raycluster.yaml")
JOB = load("rayjob.yaml")
SERVICE = load("rayservice.yaml")


def test_kuberay_accepts_them() -> None:
    check(CLUSTER, "RayCluster")
    check(JOB, "RayJob")
    check(SERVICE, "RayService")
    check(load("shared.yaml"), CORE + "PersistentVolumeClaim")


@pytest.mark.parametrize(
    ("where", "change", "says"),
    [
        ("spec", {"headGroup": {}}, "headGroup"),
        ("spec", {"enableInTreeAutoscaling": "yes"}, "yes"),
        ("spec", {"authOptions": {"mode": "password"}}, "password"),
        ("group", {"maxReplica": 3}, "maxReplica"),
        ("group", {"minReplicas": None}, "None"),
        ("group", {"resources": {"GPU": 8}}, "8"),
        ("pod", {"nodeSelectors": {}}, "nodeSelectors"),
        ("pod", {"tolerations": {"key": "nvidia.com/gpu"}}, "nvidia.com/gpu"),
        ("container", {"volumeMount": []}, "volumeMount"),
    ],
)
def test_a_wrong_field_is_refused(where: str, change: dict[str, Any], says: str) -> None:
    manifest = copy.deepcopy(CLUSTER)
    group = manifest["spec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    places = {"spec": manifest["spec"], "group": group, "pod": pod, "container": pod["containers"][0]}
    places[where].update(change)
    with pytest.raises(jsonschema.ValidationError, match=says):
        check(manifest, "RayCluster")


def test_a_field_that_is_missing_is_told() -> None:
    manifest = copy.deepcopy(CLUSTER)
    del manifest["spec"]["workerGroupSpecs"][0]["groupName"]
    with pytest.raises(jsonschema.ValidationError, match="'groupName' is a required property"):
        check(manifest, "RayCluster")


@pytest.mark.parametrize(
    ("spec", "roles"),
    [
        (CLUSTER["spec"], set(Role)),
        (JOB["spec"]["rayClusterSpec"], {Role.TRAIN}),
        (SERVICE["spec"]["rayClusterConfig"], set(Role) - {Role.TRAIN}),
    ],
    ids=["RayCluster", "RayJob", "RayService"],
)
def test_every_role_finds_room_on_its_own_machines_alone(
    spec: dict[str, Any], roles: set[Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for as the code does when only the head is up: eight actors with a GPU each fill one machine."""
    groups = as_ray_reads_it(spec)
    head = groups.pop("headgroup")["resources"]
    assert {AWAITED_GPU, *Role} <= set(head)
    monkeypatch.setattr(
        placement.ray, "cluster_resources", lambda: {key: value for key, value in head.items() if value}
    )
    for role in Role:
        wanted = [bundle(role, num_gpus=1)] * 8
        homes = {name for name, group in groups.items() if fits(wanted, [group["resources"]])}
        assert homes == {name for name, group in groups.items() if role.value in group["resources"]}
        assert bool(homes) == (role in roles)
        assert not fits(wanted[:1], [head])


def test_groups_are_at_zero_and_their_pods_have_what_they_need() -> None:
    claim = load("shared.yaml")["metadata"]["name"]
    assert CLUSTER["spec"]["enableInTreeAutoscaling"]
    for group in CLUSTER["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == group["resources"]["GPU"]
        assert container["resources"]["limits"]["cpu"] == group["resources"]["CPU"]
        assert "nvidia.com/gpu.product" in pod["nodeSelector"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim


def test_the_job_brings_the_clusters_head_and_training_group() -> None:
    (train,) = [group for group in CLUSTER["spec"]["workerGroupSpecs"] if group["groupName"] == "train"]
    assert JOB["spec"]["rayClusterSpec"] == {**CLUSTER["spec"], "workerGroupSpecs": [train]}


def test_the_service_brings_the_clusters_head_and_searching_groups() -> None:
    searching = [group for group in CLUSTER["spec"]["workerGroupSpecs"] if group["groupName"] != "train"]
    assert SERVICE["spec"]["rayClusterConfig"] == {**CLUSTER["spec"], "workerGroupSpecs": searching}


SERVE = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "manifest", [SERVE, yaml.safe_load(SERVICE["spec"]["serveConfigV2"])], ids=["serve deploy", "RayService"]
)
def test_ray_serve_accepts_the_application(manifest: dict[str, Any]) -> None:
    """As Ray Serve does once the manifest has reached it: the schema, the builder, and its arguments."""
    given = ServeDeploySchema.model_validate(manifest)
    (served,) = given.applications
    assert served.import_path is not None
    module, _, name = served.import_path.partition(":")
    built = build_app(getattr(importlib.import_module(module), name)(served.args), name=served.name)
    (deployment,) = built.deployments
    (config,) = deployment.init_args
    assert (config.host, config.port) == (given.http_options.host, given.http_options.port)
    assert config.exposed
    assert config.keys is not None
    assert config.folder.is_relative_to("/shared")
    assert config.keys.is_relative_to("/shared")
    assert deployment.ray_actor_options is not None
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert "label_selector" not in deployment.ray_actor_options, "any machine may take the replica: all see /shared"
    RuntimeEnv(**served.runtime_env)
    assert deployment.num_replicas == 1, "the folder belongs to one"


def test_serve_deploy_and_kuberay_run_the_same_application() -> None:
    """But for where the checkout is; and KubeRay never has two clusters at a time, since the folder belongs to one."""
    plain, service = copy.deepcopy(SERVE), yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    here, there = (manifest["applications"][0].pop("runtime_env") for manifest in (plain, service))
    assert plain == service
    assert there == yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])
    checkout = here["working_dir"].removeprefix("local://")
    assert here["env_vars"]["PYTHONPATH"] == f"{checkout}/platform"
    assert SERVICE["spec"]["upgradeStrategy"] == {"type": "None"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"folder": "videos"}, "folder is videos, and must be an absolute path"),
        ({"keys": None}, "the arguments of the application: host 0.0.0.0 can be reached"),
        ({"generator": 3}, "unknown key 'generator', did you mean 'generators'?"),
        ({"models": [{"name": "/nowhere"}]}, "/nowhere"),
    ],
)
def test_a_wrong_argument_is_told(change: dict[str, Any], says: str) -> None:
    (served,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    with pytest.raises(UserError, match=re.escape(says)):
        from_manifest({**served["args"], **change})


def test_the_jobs_code_is_where_the_image_has_it() -> None:
    environment = yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])
    RuntimeEnv(**environment)
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^COPY .* \. (\S+)$", image, re.MULTILINE)
    assert environment["working_dir"] == f"local://{folder}"
    assert JOB["spec"]["entrypoint"].startswith("python -m jobs.")


def test_everything_is_of_the_ray_that_is_installed() -> None:
    version = importlib.metadata.version("ray")
    assert CLUSTER["spec"]["rayVersion"] == version
    assert f"rayproject/ray:{version}-" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
