"""cluster.yaml and deploy/: valid for those who read them, and free of traps and secrets.

Ray offers no public way to check a launcher file offline; the private functions used here are
those that `ray up` calls first, and the Ray version is pinned. What Kubernetes and KubeRay know is
written down in data/kubernetes_fields.yaml. None of it has met AWS or a Kubernetes cluster.
"""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeps.database import VARIABLE

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
AWS = ROOT / "cluster.yaml"
ON_PREMISE = DEPLOY / "on-premise.yaml"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M))

# ------------------------------------------------------------------------- Ray cluster launcher


def written(path: Path) -> dict[str, Any]:
    """What the file says, before Ray adds its defaults."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


@pytest.fixture(params=[AWS, ON_PREMISE], ids=lambda path: path.name)
def launcher(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def merged(launcher: Path) -> dict[str, Any]:
    return prepare_config(written(launcher))


def start_commands(config: dict[str, Any], node: str) -> list[str]:
    commands: list[str] = config[f"{node}_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_file(merged: dict[str, Any]) -> None:
    validate_config(merged)


@pytest.mark.parametrize("where", ["top", "node type"])
def test_ray_refuses_an_unknown_key(where: str) -> None:
    config = written(AWS)
    place = config if where == "top" else config["available_node_types"]["gpu_worker"]
    place["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(config))


def test_no_nightly_ray_gets_in_through_the_defaults(merged: dict[str, Any]) -> None:
    text = json.dumps(merged)
    assert not re.findall(r"ray-wheels|3\.0\.0\.dev\w*|\S+\.whl", text)


def installed(config: dict[str, Any], node: str) -> list[str]:
    """What uv installs on a node, one entry a command."""
    commands = "\n".join(config[f"{node}_setup_commands"])
    return re.findall(r"^uv pip install --python ~/stabmap-env/bin/python (.*)$", commands, re.M)


def test_nodes_install_the_pins_the_project_and_no_other_version(merged: dict[str, Any]) -> None:
    basis = ["-r ~/stabmap/requirements.txt", "--no-deps -e ~/stabmap"]
    for node in ("head", "worker"):
        found = installed(merged, node)
        assert found[:2] == basis
        for package in found[2:]:
            name, _, version = package.partition("==")
            assert re.fullmatch(r"[\d.]+", version), f"{package} has no version"
            assert PINS.get(name, version) == version
        commands = "\n".join(merged[f"{node}_setup_commands"])
        assert commands.count("pip install") == len(found)  # none in another spelling
        assert re.findall(r"https?://\S+", commands) == ["https://astral.sh/uv/0.13.8/install.sh"]


def test_the_pins_cover_what_a_cluster_needs_beside_tune() -> None:
    # Ray's dashboard with the job server, its autoscaler; PostgreSQL; accounts of MLflow.
    assert PINS.keys() >= {"aiohttp-cors", "grpcio", "opencensus", "psycopg2-binary", "flask-wtf"}


def test_dashboard_listens_on_loopback_only(merged: dict[str, Any]) -> None:
    (head,) = start_commands(merged, "head")
    assert re.findall(r"--dashboard-host[= ](\S+)", head) == ["127.0.0.1"]
    assert "0.0.0.0" not in json.dumps(merged)


@pytest.mark.parametrize("node", ["head", "worker"])
def test_every_node_demands_the_token_and_reports_no_usage(
    merged: dict[str, Any], node: str
) -> None:
    (command,) = start_commands(merged, node)
    settings = command.partition("ray start")[0].split()
    assert "RAY_AUTH_MODE=token" in settings
    assert "RAY_USAGE_STATS_ENABLED=0" in settings
    assert merged["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_gpu_workers_on_aws_start_from_none() -> None:
    config = prepare_config(written(AWS))
    types = config["available_node_types"]
    gpu = {name: kind for name, kind in types.items() if kind["resources"].get("GPU")}
    assert gpu
    assert config["head_node_type"] not in gpu
    for kind in gpu.values():
        assert kind["min_workers"] == 0
        assert kind["max_workers"] > 0


def test_nodes_on_aws_give_credentials_to_sessions_only_and_encrypt_their_disks() -> None:
    for kind in written(AWS)["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_every_machine_on_premise_joins() -> None:
    config = prepare_config(written(ON_PREMISE))
    (kind,) = config["available_node_types"].values()
    count = len(config["provider"]["worker_ips"])
    assert kind["min_workers"] == kind["max_workers"] == config["max_workers"] == count


def test_ray_refuses_node_types_on_premise() -> None:
    config = written(ON_PREMISE)
    config["available_node_types"] = written(AWS)["available_node_types"]
    with pytest.raises(Exception, match="available_node_types"):
        prepare_config(config)


def test_both_files_set_nodes_up_alike() -> None:
    aws, on_premise = written(AWS), written(ON_PREMISE)
    own = {"provider", "auth", "head_node_type", "available_node_types", "max_workers"}
    own |= {"idle_timeout_minutes", "head_setup_commands"}
    assert {k: v for k, v in aws.items() if k not in own} == {
        k: v for k, v in on_premise.items() if k not in own
    }


def test_the_project_travels_without_its_environment_and_history(merged: dict[str, Any]) -> None:
    assert merged["file_mounts"]["~/stabmap"] == "."
    assert {".venv", ".git", "mlruns", "mlflow.db*"} <= set(merged["rsync_exclude"])


# ----------------------------------------------------------------------------------- Kubernetes

FIELDS: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "tests/data/kubernetes_fields.yaml").read_text("utf-8")
)
PLAIN: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "quantity": (int, str),
}


def mistakes(value: Any, kind: Any, place: str) -> list[str]:
    """What an API server would refuse: unknown fields, missing fields, values of a wrong type."""
    if kind == "any":
        return []
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [m for i, v in enumerate(value) for m in mistakes(v, kind[0], f"{place}[{i}]")]
    if kind in PLAIN:
        fits = isinstance(value, PLAIN[kind]) and (kind == "boolean" or not isinstance(value, bool))
        return [] if fits else [f"{place} = {value!r} is no {kind}"]
    if not isinstance(value, dict):
        return [f"{place} is no mapping"]
    if kind in ("texts", "quantities"):
        inner = {"texts": "text", "quantities": "quantity"}[kind]
        return [m for k, v in value.items() for m in mistakes(v, inner, f"{place}.{k}")]
    known = {name.rstrip("!"): inner for name, inner in FIELDS[kind].items()}
    needed = {name[:-1] for name in FIELDS[kind] if name.endswith("!")}
    found = [f"{place} lacks {name}" for name in sorted(needed - value.keys())]
    found += [f"{place} has no field {name}" for name in value.keys() - known.keys()]
    for name in value.keys() & known.keys():
        found += mistakes(value[name], known[name], f"{place}.{name}")
    return found


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text("utf-8")))


def manifest(name: str, kind: str) -> dict[str, Any]:
    (one,) = (m for m in manifests(name) if m["kind"] == kind)
    return one


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests make, by name."""
    found = []
    for name in ("raycluster.yaml", "rayjob.yaml"):
        spec = manifests(name)[0]["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        found.append((f"{name} head", cluster["headGroupSpec"]["template"]))
        found += [(f"{name} worker", g["template"]) for g in cluster["workerGroupSpecs"]]
        if "submitterPodTemplate" in spec:
            found.append((f"{name} submitter", spec["submitterPodTemplate"]))
    return found


every_pod = pytest.mark.parametrize("pod", [p for _, p in pods()], ids=[n for n, _ in pods()])


@pytest.mark.parametrize("name", ["shared.yaml", "raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_knows_every_field(name: str) -> None:
    for one in manifests(name):
        assert mistakes(one, one["kind"], one["kind"]) == []


def test_api_versions_are_those_of_the_kinds() -> None:
    versions = {
        m["kind"]: m["apiVersion"]
        for name in ("shared.yaml", "raycluster.yaml", "rayjob.yaml")
        for m in manifests(name)
    }
    assert versions == {
        "ConfigMap": "v1",
        "PersistentVolumeClaim": "v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "RayCluster": "ray.io/v1",
        "RayJob": "ray.io/v1",
    }


def test_a_slip_in_a_manifest_is_seen() -> None:
    one = manifest("raycluster.yaml", "RayCluster")
    group = one["spec"]["workerGroupSpecs"][0]
    group["minReplica"] = group.pop("minReplicas")
    group["template"]["spec"]["containers"][0]["env"].append({"name": "N", "value": 1})
    one["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert sorted(mistakes(one, "RayCluster", "it")) == [
        "it.spec.headGroupSpec.rayStartParams.num-cpus = 0 is no text",
        # YAML aliases: the head's and the worker's environment are one list
        "it.spec.headGroupSpec.template.spec.containers[0].env[3].value = 1 is no text",
        "it.spec.workerGroupSpecs[0] has no field minReplica",
        "it.spec.workerGroupSpecs[0] lacks minReplicas",
        "it.spec.workerGroupSpecs[0].template.spec.containers[0].env[3].value = 1 is no text",
    ]


def test_the_job_gets_the_same_cluster() -> None:
    cluster, job = manifest("raycluster.yaml", "RayCluster"), manifest("rayjob.yaml", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_ray_on_kubernetes_is_the_pinned_one_and_demands_the_token() -> None:
    spec = manifest("raycluster.yaml", "RayCluster")["spec"]
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "stabmap-ray"}


def test_gpu_workers_on_kubernetes_start_from_none() -> None:
    spec = manifest("raycluster.yaml", "RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@every_pod
def test_pods_run_without_privileges_and_within_limits(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@every_pod
def test_pods_are_closed_to_strangers(pod: dict[str, Any]) -> None:
    policy = manifest("shared.yaml", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    for container in pod["spec"]["containers"]:
        assert not any("hostPort" in port for port in container.get("ports", ()))
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert all("podSelector" in peer for peer in operator["from"])


def test_the_dashboard_stays_inside_the_kubernetes_cluster() -> None:
    head = manifest("raycluster.yaml", "RayCluster")["spec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    assert "dashboard-host" not in head["rayStartParams"]


def test_servers_come_from_the_environment_and_the_folder_from_the_claim() -> None:
    shared = {m["kind"]: m for m in manifests("shared.yaml")}
    assert shared["ConfigMap"]["data"].keys() == {"MLFLOW_TRACKING_URI", VARIABLE}
    # SQLAlchemy takes `postgresql://` for another driver than the one that is installed.
    engine = sqlalchemy.create_engine(shared["ConfigMap"]["data"][VARIABLE])
    assert (engine.dialect.name, engine.url.password) == ("postgresql", None)
    spec = manifest("raycluster.yaml", "RayCluster")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": shared["ConfigMap"]["metadata"]["name"]}},
        {"secretRef": {"name": "stabmap"}},
    ]
    for pod in (head, spec["workerGroupSpecs"][0]["template"]["spec"]):
        (one,) = pod["containers"]
        place = {v["name"]: v["value"] for v in one["env"]}["STABMAP_HOME"]
        (mount,) = (m for m in one["volumeMounts"] if m["mountPath"] == place)
        (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
        claim = shared["PersistentVolumeClaim"]["metadata"]["name"]
        assert volume["persistentVolumeClaim"] == {"claimName": claim}


def test_workers_know_no_password() -> None:
    (group,) = manifest("raycluster.yaml", "RayCluster")["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert "envFrom" not in container
    assert group["template"]["spec"]["automountServiceAccountToken"] is False


# -------------------------------------------------------------------------------- image, secrets


def dockerfile() -> dict[str, list[str]]:
    """Instruction -> its arguments, in order; continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        found.setdefault(instruction, []).append(" ".join(rest.split()))
    return found


def test_the_image_has_a_pinned_base_and_installs_only_pins() -> None:
    (base,) = dockerfile()["FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    installs = [c for run in dockerfile()["RUN"] for c in run.split("&&") if "pip install" in c]
    assert [c.split("--no-cache", 1)[1] for c in installs] == [
        "-dir uv==0.13.8",
        " --compile-bytecode -r requirements.txt",
        " --no-deps .",
    ]


def test_image_and_machines_install_with_the_same_uv(launcher: Path) -> None:
    (image,) = re.findall(r"uv==([\d.]+)", (DEPLOY / "Dockerfile").read_text("utf-8"))
    (nodes,) = re.findall(r"astral\.sh/uv/([\d.]+)/", launcher.read_text("utf-8"))
    assert image == nodes


def test_the_image_runs_as_the_user_that_the_pods_name() -> None:
    (user,) = dockerfile()["USER"]
    account, group = map(int, user.split(":"))
    for _, pod in pods():
        context = pod["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (account, group)
    assert account != 0
    assert re.search(rf"useradd .*--uid {account} ", " ".join(dockerfile()["RUN"]))


def test_the_image_demands_the_token_and_holds_none() -> None:
    (settings,) = dockerfile()["ENV"]
    assert "RAY_AUTH_MODE=token" in settings.split()
    assert "ARG" not in dockerfile()
    assert not re.search(r"TOKEN=|PASSWORD|SECRET|KEY=", settings)


def test_only_named_files_reach_the_image() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for copy in dockerfile()["COPY"] for word in copy.split()[:-1]}
    assert allowed == copied
    assert all((ROOT / name).exists() for name in allowed)


def test_kuberay_finds_what_it_calls_in_the_image() -> None:
    assert re.search(r"apt-get install .*\bwget\b", " ".join(dockerfile()["RUN"]))


@pytest.mark.parametrize(
    "path", [AWS, *sorted(p for p in DEPLOY.rglob("*") if p.is_file())], ids=lambda p: p.name
)
def test_no_secret_is_in_a_file(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text)  # user:password@host
    assert not re.search(
        r"(?i)(password|token|secret(_key)?)[\"']?\s*[:=]\s*[\"']?[0-9a-z+/]{16,}", text
    )
    assert "kind: Secret\n" not in text


def test_accounts_of_the_mlflow_server_are_cached() -> None:
    settings = configparser.ConfigParser()
    settings.read(DEPLOY / "mlflow/basic_auth.ini")
    mlflow = settings["mlflow"]
    # Without it every request costs the hash of a password: ten times the request itself.
    assert int(mlflow["auth_cache_ttl_seconds"]) > 0
    assert mlflow["default_permission"] in ("READ", "NO_PERMISSIONS")
    assert "admin_password" not in mlflow
