# Sourced by the scripts beside it: finds a Python, makes .venv, installs what pyproject.toml says.
# Idempotent: a second call with the same pyproject.toml only compares a hash.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

say() { printf '== %s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the first Python from 3.11 on; $PYTHON is asked first. A shim that can't run is passed by.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.13 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

make_venv() {
  if "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    return
  fi
  local python
  python="$(find_python)" ||
    fail "no Python 3.11 or later found; install one, or say where it is: PYTHON=/path/to/python3"
  say "making .venv with $("$python" --version) at $python"
  rm -rf "$VENV"
  "$python" -m venv "$VENV" >&2 || {
    rm -rf "$VENV"
    fail "$python can't make environments; on Debian and Ubuntu: apt-get install python3-venv"
  }
}

# install_package EXTRAS STAMP: the package itself, editable, with extras ("" or "[test]").
install_package() {
  local extras="$1" stamp="$VENV/.installed$2" hash
  hash="$("$VENV/bin/python" - "$ROOT" <<'EOF'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
# The place and the interpreter too: a moved checkout or another Python is another installation.
text = f"{root} {sys.version}".encode() + (root / "pyproject.toml").read_bytes()
print(hashlib.sha256(text).hexdigest())
EOF
)"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$hash" ]]; then
    return
  fi
  say "installing vrrl-jax$extras and what it needs (the first time takes some minutes)"
  # uv is several times faster; where it can't be had, or can't reach the index that pip knows,
  # pip does the same.
  if [[ ! -x "$VENV/bin/uv" ]]; then
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv >/dev/null 2>&1 || true
  fi
  if ! { [[ -x "$VENV/bin/uv" ]] &&
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" -e "$ROOT$extras" >&2; }; then
    say "installing with pip"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT$extras" >&2 ||
      fail "installation failed; the lines above say why. Run this script again to go on"
  fi
  printf '%s' "$hash" >"$stamp"
}

# Compiled programs are kept between runs: the second start is quick.
use_compilation_cache() {
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
  mkdir -p "$JAX_COMPILATION_CACHE_DIR"
}
