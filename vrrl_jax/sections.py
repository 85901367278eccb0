"""Sections that every kind of run shares: the model, its data, sampling, and housekeeping."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vrrl_jax.strict_yaml import ConfigError

# Keyword-only: a section is read by the names of its fields.
section = dataclasses.dataclass(frozen=True, kw_only=True)


def require(holds: bool, key: str, message: str) -> None:
    if not holds:
        raise ConfigError(f"{key} {message}", key)


def at_least(config: object, low: float, *keys: str) -> None:
    """Fields that may not be under `low`; None passes."""
    for key in keys:
        value = getattr(config, key)
        require(value is None or value >= low, key, f"must be at least {low}, got {value}")


def positive(config: object, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        require(value is None or value > 0, key, f"must be greater than 0, got {value}")


def share(config: object, *keys: str) -> None:
    """Fields that are probabilities or shares."""
    for key in keys:
        value = getattr(config, key)
        require(value is None or 0 <= value <= 1, key, f"must lie in 0 .. 1, got {value}")


@section
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685), trained with the base frozen.

    Attributes:
      rank: of the adapters; 0 trains the policy itself.
      alpha: their scale is alpha / rank; None is twice the rank.
      targets: where they are: decoder, attention, mlp, vision, merger, or single projections of the
        decoder such as q_proj.
    """

    rank: int = 0
    alpha: float | None = None
    targets: tuple[str, ...] = ("decoder",)

    def __post_init__(self):
        at_least(self, 0, "rank")
        require(bool(self.targets), "targets", "is empty: name what gets adapters, such as decoder")
        if self.alpha is not None:
            require(self.alpha > 0, "alpha", f"must be above 0: {self.alpha}")

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


@section
class PolicyConfig:
    """The model.

    Attributes:
      path: a Hugging Face directory; "nano" is the policy that ships with the package.
      dtype: of the parameters that the optimizer holds.
      compute_dtype: of the forward pass; None is float32 on a CPU, bfloat16 elsewhere.
      value_head: whether the model has a critic, which PPO needs.
      critic: "shared" reads the policy's states; "separate" is a model of its own that starts as a
        copy of the policy and trains what the policy does (with lora: adapters of its own beside
        the same base). It is saved for a resume, never exported.
      freeze_vision: leave the vision tower as it is.
      remat: compute the activations of each block anew in the backward pass: a third more work, a
        fraction of the memory.
      remat_keeps: with remat, what is kept all the same: nothing, or dots, the products with
        weights, which are then not computed anew.
      gather_view: over a mesh, keep the sampler's copy of the weights whole on every part of fsdp.
        Without, it takes less memory, and every drawn token gathers all weights.
      attention: which kernel computes it; docs/attention.md says what auto chooses.
      init: "random" starts a fresh model of the shape that `config` gives, with the tokenizer and
        the processor in `path`. For `vrrl sft` only.
      config: path of a Hugging Face config.json, for a random start.
      lora: adapters, trained in place of the policy's own parameters.
    """

    path: str = "nano"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    value_head: bool = False
    critic: Literal["shared", "separate"] = "shared"
    freeze_vision: bool = False
    remat: bool = False
    remat_keeps: Literal["nothing", "dots"] = "nothing"
    gather_view: bool = True
    attention: Literal["auto", "xla", "chunked", "splash", "cudnn"] = "auto"
    init: Literal["pretrained", "random"] = "pretrained"
    config: str | None = None
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self):
        require(bool(self.path), "path", "is empty: name a Hugging Face directory, or nano")
        separate = self.critic == "separate"
        require(self.value_head or not separate, "critic", "separate needs value_head: true")
        if self.init == "random":
            require(self.config is not None, "config", "is needed for init=random: a config.json")
            whole = not (self.lora.rank or self.freeze_vision)
            require(whole, "init", "random trains every parameter: no lora, no freeze_vision")


