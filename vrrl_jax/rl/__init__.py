"""Reinforcement learning as pure functions: masks, mixing, buffers, advantages and losses.

`prefix_buffer`, `replay` and `selection` are modules, to be called by their own names.
"""

from vrrl_jax.rl import prefix_buffer as prefix_buffer
from vrrl_jax.rl import replay as replay
from vrrl_jax.rl import selection as selection
from vrrl_jax.rl.advantages import discounted_returns as discounted_returns
from vrrl_jax.rl.advantages import gae as gae
from vrrl_jax.rl.advantages import group_advantages as group_advantages
from vrrl_jax.rl.advantages import kl_rewards as kl_rewards
from vrrl_jax.rl.advantages import overlong_penalty as overlong_penalty
from vrrl_jax.rl.advantages import rloo_advantages as rloo_advantages
from vrrl_jax.rl.advantages import turn_discounts as turn_discounts
from vrrl_jax.rl.advantages import turn_gae as turn_gae
from vrrl_jax.rl.losses import entropy_loss as entropy_loss
from vrrl_jax.rl.losses import explained_variance as explained_variance
from vrrl_jax.rl.losses import fixed_length as fixed_length
from vrrl_jax.rl.losses import importance_weights as importance_weights
from vrrl_jax.rl.losses import kl_penalty as kl_penalty
from vrrl_jax.rl.losses import nll as nll
from vrrl_jax.rl.losses import ppo_loss as ppo_loss
from vrrl_jax.rl.losses import reduce as reduce
from vrrl_jax.rl.losses import sequence_count as sequence_count
from vrrl_jax.rl.losses import sequence_mean as sequence_mean
from vrrl_jax.rl.losses import token_mean as token_mean
from vrrl_jax.rl.losses import value_loss as value_loss
from vrrl_jax.rl.masking import PrefixMask as PrefixMask
from vrrl_jax.rl.masking import closed_form_turn_weights as closed_form_turn_weights
from vrrl_jax.rl.masking import final_turn_mask as final_turn_mask
from vrrl_jax.rl.masking import random_prefix_mask as random_prefix_mask
from vrrl_jax.rl.masking import random_turn_mask as random_turn_mask
from vrrl_jax.rl.mixing import MODES as MODES
from vrrl_jax.rl.mixing import draw_modes as draw_modes
