#!/usr/bin/env bash
# The Python package: its wheel is built, checked, installed in a fresh environment and tested from there; types are checked.
# Needs python3 with venv and pip, which installs what is needed into target/python.
# Ignored without pip, unless MOAI_REQUIRE has `python`. MOAI_WHEEL_PROFILE picks the profile of cargo (by itself dev here).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "there is no Python 3.9 or later with venv and pip"
    [[ ",${MOAI_REQUIRE:-}," == *,python,* ]] && exit 1
    exit 77
fi
# Settings of whoever runs this are not those of the tests.
unset MOAI_FABRIC_LIBRARY PYTHONPATH

tools=target/python/tools
if ! "$tools/bin/python" -c 'import auditwheel, build, hatchling, mypy, numpy, pyright, pytest' 2>/dev/null; then
    "$python" -m venv --clear "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check \
        auditwheel build hatchling mypy numpy 'pyright[nodejs]' pytest
fi

echo "== wheel"
wheels=$PWD/target/python/wheels
rm -rf "$wheels"
MOAI_WHEEL_PROFILE=${MOAI_WHEEL_PROFILE:-dev} "$tools/bin/python" -m build --wheel --no-isolation --outdir "$wheels" bindings-python
wheel=$(ls "$wheels"/*.whl)
# The platform in its name is one whose symbols suffice.
"$tools/bin/auditwheel" show "$wheel" | tee target/python/auditwheel.txt
"$tools/bin/python" .ci/python_wheel.py "$wheel" target/python/auditwheel.txt

echo "== types"
(cd bindings-python && "../$tools/bin/mypy" && "../$tools/bin/pyright" --pythonpath "../$tools/bin/python")

echo "== tests, from the installed wheel"
fresh=target/python/fresh
rm -rf "$fresh"
"$python" -m venv "$fresh"
"$fresh/bin/python" -m pip install --quiet --disable-pip-version-check pytest numpy
# Nothing else is needed, so nothing is fetched for it.
"$fresh/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
"$fresh/bin/python" -m pip check
# From another folder, so that the sources are not found before what was installed.
cd bindings-python/tests
"../../$fresh/bin/python" -P -m pytest --version >/dev/null 2>&1 && safe=-P || safe=
"../../$fresh/bin/python" $safe -c 'import moai_fabric; assert "site-packages" in moai_fabric.__file__, moai_fabric.__file__'
"../../$fresh/bin/python" -m pytest -q --rootdir .. -c ../pyproject.toml -p no:cacheprovider "$@" .
