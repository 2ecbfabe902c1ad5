"""The bench that proves `jaxconv.check`: wrong gradients it must reject, right ones it must accept."""
