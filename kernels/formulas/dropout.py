"""Dropout masks from a counter-based random number generator.

The mask is a function of (seed, layer, step, element), so it does not depend on the backend or on who computes it.
The words are unsigned 64-bit integers in compiled code and Python's own integers elsewhere, hence the masks.
"""

GOLDEN = 0x9E3779B97F4A7C15
WORD = 0xFFFFFFFFFFFFFFFF


def mix(z):
    """SplitMix64's finalizer (Steele, Lea & Flood 2014)."""
    T = type(z)
    z = ((z ^ (z >> T(30))) * T(0xBF58476D1CE4E5B9)) & T(WORD)
    z = ((z ^ (z >> T(27))) * T(0x94D049BB133111EB)) & T(WORD)
    return z ^ (z >> T(31))


def dropout_key(stream, step):
    """The key of a step's mask, from that of the layer's `dropout_stream`."""
    return mix((stream + step) & type(stream)(WORD))


def random_word(key, element):
    """64 random bits for an element of the batch."""
    T = type(key)
    return mix((key + (element + T(1)) * T(GOLDEN)) & T(WORD))


def dropout_draw(key, element):
    """53 random bits for an element of the batch; it is kept where they reach rate * 2**53."""
    return random_word(key, element) >> type(key)(11)


def dropout_stream(seed: int, layer: int) -> int:
    return mix((seed + (layer + 1) * GOLDEN) & WORD)
