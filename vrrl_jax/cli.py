"""The `vrrl` command: a thin layer over modules that can be called just as well."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import traceback


def main(argv: list[str] | None = None) -> int:
    """Parses, calls, and turns expected failures into one readable line; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positional overrides in one place only; they may stand behind options too.
    if rest and not (hasattr(args, "overrides") and all("=" in r and r[0] != "-" for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    _quiet_start()
    from vrrl_jax.parallel import distributed

    return distributed.end(_call(args))


def _call(args) -> int:
    """Runs a command; its exit code."""
    from vrrl_jax.parallel import distributed
    from vrrl_jax.strict_yaml import ConfigError

    def say(error) -> None:
        if distributed.joined():
            error = f"{distributed.me()}: {error}"
        print(f"vrrl {args.command}: {error}", file=sys.stderr)

    expected = ConfigError, OSError, ValueError, FloatingPointError, distributed.Disagreement
    try:
        args.call(args)
    except distributed.Preempted as e:
        say(f"{e}; go on with --resume")
        return distributed.PREEMPTED
    except distributed.Apart as e:
        say(e)
        return distributed.LOST
    except expected as e:
        if os.environ.get("VRRL_DEBUG"):
            if not distributed.joined():
                raise
            traceback.print_exc()
        say(e)
        return 2
    except KeyboardInterrupt:
        resumable = getattr(args, "input", "a run") is not None  # a lone reply isn't
        hint = "; go on from the last checkpoint or batch with --resume" if resumable else ""
        print(f"\nstopped{hint}", file=sys.stderr)
        return 130
    except Exception as e:
        if not distributed.joined():
            raise
        # The others may wait for this process: it mustn't wait for them.
        traceback.print_exc()
        return distributed.failed(e, say)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vrrl", description="Reinforcement learning for vision-language models in JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, text, **kwargs):
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        sub.set_defaults(call=run)
        return sub

    for name, run, text in (
        ("train", _train, "reinforcement learning from a recipe"),
        ("sft", _sft, "supervised fine-tuning on demonstrations"),
    ):
        sub = command(name, run, text)
        sub.add_argument("config", help="a recipe, for example configs/quickstart.yaml")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="such as seed=1")
        sub.add_argument("--resume", action="store_true", help="go on in run_dir")
        _several(sub)

    sub = command("eval", _eval, "score a checkpoint on its task, or models on benchmarks")
    sub.add_argument(
        "target",
        help="a Hugging Face directory, a run directory, a policy that ships, or a configuration: "
        "of benchmarks, or a recipe, whose policy.path is scored on its task",
    )
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="such as eval.path=FILE")
    sub.add_argument("--config", help="a train recipe for task, env, rollout, reward and eval")
    sub.add_argument("--output", help="where the JSON goes (default: evaluation.json beside it)")
    sub.add_argument(
        "--predictions",
        action="append",
        metavar="[NAME=]FILE",
        help="benchmarks: score these replies (JSON lines) instead of asking a model",
    )
    sub.add_argument("--resume", action="store_true", help="benchmarks: go on where it stopped")
    _several(sub)
    sub.set_defaults(error=sub.error)

    sub = command("plan", _plan, "memory a device and floors of a recipe's step, on paper")
    sub.add_argument("config", help="a recipe of vrrl train; no weights are read, nothing is run")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="such as mesh.fsdp=8")
    sub.add_argument("--device", action="append", metavar="NAME", help="H100, H200, v5e, v5p, v6e")
    sub.add_argument("--model", metavar="FILE", help="a config.json in place of policy.path's")
    sub.add_argument("--slots", type=int, help="of a row's cache, in place of the task's examples")
    sub.add_argument("--patches", type=int, help="of a picture; goes with --slots")
    sub.add_argument(
        "--topology",
        metavar="NAME",
        help="compile the run's programs for a slice of TPU chips, such as v5e:4x4, that needn't "
        "be there (pip install vrrl-jax[topology]); the mesh is the recipe's: mesh.fsdp=16",
    )
    sub.add_argument(
        "--program",
        action="append",
        metavar="NAME",
        help="with --topology: this one alone, such as decode or accumulate; may be repeated",
    )
    sub.set_defaults(error=sub.error)

    sub = command("generate", _generate, "answer a prompt about pictures")
    sub.add_argument("checkpoint", help="a Hugging Face directory, or nano")
    sub.add_argument("--prompt", metavar="TEXT", help="one question; with --image, about pictures")
    sub.add_argument("--image", action="append", default=[], help="may be given several times")
    sub.add_argument("--chat", metavar="FILE", help="JSON: messages in Hugging Face form")
    sub.add_argument("--input", metavar="FILE", help="JSON lines: a question each")
    sub.add_argument("--output", metavar="FILE", help="JSON lines: a reply to each of --input")
    sub.add_argument("--resume", action="store_true", help="go on after the lines of --output")
    sub.add_argument("--batch-size", type=int, default=8, help="questions of --input at a time")
    sub.add_argument("--system", metavar="TEXT", help="for chats that don't bring their own")
    sub.add_argument("--n", type=int, default=1, help="replies to a question")
    sub.add_argument("--max-new-tokens", type=int, default=256)
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    sub.add_argument("--top-k", type=int, default=0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(error=sub.error)

    sub = command("convert", _convert, "a Hugging Face directory to a run's checkpoint, or back")
    sub.add_argument("direction", choices=("import", "export"))
    sub.add_argument("source", help="import: a Hugging Face directory; export: a run directory")
    sub.add_argument("target")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the written tensors")
    sub.add_argument("--max-shard-size", default="5GB")

    data = command("data", None, "look at data sets, and write them for TFDS").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    from_files = argparse.ArgumentParser(add_help=False)
    from_files.add_argument("path", help="a file or folder: parquet, arrow, JSON lines, TSV, TFDS")
    from_files.add_argument("--mapper", required=True, help="its layout, such as chartqa")
    from_files.add_argument("--split")
    from_files.add_argument("--limit", type=int, help="read at most so many records")
    from_files.add_argument("--folder", help="where picture paths start (default: that of PATH)")
    sub = data.add_parser("inspect", parents=[from_files], help="counts, kinds, skipped rows")
    sub.set_defaults(call=_data_inspect)
    sub = data.add_parser("convert", parents=[from_files], help="records of any layout to TFDS")
    sub.add_argument("out", help="the data folder to write into")
    sub.add_argument("--name", help="of the new data set (default: the mapper's)")
    sub.set_defaults(call=_data_convert)
    sub = data.add_parser("build", help="a generated task to TFDS")
    sub.add_argument("task", help="such as tables, charts, frozenlake")
    sub.add_argument("out", help="the data folder to write into")
    sub.add_argument("--count", type=int, default=1000, help="examples of each split")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--splits", nargs="+", default=["train", "test_id"], metavar="SPLIT")
    sub.set_defaults(call=_data_build)

    sub = command("report", _report, "one HTML file about a run")
    sub.add_argument("run", metavar="RUN", help="a run directory")
    return parser


def _several(parser) -> None:
    parser.add_argument(
        "--distributed",
        metavar="MODE",
        default="auto",
        help="several processes: auto (VRRL_COORDINATOR and its like, Slurm, a TPU slice), slurm, "
        "tpu, or off; see docs/launch.md",
    )


def _quiet_start() -> None:
    """Settings that must stand before jax starts."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(home, "vrrl_jax", "jax")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _importable(recipe: str | None) -> None:
    """Lets a recipe name modules beside it and in the working directory; what is installed wins."""
    for folder in (recipe and pathlib.Path(recipe).resolve().parent, pathlib.Path.cwd()):
        if folder and str(folder) not in sys.path:
            sys.path.append(str(folder))


def _recipe(args, cls):
    """The configuration of a run, its directory named after the recipe; joins other processes."""
    from vrrl_jax.config import load
    from vrrl_jax.log import default_run_dir
    from vrrl_jax.parallel import distributed

    _importable(args.config)
    config = load(args.config, args.overrides, cls)
    distributed.start(args.distributed)
    if config.run_dir is None and not args.resume:
        import dataclasses

        name = default_run_dir(args.config)
        config = dataclasses.replace(config, run_dir=distributed.broadcast(name))
    return config


def _train(args) -> None:
    from vrrl_jax import train
    from vrrl_jax.config import TrainConfig
    from vrrl_jax.parallel import distributed

    config = _recipe(args, TrainConfig)
    with distributed.stops_on_sigterm():
        train.main(config, resume=args.resume)


def _sft(args) -> None:
    from vrrl_jax import sft
    from vrrl_jax.config import SftConfig
    from vrrl_jax.parallel import distributed

    config = _recipe(args, SftConfig)
    with distributed.stops_on_sigterm():
        sft.main(config, resume=args.resume)


def _eval(args) -> None:
    from vrrl_jax.strict_yaml import top_keys

    recipe = pathlib.Path(args.target).suffix in (".yaml", ".yml")
    if recipe and "benchmarks" in top_keys(args.target):
        if args.config is not None or args.output is not None:
            args.error("--config and --output don't go with benchmarks")
        from vrrl_jax.benchmarks import suite
        from vrrl_jax.parallel.place import find

        if find(args.distributed) is not None:
            raise ValueError("benchmarks run on one process: --distributed off")
        print(suite.main(args.target, args.overrides, args.predictions, args.resume))
        return
    if args.predictions or args.resume:
        args.error("--predictions and --resume go with a configuration of benchmarks")
    if recipe and args.config is not None:
        args.error("--config goes with a checkpoint; a recipe names its own in policy.path")
    from vrrl_jax import evaluate
    from vrrl_jax.parallel import distributed

    checkpoint, config = args.target, args.config
    if recipe:
        config = args.target
        checkpoint = evaluate.load_recipe(pathlib.Path(config), args.overrides).policy.path
    _importable(config)
    distributed.start(args.distributed)
    evaluate.main(checkpoint, config, args.overrides, args.output)


def _plan(args) -> None:
    if args.topology is None and args.program:
        args.error("--program goes with --topology")
    if args.topology is not None and args.device:
        args.error("--device doesn't go with --topology, which names its chips itself")
    from vrrl_jax import planning
    from vrrl_jax.config import TrainConfig, load

    _importable(args.config)
    config = load(args.config, args.overrides, TrainConfig)
    options = {"model": args.model, "slots": args.slots, "patches": args.patches}
    if args.topology is not None:
        print(planning.compiled_for(config, args.topology, only=args.program, **options))
    else:
        print(planning.main(config, args.device, **options))


def _data_inspect(args) -> None:
    from vrrl_jax import datasets

    options = {"split": args.split, "limit": args.limit, "folder": args.folder}
    datasets.inspect(args.path, args.mapper, **options)


def _data_convert(args) -> None:
    from vrrl_jax import datasets

    options = {"split": args.split, "limit": args.limit, "folder": args.folder}
    datasets.convert(args.path, args.out, args.mapper, name=args.name, **options)


def _data_build(args) -> None:
    from vrrl_jax import datasets

    datasets.build(args.task, args.out, count=args.count, seed=args.seed, splits=args.splits)


def _check_generate(args) -> None:
    """A usage error for options of `generate` that don't go together."""
    given = [name for name in ("prompt", "chat", "input") if getattr(args, name) is not None]
    if len(given) != 1:
        args.error(
            "give one of --prompt, --chat and --input"
            + (f", not --{' and --'.join(given)}" if given else "")
        )
    if args.image and args.prompt is None:
        args.error("--image goes with --prompt; a chat or a record names its own pictures")
    if args.input is None and (args.output is not None or args.resume):
        args.error("--output and --resume go with --input")
    if args.input is not None and args.output is None:
        args.error("--input needs --output")
    if args.batch_size < 1:
        args.error(f"--batch-size must be at least 1, not {args.batch_size}")


def _generate(args) -> None:
    _check_generate(args)
    from vrrl_jax import answer, answer_file
    from vrrl_jax.inference import Options

    options = Options(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.n)
    if args.input is not None:
        answer_file.main(
            args.checkpoint,
            args.input,
            args.output,
            options,
            seed=args.seed,
            system=args.system,
            batch_size=args.batch_size,
            resume=args.resume,
        )
        return
    if args.chat is not None:
        question = answer.read_chat(args.chat, args.system)
    else:
        question = answer.ask(args.prompt, args.image, args.system)
    answer.speak(args.checkpoint, question, options, args.seed)


def _convert(args) -> None:
    from vrrl_jax.checkpoint import convert
    from vrrl_jax.progress import bytes_bar

    direction = convert.to_checkpoint if args.direction == "import" else convert.to_hugging_face
    options = {"dtype": args.dtype}
    if args.direction == "export":
        options["max_shard_size"] = args.max_shard_size
    with bytes_bar("read" if args.direction == "import" else "written") as progress:
        target = direction(args.source, args.target, progress=progress, **options)
    print(target)


def _report(args) -> None:
    from vrrl_jax.report import write_report

    if not pathlib.Path(args.run).is_dir():
        raise FileNotFoundError(f"{args.run}: no such run directory")
    print(write_report(args.run))


if __name__ == "__main__":
    sys.exit(main())
