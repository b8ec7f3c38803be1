"""What the Dockerfile does, as far as it can be done without Docker: it copies all that the wheel is built from."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
STAGES = re.split(r"^FROM .*\n", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]


def volumes() -> list[tuple[str, str]]:
    """Volume that Docker makes -> where a service of ours has it."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    ours = [service for service in compose["services"].values() if service.get("image") == "metazoo"]
    mounts = [mount.split(":") for service in ours for mount in service.get("volumes", [])]
    return sorted({(mount[0], mount[1]) for mount in mounts if mount[0] in compose["volumes"]})


@pytest.mark.package
@pytest.mark.timeout(120)
def test_the_wheel_is_built_from_what_is_copied(tmp_path: Path) -> None:
    build, _ = STAGES
    for line in re.findall(r"^COPY (.*)$", build, flags=re.MULTILINE):
        *sources, target = shlex.split(line)
        for source in sources:
            place = tmp_path / "src" / (target if len(sources) == 1 else f"{target}/{source}")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path / "src")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "meta_server/methods.json" in zipfile.ZipFile(wheel).namelist()


def test_every_volume_is_mounted_on_a_folder_that_its_user_owns() -> None:
    """Docker gives a new volume the owner of the folder in the image; without one it is root's, and nothing can be written."""
    _, final = STAGES
    (made,) = re.findall(r"install -d -o metazoo -g metazoo (.*)$", final, flags=re.MULTILINE)
    assert volumes()
    assert {place for _, place in volumes()} <= set(made.split())
