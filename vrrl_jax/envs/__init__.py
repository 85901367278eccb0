from vrrl_jax.envs import frozenlake as frozenlake
