"""The files of launch/, as far as they can be checked without a cloud."""

import math
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from balcap_jax.cli.flags import parse
from balcap_jax.cli.main import TrainFlags, _load_config
from balcap_jax.config.commands import TrainConfig

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def manifests() -> dict[str, dict]:
    return {item["kind"]: item for item in yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())}


def settings(flags: list[str]) -> TrainConfig:
    """What `balcap train` makes of these flags."""
    config = _load_config(TrainConfig, flags)
    return parse(TrainFlags, flags, "train", default=TrainFlags(settings=config)).settings


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    told = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    assert os.access(script, os.X_OK)


def test_the_dockerfile_is_clean_and_its_extras_exist():
    told = subprocess.run([tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    text = (LAUNCH / "Dockerfile").read_text()
    setup = (LAUNCH.parent / "setup.py").read_text()
    extras = re.search(r'"\.\[(.*)\]"', text)[1].replace("${ACCELERATOR}", "tpu,cuda").split(",")
    assert {"tpu", "cuda", "gcs"} <= set(extras)
    for extra in extras:
        assert f'"{extra}": ' in setup


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_manifests_fit_the_schemas_of_kubernetes():
    import kubernetes_validate

    found = manifests()
    job = found["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    found["JobSet"] = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, "spec": job
    }  # fmt: skip
    assert set(found) == {"ServiceAccount", "Service", "Deployment", "JobSet"}
    for item in found.values():
        kubernetes_validate.validate(item, "1.31", strict=True)


def test_the_slice_of_the_manifest_is_that_of_its_config():
    job = manifests()["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    of_host = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == chips // of_host
    out, name, *flags = container["args"]
    config = settings([*flags, "--out", out, "--name", name])
    mesh = config.mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == chips
    assert str(config.out) == "gs://BUCKET/runs"
    service = manifests()["Service"]
    assert config.judge.base_url == f"http://{service['metadata']['name']}:8000/v1"
    labels = manifests()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    served = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert config.judge.model in served


def test_the_documented_commands_have_flags_that_exist():
    text = (LAUNCH.parent / "docs" / "cloud.md").read_text()
    for name in re.findall(r"launch/[a-z_]+\.?[a-z]*", text):
        assert (LAUNCH.parent / name).exists(), name
    commands = re.findall(r"^balcap train ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert commands
    for command in commands:
        flags = shlex.split(command.replace("\\\n", " "), comments=True)
        if "--resume" not in flags:
            settings(flags)


def _start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    fake = tmp_path / "bin"
    fake.mkdir(exist_ok=True)
    (fake / "balcap").write_text('#!/bin/sh\necho "balcap $*"\n')
    (fake / "balcap").chmod(0o755)
    (fake / "python3").unlink(missing_ok=True)
    (fake / "python3").symlink_to(sys.executable)
    path = f"{fake}{os.pathsep}{os.environ['PATH']}"
    package = Path(find_spec("balcap_jax").origin).parents[1]
    return subprocess.run(
        ["bash", LAUNCH / "start.sh", *arguments],
        capture_output=True, text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": _packages(package), **environment},
    )  # fmt: skip


def _packages(package: Path) -> str:
    """The interpreter is reached through a link, which hides its packages."""
    return os.pathsep.join([str(package), *(path for path in sys.path if "site-packages" in path)])


def test_a_run_is_begun_once_and_then_gone_on_with(bucket, tmp_path):
    told = _start(tmp_path, f"{bucket.url}/runs", "a", "--steps", "3")
    assert told.stdout.strip() == f"balcap train --out {bucket.url}/runs --name a --steps 3"
    bucket.put("runs/a/config.json", b"{}")
    told = _start(tmp_path, f"{bucket.url}/runs", "a", "--steps", "3", BALCAP_COMMAND="sft")
    assert told.stdout.strip() == f"balcap sft --resume {bucket.url}/runs/a"
    with bucket.server.failing(forbidden=".*"):
        told = _start(tmp_path, f"{bucket.url}/runs", "a")
    assert told.returncode not in (0, 3)
    assert told.stdout == ""
    assert "Storage Object User" in told.stderr
