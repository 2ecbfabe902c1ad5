"""What hand-written gradients cost beside JAX's own, Flax and PyTorch: layers, pools and whole training steps."""
