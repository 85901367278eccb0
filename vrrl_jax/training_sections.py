"""Sections of one kind of training: the objective and its mechanisms, or the demonstrations."""

from __future__ import annotations

from typing import Literal

from vrrl_jax.sections import at_least, positive, require, section, share


@section
class AlgorithmConfig:
    """The objective.

    Attributes:
      name: "grpo" (group advantages) or "ppo" (a critic and GAE).
      advantage: how a group's scores become advantages, for grpo.
      clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high.
      dual_clip: bound of the loss for negative advantages; None for none.
      kl_coefficient, kl_estimator: penalty towards the starting policy; 0 loads no reference.
      normalization: how per-token losses become one number.
      entropy_coefficient: bonus.
      epochs, minibatches: passes over a rollout, optimizer steps a pass.
      discount, lambda_: of GAE, for ppo.
      value_coefficient, value_clip: of the critic's loss, for ppo.
      whiten: bring ppo's advantages to mean 0 and deviation 1.
      importance: old log-probabilities as the sampler recorded them, or recomputed.
    """

    name: Literal["grpo", "ppo"] = "grpo"
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float | None = 3.0
    kl_coefficient: float = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    normalization: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    entropy_coefficient: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    discount: float = 1.0
    lambda_: float = 1.0
    value_coefficient: float = 0.5
    value_clip: float | None = None
    whiten: bool = True
    importance: Literal["behaviour", "recomputed"] = "behaviour"

    def __post_init__(self):
        require(0 <= self.clip_low < 1, "clip_low", f"must lie in 0 .. 1, got {self.clip_low}")
        at_least(self, 0, "clip_high", "kl_coefficient", "entropy_coefficient")
        at_least(self, 0, "value_coefficient")
        at_least(self, 1, "epochs", "minibatches")
        share(self, "discount", "lambda_")
        positive(self, "value_clip")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "dual_clip",
            f"must be greater than 1, or null for none, got {self.dual_clip}",
        )


@section
class ModesConfig:
    """Weights by which a question's group is normal, trained under RTM, or rolled in."""

    normal: float = 1.0
    rtm: float = 0.0
    roll_in: float = 0.0

    def __post_init__(self):
        at_least(self, 0, "normal", "rtm", "roll_in")
        require(self.normal + self.rtm + self.roll_in > 0, "normal", "and the others are all 0")


@section
class RtmConfig:
    """Random Turn Masking: turns before a k drawn from k_min .. T - 1 carry no loss."""

    k_min: int = 0
    kind: Literal["sampled", "closed_form", "final_turn"] = "sampled"

    def __post_init__(self):
        at_least(self, 0, "k_min")


@section
class RollInConfig:
    """Buffered Roll-In.

    Attributes:
      capacity: prefixes held.
      max_per_question: of one question.
      max_prefix_turns: longer prefixes are not collected.
      wrong_ratio: share of sampled prefixes whose answer is wrong.
      min_size: no sampling below.
      max_staleness: oldest age in steps; None for any.
      force_think: after a wrong prefix the next turn is made to open as a revision.
      train_prefix: whether the prefix's own replies carry loss.
      decision_bonus: reward for revising wrong prefixes and committing right ones.
    """

    capacity: int = 4096
    max_per_question: int = 8
    max_prefix_turns: int = 6
    wrong_ratio: float = 0.5
    min_size: int = 64
    max_staleness: int | None = None
    force_think: bool = True
    train_prefix: bool = False
    decision_bonus: float = 0.0

    def __post_init__(self):
        at_least(self, 1, "capacity", "max_per_question", "max_prefix_turns", "min_size")
        at_least(self, 0, "decision_bonus", "max_staleness")
        share(self, "wrong_ratio")
        require(self.min_size <= self.capacity, "min_size", "exceeds capacity: lower it")


@section
class FilterConfig:
    """Online filtering: only groups of mean score in low .. high are kept, and refilled."""

    enabled: bool = False
    low: float = 0.01
    high: float = 0.99
    max_tries: int = 20

    def __post_init__(self):
        at_least(self, 1, "max_tries")
        require(self.low < self.high, "low", f"must be under high, got {self.low}, {self.high}")


@section
class UpdateConfig:
    """Shapes of an update; None is derived from the rollout's.

    Attributes:
      row_tokens: tokens of a packed row.
      rows_per_microbatch: rows of one forward and backward pass.
      picture_patches: patch slots of a picture.
    """

    row_tokens: int | None = None
    rows_per_microbatch: int = 8
    picture_patches: int | None = None

    def __post_init__(self):
        at_least(self, 1, "row_tokens", "rows_per_microbatch", "picture_patches")


@section
class DemonstrationConfig:
    """Supervised demonstrations.

    Attributes:
      single_turn_fraction: share of lone proposals, without feedback.
      single_turn_steps: first steps that hold lone proposals only.
      wrong_first: probability that the first proposal is wrong on purpose.
      second_error: probability that a revision is wrong again.
      max_turns: of a demonstration, the commit included. Turns never trained parse badly.
      soft_targets: spread an action's target over all that are as good.
      decision_weight: loss weight of the tag that opens a revision or a commit.
      reasoning: of single questions, the share whose answer follows from steps.
      confirm: of single questions, the share that checks a right first thought; `wrong_first` is
        the share that repairs a wrong one.
      reading_steps: of grounding, first steps that hold transcripts only: every text of a picture
        and where it stands. What can't be read can't be found.
      reading_fraction: share of transcripts later.
    """

    single_turn_fraction: float = 0.0
    single_turn_steps: int = 0
    wrong_first: float = 0.6
    second_error: float = 0.2
    max_turns: int = 4
    soft_targets: bool = True
    decision_weight: float = 1.0
    reasoning: float = 1.0
    confirm: float = 0.0
    reading_steps: int = 0
    reading_fraction: float = 0.0

    def __post_init__(self):
        share(self, "single_turn_fraction", "wrong_first", "second_error", "reasoning", "confirm")
        share(self, "reading_fraction")
        at_least(self, 0, "single_turn_steps", "decision_weight", "reading_steps")
        at_least(self, 1, "max_turns")


@section
class BatchConfig:
    """A supervised batch of packed rows.

    Attributes:
      rows: token rows.
      row_tokens: tokens of a row.
      picture_slots: pictures of a row.
      slot_patches: patches of a picture slot.
      sequences: demonstrations drawn a step, at most.
      fill: share of the token slots at which drawing stops.
    """

    rows: int = 8
    row_tokens: int = 4096
    picture_slots: int = 16
    slot_patches: int = 576
    sequences: int = 64
    fill: float = 0.9

    def __post_init__(self):
        at_least(self, 1, "rows", "row_tokens", "picture_slots", "slot_patches", "sequences")
        positive(self, "fill")
        share(self, "fill")
