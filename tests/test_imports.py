"""Who may import whom: the rooms of the package, and third parties, by the files' own imports."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "vrrl_jax"

# Every room may import these.
SHARED = {
    "types",
    "config",
    "sections",
    "question_sections",
    "task_sections",
    "training_sections",
    "strict_yaml",
    "masked",
    "parallel",
    "coordinates",
}

# Room -> what else of the package it may import. A dotted name allows that file alone. A file may
# have a line of its own; it adds to its room's.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "config": set(),
    "sections": set(),
    "question_sections": set(),
    "task_sections": set(),
    "training_sections": set(),
    "strict_yaml": set(),
    "masked": set(),
    "parallel": set(),
    "layout": set(),
    "coordinates": set(),
    "data": {"render"},
    "render": {"data"},
    "envs": {"data", "render", "processing.parsing", "processing.grounding"},
    "envs.scenes": {"processing.images"},
    "processing": {"layout"},
    "models": {"layout"},
    "rollout": {"models", "processing", "layout"},
    "rollout.episodes": {"envs"},
    "rewards": {"data", "processing.parsing", "processing.grounding"},
    "rl": set(),
    "rl.update": {"models"},
    "checkpoint": {"models"},
}
# The shared rooms stand below the others, and have an order among themselves.
NARROWER: dict[str, set[str]] = {
    "types": set(),
    "coordinates": set(),
    "masked": {"types"},
    "layout": {"types"},
    "strict_yaml": set(),
    "sections": {"strict_yaml"},
    "task_sections": {"sections", "strict_yaml"},
    "question_sections": {"sections", "task_sections", "strict_yaml"},
    "training_sections": {"sections", "strict_yaml"},
    "config": {
        "sections",
        "question_sections",
        "task_sections",
        "training_sections",
        "strict_yaml",
    },
    "parallel": {"types", "config"},
}
# Modules at the top, which may import any room and each other. `__init__` is the public surface.
TOP = {
    "__init__",
    "answer",
    "answer_file",
    "benchmarks",
    "charts",
    "cli",
    "collect",
    "compiled",
    "compiles",
    "datasets",
    "evaluate",
    "gallery",
    "generate",
    "hlo",
    "hlo_cost",
    "inference",
    "label",
    "learn",
    "log",
    "optimizer",
    "packing",
    "plan",
    "planning",
    "playing",
    "progress",
    "report",
    "roofline",
    "selecting",
    "sft",
    "start",
    "tasks",
    "testing",
    "topology",
    "train",
    "trajectories",
}

# Third parties, by room; all others of the package's dependencies are closed to it.
JAX = {"jax", "jaxlib", "numpy", "ml_dtypes"}
THIRD_PARTIES: dict[str, set[str]] = {
    "types": {"numpy"},
    "config": set(),
    "sections": set(),
    "question_sections": set(),
    "task_sections": set(),
    "training_sections": set(),
    "strict_yaml": {"yaml"},
    "masked": JAX | {"chex"},
    "parallel": JAX,
    "layout": {"numpy"},
    "coordinates": set(),
    "data": {"numpy", "PIL", "gymnasium", "pyarrow", "tensorflow_datasets", "grain"},
    "data.loader": {"absl"},
    "data.tfds": {"array_record"},
    "data.tfds_rows": {"importlib_resources"},
    "render": {"numpy", "PIL", "gymnasium", "matplotlib"},
    "envs": {"numpy", "PIL", "gymnasium", "matplotlib"},
    "processing": {"numpy", "PIL", "tokenizers", "jinja2", "transformers"},
    "models": JAX | {"flax"},
    "rollout": JAX,
    "rewards": {"numpy", "math_verify", "latex2sympy2_extended", "sympy"},
    "rl": JAX | {"chex"},
    "rl.update": {"optax"},
    "checkpoint": JAX | {"orbax", "safetensors", "yaml"},
}
NEVER = {"torch", "tensorflow"}
# What is slow to import, or not always there, is imported where it is used.
LAZY = {"orbax", "transformers", "tokenizers", "matplotlib", "tensorboardX", "tensorflow_datasets"}
LAZY |= {"array_record", "importlib_resources", "absl"}
LAZY |= {"pyarrow", "gymnasium", "grain", "math_verify", "latex2sympy2_extended", "sympy"}


def name_of(path: pathlib.Path) -> str:
    """vrrl_jax/rl/update.py as "rl.update", a room's __init__ as the room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(source: str, module: str) -> list[tuple[int, str, bool]]:
    """(line, dotted name, whether importing the file runs it) of every import.

    `from a import b` counts as a.b: b may be a module.
    """
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: from the package of this module
                here = ["vrrl_jax", *module.split(".")]
                base = ".".join([*here[: len(here) - node.level], *filter(None, [base])])
            found.extend((node.lineno, f"{base}.{alias.name}", top) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(source), True)
    return found


