"""Runs of the ablation tables: where each lies, whether it is finished, and how it is made.

A run is finished when its directory has hf/ and minutes.txt. It counts only if its config.yaml says
what would be run now, whatever its directory, its logging and its checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import yaml
from ablation_tables import BASE, CONFIGS, FRESH_SEEDS, ROOT, SEARCH_SEEDS, Row, Table

from vrrl_jax.config import SftConfig, TrainConfig, load, of_task
from vrrl_jax.strict_yaml import ConfigError

# What changes neither a run's policy nor its figures; `update` says how rows are packed.
HOUSEKEEPING = ("run_dir", "checkpoint", "log", "eval", "mesh", "update")
# Likewise: what is computed when, and what is kept or computed again.
SCHEDULE = ("rollout.in_flight", "rollout.prefills", "rollout.chunk", "rollout.overlap")
SCHEDULE += ("policy.remat", "policy.remat_keeps", "policy.attention")
QUIET = 180.0  # seconds; a directory without a process of ours that changed since is in use
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run of a row, or, without stage, the policy of a row that isn't trained.

    Attributes:
      stage: "search", "final" or "base".
      seed, rate: of the run; the rate as text, None where it isn't chosen yet.
    """

    table: Table
    row: Row
    stage: str
    seed: int = 0
    rate: str | None = None

    @property
    def name(self) -> str:
        """Its directory under runs/ablation/<table>."""
        if self.stage == "base":
            return BASE if not (self.row.scored or self.row.policy) else self.row.name
        run = f"search-lr{self.rate}-seed{self.seed}" if self.stage == "search" else None
        return f"{self.row.name}/{run or f'seed{self.seed}'}"

    @property
    def steps(self) -> int:
        """Of a search run."""
        sft = self.row.kind == "sft"
        return self.table.search_sft_steps if sft else self.table.search_steps

    @property
    def part(self) -> str:
        """Which examples it is scored on."""
        return "validation" if self.stage == "search" else "test"

    def directory(self, runs: pathlib.Path) -> pathlib.Path:
        return runs / self.table.name / self.name

    def overrides(self) -> list[str]:
        """Of its recipe, all but the directory."""
        row = self.row
        given = [*row.overrides]
        given += [f"policy.path={row.policy}"] if row.policy else []
        given += [f"steps={self.steps}"] if self.stage == "search" else []
        given += [f"seed={self.seed}"]
        return given + ([f"optimizer.learning_rate={self.rate}"] if self.rate else [])


def searches(table: Table, row: Row) -> list[Cell]:
    return [Cell(table, row, "search", seed, rate) for rate in row.rates for seed in SEARCH_SEEDS]


def finals(table: Table, row: Row, rate: str | None) -> list[Cell]:
    if row.kind == "base":
        return []
    return [Cell(table, row, "final", seed, rate) for seed in FRESH_SEEDS[: row.seeds]]


def base_cell(table: Table) -> Cell:
    """The policy that the table's recipe starts from."""
    plain = [row for row in table.rows if row.kind == "base" and not (row.scored or row.policy)]
    return Cell(table, plain[0], "base")


# --- configurations -----------------------------------------------------------------------------


@functools.cache
def resolve(recipe: str, overrides: tuple[str, ...]) -> TrainConfig | SftConfig | str:
    """A recipe with its overrides; as text, why there is none."""
    path = ROOT / recipe
    try:
        kind = SftConfig if path.stem.endswith("_sft") else TrainConfig
        return load(path, overrides, kind)
    except (ConfigError, OSError) as error:
        return str(error).replace(f"{ROOT}/", "").split("; known here")[0]


def config_of(cell: Cell) -> TrainConfig | SftConfig | str:
    """What a cell's run is configured as; as text, why it can't be run."""
    row = cell.row
    shared = [*row.overrides] + ([f"policy.path={row.policy}"] if row.policy else [])
    config = resolve(cell.table.recipe(row), tuple(shared))
    if isinstance(config, str):
        return config
    # As `Cell.overrides` says; reading a recipe anew for every cell takes too long.
    changed: dict[str, Any] = {"seed": cell.seed}
    if cell.stage == "search":
        changed["steps"] = cell.steps
    if cell.rate:
        rate = float(cell.rate)
        changed["optimizer"] = dataclasses.replace(config.optimizer, learning_rate=rate)
    return dataclasses.replace(config, **changed)


