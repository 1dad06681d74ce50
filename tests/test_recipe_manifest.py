"""The Kubernetes manifest among the recipes: a table of what the API takes, and what must agree."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args

from clusters import bench_in

RECIPES = Path(__file__).parents[1] / "recipes"
MANIFEST = RECIPES / "pytorchjob.yaml"
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

# What may stand at each place of a kubeflow.org/v1 PyTorchJob, as far as the recipe needs it: the
# names of a mapping, [] before what each element of a list may be, or the type of a value.
CONTEXT = {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int}
CONTEXT |= {"fsGroupChangePolicy": str, "seccompProfile": {"type": str}}
RESOURCES = {"cpu": str, "memory": str, "nvidia.com/gpu": int}
VARIABLE = {"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}
CONTAINER = {
    "name": str,
    "image": str,
    "env": [VARIABLE],
    "command": [str],
    "workingDir": str,
    "resources": {"requests": RESOURCES, "limits": RESOURCES},
    "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
POD = {
    "terminationGracePeriodSeconds": int,
    "securityContext": CONTEXT,
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"spec": POD}}
SCHEMA = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int},
        "pytorchReplicaSpecs": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}


def strange(value: Any, schema: Any, place: str = "") -> list[str]:
    """The places of a manifest that the table does not know, or knows as another type."""
    if isinstance(schema, dict) and isinstance(value, dict):
        unknown = [f"{place}.{key}" for key in value.keys() - schema.keys()]
        known = value.keys() & schema.keys()
        return unknown + [
            fault for key in known for fault in strange(value[key], schema[key], f"{place}.{key}")
        ]
    if isinstance(schema, list) and isinstance(value, list):
        return [fault for each in value for fault in strange(each, schema[0], f"{place}[]")]
    return [] if type(value) is schema else [place]


@pytest.fixture
def manifest() -> Any:
    return yaml.safe_load(MANIFEST.read_text())


@pytest.fixture
def pod(manifest: Any) -> Any:
    return manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


def test_kubernetes_knows_every_field(manifest: Any) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert not strange(manifest, SCHEMA)


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ({"spec": {"runPolicy": {"backofLimit": 3}}}, ".spec.runPolicy.backofLimit"),
        ({"metadata": {"name": 3}}, ".metadata.name"),
        ({"spec": {"pytorchReplicaSpecs": {"Chief": {}}}}, ".spec.pytorchReplicaSpecs.Chief"),
        (
            {"spec": {"pytorchReplicaSpecs": {"Master": {"replicas": "1"}}}},
            ".spec.pytorchReplicaSpecs.Master.replicas",
        ),
    ],
)
def test_a_planted_field_is_seen(planted: Any, seen: str) -> None:
    assert strange(planted, SCHEMA) == [seen]


def test_master_and_workers_are_one_pod(manifest: Any) -> None:
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1
    assert replicas["Worker"]["template"] == replicas["Master"]["template"]
    # torchrun ends with 1, which the operator's policy ExitCode takes for final.
    assert {each["restartPolicy"] for each in replicas.values()} == {"OnFailure"}


def test_torchrun_understands_the_command(manifest: Any, container: Any) -> None:
    program, *words = container["command"]
    asked = parse_args(words)
    replicas = manifest["spec"]["pytorchReplicaSpecs"].values()
    assert program == "torchrun"
    assert int(asked.nnodes) == sum(each["replicas"] for each in replicas)
    assert asked.rdzv_endpoint == f"{manifest['metadata']['name']}-master-0:29500"


def test_the_command_is_that_of_the_scripts(container: Any, tmp_path: Path) -> None:
    asked = parse_args(container["command"][1:])
    given = [re.sub(r"\$\((\w+)\)", r"$\1", word) for word in asked.training_script_args]
    bench = bench_in(tmp_path)
    for script in ("one-node.sh", "several-nodes.sh"):
        bench.end(RECIPES / script, "$PRESET", "$RUN", ENDS="0", NODES="2", HEAD="head")
        told = parse_args(bench.read("words"))
        assert given == told.training_script_args
        for name in ("training_script", "module", "nproc_per_node", "max_restarts"):
            assert getattr(asked, name) == getattr(told, name)
    assert (asked.rdzv_backend, asked.rdzv_conf) == (told.rdzv_backend, told.rdzv_conf)


def test_every_variable_that_is_named_exists(container: Any) -> None:
    earlier: set[str] = set()  # a value may name only what stands before it
    for variable in container["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= earlier
        earlier.add(variable["name"])
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["command"]))) <= earlier
    scripts = (RECIPES / "several-nodes.sh").read_text()
    assert {GRACE, "OMP_NUM_THREADS", "NCCL_DEBUG"} <= earlier
    assert all(f"export {name}=" in scripts for name in (GRACE, "OMP_NUM_THREADS", "NCCL_DEBUG"))


def test_volumes_that_are_mounted_exist(pod: Any, container: Any) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == volumes.keys()
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    (run,) = (each["value"] for each in container["env"] if each["name"] == "RUN")
    assert "persistentVolumeClaim" in volumes[mounts["/data"]]
    assert run.startswith("/data/")


def test_nobody_is_root(pod: Any, container: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_what_a_user_must_set_is_empty_and_named_at_the_top(pod: Any, container: Any) -> None:
    head = "".join(line for line in MANIFEST.read_text().splitlines(True) if line.startswith("#"))
    assert container["image"] == ""
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == ""
    assert all(f"#   {name}" in head for name in ("image", "claimName", "PRESET", "replicas"))


def test_a_checkpoint_has_its_time_before_the_end_comes(pod: Any, container: Any) -> None:
    """SIGKILL comes from outside only after torchrun's own, and SLURM may tell a minute early."""
    (grace,) = (int(each["value"]) for each in container["env"] if each["name"] == GRACE)
    assert pod["terminationGracePeriodSeconds"] >= grace + 60
    slurm = (RECIPES / "slurm.sbatch").read_text()
    (told,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", slurm, re.M)
    (grace,) = {int(seconds) for seconds in re.findall(r"GRACE=\$\{GRACE:-(\d+)\}", slurm)}
    assert int(told) >= grace + 60
