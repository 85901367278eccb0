"""Fills the ablation tables at small scale, the most important runs first.

    python scripts/ablation.py --list                          every cell, its state, its minutes
    python scripts/ablation.py --budget 120 --jobs 2           two hours of what is missing
    python scripts/ablation.py --table navigation --row grpo vrrl --stage search
    python scripts/ablation.py --published PUBLISHED/eval --stage published
    python scripts/ablation.py --render                        tables and plots from what is there

The protocol, the same for every row of a table:

1. Search. Three learning rates by seeds 0, 1, 2, at half the length or less, scored on generated
   validation examples that share no contents with the test. Only in-domain ones: what is out of
   distribution stays unseen until the end.
2. Freeze. The learning rate with the best mean success (greedy and T=1 alike) is written to
   configs/ablation/<table>.yaml with the figures it was chosen by, before any fresh seed is run.
3. Fresh seeds, from 10 on, at full length, scored on 2,000 generated test examples a split, greedy
   and at T=1. Differences are paired by seed and by example; intervals are 95% t intervals over
   seeds. All runs of a table generate equally many episodes, filtered ones counted.
4. The published maps are scored once, at the end, without those that are trained on.

Runs lie in runs/ablation/<table>/<row>/search-lr<rate>-seed<n> and .../seed<n>. Finished ones are
kept; one of another configuration is reported and not used. What tables are made of is in
docs/results/ablation/<table>.json, so that they can be made again where the runs aren't.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import math
import os
import pathlib
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from ablation_render import render
from ablation_results import (
    Results,
    base_cell,
    cells,
    entry_of,
    freeze,
    generated,
    problems,
    refresh,
    row_cells,
    scores_file,
    scores_of,
    searches,
)
from ablation_runs import Cell, call, config_of, policy_of, state, train
from ablation_tables import ALL, CONFIGS, ROOT, Row, Table, in_order

STAGES = ("search", "final", "published")
# Guesses until something was measured, for one thread: a step, and a thousand scored examples.
STEP_SECONDS = {"navigation": 8.0, "tables": 20.0, "charts": 20.0, "questions": 4.5}
SFT_SECONDS, SCORE_MINUTES = 2.5, 1.5


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things lie: runs, the documents, the frozen choices."""

    runs: pathlib.Path
    docs: pathlib.Path = ROOT / "docs/results"
    configs: pathlib.Path = ROOT / CONFIGS


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to run: a cell's training, or, with a part, its scoring."""

    cell: Cell
    part: str = ""

    @property
    def name(self) -> str:
        what = f"score {self.part}" if self.part else "train"
        return f"{what} {self.cell.table.name}/{self.cell.name}"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a call of the driver is about; None for everything."""

    tables: list[str] | None = None
    rows: list[str] | None = None
    stage: str | None = None
    published: str | None = None

    def takes(self, table: Table, row: Row) -> bool:
        return (not self.tables or table.name in self.tables) and (
            not self.rows or row.name in self.rows
        )


# --- planning -----------------------------------------------------------------------------------


def planned(wanted: Wanted, places: Places) -> Iterator[tuple[Cell, str]]:
    """Cells and the part that each is scored on, the most important first."""
    order = [
        (table, [row for row in rows if wanted.takes(table, row)]) for table, rows in in_order()
    ]
    order = [(table, rows) for table, rows in order if rows]
    for table, rows in order:
        trained = [row for row in rows if row.kind != "base"]
        if wanted.stage in (None, "final"):
            yield base_cell(table), "test"
            yield from ((Cell(table, r, "base"), "test") for r in rows if r.kind == "base")
        if wanted.stage in (None, "search"):
            for turn in zip_longest(*(searches(table, row) for row in trained)):
                yield from ((cell, "validation") for cell in turn)
        if wanted.stage in (None, "final"):
            finals = [row_cells(table, row, places.configs) for row in trained]
            for turn in zip_longest(*finals):
                yield from ((cell, "test") for cell in turn)
    if wanted.published and wanted.stage in (None, "published"):
        for table, rows in order:
            if table.published:
                yield base_cell(table), "published"
                for row in rows:
                    found = row_cells(table, row, places.configs)
                    yield from ((cell, "published") for cell in found)


def zip_longest(*lists: list[Cell]) -> Iterator[list[Cell]]:
    """First elements, second elements, ...; of shorter lists while they last."""
    for i in range(max(map(len, lists), default=0)):
        yield [items[i] for items in lists if i < len(items)]


def ready(wanted: Wanted, results: dict[str, Results], places: Places) -> Iterator[Job]:
    """What can be run now, the most important first."""
    seen = set()
    for cell, part in planned(wanted, places):
        key = (cell.table.name, cell.name, part)
        if key in seen or scores_of(results[cell.table.name], cell, part) is not None:
            continue
        seen.add(key)
        now = state(cell, places.runs)[0]
        if now == "trained":
            yield Job(cell, part)
        elif now in ("missing", "cut") and part != "published":
            yield Job(cell)


def minutes(job: Job, results: dict[str, Results]) -> float:
    """How long a job should take, from what was measured where there is any."""
    cell, table = job.cell, job.cell.table
    entries = list(results[table.name]["runs"].values())
    if job.part:
        known = [e["scores"][job.part]["minutes"] for e in entries if job.part in e["scores"]]
        splits = 1 if job.part == "validation" else len(table.splits)
        count = table.validation if job.part == "validation" else table.test
        return statistics.mean(known) if known else SCORE_MINUTES * splits * count / 1000
    if cell.stage == "base" or isinstance(config := config_of(cell), str):
        return 0.0
    alike = [e for e in entries if e["stage"] == cell.stage and "minutes" in e]
    own = [e["minutes"] for e in alike if e["row"] == cell.row.name]
    kin = [e["minutes"] for e in alike if table.row(e["row"]).kind == cell.row.kind]
    if own or kin:
        return statistics.mean(own or kin)
    tried = [minutes(Job(c), results) for c in searches(table, cell.row)[:1] if c != cell]
    if cell.stage == "final" and tried:
        return tried[0] * config.steps / searches(table, cell.row)[0].steps
    seconds = SFT_SECONDS if cell.row.kind == "sft" else STEP_SECONDS[table.base]
    passes = getattr(getattr(config, "algorithm", None), "epochs", 1)
    return config.steps * seconds * (1 + 0.7 * (passes - 1)) / 60


# --- running ------------------------------------------------------------------------------------


def drive(
    wanted: Wanted, places: Places, options: argparse.Namespace
) -> tuple[dict[str, Results], dict[str, str]]:
    """Runs what is missing until nothing is left, or no time.

    Returns:
      (results by table, what failed and why). A job that fails is not tried again in this call.
    """
    results = {
        name: settle(table, places)
        if any(wanted.takes(table, row) for row in table.rows)
        else refresh(table, places.runs, places.docs, places.configs, write=False)
        for name, table in ALL.items()
    }
    end = time.time() + 60 * options.budget if options.budget else math.inf
    taken, failed, stop = set[str](), dict[str, str](), threading.Event()
    going: dict[concurrent.futures.Future, tuple[Job, float]] = {}
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        try:
            while True:
                for job in ready(wanted, results, places):
                    if len(going) == options.jobs:
                        break
                    late = time.time() + 60 * minutes(job, results) > end
                    if job.name in taken or late:
                        continue
                    print(f"{time.strftime('%H:%M')} {job.name}", flush=True)
                    taken.add(job.name)
                    going[pool.submit(do, job, places, wanted, options, stop)] = (job, time.time())
                if not going:
                    break
                # What is finished may open what waited for it.
                done, _ = concurrent.futures.wait(going, return_when="FIRST_COMPLETED")
                for future in done:
                    job, began = going.pop(future)
                    error, spent = future.result(), (time.time() - began) / 60
                    print(f"{job.name}: {error or f'{spent:.1f} minutes'}", flush=True)
                    failed |= {job.name: error} if error else {}
                    results[job.cell.table.name] = settle(job.cell.table, places)
        except BaseException:
            stop.set()
            raise
    return results, failed


def do(job: Job, places: Places, wanted: Wanted, options, stop: threading.Event) -> str:
    """Runs a job; what went wrong, "" for nothing."""
    cell, runs = job.cell, places.runs
    if not job.part:
        return train(cell, runs, options.jobs, options.nice, stop)
    output = scores_file(cell, runs, job.part).resolve()
    command = [sys.executable, "scripts/ablation_score.py", cell.table.name, cell.row.name]
    command += [policy_of(cell, runs.resolve()), "--part", job.part, "--output", str(output)]
    command += ["--published", wanted.published] if job.part == "published" else []
    log = output.with_suffix(".log")
    code = call(command, log, options.jobs, options.nice, stop)
    return f"exit code {code}; see {log}" if code else ""


def settle(table: Table, places: Places, *, choose: bool = True) -> Results:
    """Takes up what is finished, freezes what is decided, writes tables."""
    results = refresh(table, places.runs, places.docs, places.configs)
    for row in table.rows if choose else ():
        rate = freeze(results, table, row, places.configs)
        if rate:
            print(f"{table.name}/{row.name}: learning rate {rate} is frozen", flush=True)
    render(table, results, places.docs, places.configs)
    return results


# --- telling ------------------------------------------------------------------------------------


def show(wanted: Wanted, results: dict[str, Results], places: Places) -> None:
    """Prints every cell with its state and minutes, in the order of importance."""
    missing, seen = 0.0, set()
    for cell, part in planned(wanted, places):
        key = (cell.table.name, cell.name, part)
        if key in seen:
            continue
        seen.add(key)
        mine = results[cell.table.name]
        name = f"{cell.table.name}/{cell.name}"
        if scores_of(mine, cell, part) is not None:
            entry = entry_of(mine, cell)
            print(f"{name:58} {'done':10} {entry.get('minutes', 0):6.1f} min")
            continue
        now, why = state(cell, places.runs)
        left = minutes(Job(cell, part), results)
        left += minutes(Job(cell), results) if now in ("missing", "cut", "waits") else 0
        missing += left if now in ("missing", "cut", "waits", "trained") else 0
        now = {"missing": "not run", "trained": "to score"}.get(now, now)
        print(f"{name:58} {now:10} {left:6.1f} min  {why if now != 'waits' else ''}".rstrip())
    print(f"about {missing / 60:.1f} hours of one thread are left")


def report(failed: dict[str, str], results: dict[str, Results], places: Places) -> int:
    """Prints what needs a person; the exit code."""
    wrong = [f"failed: {name}: {why}" for name, why in failed.items()]
    for table in ALL.values():
        wrong += problems(table, places.configs)
        for cell in cells(table, places.configs):
            now, why = state(cell, places.runs)
            if now == "differs":
                where = cell.directory(places.runs)
                wrong.append(f"{where} is of another configuration and not used: {why}")
        episodes = generated(results[table.name], table, places.configs)
        if len(set(episodes.values())) > 1:
            wrong.append(f"{table.name}: runs generated unequally many episodes: {episodes}")
        elif episodes:
            each = next(iter(episodes.values()))
            print(f"{table.name}: {each:,} episodes generated in each of {len(episodes)} runs")
    for line in wrong:
        print(line)
    return int(bool(wrong))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", nargs="+", choices=list(ALL))
    parser.add_argument("--row", nargs="+")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--list", action="store_true", help="show cells, run nothing")
    parser.add_argument("--render", action="store_true", help="write tables, run nothing")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="start nothing longer")
    parser.add_argument("--jobs", type=int, default=1, help="side by side, one thread each")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs/ablation")
    parser.add_argument(
        "--published",
        default=os.environ.get("VRRL_DATA") and f"{os.environ['VRRL_DATA']}/frozenlake/eval",
        help="folder of the published maps (default: frozenlake/eval in $VRRL_DATA)",
    )
    args = parser.parse_args(argv)
    if args.stage == "published" and not args.published:
        parser.error("--stage published needs --published DIR, or $VRRL_DATA")
    named = {row.name for table in ALL.values() for row in table.rows}
    if unknown := set(args.row or ()) - named:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(sorted(named))}")
    published = str(pathlib.Path(args.published).resolve()) if args.published else None
    wanted, places = Wanted(args.table, args.row, args.stage, published), Places(args.runs)
    if args.list:
        found = {n: refresh(t, places.runs, places.docs, write=False) for n, t in ALL.items()}
        show(wanted, found, places)
        return 0
    failed: dict[str, str] = {}
    if args.render:
        results = {name: settle(table, places, choose=False) for name, table in ALL.items()}
    else:
        results, failed = drive(wanted, places, args)
    return report(failed, results, places)


if __name__ == "__main__":
    sys.exit(main())
