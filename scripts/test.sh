#!/usr/bin/env bash
# Makes .venv with the test tools and runs the tests that are not marked slow.
# Arguments go to pytest:  bash scripts/test.sh tests/rl -x      bash scripts/test.sh -m slow
# VRRL_TEST_JOBS is how many processes share the tests (2).
# VRRL_PARITY=1 also installs torch, for the tests that compare with it; without, they are skipped.
# Needs Python 3.11 or later (PYTHON=/path/to/python3 chooses one). Safe to run again.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
make_venv
install_package "[test]" "-test"
if [[ "${VRRL_PARITY:-0}" == 1 ]] && ! "$VENV/bin/python" -c 'import torch' >/dev/null 2>&1; then
  say "installing torch for the parity tests"
  # With pip: uv doesn't look where pip is told to find local wheels.
  torch="$("$VENV/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print(tomllib.load(file)["project"]["optional-dependencies"]["parity"][0])
')"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$torch" >&2 ||
    say "no torch here: the parity tests will be skipped"
fi
use_compilation_cache
# Most of the time goes into Python and compiling, one thread each: two processes share the files.
jobs="${VRRL_TEST_JOBS:-2}"
say "pytest -q -n $jobs --dist loadfile -m 'not slow' $*"
exec "$VENV/bin/python" -m pytest -q -n "$jobs" --dist loadfile -m "not slow" "$@"
