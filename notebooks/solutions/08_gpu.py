"""Lesson 8: speeds from a data sheet."""

import train_gpt2


def training_speed(card, flops_per_token, mfu):
    return train_gpt2.PEAK_TFLOPS[card] * 1e12 * mfu / flops_per_token


def writing_limit(bytes_per_s, parameters, bytes_each=2):
    return bytes_per_s / (parameters * bytes_each)
