"""Checks what is in a wheel, and that its platform is what auditwheel finds: python_wheel.py WHEEL AUDIT."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path


def main() -> None:
    wheel, audit = Path(sys.argv[1]), Path(sys.argv[2])
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_x86_64\.whl$", wheel.name)
    assert tag, f"{wheel.name} is not of one platform for every Python 3"
    found = re.search(r'"manylinux_2_(\d+)_x86_64"', audit.read_text().replace("\n", ""))
    assert found, audit.read_text()
    assert int(found[1]) <= int(tag[1]), f"{wheel.name} needs symbols of glibc 2.{found[1]}"
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        for wanted in ("moai_fabric/libmoai_fabric.so.1", "moai_fabric/py.typed", "moai_fabric/THIRD-PARTY-NOTICES"):
            assert wanted in names, f"{wanted} is not in {wheel.name}"
        assert any(name.endswith("licenses/LICENSE") for name in names), names
        notices = opened.read("moai_fabric/THIRD-PARTY-NOTICES").decode()
        metadata = opened.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    for crate in ("rustls", "serde_json", "tracing"):
        assert re.search(rf"^{crate} \d", notices, re.MULTILINE), f"{crate} has no notice"
    assert "Apache License" in notices and "Permission is hereby granted" in notices
    assert "Requires-Dist" not in metadata, "it is to need no other package"
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files, glibc 2.{found[1]} or later")


if __name__ == "__main__":
    main()
