"""The launchers, with programs in place of vrrl, srun and gcloud that write down their calls."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
import yaml

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
LAUNCHERS = sorted(SCRIPTS.glob("launch_*.sh"))
# Writes down its arguments and ends with the next of CODES ("76 0 ..."), the last one for good.
PROGRAM = r"""#!/usr/bin/env bash
exec 9>>"$CALLS/lock"; flock 9
echo "$(basename "$0") $*" >>"$CALLS/calls"
counter="$CALLS/$(basename "$0").${VRRL_PROCESS_ID:-0}"
n=$(($(cat "$counter" 2>/dev/null || echo 0) + 1)); echo "$n" >"$counter"
flock -u 9
BODY
read -r -a codes <<<"${CODES:-0}"
((n > ${#codes[@]})) && n=${#codes[@]}
exit "${codes[n - 1]}"
"""


@pytest.fixture
def machine(tmp_path):
    """run(script, *arguments, programs={name: body}, **variables): (code, output, calls)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scripts").mkdir()
    for script in LAUNCHERS:  # a repository of its own: one launcher copies all of it
        shutil.copy(script, tmp_path / "scripts")

    def begin(script, *arguments, programs, **variables):
        for name, body in programs.items():
            path = tmp_path / "bin" / name
            path.write_text(PROGRAM.replace("BODY", body))
            path.chmod(0o755)
        environ = os.environ | {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(tmp_path),
            "HOME": str(tmp_path),
            **variables,
        }
        return subprocess.Popen(
            ["bash", f"scripts/{script}", *arguments],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(*arguments, **options):
        program = begin(*arguments, **options)
        said = program.communicate(timeout=60)[0]
        calls = tmp_path / "calls"
        return program.returncode, said, calls.read_text().splitlines() if calls.exists() else []

    run.begin, run.folder = begin, tmp_path
    return run


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck isn't installed")
def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", "-x", "-P", SCRIPTS, *LAUNCHERS], check=True)


@pytest.mark.parametrize("script", [p.name for p in LAUNCHERS if "common" not in p.name])
def test_a_run_directory_is_asked_for(machine, script):
    needs = {"TPU": "t", "ZONE": "z", "IMAGE": "i", "CLAIM": "c"}
    code, said, calls = machine(script, "train", "recipe.yaml", programs={}, **needs)
    assert code == 1 and "give run_dir=" in said and not calls


# --- this machine --------------------------------------------------------------------------------

MAKES_A_RUN = 'mkdir -p run && touch run/config.yaml && echo "$VRRL_PROCESS_ID of $VRRL_PROCESSES"'


def test_local_processes(machine):
    body = MAKES_A_RUN + '; echo "at $VRRL_COORDINATOR $PYTHONHASHSEED $XLA_FLAGS"'
    code, said, calls = machine(
        "launch_local.sh", "train", "r.yaml", "run_dir=run", programs={"vrrl": body},
        PROCESSES="3", DEVICES="2",
    )  # fmt: skip
    assert code == 0 and calls == ["vrrl train r.yaml run_dir=run"] * 3
    assert all(f"[{i}] {i} of 3" in said for i in range(3))
    places = {line.split(" at ")[1] for line in said.splitlines() if " at " in line}
    assert len(places) == 1 and places.pop().startswith("127.0.0.1:")
    assert "force_host_platform_device_count=2" in said


@pytest.mark.parametrize(
    "codes, starts, ends",
    [("76 0", 2, 0), ("134 76 0", 3, 0), ("75 75 75 75", 3, 75), ("2 0", 1, 2), ("1 0", 1, 1)],
)
def test_local_processes_are_started_again(machine, codes, starts, ends):
    code, said, calls = machine(
        "launch_local.sh", "train", "r.yaml", "run_dir=run", programs={"vrrl": MAKES_A_RUN},
        PROCESSES="2", CODES=codes, RESTARTS="2",
    )  # fmt: skip
    first = ["vrrl train r.yaml run_dir=run"] * 2
    again = ["vrrl train r.yaml run_dir=run --resume"] * 2
    assert code == ends and calls == first + again * (starts - 1)
    assert ("go on with the same command" in said) == (ends == 75)


def test_sigterm_reaches_local_processes(machine):
    waits = (
        """trap 'echo "got it"; exit 75' TERM; echo up >>"$CALLS/up"; while :; do sleep 0.1; done"""
    )
    program = machine.begin(
        "launch_local.sh", "train", "r.yaml", "run_dir=run", programs={"vrrl": waits}, RESTARTS="5"
    )
    up, until = machine.folder / "up", time.monotonic() + 60
    while not (up.exists() and up.read_text() == "up\nup\n") and time.monotonic() < until:
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    said = program.communicate(timeout=60)[0]
    assert program.returncode == 75 and said.count("got it") == 2
    assert "starting again" not in said


def test_a_process_that_hangs_is_ended(machine):
    hangs = '[[ "$VRRL_PROCESS_ID" == 1 ]] && exec sleep 1000'
    started = time.monotonic()
    code, said, _ = machine(
        "launch_local.sh", "train", "r.yaml", "run_dir=run", programs={"vrrl": hangs},
        CODES="76", VRRL_HEARTBEAT_SECONDS="-28",
    )  # fmt: skip
    assert code == 76 and time.monotonic() - started < 30
    assert "another process of the run was lost" in said


# --- Slurm ---------------------------------------------------------------------------------------

SLURM = {"SLURM_JOB_ID": "77", "VRRL": "vrrl"}
SRUN = "mkdir -p run && touch run/config.yaml"


@pytest.mark.parametrize(
    "codes, starts, ends, requeued",
    [("0", 1, 0, False), ("76 134 0", 3, 0, False), ("75", 1, 75, True), ("2", 1, 2, False)],
)
def test_slurm(machine, codes, starts, ends, requeued):
    code, said, calls = machine(
        "launch_slurm.sh", "train", "r.yaml", "run_dir=run", CODES=codes, **SLURM,
        programs={"srun": SRUN, "scontrol": "exit 0"}, SLURM_SUBMIT_DIR=str(machine.folder),
    )  # fmt: skip
    srun = "srun --kill-on-bad-exit=1 --label vrrl train r.yaml run_dir=run --distributed slurm"
    wanted = [srun] + [f"{srun} --resume"] * (starts - 1)
    assert calls == wanted + ["scontrol requeue 77"] * requeued, said
    assert code == ends


def test_a_requeued_slurm_job_goes_on(machine):
    (machine.folder / "run").mkdir()
    (machine.folder / "run" / "config.yaml").touch()
    _, _, calls = machine(
        "launch_slurm.sh", "train", "r.yaml", "run_dir=run", **SLURM, programs={"srun": ""},
        SLURM_SUBMIT_DIR=str(machine.folder),
    )  # fmt: skip
    assert calls[0].endswith("--distributed slurm --resume")


# --- TPU -----------------------------------------------------------------------------------------

# As gcloud: tells the state of the slice, and runs what is sent to two workers, here.
GCLOUD = r"""
case "$*" in
  *" describe "*) cat "$CALLS/state"; exit 0 ;;
  *" delete "*) exit 0 ;;
  *" scp "*) tar -tzf "$5" | grep -q "^./scripts/launch_tpu.sh$"; exit ;;
  *"tar -C"*) exit 0 ;;
esac
mkdir -p "$HOME/vrrl/.venv/bin"; cp "$CALLS/bin/vrrl" "$HOME/vrrl/.venv/bin/"
rm -f /tmp/vrrl.pid
while [[ "$1" != --command ]]; do shift; done
bash -c "$2"
exit 0
"""
WORKER = 'mkdir -p run && touch run/config.yaml && echo "training"'


def tpu(machine, *arguments, state="READY", **options):
    (machine.folder / "state").write_text(state)
    programs = {"gcloud": GCLOUD, "vrrl": WORKER}
    return machine("launch_tpu.sh", *arguments, programs=programs, TPU="t", ZONE="z", **options)


def test_a_tpu_slice_is_installed_run_and_started_again(machine):
    code, said, calls = tpu(machine, "train", "r.yaml", "run_dir=run", "note=a b", CODES="76 0")
    assert code == 0, said
    kinds = [call.split()[4] for call in calls if call.startswith("gcloud")]
    assert kinds == ["describe", "scp", "ssh", "ssh", "describe", "ssh"]  # installed once
    ran = [call for call in calls if call.startswith("vrrl")]
    first = "vrrl train r.yaml run_dir=run note=a b --distributed tpu"
    assert ran == [first, f"{first} --resume"]
    assert said.count("training") == 2 and "vrrl ended with 76" in said
    assert "\n".join(calls).count("--zone z") == len(kinds)


def test_a_tpu_slice_that_is_gone(machine):
    code, said, calls = tpu(machine, "train", "r.yaml", "run_dir=run", state="PREEMPTED")
    assert code == 1 and "CREATE says how to make it anew" in said
    made = 'echo made >>"$CALLS/calls"; echo READY >"$CALLS/state"'
    code, said, calls = tpu(machine, "train", "r.yaml", "run_dir=run", state="GONE", CREATE=made)
    assert code == 0, said
    kinds = [call.split()[4] if call.startswith("gcloud") else call for call in calls[1:]]
    assert kinds[:5] == ["describe", "delete", "made", "scp", "ssh"]


def test_an_error_of_a_tpu_run_is_the_end(machine):
    code, _, calls = tpu(machine, "train", "r.yaml", "run_dir=run", CODES="2", INSTALL="0")
    assert code == 2 and len([call for call in calls if call.startswith("vrrl")]) == 1


# --- Kubernetes ----------------------------------------------------------------------------------


def test_kubernetes(machine):
    code, said, _ = machine(
        "launch_kubernetes.sh", "train", "r.yaml", "run_dir=/shared/run", "note=it's: {a}",
        programs={}, NAME="vr", IMAGE="image:1", PODS="4", GPUS="2", CLAIM="disk",
    )  # fmt: skip
    assert code == 0, said
    service, job = yaml.safe_load_all(said)
    assert service["spec"]["clusterIP"] == "None"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert pod["subdomain"] == service["metadata"]["name"] == "vr"
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (container,) = pod["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environ["VRRL_COORDINATOR"] == "vr-0.vr:8476" and environ["VRRL_PROCESSES"] == "4"
    assert container["args"] == ["train", "r.yaml", "run_dir=/shared/run", "note=it's: {a}"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    (codes,) = (r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r)
    assert codes["values"] == [1, 2]
    # What a pod runs, here: pod 3 of a run that is there already.
    run = machine.folder / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    program = machine.folder / "bin" / "vrrl"
    program.write_text('#!/bin/sh\necho "$VRRL_PROCESS_ID: $*"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environ |= {"RUN_DIR": str(run), "JOB_COMPLETION_INDEX": "3", "PATH": path}
    said = subprocess.check_output([*container["command"], "train", "a b"], env=environ, text=True)
    assert said == "3: train a b --resume\n"