def told(config: TrainConfig | SftConfig) -> dict[str, Any]:
    """What a configuration says beyond the defaults, by dotted key, without housekeeping.

    A key that is added later, at a default that changes nothing, leaves it as it is.
    """
    kind = SftConfig if isinstance(config, SftConfig) else TrainConfig
    ours, defaults = _flat(config), _defaults(kind, config.task)
    return {
        key: value
        for key, value in ours.items()
        if key.split(".")[0] not in HOUSEKEEPING
        and key not in SCHEDULE
        and (key == "task" or value != defaults.get(key))
    }


@functools.cache
def _defaults(kind: type, task: str) -> dict[str, Any]:
    return _flat(of_task(kind, task)())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a configuration by dotted key."""
    found = {}
    for field in dataclasses.fields(value):
        key, item = f"{prefix}{field.name}", getattr(value, field.name)
        found |= _flat(item, f"{key}.") if dataclasses.is_dataclass(item) else {key: item}
    return found


def fingerprint(config: TrainConfig | SftConfig) -> str:
    """Tells configurations apart that would train otherwise."""
    text = json.dumps(told(config), sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def differences(directory: pathlib.Path, config: TrainConfig | SftConfig) -> str:
    """What a run's own configuration says otherwise, in words; "" for nothing."""
    kind = SftConfig if isinstance(config, SftConfig) else TrainConfig
    path = directory / "config.yaml"
    try:
        found = _told_by(path, path.stat().st_mtime_ns, kind)
    except (ConfigError, OSError) as error:
        return f"its config.yaml can't be read: {error}"
    wanted = told(config)
    keys = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
    return ", ".join(
        f"{k}: {found.get(k, 'the default')} there, {wanted.get(k, 'the default')} now"
        for k in sorted(keys)
    )


@functools.lru_cache(4096)
def _told_by(path: pathlib.Path, changed: int, kind: type) -> dict[str, Any]:
    """What a file tells, read again once it has changed."""
    return told(load(path, [], kind))


# --- states -------------------------------------------------------------------------------------


def trained(directory: pathlib.Path) -> bool:
    return (directory / "hf").is_dir() and (directory / "minutes.txt").is_file()


def in_use(directory: pathlib.Path, now: float | None = None) -> bool:
    """Whether a run seems to be going on in a directory."""
    pid = directory.with_name(f"{directory.name}.pid")
    if pid.is_file():
        return _alive(int(pid.read_text() or 0), directory.name)
    files = [directory.with_name(f"{directory.name}.log"), directory / "metrics.jsonl"]
    times = [file.stat().st_mtime for file in files if file.is_file()]
    return bool(times) and (now or time.time()) - max(times) < QUIET


def _alive(pid: int, name: str) -> bool:
    """Whether a process is there whose command names the run: numbers are given out again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    command = pathlib.Path(f"/proc/{pid}/cmdline")
    return pid > 0 and (not command.is_file() or name in command.read_text(errors="replace"))


def state(cell: Cell, runs: pathlib.Path) -> tuple[str, str]:
    """(state, why) of a cell's training.

    States: "invalid" (the recipe doesn't validate), "waits" (no learning rate is chosen yet),
    "differs" (a run of another configuration is in its place), "running", "cut" (can be resumed),
    "missing", "trained".
    """
    config = config_of(cell)
    if isinstance(config, str):
        return "invalid", config
    if cell.stage == "base":
        return "trained", ""
    if cell.rate is None:
        return "waits", "for a learning rate, which the search runs choose"
    directory = cell.directory(runs)
    if not (directory / "config.yaml").is_file():
        return ("running" if in_use(directory) else "missing"), ""
    apart = differences(directory, config)
    if apart:
        return "differs", apart
    if trained(directory):
        return "trained", ""
    return ("running" if in_use(directory) else "cut"), ""


def policy_of(cell: Cell, runs: pathlib.Path) -> str:
    """The checkpoint to score."""
    if cell.stage != "base":
        return str(cell.directory(runs) / "hf")
    return config_of(cell).policy.path


# --- running ------------------------------------------------------------------------------------


def environment(jobs: int) -> dict[str, str]:
    """Of a subprocess: this checkout's package, one thread each where several run side by side."""
    found = dict(os.environ) | MALLOC
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "vrrl_jax" / "jax"))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if jobs > 1:
        flags = f"{found.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        found |= {"XLA_FLAGS": flags.strip(), "OMP_NUM_THREADS": "1"}
    return found


