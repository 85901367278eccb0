from vrrl_jax.rewards import frozenlake as frozenlake
