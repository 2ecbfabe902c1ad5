"""The native engine for CPUs: the convolutions of oneDNN, and kernels of its own where XLA is slow.

What stands where:

    csrc           the C++: a handler for each kernel, called by XLA
    building       from csrc to `_native.so`, with whatever C++ compiler there is
    loading        from `_native.so` to handlers that XLA knows, or the reason why there are none
    convolution    the three maps: which calls oneDNN takes, and the call
    depthwise      kernel gradients of depthwise layers by our own
    windows        pools: which calls our own kernels take, and what they are told
    norms          the same for the gradients of norms
"""
