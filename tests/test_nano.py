"""The shipped policies: complete Hugging Face directories, small, as good as the README says."""

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import evaluate
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import NavigationEval, TrainConfig, load
from vrrl_jax.data import frozenlake
from vrrl_jax.processing import processor as processing
from vrrl_jax.render.frozenlake import render
from vrrl_jax.tasks.frozenlake import FrozenLake

NAMES = hf.SHIPPED


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return request.param, *vr.load_pretrained(request.param)


def chat(processor, name):
    """A prompt with nano's own picture of a map, as a Hugging Face processor would give it."""
    map = frozenlake.generate(3, 1, (4,))[0]
    picture = processing.picture(processor, render(map, cell=28))
    content = [{"type": "image"}, {"type": "text", "text": "Solve"}]
    ids = processing.chat_prompt(processor, [{"role": "user", "content": content}], [picture])
    return ids[None], processing.pixel_values(processor, picture), np.array([picture.grid])


def test_size(shipped):
    name, _, params = shipped
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 1e6 < count < 2e6
    assert sum(f.stat().st_size for f in (hf.ASSETS / name).iterdir()) < 5e6


def test_transformers_gives_the_same_ids_and_logits(shipped):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, policy, params = shipped
    directory = hf.ASSETS / name
    processor = processing.load_processor(directory)
    ids, pixels, grids = chat(processor, name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Solve"}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    count = int(np.prod(grids)) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
    assert tokenizer(text)["input_ids"] == ids[0].tolist()

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32
    )
    pad = policy.config.image_token_id
    with torch.no_grad():
        reference = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            pixel_values=torch.tensor(pixels),
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=torch.tensor((ids == pad).astype(int)),
        ).logits.numpy()
    ours = np.asarray(vr.logits(policy, params, ids, None, pixels, grids))
    assert np.abs(ours - reference).max() <= 1e-4 * reference.std()


def test_nano_solves_maps_it_has_not_seen():
    policy, params = vr.load_pretrained("nano")
    config = load(hf.ASSETS / "nano" / hf.RECIPE, [], TrainConfig)
    task = FrozenLake(env=config.env, eval=NavigationEval(count=128, levels=(3, 4)))
    scores = evaluate.measure(
        policy,
        params,
        processing.load_processor(policy.directory),
        task,
        task.evaluation(),
        NavigationEval(temperatures=(0.0,)),
        config.rollout,
        config.env.max_turns,
    )
    assert scores.figures[0.0]["final_em"].mean() > 0.85
