"""Files that start clusters: what Ray, AWS and KubeRay accept, and our own rules. Offline."""

import copy
import os
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaling_config,
)
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
AWS, GCP = "cluster.yaml", "deploy/gcp.yaml"
RAY_CLUSTER, RAY_JOB = "deploy/kuberay-raycluster.yaml", "deploy/kuberay-rayjob.yaml"

launched = pytest.mark.parametrize("file", [AWS, GCP])
on_kubernetes = pytest.mark.parametrize("file", [RAY_CLUSTER, RAY_JOB])
everywhere = pytest.mark.parametrize("file", [AWS, GCP, RAY_CLUSTER, RAY_JOB])


def text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def resource(file: str) -> dict[str, Any]:
    """The Ray resource in a file for Kubernetes."""
    [found] = [one for one in yaml.safe_load_all(text(file)) if one["kind"].startswith("Ray")]
    return found


def ray_cluster(file: str) -> dict[str, Any]:
    """The specification of the Ray cluster in a file for Kubernetes."""
    spec = resource(file)["spec"]
    return spec.get("rayClusterSpec", spec)


def scaling(file: str) -> dict[str, Any]:
    """The configuration that Ray's autoscaler makes of a file."""
    if file in (RAY_CLUSTER, RAY_JOB):
        made = {"metadata": {"name": "x", "namespace": "y"}, "spec": ray_cluster(file)}
        return autoscaling_config(made)
    return prepare_config(yaml.safe_load(text(file)))