@section
class RolloutConfig:
    """How episodes are sampled.

    Attributes:
      questions: groups a step.
      samples: episodes a group.
      temperature, top_k, top_p: of the sampler; 0 and 1.0 switch the latter two off.
      max_new_tokens: a turn.
      in_flight: episodes under way at a time; the next begin as others end (continuous batching).
        None: all at once, turn by turn. What is sampled is the same.
      prefills: episodes of one prefill then; None: a quarter of those under way.
      chunk: tokens of each reply between two looks at what has ended.
      overlap: whether the host looks at a chunk while the next is drawn.
      train_end_token: whether the sampled end of a turn carries loss. The released code leaves it
        out; then nothing teaches the model to stop.
    """

    questions: int = 32
    samples: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 512
    in_flight: int | None = None
    prefills: int | None = None
    chunk: int = 16
    overlap: bool = False
    train_end_token: bool = True

    def __post_init__(self):
        at_least(
            self, 1, "questions", "samples", "max_new_tokens", "in_flight", "prefills", "chunk"
        )
        fits = self.prefills is None or self.prefills <= (self.in_flight or 0)
        require(fits, "prefills", "must be at most rollout.in_flight")
        at_least(self, 0, "top_k")
        positive(self, "temperature", "top_p")
        share(self, "top_p")


@section
class OptimizerConfig:
    """The optimizer.

    Attributes:
      name: "muon" updates hidden matrices by Muon and everything else by AdamW.
      learning_rate: the peak.
      warmup_steps: linear, from 0.
      schedule: what follows; "linear" and "cosine" fall to final_fraction of the peak.
      final_fraction: see above; 0.5 with "cosine" is VL-Rethinker's cosine to half.
      decay_fraction: share of the run, at its end, over which the rate falls.
      b1, b2, eps, weight_decay: of AdamW; b1 and weight_decay are Muon's too.
      adam_scale: AdamW's rate as a multiple of Muon's.
      value_head_scale: the value head's updates as a multiple of the others'. It starts at zero
        beside a trained policy: at the policy's rate PPO would go without a critic for long.
      grad_clip: bound of the global gradient norm; None for none.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 5e-7
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_fraction: float = 0.0
    decay_fraction: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    adam_scale: float = 1.0
    value_head_scale: float = 10.0
    grad_clip: float | None = 1.0

    def __post_init__(self):
        at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay")  # 0: ratio checks
        positive(self, "eps", "adam_scale", "value_head_scale", "grad_clip")
        share(self, "decay_fraction", "final_fraction")
        for key in ("b1", "b2"):
            require(0 <= getattr(self, key) < 1, key, "must be at least 0 and under 1")


@section
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1, the devices that are left."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for key, size in sizes.items():
            require(size > 0 or size == -1, key, f"must be positive, or -1 for the rest: {size}")
        last = [key for key, size in sizes.items() if size == -1][-1:]
        require(list(sizes.values()).count(-1) <= 1, *last or ("data",), "is a second -1")


@section
class CheckpointConfig:
    """Saves a resumable state `every` so many steps and keeps the last `keep`."""

    every: int = 50
    keep: int = 2

    def __post_init__(self):
        at_least(self, 1, "every", "keep")


@section
class EvalConfig:
    """Evaluation during and after a run.

    Attributes:
      enabled: False trains without any.
      every: steps between; 0 leaves it to the ends of the run.
      count: examples, the same number of each split.
      seed: of generated examples.
      temperatures: each is a row of the table; 0 is greedy.
      samples: episodes an example at a temperature over 0.
      references: other checkpoints to score on the same examples at the end of a run.
    """

    enabled: bool = True
    every: int = 0
    count: int = 500
    seed: int = 1_000_003
    temperatures: tuple[float, ...] = (0.0, 1.0)
    samples: int = 1
    references: tuple[str, ...] = ()

    def __post_init__(self):
        at_least(self, 0, "every")
        at_least(self, 1, "count", "samples")
        require(
            len(self.temperatures) > 0 and min(self.temperatures) >= 0,
            "temperatures",
            "must list numbers of at least 0, as in [0, 1]; 0 is greedy",
        )


@section
class GuardConfig:
    """A run ends after so many updates in a row that were skipped for not being finite."""

    max_bad_steps: int = 5

    def __post_init__(self):
        at_least(self, 1, "max_bad_steps")


@section
class LogConfig:
    """Episodes kept for people: `episodes` of them every `episodes_every` steps, 0 for none."""

    episodes_every: int = 10
    episodes: int = 4
    tensorboard: bool = True

    def __post_init__(self):
        at_least(self, 0, "episodes_every", "episodes")
