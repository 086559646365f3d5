"""Lesson 10: a law of weights and tokens, fitted to cheap runs; the exponents are tried, the rest is a linear fit."""

import numpy as np


def predict_loss(n, d, loss, big_n, big_d):
    best_error, best = np.inf, None
    for a in np.linspace(0.05, 1.2, 47):
        for b in np.linspace(0.05, 1.2, 47):
            columns = np.stack([np.ones_like(loss), n**-a, d**-b], axis=1)  # (runs, 3)
            weights = np.linalg.lstsq(columns, loss, rcond=None)[0]
            error = np.sum((columns @ weights - loss) ** 2)
            if (weights >= 0).all() and error < best_error:
                best_error, best = error, weights @ [1, big_n**-a, big_d**-b]
    return best
