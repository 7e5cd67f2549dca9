"""What `make system-deps` does where it may install, where it may not, and where an installation fails; and
that a setting which holds torch to plainer instructions, where one is given, is in force."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / ".ci" / "system-deps"
PROGRAMS = ("mkfs.xfs", "mkfs.btrfs", "mount", "umount", "losetup", "g++", "chromium", "chromedriver")
USED = ("bash", "env", "timeout", "sort", "tr", "sed", "tail", "mktemp", "rm", "cat", "chmod")


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("here", "user", "installs", "said", "tried"),
    [
        (PROGRAMS, 0, True, "everything is here", 0),
        (PROGRAMS[1:], 0, True, "installed xfsprogs", 1),
        (PROGRAMS[1:], 0, False, "not installed: xfsprogs. ", 2),
        (PROGRAMS[2:], 1000, True, "sudo apt-get update && sudo apt-get install btrfs-progs xfsprogs", 0),
    ],
)
def test_system_deps(here: tuple[str, ...], user: int, installs: bool, said: str, tried: int, tmp_path: Path) -> None:
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    log.touch()
    for name in USED:
        (folder / name).symlink_to(str(shutil.which(name)))
    for name in here:
        program(folder, name, "exit 0")
    program(folder, "id", f"echo {user}")
    program(folder, "dpkg", "exit 0")
    install = f"cat {folder}/id > {folder}/mkfs.xfs; chmod 755 {folder}/mkfs.xfs" if installs else "exit 100"
    program(folder, "apt-get", f'echo "$@" >> "{log}"\ncase "$*" in *install*) {install};; esac')
    environment = {"PATH": str(folder), "SBIN": "", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    assert sum(" install " in line for line in log.read_text(encoding="utf-8").splitlines()) == tried


def test_a_setting_for_plainer_instructions_is_in_force() -> None:
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    assert asked is None or torch.backends.cpu.get_cpu_capability() == asked.upper()
