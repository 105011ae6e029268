"""Builds the C library by cargo and puts it into the wheel.

MOAI_WHEEL_PROFILE names the profile of cargo, by itself `release`; `dev` builds sooner what runs slower, for tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libmoai_fabric.so.1"
# The oldest glibc whose symbols the library may need; `auditwheel show` tells if it is wrong.
PLATFORM = "manylinux_2_34_x86_64"


class LibraryHook(BuildHookInterface[Any]):
    """The wheel's library, notices and tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise SystemExit("moai-fabric cannot be installed editable: its library is built into the wheel. Build the wheel and install that")
        here = Path(self.root)
        workspace = here.parent
        staged = here / "build"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        build_library(workspace, staged)
        notices = staged / "THIRD-PARTY-NOTICES"
        subprocess.run([sys.executable, str(here / "notices.py"), str(notices)], check=True, cwd=workspace)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{PLATFORM}"
        build_data["force_include"][str(staged / LIBRARY)] = f"moai_fabric/{LIBRARY}"
        build_data["force_include"][str(notices)] = "moai_fabric/THIRD-PARTY-NOTICES"


def build_library(workspace: Path, to: Path) -> None:
    """Builds the shared object, without what only debuggers need."""
    profile = os.environ.get("MOAI_WHEEL_PROFILE", "release")
    subprocess.run(["cargo", "xtask", "install", "--prefix", str(to / "prefix"), "--profile", profile], check=True, cwd=workspace)
    built = next((to / "prefix").rglob(LIBRARY))
    shutil.copyfile(built.resolve(), to / LIBRARY)
    subprocess.run(["strip", "--strip-debug", str(to / LIBRARY)], check=True)
