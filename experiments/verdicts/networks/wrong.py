"""Networks with one wrong rule somewhere inside: a right network, a place in it, and the faults that are put there."""

from __future__ import annotations

from experiments.verdicts.networks.faults import LARGE, SMALL
from experiments.verdicts.networks.network import Network
from experiments.verdicts.networks.right import RIGHT

NAMED = {network.name: network for network in RIGHT}

# Network, site, kind of function, faults
Row = tuple[str, str, str, list[str]]

MLP = "mlp 64-784-10 without biases, batch 4"
DEEP = "mlp 16-64-64-64-64-64-10, batch 4, relu, cross-entropy"
SMOOTH = "mlp 8-16-16-4, batch 5, tanh, mse"
ONE = "mlp 64-10, batch 64, relu, cross-entropy"
WIDE = "mlp 16-2048-10, batch 4, relu, cross-entropy"

ROWS: list[Row] = [
    (MLP, "matmul 0", "dense", ["dw times 1.002", "one column of dw 2 % too large", "one row of dw 2 % too large"]),
    (MLP, "matmul 0", "dense", ["dw times 1.5", "the sign of dw", "one row of dw is missing", "dw transposed"]),
    (MLP, "matmul 1", "dense", ["dx times 1.002", "dw times 1.002", "δ times 0.998", "one row of dw 2 % too large"]),
    (MLP, "matmul 1", "dense", ["dw of the first example alone", "one example of dx is missing", "dw transposed"]),
    (MLP, "relu 0", "relu", ["slope 1.002", "leaks 0.01", "passes all", "the wrong side", "a stale mask"]),
    (MLP, "loss", "loss", ["times 1.002", "one example is missing", "the labels off by one"]),
    (DEEP, "dense 0", "dense", ["db times 1.002", "dw times 1.002", "db of the first example alone", "dw transposed"]),
    (DEEP, "dense 2", "dense", ["dx times 1.002", "one column of dw 2 % too large", "the features of dx reversed"]),
    (DEEP, "dense 3", "dense", ["one example of dx 1 % too large", "db averaged", "the examples of dx rolled"]),
    (DEEP, "dense 5", "dense", ["dw times 1.002", "db averaged", "one column of dw is missing", "δ clipped"]),
    (DEEP, "relu 0", "relu", ["slope 1.002", "leaks 0.01", "a stale mask"]),
    (DEEP, "relu 2", "relu", ["passes all", "one example is missing"]),
    (DEEP, "relu 4", "relu", ["1 − t", "the wrong side"]),
    (SMOOTH, "dense 1", "dense", ["δ times 0.998", "dx times 1.5", "dx is missing", "dw transposed"]),
    (SMOOTH, "tanh 0", "smooth", ["slope times 1.002", "passes all", "slope times 1.5"]),
    (SMOOTH, "mse", "loss", ["times 1.002", "summed, not averaged"]),
    (ONE, "dense 0", "dense", ["dw times 1.002", "db times 1.002", "one row of dw 2 % too large", "db averaged"]),
    (ONE, "dense 0", "dense", ["dw of the first example alone", "one column of dw is missing"]),
    (WIDE, "dense 0", "dense", ["dw times 1.002", "one column of dw 2 % too large", "one row of dw is missing"]),
    (WIDE, "dense 1", "dense", ["dx times 1.002", "one row of dw 2 % too large", "one example of dx is missing"]),
]


def placed(row: Row) -> list[Network]:
    """A network for each fault; float32 alone where it is small."""
    name, site, kind, faults = row
    right = NAMED[name]
    return [
        right.broken(site, fault, SMALL[kind][fault], ("float32",))
        if fault in SMALL[kind]
        else right.broken(site, fault, LARGE[kind][fault], right.dtypes)
        for fault in faults
    ]


WRONG: list[Network] = [network for row in ROWS for network in placed(row)]
