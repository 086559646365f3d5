"""What the tests of whole runs share: three small shards that end in odd places, and a model that learns in moments."""

import functools

import numpy as np

import tokenizer
from train_gpt2 import TrainConfig

T, TOTAL_BATCH = 32, 256  # tokens in a window and in a step: 8 windows
SHARD_SIZES = (701, 640, 779)  # 66 windows in all: steps 2 and 5 cross a shard's end, step 8 the epoch's
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 8


@functools.cache
def encoding():
    return tokenizer.make_encoding(tokenizer.train_bpe([TEXT], 300), "tiny")


def write_shards(directory):
    """Three training shards and one to validate on, of seeded tokens, with their tokenizer. Returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for i, size in enumerate((500, *SHARD_SIZES)):
        # each token is the one before it plus 1 or 2: something to learn
        ids = (np.cumsum(generator.integers(1, 3, size)) % 290).astype(np.uint16)
        np.save(directory / f"tiny_{'val' if i == 0 else 'train'}_{i:06d}.npy", ids)
    tokenizer.save_tokenizer(encoding(), directory / "tokenizer.json")
    return directory


def tiny(data, log_dir, **overrides):
    """The configuration of a run that takes a tenth of a second."""
    settings = dict(
        data=str(data), log_dir=str(log_dir), total_batch=TOTAL_BATCH, block_size=T, micro_batch=2, max_steps=12,
        n_layer=2, n_head=2, n_embd=32, lr=3e-3, min_lr=3e-4, warmup_steps=2, val_every=5, val_tokens=450,
        sample_every=0, save_every=6, log_every=1, device="cpu", dtype="float32",
    )  # fmt: skip
    return TrainConfig.from_recipe("tales", **{**settings, **overrides})


def options(cfg):
    """The configuration as a command line."""
    default = TrainConfig.from_recipe("tales")
    changed = {k: v for k, v in vars(cfg).items() if v != getattr(default, k)}
    words = []
    for k, v in changed.items():
        words += [f"--{k}" if v else f"--no-{k}"] if isinstance(v, bool) else [f"--{k}", str(v)]
    return words


def losses(events):
    """The training losses by step; fails where a step is there twice."""
    pairs = [(e["step"], e["loss"]) for e in events if e["event"] == "train"]
    assert len(pairs) == len(dict(pairs)), "a step is logged twice"
    return dict(pairs)
