from vrrl_jax.data import frozenlake as frozenlake
