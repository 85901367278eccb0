"""Pictures of what environments and data sets hold."""

from vrrl_jax.render import frozenlake as frozenlake
