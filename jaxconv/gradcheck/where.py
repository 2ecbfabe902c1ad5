"""Where the wrong entries of an array are, in words: everywhere, one edge, one channel, every second row."""

from __future__ import annotations

import numpy as np

# More indices than this are counted, not listed.
_LISTED = 6


def where(wrong: np.ndarray) -> str:
    """A phrase for where a mask holds, such as "the last of 5 along axis 1"; "" if nowhere.

    A mask that is the product of a set of indices along each axis is said by these sets; one whose complement is such a
    product by what it leaves out. Where the sets are not filled, because some entries are right by chance, the phrase
    says so.

    Args:
      wrong: (…), bool.

    Example:
      >>> mask = np.zeros((2, 5, 6), bool)
      >>> mask[:, -1] = True
      >>> where(mask)
      'the last of 5 along axis 1'
      >>> mask[:, :, ::2] = True
      >>> where(mask)
      'everywhere but the first 4 of 5 along axis 1 and every 2nd from index 1 of 6 along axis 2'
    """
    if not wrong.any():
        return ""
    if wrong.all():
        return "everywhere"
    box, filled = _box(wrong)
    if filled == 1:
        return box
    others, full = _box(~wrong)
    if full == 1 and others:
        return f"everywhere but {others}"
    if filled >= 0.9:
        return f"nearly everywhere in {box}" if box else "nearly everywhere"
    return f"scattered over {box}" if box else "scattered"


def _box(mask: np.ndarray) -> tuple[str, float]:
    """The smallest product of sets of indices that holds the mask, in words, and which part of it the mask fills."""
    touched = [np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    volume = float(np.prod([len(t) for t in touched]))
    said = [
        f"{_indices(t, n)} of {n} along axis {axis}"
        for axis, (t, n) in enumerate(zip(touched, mask.shape, strict=True))
        if len(t) < n
    ]
    return " and ".join(said), int(mask.sum()) / volume


def _indices(found: np.ndarray, n: int) -> str:
    """A proper subset of 0 … n − 1 in words."""
    first, last, count = int(found[0]), int(found[-1]), len(found)
    steps = np.diff(found)
    if count == 1:
        return {0: "the first", n - 1: "the last"}.get(first, f"index {first}")
    if (steps == 1).all():
        at_end = {(True, False): "the first", (False, True): "the last"}.get((first == 0, last == n - 1))
        return f"{at_end} {count}" if at_end else f"{first} to {last}"
    if count == n - 1:
        return f"all but index {np.setdiff1d(np.arange(n), found)[0]}"
    if found.tolist() == [0, n - 1]:
        return "both ends"
    if count > 2 and (steps == steps[0]).all() and first < steps[0] and n - last <= steps[0]:
        step = int(steps[0])
        return f"every {step}{ {2: 'nd', 3: 'rd'}.get(step, 'th') } from index {first}"
    if count <= _LISTED:
        return ", ".join(map(str, found))
    return f"{count} (from {first} to {last})"
