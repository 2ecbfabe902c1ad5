"""Every network without a fault."""

from __future__ import annotations

from experiments.verdicts.networks.images import IMAGES
from experiments.verdicts.networks.network import Network
from experiments.verdicts.networks.perceptrons import PERCEPTRONS

RIGHT: list[Network] = [*PERCEPTRONS, *IMAGES]
