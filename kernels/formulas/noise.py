"""Gaussian noise from the counter-based generator of dropout.

A draw is a function of (seed, layer, step, element), as a mask of dropout is, with the key that `dropout_key` makes.
Box and Muller (1958) make a normal number of two uniform ones: the halves of a word of 64 bits. The largest is 6.7,
which a normal number exceeds in one of 4 * 10^10 cases.
"""

from math import sqrt

from .dropout import random_word
from .functions import log

HALF, UNIT = 0xFFFFFFFF, 2.0**-32


def cosine_of_turn(u):
    """cos(2 pi u), for u in [0, 1]: sin(t) with t in [-pi/2, pi/2], by Taylor's series."""
    T = type(u)
    t = T(6.283185307179586) * (abs(u - T(0.5)) - T(0.25))
    s = t * t
    # to t^21 / 21!: 3e-16 of a term is left out
    p = T(1.9572941063391263e-20)
    p = p * s + T(-8.22063524662433e-18)
    p = p * s + T(2.8114572543455206e-15)
    p = p * s + T(-7.647163731819816e-13)
    p = p * s + T(1.6059043836821613e-10)
    p = p * s + T(-2.505210838544172e-08)
    p = p * s + T(2.7557319223985893e-06)
    p = p * s + T(-0.0001984126984126984)
    p = p * s + T(0.008333333333333333)
    p = p * s + T(-0.16666666666666666)
    return t + t * s * p


def with_noise(x, stddev, key, element):
    """x + stddev z, with z of N(0, 1) for an element of the batch."""
    T, W = type(x), type(key)
    drawn = random_word(key, element)
    radial = T((drawn >> W(32)) + W(1)) * T(UNIT)  # in (0, 1]
    turn = T(drawn & W(HALF)) * T(UNIT)
    radius = T(sqrt(T(-2) * T(log(radial))))
    return x + stddev * (radius * cosine_of_turn(turn))
