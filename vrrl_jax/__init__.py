"""vrrl_jax: reinforcement learning that teaches vision-language models to look again."""

from vrrl_jax import data as data
from vrrl_jax import envs as envs
from vrrl_jax import rewards as rewards
from vrrl_jax import rl as rl
from vrrl_jax.checkpoint.hf import load_pretrained as load_pretrained
from vrrl_jax.checkpoint.hf import save_pretrained as save_pretrained
from vrrl_jax.inference import encode_images as encode_images
from vrrl_jax.inference import generate as generate
from vrrl_jax.inference import logits as logits
from vrrl_jax.inference import token_logprobs as token_logprobs
from vrrl_jax.inference import values as values
