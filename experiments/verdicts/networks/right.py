"""Every network without a fault."""

from __future__ import annotations

from experiments.verdicts.networks.images import IMAGES
from experiments.verdicts.networks.models import MODELS
from experiments.verdicts.networks.modules import MODULES
from experiments.verdicts.networks.network import Network
from experiments.verdicts.networks.perceptrons import PERCEPTRONS
from experiments.verdicts.networks.sequences import SEQUENCES

RIGHT: list[Network] = [*PERCEPTRONS, *IMAGES, *SEQUENCES, *MODELS, *MODULES]
