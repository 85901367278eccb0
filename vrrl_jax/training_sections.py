"""Sections of one kind of training: the objective and its mechanisms, or the demonstrations."""

from __future__ import annotations

from typing import Literal

from vrrl_jax.sections import at_least, positive, require, section, share


@section
class AlgorithmConfig:
    """The objective.

    Attributes:
      name: "grpo" (advantages relative to a group) or "ppo" (a critic and GAE).
      advantage: how a group's scores become advantages, for grpo; "returns" takes no group: plain
        discounted returns (REINFORCE).
      clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high.
      dual_clip: bound of the loss for negative advantages; None for none.
      kl_coefficient: penalty towards the starting policy; 0 loads no reference.
      kl_estimator: of the penalty, see `rl.kl_penalty`; None is k3 in the loss, k1 in the reward.
      kl_in: the penalty is a term of the loss, or taken off the reward.
      normalization: how per-token losses become one number.
      entropy_coefficient: bonus.
      epochs, minibatches: passes over a rollout, optimizer steps a pass.
      importance: old log-probabilities as the sampler recorded them; recomputed before the update;
        or recomputed, with the loss weighted by min(recomputed / recorded, importance_cap).
      importance_cap: see above.
      overlong: replies that their budget cut are trained like others; carry no loss ("mask"); or
        cost up to 1 as they come within overlong_margin tokens of the budget (DAPO).
      overlong_margin: in tokens.
      level: ppo's advantages by token, or by turn: its tokens share one.
      discount, lambda_: of GAE, for ppo; from token to token, or from turn to turn.
      turn_discount, turn_lambda: by token, those between turns; None for no difference.
      bootstrap: whether an episode that was cut counts the critic's estimate of what would follow.
      value_coefficient, value_clip: of the critic's loss, for ppo.
      value_trunk: share of the critic's gradient that reaches a trunk it shares with the policy.
      critic_warmup: first optimizer steps that train the critic alone.
      whiten: bring ppo's advantages, or returns, to mean 0 and deviation 1.
    """

    name: Literal["grpo", "ppo"] = "grpo"
    advantage: Literal["grpo", "dr_grpo", "rloo", "returns"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float | None = 3.0
    kl_coefficient: float = 0.01
    kl_estimator: Literal["k1", "k1+", "k2", "k3", "k3+"] | None = None
    kl_in: Literal["loss", "reward"] = "loss"
    normalization: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    entropy_coefficient: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    importance: Literal["behaviour", "recomputed", "truncated"] = "behaviour"
    importance_cap: float = 2.0
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    overlong_margin: int = 0
    level: Literal["token", "turn"] = "token"
    discount: float = 1.0
    lambda_: float = 1.0
    turn_discount: float | None = None
    turn_lambda: float | None = None
    bootstrap: bool = True
    value_coefficient: float = 0.5
    value_clip: float | None = None
    value_trunk: float = 1.0
    critic_warmup: int = 0
    whiten: bool = True

    def __post_init__(self):
        require(0 <= self.clip_low < 1, "clip_low", f"must lie in 0 .. 1, got {self.clip_low}")
        at_least(self, 0, "clip_high", "kl_coefficient", "entropy_coefficient", "critic_warmup")
        at_least(self, 0, "value_coefficient", "overlong_margin")
        at_least(self, 1, "epochs", "minibatches")
        share(self, "discount", "lambda_", "turn_discount", "turn_lambda", "value_trunk")
        positive(self, "value_clip", "importance_cap")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "dual_clip",
            f"must be greater than 1, or null for none, got {self.dual_clip}",
        )
        if self.level == "turn":
            # Turns are the steps then: nothing lies between two of them.
            both = self.turn_discount is None and self.turn_lambda is None
            require(both, "turn_discount", "is for level token: by turn, set discount and lambda_")

    @property
    def estimator(self) -> str:
        """Of the KL penalty."""
        return self.kl_estimator or ("k3" if self.kl_in == "loss" else "k1")


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
      recycle: whether rolled-in episodes that fail leave prefixes too.
      replay_commit: after a right prefix, one of the group's episodes is the stored commit.
      gate: prefixes are only collected from groups whose share of right commits lies strictly
        between these two; None for all.
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
    recycle: bool = False
    replay_commit: bool = False
    gate: tuple[float, float] | None = None

    def __post_init__(self):
        at_least(self, 1, "capacity", "max_per_question", "max_prefix_turns", "min_size")
        at_least(self, 0, "decision_bonus", "max_staleness")
        share(self, "wrong_ratio")
        require(self.min_size <= self.capacity, "min_size", "exceeds capacity: lower it")
        low, high = self.gate or (0.0, 1.0)
        require(low < high, "gate", f"must be low < high, got {low}, {high}")


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
class PrefixMaskConfig:
    """Random prefix masking of an episode's first generated tokens; `rl.random_prefix_mask`.

    Attributes:
      probability: of an episode to be masked; 0 switches it off.
      what: the tokens are hidden from the policy ("states"), carry no loss ("loss"), or both.
      pictures: whether the pictures before the last hidden token are hidden with them.
      continuation: the rest of the sampled episode is kept, or sampled again after masking.
      logprobs: old log-probabilities under the masked states, or as the sampler recorded them.
    """

    probability: float = 0.0
    what: Literal["states", "loss", "both"] = "both"
    pictures: bool = False
    continuation: Literal["in_place", "regenerate"] = "in_place"
    logprobs: Literal["recomputed", "behaviour"] = "recomputed"

    def __post_init__(self):
        share(self, "probability")
        again = self.continuation == "regenerate"
        require(not again or self.what == "both", "continuation", "needs what=both")

    @property
    def hides(self) -> bool:
        """Whether some inputs may be hidden from the policy."""
        return self.probability > 0 and self.what != "loss"

    @property
    def in_place(self) -> bool:
        """Whether masked episodes stay as they were sampled."""
        return self.probability > 0 and self.continuation == "in_place"

    @property
    def regenerates(self) -> bool:
        """Whether what follows a masked prefix is sampled again."""
        return self.probability > 0 and self.continuation == "regenerate"


