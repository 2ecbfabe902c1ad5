"""The bench of `jaxconv.check`: wrong gradients it must reject, right ones it must accept."""