def permitted(target: str, allowed: set[str]) -> bool:
    return any(target == a or target.startswith(a + ".") for a in allowed)


def violations(module: str, source: str) -> list[str]:
    """What a file imports and may not, in words."""
    room = module.split(".")[0]
    found = []
    for line, name, top in imports(source, module):
        first, _, rest = name.partition(".")
        if first == "vrrl_jax":
            if room in TOP:
                continue
            own = NARROWER.get(room, SHARED | ALLOWED.get(room, set()) | ALLOWED.get(module, set()))
            if rest.split(".")[0] == room:
                # Inside a room all is open, but for the one file that stands above it.
                wrong = room == "rl" and module != "rl.update" and rest.startswith("rl.update")
            else:
                wrong = not permitted(rest, own)
            if wrong:
                found.append(f"{module}:{line} imports {name}")
            continue
        if first in sys.stdlib_module_names or first == "__future__":
            continue
        if first in NEVER or (first == "flax" and room != "models"):
            found.append(f"{module}:{line} imports {name}")
        elif room not in TOP:
            parties = THIRD_PARTIES[room] | THIRD_PARTIES.get(module, set())
            if first not in parties:
                found.append(f"{module}:{line} imports {name}")
        if first in LAZY and top:
            found.append(f"{module}:{line} imports {name} at the top of the file")
    return found


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_what_its_room_may(module):
    assert violations(module, FILES[module].read_text(encoding="utf-8")) == []


def test_every_room_is_in_the_table():
    rooms = {module.split(".")[0] for module in FILES}
    unknown = rooms - set(ALLOWED) - TOP
    assert not unknown, f"say in this file what {sorted(unknown)} may import"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("rl.losses", "import jax\nfrom vrrl_jax import masked, types", 0),
        ("rl.losses", "from vrrl_jax.models import policy", 1),
        ("rl.losses", "def f():\n    import vrrl_jax.models.policy", 1),
        ("rl.losses", "from vrrl_jax.rl import update", 1),
        ("rl.losses", "from . import update", 1),
        ("rl.losses", "from .update import run", 1),
        ("rl.losses", "from ..models import policy", 1),
        ("rl.losses", "from .masking import random_turn_mask", 0),
        ("rl.losses", "import optax", 1),
        ("rl.update", "import optax\nfrom vrrl_jax.models import policy\nfrom . import losses", 0),
        ("rl.update", "import flax.linen as nn", 1),
        ("models.policy", "import flax.linen as nn\nfrom vrrl_jax import layout", 0),
        ("models.policy", "from vrrl_jax.processing import chat", 1),
        ("envs.frozenlake", "from vrrl_jax.processing import parsing", 0),
        ("envs.frozenlake", "from vrrl_jax.processing.parsing import parse_reply", 0),
        ("envs.frozenlake", "from vrrl_jax.processing import chat", 1),
        ("rollout.episodes", "from vrrl_jax.envs import frozenlake", 0),
        ("rollout.engine", "from vrrl_jax.envs import frozenlake", 1),
        ("checkpoint.state", "import orbax.checkpoint", 1),
        ("checkpoint.state", "def f():\n    import orbax.checkpoint", 0),
        ("checkpoint.state", "if typing.TYPE_CHECKING:\n    import orbax.checkpoint", 0),
        ("checkpoint.hf", "def f():\n    import torch", 1),
        ("train", "from vrrl_jax.models import policy\nimport optax", 0),
        ("train", "import flax", 1),
        ("types", "from vrrl_jax import masked", 1),
        ("masked", "from vrrl_jax import config", 1),
    ],
)
def test_the_check_sees(module, source, wrong):
    """The table is worth as much as this: it refuses what it should, and no more."""
    assert len(violations(module, source)) == wrong
