#!/usr/bin/env bash
# From nothing to a trained policy: makes .venv, installs the package, and runs
#     vrrl train configs/quickstart.yaml
# Arguments are passed on:  bash scripts/quickstart.sh steps=20 seed=1
# Needs Python 3.11 or later (PYTHON=/path/to/python3 chooses one). Safe to run again.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
make_venv
install_package "" ""
use_compilation_cache
say "vrrl train configs/quickstart.yaml $*"
exec "$VENV/bin/vrrl" train configs/quickstart.yaml "$@"
