"""The ops of a network, each with the backward pass that was written for it.

With a kernel, the trio: conv, conv_transpose, conv_general_dilated, dense. Without one, a derivative or a linear pair
each: activation, max_pool, pool, pad, standardise with norm and batch_norm, dropout, loss. Beside them:

    arguments       what an op checks of its arguments, and the messages when one is wrong
    binding         how a rule becomes a gradient: `apply`, `bilinear` and `linear` decide what `rules=` means
    own_rules       a rule of the caller's, held to its contract
    plan            which formulation the fast maps take, without running them

The public functions are exported by `jaxconv` itself.
"""
