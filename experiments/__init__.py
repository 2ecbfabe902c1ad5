"""Experiments that train small networks on real images with the rules of jaxconv."""
