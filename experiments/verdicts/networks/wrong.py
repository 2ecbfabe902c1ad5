"""Networks with one wrong rule somewhere inside: a right network, a place in it, and the faults that are put there."""

from __future__ import annotations

from experiments.verdicts.networks.faults import LARGE, SMALL
from experiments.verdicts.networks.network import Network
from experiments.verdicts.networks.right import RIGHT

NAMED = {network.name: network for network in RIGHT}

# Site, kind of function, faults
Rows = list[tuple[str, str, list[str]]]

DENSE: dict[str, Rows] = {
    "mlp 64-784-10 without biases, batch 4": [
        ("matmul 0", "dense", ["dw times 1.002", "one column of dw 2 % too large", "one row of dw 2 % too large"]),
        ("matmul 0", "dense", ["dw times 1.5", "the sign of dw", "one row of dw is missing", "dw transposed"]),
        ("matmul 1", "dense", ["dx times 1.002", "dw times 1.002", "δ times 0.998", "one row of dw 2 % too large"]),
        ("matmul 1", "dense", ["dw of the first example alone", "one example of dx is missing", "dw transposed"]),
        ("relu 0", "relu", ["slope 1.002", "leaks 0.01", "passes all", "the wrong side", "a stale mask"]),
        ("loss", "loss", ["times 1.002", "one example is missing", "the labels off by one"]),
    ],
    "mlp 16-64-64-64-64-64-10, batch 4, relu, cross-entropy": [
        ("dense 0", "dense", ["db times 1.002", "dw times 1.002", "db of the first example alone", "dw transposed"]),
        ("dense 2", "dense", ["dx times 1.002", "one column of dw 2 % too large", "the features of dx reversed"]),
        ("dense 3", "dense", ["one example of dx 1 % too large", "db averaged", "the examples of dx rolled"]),
        ("dense 5", "dense", ["dw times 1.002", "db averaged", "one column of dw is missing", "δ clipped"]),
        ("relu 0", "relu", ["slope 1.002", "leaks 0.01", "a stale mask"]),
        ("relu 2", "relu", ["passes all", "one example is missing"]),
        ("relu 4", "relu", ["1 − t", "the wrong side"]),
    ],
    "mlp 8-16-16-4, batch 5, tanh, mse": [
        ("dense 1", "dense", ["δ times 0.998", "dx times 1.5", "dx is missing", "dw transposed"]),
        ("tanh 0", "smooth", ["slope times 1.002", "passes all", "slope times 1.5"]),
        ("mse", "loss", ["times 1.002", "summed, not averaged"]),
    ],
    "mlp 64-10, batch 64, relu, cross-entropy": [
        ("dense 0", "dense", ["dw times 1.002", "db times 1.002", "one row of dw 2 % too large", "db averaged"]),
        ("dense 0", "dense", ["dw of the first example alone", "one column of dw is missing"]),
    ],
    "mlp 16-2048-10, batch 4, relu, cross-entropy": [
        ("dense 0", "dense", ["dw times 1.002", "one column of dw 2 % too large"]),
        ("dense 1", "dense", ["dx times 1.002", "one row of dw 2 % too large", "one example of dx is missing"]),
    ],
    "mlp with tied weights": [("dense 1", "dense", ["dw times 1.002", "dx times 1.5", "one row of dw is missing"])],
    "mlp with dead units": [("relu 0", "relu", ["slope 1.002", "passes all"])],
    "mlp, a mixture of experts": [("softmax", "softmax", ["times 1.002", "the diagonal alone"])],
    "mlp vmapped over examples": [("relu 0", "relu", ["slope 1.002", "passes all"])],
    "mlp with checkpoint": [("gelu 1", "smooth", ["slope times 1.002", "relu's"])],
}

