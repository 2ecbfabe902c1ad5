"""How tests compile: hundreds of small programs that run once, so the time goes into compiling them."""

import functools

import jax

# The code generator is told not to optimise, which halves the time. What is computed, the HLO, is optimised as ever.
program = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
