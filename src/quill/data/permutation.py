"""A pseudo-random permutation of the numbers below n that is computed for single numbers, and needs no memory.

A number is written as a pair (left, right), with n or slightly more pairs in all. Each round of a Feistel network adds
a hash of one half to the other. A result that is not below n is permuted again until it is ("cycle walking"), so the
numbers below n are permuted among themselves.

Reference: Luby & Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions"; Black &
Rogaway 2002, "Ciphers with arbitrary finite domains" (pairs, cycle walking); Steele et al. 2014 (SplitMix64, the hash).
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 6


def permute(numbers_N: np.ndarray, count: int, keys_R: np.ndarray) -> np.ndarray:
    """Return the image of each number below `count`, int64, in the permutation that the round keys (uint64) choose."""
    rights = math.isqrt(count - 1) + 1
    lefts = -(-count // rights)
    images_N = _permute_pairs(numbers_N.astype(np.uint64), lefts, rights, keys_R)
    while (outside_N := images_N >= count).any():
        images_N[outside_N] = _permute_pairs(images_N[outside_N], lefts, rights, keys_R)
    return images_N.astype(np.int64)


def _permute_pairs(numbers_N: np.ndarray, lefts: int, rights: int, keys_R: np.ndarray) -> np.ndarray:
    """Return a bijection of the numbers below lefts · rights, each taken as the pair divmod(number, rights)."""
    sizes = np.uint64(lefts), np.uint64(rights)
    halves = list(np.divmod(numbers_N, sizes[1]))
    for turn, key in enumerate(keys_R):
        changed, other = turn % 2, 1 - turn % 2
        halves[changed] = (halves[changed] + _hash(halves[other] ^ key) % sizes[changed]) % sizes[changed]
    return halves[0] * sizes[1] + halves[1]


def _hash(values_N: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser: every bit of a value decides about half of the bits of the result."""
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))
