"""Lesson 9: how many items tell two shares apart."""

import math


def items_needed(p, q):
    # |p - q| >= 1.96 sqrt((p (1 - p) + q (1 - q)) / n), solved for n
    return math.ceil((p * (1 - p) + q * (1 - q)) * (1.96 / (p - q)) ** 2)
