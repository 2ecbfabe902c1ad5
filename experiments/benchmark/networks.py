"""Layers of known networks: what the choices of a formulation are held against, beside the table of `layers`.

Sizes are those of the publications; batches are as large as a few milliseconds to a few hundred ask for. Padding is the
same at both ends. Shared shapes stand once.
"""

from __future__ import annotations

from experiments.benchmark.layers import Conv

NETWORKS: dict[str, tuple[Conv, ...]] = {
    "LeNet-5": (
        Conv(128, (28, 28), 1, 6, 5),
        Conv(128, (14, 14), 6, 16, 5, padding=0),
        Conv(128, (5, 5), 16, 120, 5, padding=0),
        Conv(128, (), 120, 84),
    ),
    "VGG-16": (
        Conv(1, (224, 224), 3, 64, 3),
        Conv(1, (224, 224), 64, 64, 3),
        Conv(1, (112, 112), 64, 128, 3),
        Conv(2, (56, 56), 128, 256, 3),
        Conv(4, (28, 28), 256, 512, 3),
        Conv(8, (14, 14), 512, 512, 3),
        Conv(32, (), 25088, 512),
    ),
    "ResNet-18 for 32²": (
        Conv(32, (32, 32), 3, 64, 3),
        Conv(32, (32, 32), 64, 64, 3),
        Conv(32, (32, 32), 64, 128, 3, 2),
        Conv(32, (16, 16), 128, 128, 3),
        Conv(32, (16, 16), 128, 256, 3, 2),
        Conv(32, (8, 8), 256, 256, 3),
        Conv(32, (8, 8), 256, 512, 3, 2),
        Conv(32, (4, 4), 512, 512, 3),
    ),
    "ResNet-50": (
        Conv(8, (56, 56), 64, 256, 1),
        Conv(8, (28, 28), 512, 128, 1),
        Conv(8, (28, 28), 128, 128, 3),
        Conv(8, (14, 14), 1024, 256, 1),
        Conv(8, (14, 14), 256, 256, 3),
        Conv(8, (14, 14), 512, 512, 3, 2),
        Conv(8, (14, 14), 1024, 2048, 1, 2),
        Conv(8, (7, 7), 2048, 512, 1),
    ),
    "ResNeXt-50": (
        Conv(8, (56, 56), 128, 128, 3, groups=32),
        Conv(8, (56, 56), 256, 256, 3, 2, groups=32),
        Conv(8, (14, 14), 512, 512, 3, groups=32),
    ),
    "RegNetX-400MF": (
        Conv(8, (56, 56), 64, 64, 3, 2, groups=4),
        Conv(8, (14, 14), 160, 160, 3, groups=10),
        Conv(8, (7, 7), 400, 400, 3, groups=25),
    ),
    "MobileNet-V2": (
        Conv(8, (112, 112), 32, 32, 3, groups=32),
        Conv(8, (112, 112), 96, 96, 3, 2, groups=96),
        Conv(8, (56, 56), 144, 144, 3, groups=144),
        Conv(8, (28, 28), 192, 192, 3, groups=192),
        Conv(8, (14, 14), 576, 576, 3, 2, groups=576),
        Conv(8, (7, 7), 960, 960, 3, groups=960),
        Conv(8, (56, 56), 24, 144, 1),
        Conv(8, (14, 14), 384, 64, 1),
        Conv(8, (7, 7), 320, 1280, 1),
    ),
    "EfficientNet-B0": (
        Conv(8, (224, 224), 3, 32, 3, 2),
        Conv(8, (56, 56), 144, 144, 5, 2, groups=144),
        Conv(8, (28, 28), 240, 240, 5, groups=240),
        Conv(8, (14, 14), 672, 672, 5, 2, groups=672),
        Conv(8, (7, 7), 1152, 1152, 5, groups=1152),
        Conv(8, (1, 1), 240, 10, 1),
    ),
    "ConvNeXt-T": (
        Conv(8, (28, 28), 192, 192, 7, groups=192),
        Conv(8, (14, 14), 384, 384, 7, groups=384),
        Conv(8, (7, 7), 768, 768, 7, groups=768),
        Conv(8, (28, 28), 192, 384, 2, 2, padding=0),
        Conv(6272, (), 192, 768),
    ),
    "U-Net": (
        Conv(2, (128, 128), 1, 64, 3, padding=0),
        Conv(2, (126, 126), 64, 64, 3, padding=0),
        Conv(2, (64, 64), 128, 128, 3, padding=0),
        Conv(2, (32, 32), 256, 512, 3, padding=0),
        Conv(2, (16, 16), 512, 256, 2, 2, padding=0, transposed=True),
        Conv(2, (64, 64), 256, 128, 3),
        Conv(2, (128, 128), 64, 2, 1),
    ),
    "DCGAN": (
        Conv(32, (4, 4), 512, 256, 4, 2, padding=1, transposed=True),
        Conv(32, (16, 16), 128, 64, 4, 2, padding=1, transposed=True),
        Conv(32, (32, 32), 64, 3, 4, 2, padding=1, transposed=True),
    ),
    "DeepLab": (
        Conv(4, (28, 28), 256, 256, 3, dilation=2),
        Conv(2, (28, 28), 512, 256, 3, dilation=6),
    ),
    "SRCNN": (
        Conv(4, (64, 64), 1, 64, 9),
        Conv(4, (64, 64), 64, 32, 5),
        Conv(4, (64, 64), 32, 1, 5),
    ),
    "WaveNet": (
        Conv(4, (8192,), 64, 128, 2, padding=0),
        Conv(4, (8192,), 64, 128, 2, dilation=16, padding=0),
        Conv(4, (8192,), 64, 128, 2, dilation=256, padding=0),
        Conv(4, (8192,), 64, 256, 1),
    ),
    "audio": (
        Conv(8, (16000,), 1, 64, 80, 4, padding=0),
        Conv(8, (1024,), 64, 64, 3, dilation=4),
        Conv(4, (1024,), 64, 32, 8, 4, padding=2, transposed=True),
        Conv(8, (1024,), 256, 256, 31, groups=256),
    ),
    "C3D": (
        Conv(1, (16, 56, 56), 3, 64, 3),
        Conv(1, (16, 28, 28), 64, 128, 3),
        Conv(1, (8, 14, 14), 128, 256, 3),
    ),
    "3-D U-Net": (
        Conv(1, (32, 32, 32), 16, 32, 3),
        Conv(1, (32, 32, 32), 32, 32, 3, padding=0),
        Conv(1, (16, 16, 16), 64, 32, 2, 2, padding=0, transposed=True),
        Conv(1, (32, 32, 32), 32, 32, 3, 2),
    ),
    "X3D": (
        Conv(1, (16, 28, 28), 108, 108, 3, groups=108),
        Conv(1, (16, 28, 28), 48, 108, 1),
    ),
}
