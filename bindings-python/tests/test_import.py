"""Importing without the library, or with another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moai_fabric as moai
from moai_fabric import _native

HERE = Path(__file__).parent
REAL = Path(moai.__file__).parent / _native.FILE


def importing(library: str | None, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOAI_")}
    if library is not None:
        environment[_native.VARIABLE] = library
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    program = "import moai_fabric; print(moai_fabric.library_version())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, cwd=HERE, check=False)


def compiled(folder: Path, source: str) -> str:
    compiler = shutil.which("cc") or pytest.fail("there is no C compiler; the library's build needs one, too")
    made = folder / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", str(made), "-"], input=source, text=True, check=True)
    return str(made)


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: moai_fabric "), done.stderr
    for word in (*says, _native.VARIABLE, ":"):
        assert word in last, last
    assert "\n" not in last and len(last) < 700


def test_the_library_in_the_package_is_loaded() -> None:
    done = importing(None)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == moai.library_version() == "0.1.0"


def test_a_library_that_is_named_is_loaded(tmp_path: Path) -> None:
    other = tmp_path / "libmoai_fabric.so.1"
    shutil.copy(REAL, other)
    assert importing(str(other)).returncode == 0


def test_settings_of_the_environment_may_be_read_with_a_library_that_is_named() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOAI_")}
    environment[_native.VARIABLE] = str(REAL)
    program = "import moai_fabric; moai_fabric.Config.from_env()"
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, cwd=HERE, check=True)


def test_no_library_is_an_import_error_with_a_sentence(tmp_path: Path) -> None:
    package = tmp_path / "moai_fabric"
    shutil.copytree(REAL.parent, package, ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    refused(importing(None, path=tmp_path), "wheel", str(package))
    refused(importing(str(tmp_path / "nowhere.so")), "nowhere.so", "unset")


def test_what_is_no_library_is_an_import_error_with_a_sentence(tmp_path: Path) -> None:
    text = tmp_path / "libtext.so"
    text.write_text("no library")
    refused(importing(str(text)), "libtext.so")
    refused(importing(str(tmp_path)), str(tmp_path))
    refused(importing(compiled(tmp_path, "int x;")), "moai_abi_version")


def test_a_library_of_another_abi_is_an_import_error_with_both(tmp_path: Path) -> None:
    refused(importing(compiled(tmp_path, "unsigned moai_abi_version(void) { return 2; }")), "needs ABI 1", "has ABI 2")


def test_an_older_library_is_an_import_error_with_what_it_lacks(tmp_path: Path) -> None:
    refused(importing(compiled(tmp_path, "unsigned moai_abi_version(void) { return 1; }")), "later", "moai_version")