@section
class ReplayConfig:
    """Which samples an update trains on, and those of earlier rollouts that it trains on again.

    Attributes:
      method: "none": those of the rollout. "filter": those with an advantage, repeated to as many.
        "ssr": Selective Sample Replay, drawn in proportion to |advantage| ** alpha. "mix": those of
        the rollout and as many drawn evenly from a ring of earlier ones.
      preset: of ssr. "paper": each optimizer step draws its samples, with replacement, from those
        of the last `lifetime` rollouts. "code": half as many as a rollout has; fresh ones first,
        what they lack from a ring that outlives rollouts.
      alpha: of ssr.
      lifetime: rollouts that a sample stays; None is the preset's: 1 for paper, no end for code
        and mix.
      capacity: samples held; None: as many as `lifetime` rollouts have, half a rollout for code,
        ten rollouts for mix.
      labels: of mix with a critic: advantages as they were, or recomputed with the critic of now.
      importance: replayed samples' ratio is measured from the policy that sampled them; or from
        the policy before the update, with the loss weighted by min(its ratio, cap).
      cap: see above.
      clear: of mix, whether the ring is emptied after every update.
    """

    method: Literal["none", "filter", "ssr", "mix"] = "none"
    preset: Literal["paper", "code"] = "paper"
    alpha: float = 1.0
    lifetime: int | None = None
    capacity: int | None = None
    labels: Literal["stored", "recomputed"] = "stored"
    importance: Literal["stored", "truncated"] = "stored"
    cap: float = 2.0
    clear: bool = False

    def __post_init__(self):
        at_least(self, 0, "alpha")
        at_least(self, 1, "lifetime", "capacity")
        positive(self, "cap")

    @property
    def holds(self) -> bool:
        """Whether there is a ring."""
        return self.method in ("ssr", "mix")

    def rollouts(self) -> int | None:
        """How many rollouts a sample stays; None for no end."""
        paper = self.method == "ssr" and self.preset == "paper"
        return self.lifetime or (1 if paper else None)

    def size(self, samples: int, parts: int = 1) -> int:
        """Rows of the ring, a multiple of the `parts` it is split over; a rollout has `samples`."""
        wanted = self.capacity
        if wanted is None and self.method == "ssr":
            half = self.preset == "code"
            wanted = max(1, samples // 2) if half else samples * (self.rollouts() or 1)
        wanted = 10 * samples if wanted is None else wanted
        return -(-wanted // parts) * parts


@section
class RethinkingConfig:
    """Forced rethinking of single-turn replies; `rollout/rethinking.py` explains each.

    Attributes:
      preset: "off", or the values of the paper or of its released code, which fields that aren't
        None replace.
      start: the first step with forced rethinking: the stage before it trains without.
      suffix: what follows a question from then on; None: env.suffix. "published" is VL-Rethinker's.
      nll_coefficient: of a further NLL term; None is the preset's, 0.05, and 0 without a preset.
      nll_on: tokens of that term: second thoughts of right replies (the paper), or whole replies
        that hold a "wait" and have a positive advantage (the code); None is the preset's.
    """

    preset: Literal["off", "paper", "code"] = "off"
    start: int = 0
    suffix: str | None = None
    share: float | None = None
    verification: tuple[str, ...] | None = None
    correction: tuple[str, ...] | None = None
    questioning: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    informed: float | None = None
    when_right: tuple[str, ...] | None = None
    when_wrong: tuple[str, ...] | None = None
    joint: str | None = None
    cut_back: float | None = None
    spare_accuracy: float | None = None
    accept: Literal["any", "correct"] | None = None
    least: int | None = None
    most: int | None = None
    per_query: int | None = None
    room: int | None = None
    temperature: float | None = None
    train_trigger: bool = False
    nll_coefficient: float | None = None
    nll_on: Literal["second", "waits"] | None = None

    def __post_init__(self):
        share(self, "share", "informed", "cut_back", "spare_accuracy")
        at_least(self, 0, "start", "room", "nll_coefficient")
        at_least(self, 1, "least", "most", "per_query")

    @property
    def nll(self) -> float:
        """The coefficient of the NLL term."""
        if self.preset == "off":
            return 0.0
        return 0.05 if self.nll_coefficient is None else self.nll_coefficient

    @property
    def nll_tokens(self) -> str:
        """Which tokens it is on."""
        return self.nll_on or ("waits" if self.preset == "code" else "second")


@section
class UpdateConfig:
    """Shapes of an update; None is derived from the rollout's.

    Attributes:
      row_tokens: tokens of a packed row.
      rows_per_microbatch: rows of one forward and backward pass.
      picture_patches: patch slots of a picture.
      share_prompts: compute what a question's episodes begin with once a row, not once an episode:
        the prompt and its pictures. Rows that hold a whole group (row_tokens) spare the most.
    """

    row_tokens: int | None = None
    rows_per_microbatch: int = 8
    picture_patches: int | None = None
    share_prompts: bool = True

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