def types(file: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The head's node type, and the workers' by name."""
    config = scaling(file)
    workers = dict(config["available_node_types"])
    return workers.pop(config["head_node_type"]), workers


def groups(file: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Pod specifications of the head and of the workers by name."""
    spec = ray_cluster(file)
    workers = {one["groupName"]: one["template"]["spec"] for one in spec["workerGroupSpecs"]}
    return spec["headGroupSpec"]["template"]["spec"], workers


def is_spot(file: str, name: str | None = None) -> bool:
    """Whether the machines of the head, or of the worker type `name`, can be taken away."""
    if file in (RAY_CLUSTER, RAY_JOB):
        head, workers = groups(file)
        pod = workers[name] if name else head
        return pod["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
    head, workers = types(file)
    machine = (workers[name] if name else head)["node_config"]
    schedule = machine.get("scheduling", {})
    return (
        "InstanceMarketOptions" in machine
        or schedule.get("provisioningModel") == "SPOT"
        or schedule.get("preemptible", False)
    )


# Our rules


@everywhere
def test_ray_accepts_it(file):
    validate_config(scaling(file))


@pytest.mark.parametrize("file", [AWS, GCP, RAY_CLUSTER, RAY_JOB, "deploy/Dockerfile"])
def test_images_are_of_the_pinned_ray(file):
    images = re.findall(r"^ *(?:image:|FROM) *(\S+)", text(file), re.MULTILINE)
    assert images
    assert all(re.search(rf":{re.escape(version('ray'))}(-|$)", image) for image in images)


@on_kubernetes
def test_rays_version_is_the_pinned_one(file):
    assert ray_cluster(file)["rayVersion"] == version("ray")


@everywhere
def test_the_head_is_never_spot_and_has_no_gpu(file):
    head, _ = types(file)
    assert not is_spot(file)
    assert not head["resources"].get("GPU")
    assert head["resources"]["CPU"] > 0


@everywhere
def test_gpu_workers_start_at_none(file):
    _, workers = types(file)
    assert len(workers) == 2
    for worker in workers.values():
        assert worker["resources"]["GPU"] == 1
        assert worker["resources"]["CPU"] > 0
        assert worker["min_workers"] == 0 < worker["max_workers"]


@everywhere
def test_the_driver_can_ask_for_spot_and_for_on_demand(file):
    _, workers = types(file)
    kinds = {name: set(one["resources"]) & {"spot", "on_demand"} for name, one in workers.items()}
    assert sorted(map(sorted, kinds.values())) == [["on_demand"], ["spot"]]
    for name, kind in kinds.items():
        assert is_spot(file, name) == (kind == {"spot"})


@launched
def test_the_dashboard_is_private(file):
    config = scaling(file)
    [start] = [one for one in config["head_start_ray_commands"] if "ray start" in one]
    assert "--dashboard-host=127.0.0.1" in start
    assert "IpPermissions" not in text(file)


@launched
def test_every_node_asks_for_the_token(file):
    config = scaling(file)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    assert text(file).count("RAY_AUTH_MODE") == 1


@launched
def test_the_project_is_installed_on_every_node(file):
    config = scaling(file)
    assert config["file_mounts"]["/home/ray/g2is-ray"] == "."
    for commands in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert any('-e "/home/ray/g2is-ray[gpu' in one for one in commands)
        assert all("constraints.txt" in one for one in commands if "g2is-ray" in one)


@on_kubernetes
def test_kuberay_makes_a_token_and_the_dashboard_stays_in_the_cluster(file):
    spec = ray_cluster(file)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in spec["headGroupSpec"]
    assert "RAY_AUTH" not in text(file)


@on_kubernetes
def test_kuberay_scales_it(file):
    assert ray_cluster(file)["enableInTreeAutoscaling"] is True


def test_both_kubernetes_files_have_the_same_cluster():
    job = copy.deepcopy(ray_cluster(RAY_JOB))
    head = job["headGroupSpec"]["template"]["spec"]
    del head["volumes"], head["containers"][0]["volumeMounts"]
    assert job == ray_cluster(RAY_CLUSTER)


def test_the_job_finds_its_settings():
    head, _ = groups(RAY_JOB)
    config, job = yaml.safe_load_all(text(RAY_JOB))
    [mount] = head["containers"][0]["volumeMounts"]
    [volume] = head["volumes"]
    assert (volume["name"], volume["configMap"]["name"]) == (
        mount["name"],
        config["metadata"]["name"],
    )
    [name] = config["data"]
    assert job["spec"]["entrypoint"].endswith(f"--config {mount['mountPath']}/{name}")


def test_the_jobs_settings_are_settings():
    from g2is_ray.config import check, fields_of
    from jobs.cli import COMMANDS

    settings = COMMANDS["run"].settings
    config, _ = yaml.safe_load_all(text(RAY_JOB))
    values = yaml.safe_load(config["data"]["run.yaml"])
    assert set(values) <= {"workspace", *fields_of(settings)}
    check(settings, {**values, "pool": [values["pool"]]})


def test_the_image_has_every_package():
    copied = re.findall(r"^COPY --chown=ray:users (.+) \S+$", text("deploy/Dockerfile"), re.M)
    names = " ".join(copied).split()
    assert all((ROOT / name).exists() for name in names)
    settings = tomllib.loads(text("pyproject.toml"))
    tool = settings["tool"]["setuptools"]
    packages = {pattern.removesuffix("*") for pattern in tool["packages"]["find"]["include"]}
    assert packages | {f"{module}.py" for module in tool["py-modules"]} <= set(names)


# AWS


@pytest.fixture(scope="module")
def run_instances() -> Any:
    """What AWS's own description says that RunInstances takes."""
    service = botocore.session.get_session().get_service_model("ec2")
    return service.operation_model("RunInstances").input_shape


def aws_machines() -> Iterator[dict[str, Any]]:
    head, workers = types(AWS)
    for one in (head, *workers.values()):
        yield one["node_config"]


def test_aws_accepts_every_machine(run_instances):
    for machine in aws_machines():
        report = ParamValidator().validate(machine | {"MinCount": 1, "MaxCount": 1}, run_instances)
        assert not report.has_errors(), report.generate_report()
        assert machine["InstanceType"] in run_instances.members["InstanceType"].enum
        market = run_instances.members["InstanceMarketOptions"].members["MarketType"]
        assert machine.get("InstanceMarketOptions", {}).get("MarketType", "spot") in market.enum


def test_aws_machines_have_the_rights_that_the_stack_makes():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, tag, node: f"{tag} {node.value}")
    stack = yaml.load(text("deploy/aws-iam.yaml"), Loader)
    made = {
        one["Properties"]["InstanceProfileName"]
        for one in stack["Resources"].values()
        if one["Type"] == "AWS::IAM::InstanceProfile"
    }
    head, workers = types(AWS)
    used = [one["node_config"]["IamInstanceProfile"]["Name"] for one in (head, *workers.values())]
    assert set(used) == made
    assert used.count(used[0]) == 1  # workers have no right to start machines


# KubeRay


@on_kubernetes
def test_kuberay_accepts_it(file):
    """G2IS_KUBERAY_CRDS: folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of KubeRay."""
    folder = os.environ.get("G2IS_KUBERAY_CRDS")
    if not folder:
        pytest.skip("G2IS_KUBERAY_CRDS does not name a folder with KubeRay's CRDs")
    held = resource(file)
    crd = yaml.safe_load((Path(folder) / f"ray.io_{held['kind'].lower()}s.yaml").read_text())
    [schema] = [
        one["schema"]["openAPIV3Schema"]
        for one in crd["spec"]["versions"]
        if f"{crd['spec']['group']}/{one['name']}" == held["apiVersion"]
    ]
    jsonschema.validate(held, strict(schema))


def strict(schema: Any) -> Any:
    """The schema, with fields refused that it does not name; Kubernetes would drop them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        kept = schema.get("x-kubernetes-preserve-unknown-fields", False)
        made.setdefault("additionalProperties", kept)
    return made
