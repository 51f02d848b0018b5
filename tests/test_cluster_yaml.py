"""cluster.yaml: valid for Ray, and free of the traps that Ray's own defaults set.

Ray offers no public way to check a launcher file offline; the private functions used here are
those that `ray up` calls first, and the Ray version is pinned.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


def written() -> dict[str, Any]:
    """What the file says, before Ray adds its defaults."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return config


@pytest.fixture
def merged() -> dict[str, Any]:
    return prepare_config(written())


def start_commands(config: dict[str, Any], node: str) -> list[str]:
    commands: list[str] = config[f"{node}_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_file(merged: dict[str, Any]) -> None:
    validate_config(merged)


@pytest.mark.parametrize("where", ["top", "node type"])
def test_ray_refuses_an_unknown_key(where: str) -> None:
    config = written()
    place = config if where == "top" else config["available_node_types"]["gpu_worker"]
    place["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(config))


def test_no_nightly_ray_gets_in_through_the_defaults(merged: dict[str, Any]) -> None:
    text = json.dumps(merged)
    assert not re.findall(r"ray-wheels|3\.0\.0\.dev\w*|\S+\.whl", text)


def test_nodes_install_the_pinned_ray(merged: dict[str, Any]) -> None:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"^ray==(\S+)", pins, flags=re.MULTILINE)
    assert len(pinned) == 1
    for node in ("head", "worker"):
        commands = "\n".join(merged[f"{node}_setup_commands"])
        assert re.findall(r"\bray(?:\[[\w,]*\])?==([\w.]+)", commands) == pinned
        assert re.search(r"-r ~/stabmap/requirements\.txt", commands)
        assert re.search(r"--no-deps -e ~/stabmap\b", commands)


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


def test_gpu_workers_start_from_none(merged: dict[str, Any]) -> None:
    types = merged["available_node_types"]
    gpu = {name: kind for name, kind in types.items() if kind["resources"].get("GPU")}
    assert gpu
    assert merged["head_node_type"] not in gpu
    for kind in gpu.values():
        assert kind["min_workers"] == 0
        assert kind["max_workers"] > 0


def test_the_project_travels_without_its_environment_and_history(merged: dict[str, Any]) -> None:
    assert merged["file_mounts"]["~/stabmap"] == "."
    assert {".venv", ".git"} <= set(merged["rsync_exclude"])
