# shellcheck shell=bash
# Sourced by the launchers beside it: what an exit code means, and whether to start again.
# The codes are those of vrrl (docs/launch.md): 75 stopped by SIGTERM with a checkpoint saved,
# 76 another process is gone, 134 (SIGABRT) ended by jax because another process is gone.

say() { printf '== %s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Codes after which the same command with --resume can go on: anything but an end, an error that
# would come again, and Ctrl-C.
restartable() {
  case "$1" in
    0 | 1 | 2 | 130) return 1 ;;
    *) return 0 ;;
  esac
}

explain() {
  case "$1" in
    0) say "the run has ended" ;;
    75) say "code 75: stopped by SIGTERM, a checkpoint is saved" ;;
    76 | 134) say "code $1: another process of the run was lost; its own output says why" ;;
    137 | 143) say "code $1: a process was killed (pre-emption, or memory)" ;;
    *) say "code $1: the lines above say why" ;;
  esac
}

# run_dir_of ARGUMENTS: prints the directory given as run_dir=..., which a restart must know.
run_dir_of() {
  local argument
  for argument in "$@"; do
    if [[ "$argument" == run_dir=* ]]; then
      printf '%s' "${argument#run_dir=}"
      return
    fi
  done
  fail "give run_dir=...: a restart goes on in it, and all processes must see it"
}