def training_command(cell: Cell, runs: pathlib.Path, *, resume: bool) -> list[str]:
    verb = "sft" if cell.row.kind == "sft" else "train"
    command = [sys.executable, "-m", "vrrl_jax.cli", verb, cell.table.recipe(cell.row)]
    command += [*cell.overrides(), "eval.enabled=false"]
    command += [f"run_dir={cell.directory(runs).resolve()}"]
    return command + (["--resume"] if resume else [])


def call(command: list[str], log: pathlib.Path, jobs: int, nice: int, stop: Any = None) -> int:
    """Runs a command to its end, or until the event `stop` is set; its exit code.

    Its output goes into a log, its process is on record beside it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = log.with_suffix(".pid")
    with log.open("a") as output:
        process = subprocess.Popen(
            ["nice", "-n", str(nice), *command] if nice else command,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment(jobs),
        )
    pid.write_text(str(process.pid))
    try:
        while process.poll() is None:
            if stop is not None and stop.is_set():
                process.terminate()
            time.sleep(0.2)
        return process.returncode
    finally:
        pid.unlink(missing_ok=True)


def train(cell: Cell, runs: pathlib.Path, jobs: int, nice: int, stop: Any = None) -> str:
    """Makes or goes on with a run; what went wrong, "" for nothing."""
    directory, began = cell.directory(runs), time.time()
    resume = (directory / "config.yaml").is_file()
    spent = directory / "minutes_so_far.txt"  # of starts that were cut
    command = training_command(cell, runs, resume=resume)
    log = directory.with_name(f"{directory.name}.log")
    try:
        code = call(command, log, jobs, nice, stop)
    finally:
        before = float(spent.read_text()) if spent.is_file() else 0.0
        minutes = before + (time.time() - began) / 60
        if directory.is_dir():
            spent.write_text(f"{minutes:.2f}")
    if code:
        return f"exit code {code}; see {log}"
    (directory / "minutes.txt").write_text(f"{minutes:.2f}")
    return ""


# --- frozen choices -----------------------------------------------------------------------------


def frozen_path(table: Table, configs: pathlib.Path) -> pathlib.Path:
    return configs / f"{table.name}.yaml"


def frozen(table: Table, configs: pathlib.Path = ROOT / CONFIGS) -> dict[str, dict]:
    """Row -> its recipe, overrides, learning rate and the figures it was chosen by."""
    path = frozen_path(table, configs)
    return dict(_rows_of(path, path.stat().st_mtime_ns)) if path.is_file() else {}


@functools.lru_cache
def _rows_of(path: pathlib.Path, changed: int) -> dict[str, dict]:
    """The rows of a file, read again once it has changed."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("rows", {})


def chosen_rate(table: Table, row: Row, configs: pathlib.Path = ROOT / CONFIGS) -> str | None:
    """The frozen learning rate, as text; None for none, or for one of another recipe."""
    entry = frozen(table, configs).get(row.name)
    if entry is None or outdated(table, row, configs):
        return None
    return str(entry["learning_rate"])


def outdated(table: Table, row: Row, configs: pathlib.Path = ROOT / CONFIGS) -> str:
    """Why a frozen choice can't be used, "" if it can or there is none."""
    entry = frozen(table, configs).get(row.name)
    if entry is None:
        return ""
    config = config_of(finals(table, row, row.rates[0])[0])
    if isinstance(config, str):
        return config
    if entry.get("fingerprint") != choice_fingerprint(table, row):
        return (
            f"frozen for another recipe of {row.name}: take it out of {frozen_path(table, configs)}"
        )
    return ""


def choice_fingerprint(table: Table, row: Row) -> str:
    """Of what a row runs at full length, but for the learning rate."""
    return fingerprint(config_of(Cell(table, row, "final", FRESH_SEEDS[0], row.rates[0])))