CONVOLUTIONAL: dict[str, Rows] = {
    "cnn two convs, max pools": [
        ("conv 0", "conv", ["dw times 1.002", "one tap of dw 2 % too large", "dw rotated", "dw shifted by a tap"]),
        ("conv 3", "conv", ["dx times 1.002", "dx rotated", "one channel of dx is missing", "dx shifted by a row"]),
        ("bias of conv 0", "bias", ["db of the first row alone", "db averaged"]),
        ("max pool 2", "max pool", ["spread evenly", "to the first tap"]),
        ("max pool 5", "max pool", ["one example is missing", "to the first tap"]),
    ],
    "cnn two convs, avg pools, tanh": [
        ("avg pool 2", "avg pool", ["not divided", "to the first tap"]),
        ("conv 3", "conv", ["dw of the first example alone", "one channel of dw 2 % too large"]),
        ("tanh 4", "smooth", ["slope times 1.002", "passes all"]),
    ],
    "cnn all convolutional": [
        ("conv 2", "conv", ["dw reads x one row off", "dx shifted by a row", "one tap of dw 2 % too large"]),
        ("conv 4", "conv", ["dw with h and w exchanged", "the last row of dx is missing", "dw times 1.002"]),
        ("relu 1", "relu", ["leaks 0.01", "the wrong side"]),
    ],
    "cnn with batch norm": [
        ("batch norm 1", "batch norm", ["no mean term", "no x̂ term", "statistics taken for constants"]),
        ("batch norm 4", "batch norm", ["each example on its own", "the scale's gradient averaged"]),
        ("batch norm 4", "norm", ["dx times 1.002", "the scale's times 1.002"]),
    ],
    "cnn with layer norm": [
        ("layer norm 1", "layer norm", ["no mean term", "no x̂ term", "dx lacks the scale"]),
        ("layer norm 4", "layer norm", ["statistics taken for constants", "the scale's gradient lacks x̂"]),
        ("layer norm 4", "norm", ["one channel's scale 2 % too large"]),
        ("gelu 2", "smooth", ["relu's"]),
    ],
    "cnn residual": [
        ("conv 2.3", "conv", ["dx times 1.002", "one example of dx 1 % too large", "one tap of dw is missing"]),
        ("batch norm 4.1", "batch norm", ["no mean term", "no x̂ term"]),
        ("conv 4.0", "conv", ["dw flipped along one axis", "one example of dx is missing"]),
        ("relu 3", "relu", ["slope 1.002", "a stale mask"]),
    ],
    "cnn VGG-like": [
        ("conv 0", "conv", ["one tap of dw 2 % too large", "dw rotated"]),
        ("conv 7", "conv", ["dw times 1.002", "dw without the last row of δ", "one channel of dw is missing"]),
        ("dense 18", "dense", ["one example of dx is missing", "dx times 1.002"]),
    ],
    "cnn depthwise separable": [
        ("conv 0", "conv", ["dw rotated", "dw times 1.002"]),
        ("conv 4", "conv", ["dx shifted by a row", "dw reads x one row off"]),
    ],
    "cnn of signals": [("conv 1", "dense", ["dx times 1.002", "the features of dx reversed"])],
}

SEQUENTIAL: dict[str, Rows] = {
    "attention causal, four heads, batch 4, length 9, 16 features": [
        ("query", "dense", ["dw times 1.002", "dw transposed"]),
        ("scores", "scores", ["the scale 1 % off", "the scale forgotten", "δ transposed", "dq and dk exchanged"]),
        ("mask", "mask", ["one position late", "of the future"]),
        ("softmax", "softmax", ["times 1.002", "the diagonal alone", "the sum is missing"]),
        ("mixed", "dense", ["dx times 1.002", "one example of dx is missing"]),
    ],
    "attention eight heads, batch 3, length 8, 64 features": [
        ("softmax", "softmax", ["the sum is missing"]),
        ("scores", "scores", ["the scale forgotten", "dk is missing"]),
        ("value", "dense", ["one column of dw 2 % too large", "one column of dw is missing"]),
    ],
    "attention transformer, two blocks": [
        ("embedding", "embedding", ["times 1.002", "a row read twice is written, not added", "rows one off"]),
        ("layer norm 0 0", "layer norm", ["no mean term", "no x̂ term"]),
        ("layer norm 1 1", "norm", ["dx times 1.002"]),
        ("softmax 0", "softmax", ["times 1.002", "the diagonal alone"]),
        ("gelu 1", "smooth", ["slope times 1.002", "passes all"]),
        ("dense 1 0", "dense", ["dx times 1.002", "one column of dw is missing"]),
    ],
    "attention gated": [("rms norm 0", "rms norm", ["no x̂ term"]), ("silu", "smooth", ["slope times 1.002", "relu's"])],
    "rnn vanilla, last, batch 3, length 5, 4-16": [
        ("state", "dense", ["dx is missing", "dx times 1.002", "dw of the first example alone"]),
        ("tanh", "smooth", ["slope times 1.002", "passes all"]),
        ("input", "dense", ["dw times 1.002", "db averaged"]),
    ],
    "rnn gru, last, batch 4, length 6, 5-12": [
        ("state", "dense", ["dx is missing", "one example of dx is missing"]),
        ("sigmoid 1", "smooth", ["slope times 1.002", "slope times 1.5"]),
    ],
    "rnn lstm, last, batch 3, length 6, 4-16": [
        ("sigmoid forget", "smooth", ["slope times 1.002", "passes all"]),
        ("tanh out", "smooth", ["slope times 1.5"]),
        ("input", "dense", ["one column of dw 2 % too large"]),
    ],
    "embedding, most rows unread": [("embedding", "embedding", ["times 1.002", "rows one off"])],
}

