"""Writes the notices of the crates that are linked into the library: name, version, licence, and the texts that they bring.

python notices.py FILE
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = "moai-c"
NAMES = ("license", "licence", "copying", "notice", "copyright", "unlicense")


def linked() -> list[dict[str, Any]]:
    """Crates of others that the library has in it, by name: what is needed to build or test only is not."""
    target = next(line[6:] for line in output("rustc", "-vV").splitlines() if line.startswith("host: "))
    told = json.loads(output("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target))
    packages = {package["id"]: package for package in told["packages"]}
    needs = {node["id"]: node["deps"] for node in told["resolve"]["nodes"]}
    found: set[str] = set()
    left = [package["id"] for package in told["packages"] if package["name"] == ROOT]
    while left:
        one = left.pop()
        if one in found:
            continue
        found.add(one)
        for need in needs[one]:
            if any(kind["kind"] is None for kind in need["dep_kinds"]):
                left.append(need["pkg"])
    others = (packages[one] for one in found if packages[one]["source"] is not None)
    return sorted(others, key=lambda package: (package["name"], package["version"]))


def texts(package: dict[str, Any]) -> list[tuple[str, str]]:
    """Licence files that a crate brings."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name.lower().startswith(NAMES))
    return [(file.name, file.read_text(encoding="utf-8", errors="replace").strip()) for file in files]


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    packages = linked()
    if not packages:
        raise SystemExit(f"no crates are linked into {ROOT}, which cannot be")
    # A text that many crates bring is written once.
    known: dict[str, int] = {}
    lines = ["libmoai_fabric has in it the following crates, each under its licence. Numbers tell which texts a crate brings.", ""]
    for package in packages:
        numbers = [known.setdefault(text, len(known) + 1) for _, text in texts(package)]
        where = ", ".join(f"[{number}]" for number in numbers) or "no text; see the licence's name"
        lines.append(f"{package['name']} {package['version']}: {package['license'] or 'see its text'} ({where})")
        if package["repository"]:
            lines.append(f"    {package['repository']}")
    for text, number in known.items():
        lines += ["", "=" * 80, f"[{number}]", "", text]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
