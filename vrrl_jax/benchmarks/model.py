"""What replies to questions: the configured model, or anything of the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from vrrl_jax import answer, answer_file
from vrrl_jax.answer import Question
from vrrl_jax.benchmarks.config import SuiteConfig
from vrrl_jax.checkpoint import hf
from vrrl_jax.inference import Options
from vrrl_jax.processing.processor import load_processor


class Call(NamedTuple):
    """A chat that waits for a reply.

    Attributes:
      question: messages and pictures.
      number: what its draws depend on, beside `stream`; >= 0.
      stream: of the benchmark, the mode and the turn.
    """

    question: Question
    number: int
    stream: int


class Reply(NamedTuple):
    """What came back.

    Attributes:
      text: the reply.
      finish: "stop", or "length" where it was cut.
      error: why there is none, or "".
      shown: (width, height) of each picture as the model saw it; empty where that isn't known.
    """

    text: str
    finish: str = "stop"
    error: str = ""
    shown: tuple[tuple[int, int], ...] = ()


# At most `batch_size` calls to as many replies, in order.
Answer = Callable[[Sequence[Call]], Sequence[Reply]]


def model_answer(config: SuiteConfig) -> tuple[Answer, str]:
    """(answers by the configured model, the coordinates of its own boxes).

    Raises:
      FileNotFoundError, ValueError: the model can't be read.
    """
    drawn = config.sampling
    options = Options(drawn.max_new_tokens, drawn.temperature, drawn.top_k, drawn.top_p)
    directory = hf.load_policy(config.model).directory
    bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    processor = load_processor(directory, **bounds)
    policy, view = answer.load_view(config.model)
    key, patch = jax.random.key(drawn.seed), processor.images.patch_size
    native = {"qwen3_vl": "thousand"}.get(policy.config.family, "pixel")

    def tokenised(call: Call):
        try:
            sequence = answer.tokenise(processor, call.question)
        except ValueError as error:
            return Reply("", "", str(error))
        most = config.max_prompt_tokens
        if most is not None and sequence.tokens.size > most:
            return Reply("", "", f"the prompt has {sequence.tokens.size} tokens, above {most}")
        return sequence

    def reply(calls: Sequence[Call]) -> list[Reply]:
        made = [tokenised(call) for call in calls]
        live = [i for i, item in enumerate(made) if not isinstance(item, Reply)]
        if not live:
            return made
        sequences, numbers = [made[i] for i in live], [calls[i].number for i in live]
        stream = jax.random.fold_in(key, calls[0].stream)
        out = answer_file.decode_batch(
            policy, view, sequences, numbers, options, stream, config.batch_size
        )
        out = jax.device_get(out)
        for row, i in enumerate(live):
            shown = tuple((p.grid[2] * patch, p.grid[1] * patch) for p in sequences[row].pictures)
            made[i] = Reply(*answer_file.read_reply(processor, out, row), shown=shown)
        return made

    return reply, config.coordinates or native