LIBRARIES: dict[str, Rows] = {
    "model by ops, fast": [
        ("conv 0", "conv", ["dw times 1.002", "dw rotated"]),
        ("batch norm", "batch norm", ["no mean term", "statistics taken for constants"]),
        ("max pool", "max pool", ["one example is missing"]),
        ("conv 1", "conv", ["dx times 1.002", "dx shifted by a row", "one tap of dw is missing"]),
        ("layer norm", "layer norm", ["no x̂ term"]),
        ("loss", "loss", ["summed, not averaged"]),
    ],
    "model article, rotated": [("0/w", "parameter", ["one row 2 % too large", "flipped"])],
    "model lenet5, rotated": [("3/w", "parameter", ["times 1.002", "shifted"])],
    "model convnext, rotated": [("loss", "loss", ["times 1.002", "one example is missing"])],
    "linen MLP": [
        ("Dense_1/kernel", "parameter", ["times 1.002", "transposed"]),
        ("relu 0", "relu", ["leaks 0.01", "passes all"]),
        ("gelu 1", "smooth", ["relu's"]),
    ],
    "linen CNN, batch norm": [
        ("Conv_1/kernel", "parameter", ["one row 2 % too large", "flipped"]),
        ("relu 1", "relu", ["a stale mask"]),
    ],
    "linen attention": [("gelu", "smooth", ["slope times 1.002", "passes all"])],
    "nnx MLP": [("silu", "smooth", ["slope times 1.002", "relu's"]), ("first/bias", "parameter", ["averaged"])],
    "nnx CNN": [("relu", "relu", ["one example is missing", "slope 1.002"])],
    "equinox MLP": [
        ("layers/0/weight", "parameter", ["times 1.002", "transposed"]),
        ("relu", "relu", ["leaks 0.01", "the wrong side"]),
    ],
    "equinox CNN": [
        ("layers/0/weight", "parameter", ["one row 2 % too large", "flipped"]),
        ("relu 1", "relu", ["slope 1.002", "passes all"]),
    ],
    "equinox GRU": [("cell/weight_hh", "parameter", ["times 1.002", "one row is missing"])],
    "haiku MLP": [("relu", "relu", ["slope 1.002", "the wrong side"])],
    "haiku CNN": [("relu 0", "relu", ["leaks 0.01", "a stale mask"]), ("loss", "loss", ["one example is missing"])],
    "haiku attention": [("tanh", "smooth", ["slope times 1.002", "passes all"])],
}


def placed(name: str, rows: Rows) -> list[Network]:
    """A network for each fault; float32 alone where it is small."""
    right = NAMED[name]
    return [
        right.broken(site, fault, SMALL[kind][fault], ("float32",))
        if fault in SMALL.get(kind, ())
        else right.broken(site, fault, LARGE[kind][fault], right.dtypes)
        for site, kind, faults in rows
        for fault in faults
    ]


WRONG: list[Network] = [
    network
    for table in (DENSE, CONVOLUTIONAL, SEQUENTIAL, LIBRARIES)
    for name, rows in table.items()
    for network in placed(name, rows)
]
