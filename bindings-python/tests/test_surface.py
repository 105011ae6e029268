"""The package beside the C header: functions, structures and numbers; and its own names."""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import moai_fabric as moai
from moai_fabric import _events, _native, events

HEADER = Path(__file__).parents[2] / "bindings-c" / "include" / "moai_fabric.h"
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "moai_dlpack": _native.Dlpack,
    "moai_cut": _native.Cut,
    "moai_tensor": _native.Tensor,
    "moai_engine_options": _native.EngineOptions,
    "moai_node": _native.Node,
    "moai_pages": _native.Pages,
    "moai_request": _native.Request,
    "moai_offer": _native.Offer,
    "moai_pull": _native.Pull,
    "moai_grant": _native.Grant,
    "moai_event_fields": _native.EventFields,
    "moai_dirty": _native.Dirty,
}


def numbers(prefix: str) -> dict[str, int]:
    found = re.findall(rf"\b{prefix}(\w+) = (\d+)", HEADER.read_text())
    assert found
    return {name: int(number) for name, number in found}


def test_structures_are_those_of_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.fail("there is no C compiler; the library's build needs one, too")
    lines = []
    wanted = []
    for name, structure in STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        wanted.append(f"{name} {ctypes.sizeof(structure)}")
        for field in structure._fields_:
            at = getattr(structure, field[0])
            lines.append(f'printf("{name}.{field[0]} %zu %zu\\n", offsetof({name}, {field[0]}), sizeof((({name} *)0)->{field[0]}));')
            wanted.append(f"{name}.{field[0]} {at.offset} {at.size}")
    source = f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {"".join(lines)} return 0; }}'
    program = tmp_path / "sizes"
    subprocess.run([compiler, "-std=c99", "-x", "c", "-o", str(program), "-"], input=source, text=True, check=True)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert printed == wanted


def test_functions_take_as_many_arguments_as_in_the_header() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    declared = {name: arguments for name, arguments in re.findall(r"\b(moai_\w+)\(([^()]*)\);", text)}
    for name, result, arguments in _native.PROTOTYPES:
        assert name in declared, name
        given = [one for one in declared[name].split(",") if one.strip() != "void"]
        assert len(given) == len(arguments), name
        returns = re.search(rf"(\w[\w ]*[\w*])\s*\**{name}\(", text)
        assert returns is not None
        kinds = {"moai_status": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "void": None, "const char": ctypes.c_char_p, "const char *": ctypes.c_char_p}
        assert kinds[returns.group(1).strip()] is result, name
        for argument, kind in zip(given, arguments):
            wide = {"uint32_t": 4, "int32_t": 4, "moai_status": 4, "uint64_t": 8}
            by_value = re.fullmatch(r"\s*(\w+) \w+\s*", argument)
            size = wide.get(by_value.group(1), 8) if by_value else 8
            assert ctypes.sizeof(kind) == size, (name, argument)


def test_numbers_are_those_of_the_header() -> None:
    reasons = numbers("MOAI_REASON_")
    assert {name.lower(): number for name, number in reasons.items()} == {name: i for i, name in enumerate(_events.REASONS)}
    outcomes = numbers("MOAI_OUTCOME_")
    assert {name.lower(): number for name, number in outcomes.items() if number} == {name: i for i, name in _events._OUTCOMES.items()}
    assert len(numbers("MOAI_EVENT_")) == 12
    first = re.search(r"enum \{(.*?)\};", HEADER.read_text(), re.DOTALL)
    assert first is not None
    statuses = dict(re.findall(r"\bMOAI_([A-Z0-9]+) = (\d+)", first.group(1)))
    assert len(statuses) == 22
    assert {int(number) for number in statuses.values()} == set(range(22))
    named = {name: getattr(_native, name) for name in ("OK", "TIMEOUT", "OVER", "ABSENT", "INCOMPATIBLE")}
    assert named == {name: int(statuses[name]) for name in named}
    # All that can be an error of a call of ours has an exception of its own; a struct's size is ours to get right.
    assert {int(number) for name, number in statuses.items() if name not in ("OK", "TIMEOUT", "STRUCT", "ABSENT", "TRANSFER")} == set(_native._EXCEPTIONS)


def test_everything_public_is_documented() -> None:
    for name in moai.__all__:
        thing = getattr(moai, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))):
                    assert inspect.getdoc(value), f"{name}.{member}"
    for name in events.__all__:
        assert getattr(events, name).__doc__, name


def test_the_examples_in_docstrings_hold() -> None:
    import doctest

    from moai_fabric import config, descriptor

    for module in (config, descriptor):
        result = doctest.testmod(module, globs={**vars(module)})
        assert result.attempted > 0 and result.failed == 0
