"""
GPT-2 from scratch: the model and its training in one file, to be read from top to bottom.

Part I is all of GPT-2: follow one token forward, to a guess at the next one. Part II is all of training: from token ids
to gradients to better weights, on one machine or many. Part III is what a real run needs besides: device, files, log,
options. A reader may stop before it; a function that is used and not yet defined, such as reading(), stands there.

    python train_gpt2.py                                  two CPU cores, two or three minutes, 1.1 bits per byte
    python train_gpt2.py --recipe finetune --init gpt2 --data my.txt          one small GPU, minutes
    torchrun --standalone --nproc_per_node=8 train_gpt2.py --recipe gpt2      eight GPUs, hours, 3.05 nats per token
    python train_gpt2.py --help                           every option, with its unit and its default

Map
    Part I    the model      1 GPTConfig   2 attention   3 MLP   4 Block   5 GPT   6 generation   7 weights of others
    Part II   the training   8 data   9 TrainConfig   10 optimizers   11 Runtime   12 train_step   13 evaluate
                             14 checkpoints   15 train
    Part III  the plumbing   16 machine   17 what to read   18 files   19 log   20 options

Symbols
    B   batch, sequences read at once            nh  number of heads: attentions side by side in a layer
    T   time, tokens in a sequence               hs  head size, C / nh
    C   channels, numbers that a token carries   V   vocabulary size
    token  a piece of text with a number (id): a byte, or a frequent sequence of them; <|endoftext|> begins a document
    loss   how wrong the guesses are, in nats per token; divided by ln 2 and the mean bytes of a token: bits per byte
    gradient  the derivative of the loss by each weight; the backward pass computes it
    rank   number of this process among the world_size copies of the program that torchrun starts, one for each GPU
    micro-step  a batch too large for memory is read in grad_accum micro-steps, whose gradients add up

References
    GPT-2  Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the settings that it leaves out
    are taken from GPT-3, Brown et al. 2020, arXiv 2005.14165, appendix B. Others are cited where they are used.
"""

import argparse
import contextlib
import ctypes
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing
import zipfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

# On Linux, threads of torch that wait for each other keep their cores busy, by default for so long that another busy
# program makes a small step four times slower, here twice: they look 5,000 times, then sleep. (neighbour.json in
# tests/benchmarks/results.) torch reads this when it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F


class UserError(Exception):
    """A mistake that the user can mend: main() prints it as `error:` and `hint:` and exits with code 2."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.hint = hint


def require(condition, message, hint):
    """Raises UserError unless the condition holds."""
    if not condition:
        raise UserError(message, hint)


# === PART I: THE MODEL ==============================================================================================
# === 1. Six numbers define a GPT-2. =================================================================================
@dataclass(frozen=True)
class GPTConfig:
    block_size: int = 1024  # T: the longest context, in tokens
    vocab_size: int = 50257  # V: 256 bytes + 50,000 frequent sequences of bytes + <|endoftext|>
    n_layer: int = 12  # blocks, one after the other
    n_head: int = 12  # nh: attention heads in each block
    n_embd: int = 768  # C: numbers that each token carries; every block adds to them: the residual stream
    dropout: float = 0.0  # share of the numbers between layers zeroed in training, against learning by heart

    def __post_init__(self):
        C, nh = self.n_embd, self.n_head
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            n = getattr(self, name)
            require(isinstance(n, int) and n > 0, f"{name} is {n!r}", "it is a whole number of at least 1")
        require(C % nh == 0, f"n_embd {C} cannot be divided among {nh} heads", f"use n_embd {math.ceil(C / nh) * nh}")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}", "dropout is a share: 0 or more, less than 1")

    @classmethod
    def from_name(cls, name, **overrides):
        """The configuration called `name` in PRESETS, with single fields replaced."""
        require(name in PRESETS, f"no model is called {name!r}", "choose one of: " + ", ".join(PRESETS))
        return cls(**PRESETS[name] | overrides)


PRESETS = {  # parameters: 124M, 355M, 774M, 1558M, and 1.3M for a laptop
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
    "tales": dict(n_layer=2, n_head=4, n_embd=192, block_size=128, vocab_size=2048),
}


# === 2. Attention: the only place where tokens exchange information. ================================================
# A token arrives as C numbers: the learned row for its id in a table, plus the one for its position (section 5). From
# them it makes three vectors by learned linear maps. Its query says what it is looking for, its key what it offers, its
# value what it hands over. It takes a mean of all values, with most weight where its query fits the key.
def causal_attention(q, k, v, return_weights=False):
    """Attention written out (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1). q: (B, nh, Tq, hs), k and v:
    (B, nh, Tk, hs). Tq = Tk, except in generation, where earlier keys and values are kept and only the last Tq
    positions ask. Returns (B, nh, Tq, hs), and if asked the weights (B, nh, Tq, Tk), each row of which sums to 1."""
    Tq, Tk = q.size(-2), k.size(-2)
    # A dot product of hs independent terms of variance 1 has variance hs; divided by sqrt(hs) it has variance 1 again.
    # Softmax (exp of each score, divided by their sum) makes weights of the scores. Of large scores it would make one
    # weight of nearly 1, the others nearly 0, and nearly no gradient.
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, nh, Tq, Tk)
    # All positions predict their next token at once, so none may see a later one. triu(n) keeps the -inf from n places
    # right of the diagonal on, and makes the rest 0; exp(-inf) is 0.
    future = torch.full((Tq, Tk), float("-inf"), dtype=q.dtype, device=q.device).triu(Tk - Tq + 1)
    weights = (scores + future).softmax(dim=-1)
    y = weights @ v  # (B, nh, Tq, hs): a weighted mean of values
    return (y, weights) if return_weights else y


# An nn.Module finds all parameters in its attributes; calling it runs forward. nn.Linear(n, m) is x @ W.T + b, with W
# (m, n) and b (m,) learned; nn.Embedding(n, m) is a table of n learned rows. The names are OpenAI's, so that their
# weights fit: c_attn, c_proj (projection), c_fc (fully connected), ln (LayerNorm), wte and wpe (tables for tokens and
# positions), h (the blocks).
class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value of all heads in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)  # mixes what the heads found
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x, cache=None):
        """x: (B, T, C) -> (B, T, C). With a KVCache (below), x holds only the new tokens."""
        B, T, C = x.size()
        # Several heads look for several things at once, each in its own hs channels, like a second batch dimension.
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, nh, hs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # the 3 comes first and is unpacked: (B, nh, T, hs) each
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, Tk, hs)
        Tk = k.size(2)
        p = self.dropout if self.training else 0.0
        if q.is_cpu and q.dtype == torch.bfloat16 and T == Tk <= 256 and p == 0:
            y = causal_attention(q, k, v)  # for such short rows a CPU is faster with the plain form (measured)
        elif Tk == T:  # fused: the same result, without storing the (T, Tk) weights (Dao et al. 2022, arXiv 2205.14135)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        else:  # T new tokens see the Tk - T cached ones and, of the new, each itself and earlier ones (True: is seen)
            mask = None if T == 1 else torch.ones(T, Tk, dtype=torch.bool, device=x.device).tril(Tk - T)
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class KVCache:
    """The keys and values of one layer so far: computed once per token instead of again at every step of generation."""

    def __init__(self, max_length):
        self.max_length, self.length = max_length, 0

    def append(self, k, v):
        """Adds k and v, each (B, nh, T, hs), and returns all that is held: (B, nh, length, hs) each."""
        if self.length == 0:  # room for all tokens at once, because growing would copy everything each time
            shape = (*k.shape[:2], self.max_length, k.size(3))
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        start, self.length = self.length, self.length + k.size(2)
        require(self.length <= self.max_length, f"{self.length} tokens in a cache of {self.max_length}", "enlarge it")
        self.k[:, :, start : self.length], self.v[:, :, start : self.length] = k, v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


# === 3. MLP: each token by itself works on what attention brought. ==================================================
class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        # Without a curve between them, two linear maps would be one. GELU is a smooth max(0, x); tanh: OpenAI's form.
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)


# === 4. Block: the residual stream runs straight through; attention and MLP read from it and add to it. =============
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        # LayerNorm brings each token's C numbers to mean 0 and variance 1 (then scales and shifts them by learned
        # amounts), so that every layer reads inputs of one size, however large the stream has grown.
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):
        # The norms are inside f, not on the stream. The chain rule multiplies one factor d(x + f(x))/dx = 1 + f'(x) a
        # layer: the 1 carries the gradient to every layer, even where f' is tiny.
        x = x + self.attn(self.ln_1(x), cache)  # (B, T, C)
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


# === 5. GPT: embeddings, a stack of blocks, and a head that scores every possible next token. =======================
class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # True: compute what is inside each block again in the backward pass
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),  # which token it is
                wpe=nn.Embedding(config.block_size, config.n_embd),  # where it is: attention by itself knows no order
                drop=nn.Dropout(config.dropout),
                h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                ln_f=nn.LayerNorm(config.n_embd),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # one for both: a score is a dot product with its row
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() == 2:  # small numbers, so that all scores begin nearly equal; scales of LayerNorms stay 1
                std = 0.01 if "wpe" in name else 0.02  # both as in OpenAI's code
                if name.endswith("c_proj.weight"):
                    # Each block adds to the stream twice; 1/sqrt(2 n_layer) keeps its variance independent of depth.
                    std /= math.sqrt(2 * self.config.n_layer)
                p.normal_(0.0, std)

    def hidden(self, idx, cache=None):
        """Token ids (B, T) -> the residual stream after the last block, normed: (B, T, C). With a cache (new_cache) idx
        only holds the new tokens. Raises UserError beyond block_size tokens."""
        T, most = idx.size(1), self.config.block_size
        start = cache[0].length if cache else 0
        require(start + T <= most, f"{start + T} tokens in a block of {most}", "cut them on the left")
        pos = torch.arange(start, start + T, device=idx.device)  # (T,)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C)
        x = self.transformer.drop(x)
        for i, block in enumerate(self.transformer.h):
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache[i] if cache else None)
        return self.transformer.ln_f(x)

    def head(self, x):
        """(..., C) -> (..., V): a score (logit) for each possible next token."""
        return F.linear(x, self.lm_head.weight)

    def forward(self, idx, targets=None):
        """idx: (B, T) token ids. Returns (logits (B, T, V), loss): the mean cross-entropy (below) over targets (B, T),
        without those of -1, which fill up short batches of validation. Without targets the loss is None."""
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.head(x), None
        # This is head() with rows added for speed: matrix units work in tiles of 64 numbers, so 50257 rows become 50304
        # (-V % 64 are missing). A logit of -inf means probability 0 and gradient 0 for the added rows.
        V = self.config.vocab_size
        weight = F.pad(self.lm_head.weight, (0, 0, 0, -V % 64))  # (padded V, C)
        bias = F.pad(weight.new_zeros(V), (0, -V % 64), value=float("-inf"))  # (padded V,)
        logits = F.linear(x, weight, bias)  # (B, T, padded V)
        # Cross-entropy makes probabilities of the logits by softmax, and is -ln of the one given to the right token, in
        # nats: 1 nat is 1 / ln 2 = 1.44 bits. An untrained model gives each of V tokens about 1 / V, so the loss begins
        # near ln V = 10.8; a little above, since its guesses are not quite even.
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits.detach()[..., :V], loss  # the logits are to look at: no gradient goes through them

    def num_params(self):
        """Number of parameters, the matrix that wte and lm_head share counted once: 124,439,808 for gpt2."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self):
        """Floating-point operations to train on one token: 6 for each weight that multiplies it (a product and a sum
        forward, twice that back; wpe is only added), and 12 C T a layer for attention's two products (Chowdhery et al.
        2022, arXiv 2204.02311, appendix B)."""
        c = self.config
        return 6 * (self.num_params() - self.transformer.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * c.block_size

    # === 6. Generation: predict, draw one token, append it, repeat. =================================================
    def new_cache(self, max_length=None):
        """An empty KVCache for each layer, with room for max_length tokens (block_size if left out)."""
        return [KVCache(max_length or self.config.block_size) for _ in self.transformer.h]

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
        """Continues idx (B, T) token by token: yields (B, 1) ids. Past block_size tokens the window slides."""
        training, cache = self.training, None
        self.eval()  # without dropout
        # NVIDIA's library cuDNN prepares anew for each length, 30 ms a token on H100: off while lengths change.
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            for _ in range(max_new_tokens):
                if cache and cache[0].length < self.config.block_size:
                    x = self.hidden(idx[:, -1:], cache)  # only the new token; all others are in the cache
                else:  # the first step, or a full block: as the window slides, positions change, and with them all keys
                    cache = self.new_cache()
                    x = self.hidden(idx[:, -self.config.block_size :], cache)
                logits = self.head(x[:, -1])  # (B, V): the last position predicts the next token
                token = self.sample_next(logits, temperature, top_k, top_p, generator).to(idx.device)  # (B, 1)
                idx = torch.cat((idx, token), dim=1)
                yield token
        finally:
            self.train(training)
            torch.backends.cuda.enable_cudnn_sdp(cudnn)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
        """Returns idx (B, T) continued: (B, T + new). A row that has produced stop_token repeats it from then on, and
        generation ends when all rows have produced it. generator: a random generator of the CPU."""
        done, out = torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device), [idx]
        for token in self.stream(idx, max_new_tokens, temperature, top_k, top_p, generator):
            if stop_token is not None:
                token = token.masked_fill(done, stop_token)
                done |= token == stop_token
            out.append(token)
            if done.all():
                break
        return torch.cat(out, dim=1)

    @staticmethod
    def sample_next(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
        """Logits (B, V) -> one id for each row, (B, 1), drawn on the CPU: a seed gives the same draws on every device.

        temperature divides the logits: below 1 the likely tokens become likelier, and 0 always takes the likeliest.
        top_k keeps the k likeliest tokens, top_p the fewest likeliest that together have it or more (Holtzman et
        al. 2019, arXiv 1904.09751). Raises UserError for values outside their range."""
        valid = temperature >= 0 and math.isfinite(temperature)
        require(valid, f"temperature is {temperature}", "0 takes the likeliest token, 1 samples as trained")
        require(top_k is None or top_k >= 1, f"top_k is {top_k}", "it is a number of tokens, at least 1")
        require(top_p is None or 0 < top_p <= 1, f"top_p is {top_p}", "it is a probability: more than 0, at most 1")
        if temperature == 0:
            return logits.argmax(dim=-1, keepdim=True).cpu()
        # Keep the k largest (all V without top_k), sorted, so that what follows touches k numbers instead of V.
        logits, ids = logits.float().cpu().topk(min(top_k or logits.size(-1), logits.size(-1)), dim=-1)  # (B, k) each
        # To subtract the largest changes no probability; then a tiny temperature gives -inf and 0, not inf and nan.
        probs = ((logits - logits[:, :1]).double() / temperature).softmax(dim=-1)
        if top_p is not None:
            before = probs.cumsum(dim=-1) - probs  # probability of all likelier tokens; the first stays
            probs = probs.masked_fill(before >= top_p, 0.0)
        return ids.gather(-1, torch.multinomial(probs, 1, generator=generator))  # (B, 1)

    # === 7. Weights of others, in the files of Hugging Face's library `transformers`; OpenAI's are on its Hub. ======
    @classmethod
    def from_pretrained(cls, name_or_path, block_size=None, dropout=0.0):
        """A model with weights from: a name (`gpt2` .. `gpt2-xl`, OpenAI's, fetched from the Hub once), a checkpoint of
        this file (.pt) or a run's folder, or a directory as transformers saves it (.safetensors, also in parts, or
        .bin). block_size may cut the context short. Raises UserError for anything that is no GPT-2."""
        with reading(name_or_path):
            config, weights = read_weights(name_or_path)
            T, most = block_size or config.block_size, config.block_size
            require(most >= T, f"{name_or_path} has {most} positions, not {T}", "lower --block_size, or leave it out")
            model = cls(replace(config, block_size=T, dropout=dropout))
            model.load_state_dict(weights | {"transformer.wpe.weight": weights["transformer.wpe.weight"][:T]})
            bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
            require(not bad, f"{name_or_path}: {bad[:1]} holds numbers that are not finite", "take another checkpoint")
        return model

    def save_pretrained(self, directory):
        """Writes model.safetensors and config.json, which transformers.GPT2LMHeadModel.from_pretrained opens."""
        write_weights(self, Path(directory))


# === PART II: THE TRAINING ==========================================================================================
# === 8. Data: x is a row of token ids, y the same row one token later: what the model should predict at each place. =
def load_shard(path):
    """A shard, one file of the data's token ids, read from disk only where used: .npy (uint16, from fineweb.py) or
    .bin (as the project llm.c writes it: a header of 1,024 bytes, then uint16)."""
    hint = "write it again: python fineweb.py; nanoGPT's .bin has no header, so that nothing says what it is"
    with reading(path, hint):
        if Path(path).suffix == ".bin":
            shard = np.memmap(path, dtype="<u2", mode="r", offset=1024)
            header = np.fromfile(path, dtype="<i4", count=3).tolist()  # magic number, version, tokens
            require(header == [20240520, 1, len(shard)], f"{path} is no whole shard of llm.c: it begins {header}", hint)
        else:
            shard = np.lib.format.open_memmap(path, mode="r")  # np.load would also open archives and pickles
    sound = shard.dtype == np.uint16 and shard.ndim == 1 and len(shard) > 0
    require(sound, f"{path} holds {shard.dtype} of shape {shard.shape}, not a row of uint16", hint)
    return shard


class TokenStream:
    """Shards read as one long row of tokens that starts again at its end. Nothing is lost where two shards meet."""

    def __init__(self, shards, vocab_size):
        self.shards, self.vocab_size = shards, vocab_size
        self.ends = np.cumsum([len(s) for s in shards])  # where each shard ends in the long row

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start, length):
        """`length` tokens from position `start` on, wrapping round at the end: int64 (length,)."""
        pieces = []
        while length > 0:
            start %= len(self)
            i = int(np.searchsorted(self.ends, start, side="right"))  # the shard that holds `start`
            first = start - int(self.ends[i]) + len(self.shards[i])  # counted within the shard
            pieces.append(self.shards[i][first : first + length])  # as far as this shard goes
            start, length = start + len(pieces[-1]), length - len(pieces[-1])
        tokens = np.concatenate(pieces).astype(np.int64)  # torch's uint16 cannot index an embedding
        too_large = f"the data has token id {tokens.max()}, the vocabulary ends at {self.vocab_size - 1}"
        require(tokens.max() < self.vocab_size, too_large, "made with another tokenizer? give it with --tokenizer")
        return tokens


class DataLoaderLite:
    """Batches as a pure function of (step, micro-step, rank): nothing is counted on the way, so no rank can fall out of
    step, and resuming is exact. The row of tokens is cut into windows of T. Sequence s of the run (counted over steps,
    micro-steps and ranks) reads window s; shuffled, the windows of an epoch, one pass over the data, come in a new
    order. Tokens left over at an epoch's end begin window 0 of the next one, whose cuts therefore lie elsewhere."""

    def __init__(self, tokens, B, T, grad_accum=1, rank=0, world_size=1, shuffle=True, seed=0):
        too_short = f"the data has {len(tokens)} tokens, a window {T + 1}"
        require(len(tokens) > T, too_short, "use more text, or a smaller --block_size")
        self.tokens, self.B, self.T, self.shuffle, self.seed = tokens, B, T, shuffle, seed
        self.grad_accum, self.rank, self.world_size = grad_accum, rank, world_size
        self.windows_per_epoch = len(tokens) // T
        self.epoch, self.order = None, None  # the permutation that was made last, and of which epoch

    def window(self, sequence):
        """Number of a sequence -> number of the window that it reads."""
        epoch, i = divmod(sequence, self.windows_per_epoch)
        if self.shuffle:
            if epoch != self.epoch:  # made from (seed, epoch) alone: the same on every rank and after a resume
                generator = np.random.default_rng((self.seed, epoch))
                self.epoch, self.order = epoch, generator.permutation(self.windows_per_epoch)
            i = int(self.order[i])
        return epoch * self.windows_per_epoch + i

    def batch(self, step, micro_step=0):
        """-> x, y: int64 (B, T) each, y one token ahead of x."""
        first = ((step * self.grad_accum + micro_step) * self.world_size + self.rank) * self.B
        rows = [self.tokens.read(self.window(s) * self.T, self.T + 1) for s in range(first, first + self.B)]
        rows = torch.from_numpy(np.stack(rows))  # (B, T + 1): the last y of a window is the first x of the next one
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()  # copies: slices have gaps in memory


def validation_batches(tokens, B, T, max_tokens, rank=0, world_size=1):
    """The first max_tokens targets of `tokens`, each once, in windows of T dealt out to the ranks: x, y of (B, T) each.
    The last batch is filled up with targets of -1, which are not scored: a compiled model is made for one shape."""
    count = min(max_tokens, len(tokens) - 1)
    starts = range(0, count, T)[rank::world_size]
    for i in range(0, len(starts), B):
        x, y = np.zeros((B, T), dtype=np.int64), np.full((B, T), -1)
        for row, start in enumerate(starts[i : i + B]):
            n = min(T, count - start)
            window = tokens.read(start, n + 1)
            x[row, :n], y[row, :n] = window[:-1], window[1:]
        yield torch.from_numpy(x), torch.from_numpy(y)


# === 9. TrainConfig: a page of knobs, whose comments are the text of --help; RECIPES: which values go together. =====
@dataclass(frozen=True)
class TrainConfig:
    recipe: str = "tales"  # a set of settings that go together; every other option overrides it
    data: str = "input.txt"  # a text file, or a directory of token shards made by fineweb.py
    name: str | None = None  # name of the run's folder under --log_dir; the recipe's name if left out
    log_dir: str = "log"  # where the folders of runs are
    init: str | None = None  # start from these weights: gpt2 .. gpt2-xl, a checkpoint, or a directory
    resume: str | None = None  # continue a run: from CKPT; auto, also without a word: from its newest, if there is one
    tokenizer: str = "auto"  # gpt2, or a file; auto: that of the shards or of --init, or a new one for a text
    vocab_size: int | None = None  # tokens in the vocabulary of a new tokenizer (2048 if left out)
    n_layer: int | None = 2  # blocks
    n_head: int | None = 4  # attention heads in each block
    n_embd: int | None = 192  # channels of the residual stream
    block_size: int | None = 128  # context, in tokens
    dropout: float = 0.0  # share of the numbers between layers zeroed in training
    micro_batch: int = 16  # sequences read at once by each process; 0: the most that fit
    total_batch: int = 2048  # tokens a step, over all processes and micro-steps
    max_steps: int = 2000  # steps; 0: only validate and sample, and write nothing
    epochs: float | None = None  # passes over the data, another way to say --max_steps
    lr: float = 3e-3  # peak learning rate
    min_lr: float = 0.0  # learning rate towards which the schedule falls
    warmup_steps: int = 50  # steps until the peak
    weight_decay: float = 0.5  # of matrices; biases and LayerNorms have none
    clip: float = 1.0  # longest gradient allowed: its norm over all weights
    optimizer: typing.Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks, adamw for the rest
    val_every: int = 200  # steps between validations; 0: only at the end
    val_tokens: int = 200_000  # tokens of a validation
    sample_every: int = 500  # steps between samples; 0: only at the end
    hellaswag_every: int = 0  # steps between scores on HellaSwag, a test of endings of texts; 0: none
    save_every: int = 1000  # steps between checkpoints; 0: only at the end
    log_every: int = 20  # steps between lines
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: typing.Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products
    compile: typing.Literal["auto", "true", "false"] = "auto"  # compile training and validation
    shuffle: bool = True  # permute the windows of each epoch
    seed: int = 1337  # of the weights, the order of the data, dropout and the samples
    zero: bool = False  # divide the optimizer's state among the processes
    activation_checkpointing: bool = False  # recompute activations instead of storing them: less memory, slower

    def __post_init__(self):
        check_settings(self)

    @classmethod
    def from_recipe(cls, recipe="tales", **overrides):
        """The configuration called `recipe` in RECIPES, with single fields replaced."""
        require(recipe in RECIPES, f"no recipe is called {recipe!r}", "choose one of: " + ", ".join(RECIPES))
        return cls(recipe=recipe, **RECIPES[recipe] | overrides)


# GPT-2's numbers for training were never published; these are GPT-3's for about these sizes (its table 2.1), to train
# on 10 billion tokens of FineWeb-Edu: 2**19 tokens a step for 19,073 steps, warm-up over 375 million tokens.
FINEWEB = dict(
    data="edu_fineweb10B", block_size=1024, micro_batch=0, total_batch=524_288, max_steps=19_073, warmup_steps=715,
    weight_decay=0.1, val_every=250, val_tokens=10_485_760, sample_every=1000, log_every=10,
)  # fmt: skip
# Validation losses to expect, in nats per token: gpt2 has 10.95 at step 0, 6.16 at 250, 4.15 at 1,000 and 3.05 at the
# end (OpenAI's own 124M weights: 3.29); tales has 7.62 (ln 2048) at step 0, and 1.1 bits per byte at the end.
RECIPES = {
    "tales": dict(),  # the defaults above; weight_decay is five times the usual, as the text is read eight times
    "gpt2": dict(**FINEWEB, **PRESETS["gpt2"], lr=6e-4, min_lr=6e-5),
    "gpt2-medium": dict(**FINEWEB, **PRESETS["gpt2-medium"], lr=3e-4, min_lr=3e-5),
    "gpt2-large": dict(**FINEWEB, **PRESETS["gpt2-large"], lr=2.5e-4, min_lr=2.5e-5),
    "gpt2-xl": dict(**FINEWEB, **PRESETS["gpt2-xl"], lr=2e-4, min_lr=2e-5),
    "finetune": dict(  # the sizes are those of --init
        n_layer=None, n_head=None, n_embd=None, block_size=None, micro_batch=0, total_batch=4096, max_steps=200,
        lr=3e-5, min_lr=3e-6, warmup_steps=10, weight_decay=0.1, val_every=50, val_tokens=100_000, sample_every=100,
        save_every=100, log_every=10,
    ),
}  # fmt: skip


# === 10. The learning rate of each step, and the optimizers. ========================================================
# An optimizer moves each weight a little against its gradient, which lowers the loss. The learning rate says how far.
def get_lr(step, cfg):
    """Learning rate of a step: a straight line up over warmup_steps, then half a cosine down from lr to min_lr.

    Warm-up, because AdamW's averages (below) rest on few gradients at first, and large steps would do lasting damage.
    Then down, because small steps come to rest where the loss is low, and large ones keep overshooting."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, cfg.max_steps - cfg.warmup_steps))  # 0 -> 1
    return cfg.min_lr + 0.5 * (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * progress))


def configure_optimizers(model, cfg, device):
    """A list of optimizers, each parameter in exactly one: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101); with
    cfg.optimizer "muon", Muon for the matrices of the blocks and AdamW for the rest. With cfg.zero each process holds
    a part of AdamW's state, m and s below (Rajbhandari et al. 2019, arXiv 1910.02054, stage 1)."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        in_a_block = ".h." in name and p.dim() == 2
        (matrices if in_a_block and cfg.optimizer == "muon" else rest).append(p)
    groups = [  # decay keeps matrices small, against learning by heart; biases and LayerNorms have no reason to be
        dict(params=[p for p in rest if p.dim() == 2], weight_decay=cfg.weight_decay),
        dict(params=[p for p in rest if p.dim() < 2], weight_decay=0.0),
    ]
    # AdamW, for each weight w with gradient g:   m = beta1 m + (1 - beta1) g      a mean of recent gradients
    #                                             s = beta2 s + (1 - beta2) g g    and of their squares
    #                                             w = w - lr (m / (sqrt(s) + eps) + decay w)
    # where m and s are first divided by 1 - beta ** step, which makes up for their beginning at 0. As m / sqrt(s) is
    # about 1 in size, a weight moves by about lr a step, whatever the size of its gradient. beta2 = 0.95 (GPT-3's)
    # averages over some 1 / (1 - 0.95) = 20 steps; the usual 0.999 would follow a change of gradients too late.
    # fused: one program on the device (kernel) for all tensors instead of a dozen small ones for each.
    how = dict(lr=cfg.lr, betas=(0.9, 0.95), eps=1e-8, fused=torch.device(device).type in ("cuda", "mps", "cpu"))
    if cfg.zero and dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return [ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, **how)]
    optimizers = [torch.optim.AdamW(groups, **how)]
    if matrices:
        # Muon makes all singular values of a matrix's update about 1: rare directions, otherwise tiny, move as far as
        # frequent ones (Jordan 2024, kellerjordan.github.io/posts/muon). Embeddings are tables, not maps, and stay with
        # AdamW. match_rms_adamw gives an update AdamW's root mean square, so that both share one learning rate.
        how = dict(lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(torch.optim.Muon(matrices, **how))
    return optimizers


# === 11. Runtime: where this process runs and how it talks to the others; alone, it is one of one. ==================
@dataclass
class Runtime:
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights and optimizer stay float32
    compile: bool
    reasons: list  # one line for each choice
    scaler: torch.amp.GradScaler  # does nothing unless dtype is float16
    group: object = None  # the processes, for sums of small numbers on the CPU; None when alone

    def print(self, *lines):
        if self.rank == 0:
            print(*lines, sep="\n", flush=True)

    def autocast(self):
        """For `with`: inside, matrix products run in self.dtype, at least twice as fast where the hardware has it.
        bfloat16 keeps float32's range and 8 bits of precision. float16 keeps 11 bits, but gradients are often smaller
        than its smallest number, 6e-8: the scaler multiplies the loss, so all gradients, and divides them later."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def send(self, tensor):
        """Copies a tensor to the device. From pinned memory (never swapped out) a GPU copies while the CPU goes on."""
        on_cuda = self.device.type == "cuda"
        return (tensor.pin_memory() if on_cuda else tensor).to(self.device, non_blocking=on_cuda)

    def sum(self, values):
        """A list of numbers, each summed over all processes in double precision."""
        values = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values.tolist()

    def any(self, flag):
        """Whether the flag is set in any process: all must agree, for example, on which step is their last."""
        return self.sum([float(bool(flag))])[0] > 0


def setup_runtime(device="auto", dtype="auto", compile="auto"):
    """Chooses device, dtype and compile (section 16), and joins the other processes if torchrun started this one."""
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))  # set by torchrun
    device, why_device = choose_device(device, local_rank)
    dtype, why_dtype = choose_dtype(dtype, device)
    compile, why_compile = choose_compile(compile, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # TF32: products that stay in float32 keep 11 bits of precision and run several times as fast.
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    group = None
    if "RANK" in os.environ:
        alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
        require(alone or device.index in (None, local_rank), f"all would use {device}", "use --device cuda")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
        # Sums on the CPU get a group of their own: one shared with DDP (below) was seen to hang at the end.
        group = dist.new_group(backend="gloo")
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    reasons = [f"device {device}: {why_device}", f"dtype {str(dtype)[6:]}: {why_dtype}"]
    reasons += [f"compile {compile}: {why_compile}"]
    return Runtime(rank, int(os.environ.get("WORLD_SIZE", 1)), device, dtype, compile, reasons, scaler, group)


def compile_and_ddp(model, rt):
    """-> the model compiled (to validate), and the same wrapped in DDP, DistributedDataParallel (to train).
    torch.compile makes few large kernels of many small ones. Both share the weights of the raw model, which is used to
    sample (lengths vary, and each would be compiled anew) and to save (the wrappers rename parameters)."""
    compiled = torch.compile(model, dynamic=False) if rt.compile else model
    if rt.world_size == 1:
        return compiled, compiled
    # DDP gives all processes the same weights and, in the backward pass, each gradient's mean over the processes, sent
    # in buckets (groups of gradients) while earlier layers are still at work. Gradients are views of the buckets, to
    # save memory. Buckets are large, because torch.compile cuts the model at each end of one.
    ddp = nn.parallel.DistributedDataParallel(compiled, gradient_as_bucket_view=True, bucket_cap_mb=100)
    return compiled, ddp


# === 12. THE HEART: one step of training. ===========================================================================
def train_step(model, batches, optimizers, rt, clip):
    """One update from a list of micro-batches (x, y), each (B, T). Returns this process's mean loss and the norm of the
    gradient before clipping, as tensors: the CPU only queues work for a GPU, and would wait for it to read a number."""
    mean_loss = torch.zeros((), device=rt.device)
    for i, (x, y) in enumerate(batches):
        x, y = rt.send(x), rt.send(y)
        # One exchange of gradients a step is enough: in the last backward pass. DDP decides in the *forward* pass
        # whether there will be one, so no_sync must enclose forward and backward.
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last or rt.world_size == 1 else model.no_sync():
            with rt.autocast():
                loss = model(x, y)[1]
            loss = loss / len(batches)  # gradients of micro-batches add up; the mean over the batch is wanted
            # torch has recorded each operation; the chain rule goes back through them: p.grad += dloss/dp.
            rt.scaler.scale(loss).backward()
        mean_loss += loss.detach()
    for optimizer in optimizers:
        rt.scaler.unscale_(optimizer)  # divides the gradients by what scale() multiplied the loss by
    # A gradient longer than clip is shortened, and keeps its direction: no rare batch shall move us far.
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    overflowed = rt.scaler.is_enabled() and not math.isfinite(norm.item())  # float16: this step is left out
    for optimizer in optimizers:
        if not overflowed:
            rt.scaler.step(optimizer)  # optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # backward() adds to what is there
    rt.scaler.update()  # a larger factor after many good steps, a smaller one after an overflow
    return mean_loss, norm


# === 13. How good is it? ============================================================================================
@torch.no_grad()
def evaluate(model, tokens, B, T, max_tokens, rt):
    """Loss over the first max_tokens of `tokens`, a text that is not trained on: it shows what was learned rather than
    memorized. In nats: the sum over all tokens and processes divided by their number, the same for every B and number
    of processes."""
    training = model.training
    model.eval()
    total, count = 0.0, 0  # Python's floats are double, which a sum of ten million losses needs
    for x, y in validation_batches(tokens, B, T, max_tokens, rt.rank, rt.world_size):
        n = int((y >= 0).sum())
        with rt.autocast():
            total += model(rt.send(x), rt.send(y))[1].item() * n
        count += n
    model.train(training)
    total, count = rt.sum([total, count])
    return total / count


# === 14. Checkpoints: how not to lose a run. ========================================================================
def save_checkpoint(path, model, optimizers, rt, **state):
    """Writes all that a run needs to continue, as tensors, numbers, strings, lists, dicts; state holds step, best,
    config and data. Every process must call it. The order of the data and dropout need no entry: both are functions of
    seed, step and rank."""
    for optimizer in optimizers:
        if hasattr(optimizer, "consolidate_state_dict"):
            optimizer.consolidate_state_dict(to=0)  # --zero: each process holds a part, rank 0 collects them
    if rt.rank == 0:
        state |= dict(model=model.state_dict(), model_config=asdict(model.config), scaler=rt.scaler.state_dict())
        state |= dict(optimizers=[optimizer.state_dict() for optimizer in optimizers])
        write_whole(path, lambda f: torch.save(state, f))


def load_checkpoint(path):
    """A checkpoint as the dict that save_checkpoint wrote; its tensors are mapped from the disk until they are used.
    Raises UserError for a file that is missing, damaged, or something else."""
    hint = "give one of the files log/<run>/ckpt_*.pt"
    require(Path(path).is_file(), f"there is no checkpoint {path}", hint)
    with reading(path, hint):
        damaged = zipfile.ZipFile(path).testzip()  # torch.save writes a checksum for each tensor, torch.load ignores it
        require(not damaged, f"{path} is damaged: {damaged} has another checksum", "take an older checkpoint")
        ckpt = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        earlier = isinstance(ckpt, dict) and "looked_up" in ckpt  # a key that only earlier versions wrote
        require(not earlier, f"{path} is of an earlier version of train_gpt2.py", "train again")
        kinds = {"model": dict, "model_config": dict, "optimizers": list, "scaler": dict, "config": dict, "data": str}
        kinds |= {"step": int, "best": list}
        ours = isinstance(ckpt, dict) and all(isinstance(ckpt.get(k), kind) for k, kind in kinds.items())
        require(ours, f"{path} is no checkpoint of train_gpt2.py", hint)
        replace(TrainConfig(**ckpt["config"]), max_steps=ckpt["step"])  # raises for what no run can have
        check_sizes(GPTConfig(**ckpt["model_config"]), ckpt["model"])
    return ckpt


def restore(ckpt, model, optimizers, rt, cfg, data):
    """Puts the state of a checkpoint back. Returns its step, and the lowest validation loss so far with its step.
    Raises UserError if cfg or data differ from the checkpoint's."""
    then, now = ckpt["config"] | dict(data=ckpt["data"]), asdict(cfg) | dict(data=data.identity)
    for name in ("data", "optimizer", "total_batch", "seed", "shuffle"):
        what = "other data" if name == "data" else f"{name} {then[name]}, not {now[name]}"
        require(then[name] == now[name], f"the checkpoint was trained with {what}", f"keep its {name}, or begin anew")
    step, (best_loss, best_step) = int(ckpt["step"]), ckpt["best"]
    require(step <= cfg.max_steps, f"the checkpoint is past step {cfg.max_steps}: at {step}", "raise --max_steps")
    model.load_state_dict(ckpt["model"])
    rt.scaler.load_state_dict(ckpt["scaler"])
    for optimizer, state in zip(optimizers, ckpt["optimizers"], strict=True):
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
            saved.update({k: v for k, v in group.items() if k != "params"})  # decay and the like are cfg's
        optimizer.load_state_dict(state)
        # ZeroRedundancyOptimizer keeps its real state in .optim; the copy that loading left in .state is dropped.
        inner = getattr(optimizer, "optim", optimizer)
        if inner is not optimizer:
            optimizer.state.clear()
        for p, moments in inner.state.items():  # m, s and the number of steps of each weight
            for name, m in moments.items():  # a copy, for the file will be deleted during the run
                require(m.dim() == 0 or m.shape == p.shape, "the optimizer's state is of other weights", "use another")
                moments[name] = m.to(p.device, copy=True)
    return step, (float(best_loss), int(best_step))


# === 15. The loop: everything above, in the order in which it happens. ==============================================
def build_model(cfg, data, ckpt):
    """The model: of the checkpoint's sizes (restore fills it), or with the weights of --init, or new."""
    sizes, V = {k: getattr(cfg, k) for k in ("block_size", "n_layer", "n_head", "n_embd")}, data.train.vocab_size
    if ckpt:
        model = GPT(replace(GPTConfig(**ckpt["model_config"]), dropout=cfg.dropout))
    elif cfg.init:
        model = GPT.from_pretrained(cfg.init, cfg.block_size, cfg.dropout)
    else:
        hint = "give --init gpt2, a checkpoint or a directory"
        require(None not in sizes.values(), f"recipe {cfg.recipe} starts from weights", hint)
        model = GPT(GPTConfig(vocab_size=V, dropout=cfg.dropout, **sizes))
    own, hint = asdict(model.config), "leave it out; with --init, use --recipe finetune"
    for name, size in sizes.items():
        require(size in (None, own[name]), f"{name} is {size}, but the model to start from has {own[name]}", hint)
    other = f"the model knows {own['vocab_size']} tokens, the data's tokenizer {V}"
    require(own["vocab_size"] == V, other, "give the model's own tokenizer with --tokenizer")
    model.activation_checkpointing = cfg.activation_checkpointing
    return model


def due(every, step, cfg):
    """Whether `step` is a multiple of `every`, or the last one; with every = 0 only the last one."""
    return step == cfg.max_steps or (every > 0 and step % every == 0)


def train(cfg):
    """Trains as cfg says and leaves everything in the run's folder. Returns the events, as log.jsonl has them."""
    rt = setup_runtime(cfg.device, cfg.dtype, cfg.compile)
    run_dir, ckpt_path = open_run(cfg)
    cards = [rt.device] if rt.device.type == "cuda" else []
    # fork_rng leaves a notebook's random generators as they were.
    with stop_signals() as stop, torch.random.fork_rng(cards), contextlib.ExitStack() as until_the_end:
        # Get everything ready. stop fills when Ctrl-C or a scheduler asks the run to save and end.
        ckpt = load_checkpoint(ckpt_path) if ckpt_path else None
        data = load_data(cfg, run_dir)
        torch.manual_seed(cfg.seed)  # every process makes the same weights
        model = build_model(cfg, data, ckpt).to(rt.device)
        cfg, B, grad_accum = plan_batches(cfg, model, data, rt)  # total_batch = B x T x grad_accum x processes
        T = model.config.block_size
        optimizers = configure_optimizers(model, cfg, rt.device)
        with reading(ckpt_path):
            start, best = restore(ckpt, model, optimizers, rt, cfg, data) if ckpt else (0, (math.inf, -1))
        same = rt.sum([start])[0] == start * rt.world_size  # hosts without a common disk may hold other checkpoints
        require(same, f"process {rt.rank} would resume at step {start}, others elsewhere", "give all the same --resume")
        ckpt = None  # frees 12 bytes a parameter: the weight and AdamW's two means
        compiled_model, step_model = compile_and_ddp(model, rt)
        loader = DataLoaderLite(data.train, B, T, grad_accum, rt.rank, rt.world_size, cfg.shuffle, cfg.seed)
        if run_dir and rt.rank == 0 and os.name != "nt":  # no other program may write there; Windows has no such lock
            until_the_end.callback(os.close, lock(run_dir))
        log = RunLog(run_dir, cfg, rt, data, model, start, best)
        rt.print(f"step = {B} x {T} tokens x {grad_accum} micro-steps x {rt.world_size} processes")

        def look(step, stopped=False):
            """After `step` steps, do what is due: validate, score, sample, save."""
            if due(cfg.val_every, step, cfg):
                log.val(step, evaluate(compiled_model, data.val, B, T, cfg.val_tokens, rt))
            if cfg.hellaswag_every and due(cfg.hellaswag_every, step, cfg):
                import hellaswag

                if scores := hellaswag.score_on_all_ranks(model, data.encoding, rt):
                    log("hellaswag", step, **scores)
            if due(cfg.sample_every, step, cfg) and data.encoding and rt.rank == 0:
                for text in sample_texts(model, data.encoding, rt, 3 if step == cfg.max_steps else 1, cfg.seed + step):
                    log("sample", step, text=text)
            if run_dir and step > 0 and (stopped or due(cfg.save_every, step, cfg)):  # --max_steps 0 has no run_dir
                log.save(step, optimizers)

        # Train, then look.
        stopped = False
        if start == 0:
            look(0)
        for step in range(start, cfg.max_steps):
            lr = get_lr(step, cfg)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            torch.manual_seed(cfg.seed + 1_000_003 * (step + 1) + rt.rank)  # for dropout: a seed for each step and rank
            batches = [loader.batch(step, micro_step) for micro_step in range(grad_accum)]
            loss, norm = train_step(step_model, batches, optimizers, rt, cfg.clip)
            log.train(step, loss, norm, lr)
            stopped = rt.any(stop)
            look(step + 1, stopped)
            if stopped:
                break
        log.close(stopped)
    # Not in a finally: after an error in one process the others never get here, and this call would wait for them.
    if rt.group:
        dist.destroy_process_group()
    return log.events


def sample_texts(model, encoding, rt, count, seed):
    """What the model says when it is only told that a document begins: `count` texts, each to the end of its document,
    or marked as cut. temperature and top_k are chosen from "sampling" in tests/benchmarks/results/stories.json."""
    eot, generator = encoding.n_vocab - 1, torch.Generator().manual_seed(seed)
    start = torch.full((count, 1), eot, device=rt.device)
    with rt.autocast():
        rows = model.generate(start, 400, temperature=0.8, top_k=50, stop_token=eot, generator=generator)
    rows = rows[:, 1:].tolist()
    ends = [row.index(eot) if eot in row else None for row in rows]
    return [encoding.decode(row[:n]).strip() + " [cut]" * (n is None) for row, n in zip(rows, ends, strict=True)]


# === PART III: THE PLUMBING. What surrounds the training. ===========================================================
# === 16. The machine: choices that are made by themselves, each with its reason. ====================================
ENOUGH_TOKENS = {"cuda": 65_536, "mps": 8_192, "cpu": 4_096}  # in a micro-batch; more makes no device faster


def choose_device(name, local_rank=0):
    """--device -> (torch.device, why). Raises UserError for a device that cannot be used."""
    found, why = "cpu", "no GPU here"
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        found, why = "cuda" if torch.cuda.is_available() else "mps", "a GPU is here"
    elif shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "":  # empty: the user hides it
        too_old = "the driver of this NVIDIA GPU is too old for this build of torch"
        why = too_old if torch.version.cuda else "this build of torch is for CPUs only, though an NVIDIA GPU is here"
        require("RANK" not in os.environ or name != "auto", why, "install a newer driver or another build of torch")
    name, why = (found, why) if name == "auto" else (name, "as asked")
    try:
        device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
        torch.ones(ENOUGH_TOKENS[device.type], device=device).sum().item()  # fails where torch has no kernels for it
    except (RuntimeError, AssertionError, KeyError) as e:  # an AssertionError comes from a torch without CUDA
        reason, count = str(e).split("\n")[0][:120], torch.cuda.device_count()
        hint = f"use auto, cpu, cuda, cuda:N or mps; GPUs here: {count}, and each process needs one"
        raise UserError(f"cannot use device {name!r}: {reason}", hint) from e
    return device, why


def choose_dtype(name, device):
    """--dtype -> (torch.dtype, why)."""
    what = f"float16 needs a CUDA device, this is {device.type}"
    require(name != "float16" or device.type == "cuda", what, "use --dtype float32 or bfloat16")
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16, "this card has no bfloat16; the loss is scaled to keep gradients in range"
    # Private names of torch: bool, which answers False, stands in for one that is missing.
    on_cpu = any(getattr(torch.cpu, n, bool)() for n in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if device.type == "cuda" or (device.type == "cpu" and on_cpu):
        return torch.bfloat16, "this device multiplies it at least twice as fast as float32"
    return torch.float32, "no fast bfloat16 here"


def choose_compile(name, device):
    """--compile -> (bool, why)."""
    if name != "auto":
        return name == "true", "as asked"
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)  # Triton needs that
    if capable and importlib.util.find_spec("triton"):
        return True, "the first step takes a minute longer, all others less"
    return False, "auto compiles on CUDA with Triton (Windows: triton-windows); elsewhere the code runs as written"


def keep_freed_memory():
    """Tells Linux's C library to keep freed memory. By default it returns large blocks to the system, and getting them
    back took up to a fifth of a CPU's time ("kept memory" in tests/benchmarks/results/ladder.json)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux, or another C library
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(option, 2**30)


def plan_batches(cfg, model, data, rt):
    """-> cfg with a number for max_steps, the micro-batch B, and the micro-steps of a step. total_batch is B x T x
    micro-steps x processes: a step reads the same tokens on every machine. Raises UserError if that cannot be."""
    T = model.config.block_size
    sequences, rest = divmod(cfg.total_batch, T * rt.world_size)  # that each process reads in a step
    what = f"total_batch {cfg.total_batch} is no multiple of {T} tokens x {rt.world_size} processes"
    require(sequences and not rest, what, f"for example --total_batch {T * rt.world_size * max(1, sequences)}")
    B = min(cfg.micro_batch, sequences) or largest_micro_batch(model, sequences, rt)
    fits = max(b for b in range(1, B + 1) if sequences % b == 0)
    require(fits == B, f"{sequences} sequences a step cannot be read {B} at once", f"use --micro_batch {fits}")
    if cfg.epochs:
        cfg = replace(cfg, max_steps=math.ceil(cfg.epochs * (len(data.train) // T) * T / cfg.total_batch))
    return cfg, B, sequences // B


def largest_micro_batch(model, sequences, rt):
    """The largest divisor of `sequences`, up to ENOUGH_TOKENS, that fits in memory. On CUDA it is tried, with room for
    what the optimizer will hold; elsewhere memory is not the limit. Raises UserError if not one sequence fits."""
    T = model.config.block_size
    most = min(sequences, max(1, ENOUGH_TOKENS[rt.device.type] // T))
    for B in (b for b in range(most, 0, -1) if sequences % b == 0):
        full = False
        try:
            if rt.device.type == "cuda":
                # AdamW's two means, and the gradients of the micro-steps before.
                moments = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
                x = torch.zeros(B, T, dtype=torch.long, device=rt.device)
                with rt.autocast():
                    model(x, x)[1].backward()
        except torch.OutOfMemoryError:
            full = True
        moments = None  # noqa: F841
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if not rt.any(full):  # on any card
            return B
    raise UserError(f"not even one sequence of {T} tokens fits in memory", "use --activation_checkpointing")


@contextlib.contextmanager
def stop_signals():
    """A list, empty until Ctrl-C, SIGTERM or SIGHUP (a closed terminal) asks the loop to finish its step, save and
    leave. A second Ctrl-C, which torchrun passes on as SIGTERM, leaves at once. (Two SIGTERM are one wish: of a job
    scheduler and of torchrun.)"""
    received, old = [], {}

    def handle(number, frame):
        if received and signal.SIGINT in (received[0], number):
            raise KeyboardInterrupt
        received.append(number)

    try:
        with contextlib.suppress(ValueError):  # only a program's main thread may set handlers
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
                numbers.append(signal.SIGHUP)
            old = {number: signal.signal(number, handle) for number in numbers}
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# === 17. What to read: a text, or shards of tokens. =================================================================
@dataclass
class Data:
    """What a run learns from and is tested on."""

    train: TokenStream
    val: TokenStream
    encoding: object  # tiktoken.Encoding, or None where no tokenizer is at hand: then there are no samples
    tokenizer_file: bytes | None  # what the run's tokenizer.json will hold
    val_bytes: float  # bytes of text behind val; nan where unknown
    identity: str  # a hash: a run resumes only on the data that it began with
    source: str  # where it comes from, in words

    def bits_per_byte(self, loss):
        """Nats per token -> bits per byte of text, which does not depend on the tokenizer; None where unknown."""
        return loss * (len(self.val) - 1) / math.log(2) / self.val_bytes if self.val_bytes > 0 else None


def load_data(cfg, run_dir):
    """cfg.data, a text file or a directory of shards, as Data. Raises UserError for what cannot be used."""
    try:
        import tokenizer
    except ImportError:
        tokenizer = None  # this file is alone
    beside = Path(__file__).parent / cfg.data  # input.txt is found from any directory
    path = beside if beside.exists() and not Path(cfg.data).exists() else Path(cfg.data)
    hint = "python fineweb.py makes edu_fineweb10B; any text file can be given with --data"
    require(path.exists(), f"there is no data at {cfg.data}", hint)
    if path.is_dir():
        data = load_shards(path, cfg, tokenizer)
    else:
        require(tokenizer, "a text needs tokenizer.py beside train_gpt2.py", "copy it there, or give shards")
        own = run_dir if run_dir and (run_dir / "tokenizer.json").exists() else cfg.init
        text = tokenizer.read_corpus(path, cfg.tokenizer, own, cfg.vocab_size or PRESETS["tales"]["vocab_size"])
        V, rows = text.encoding.n_vocab, [np.array(ids, np.int32) for ids in (text.train, text.val)]
        identity, streams = hashlib.sha256(rows[0].tobytes() + rows[1].tobytes()), [TokenStream([r], V) for r in rows]
        source, file = f"{path.name}, {V:,} kinds of tokens", tokenizer.to_json(text.encoding)
        data = Data(*streams, text.encoding, file, text.val_bytes, identity.hexdigest(), source)
    V = data.train.vocab_size
    what = f"vocab_size is {cfg.vocab_size}, but the data's tokenizer has {V} tokens"
    require(cfg.vocab_size in (None, V), what, "leave --vocab_size out, or use another tokenizer")
    return data


def load_shards(path, cfg, tokenizer):
    """A directory of shards: fineweb.py's, with manifest.json; or, with less to check, build-nanogpt's or llm.c's."""
    shards = {f.name: load_shard(f) for f in sorted(path.iterdir()) if f.suffix in (".npy", ".bin")}
    train, val = ([shard for name, shard in shards.items() if kind in name] for kind in ("train", "val"))
    hint = "python fineweb.py writes *train* and *val*; or give a text file"
    require(train, f"{path} holds no training shard", hint)
    require(sum(map(len, val)) > 1, f"{path} holds no validation shard of at least two tokens", hint)
    lengths = {name: len(shard) for name, shard in shards.items()}
    V, sha256, val_bytes, source = cfg.vocab_size or GPTConfig.vocab_size, None, math.nan, "no manifest.json"
    if (path / "manifest.json").exists():
        with reading(path / "manifest.json", "make the shards again: python fineweb.py"):
            manifest = json.loads((path / "manifest.json").read_text("utf-8"))
            listed = {s["file"]: int(s["tokens"]) for s in manifest["shards"]}
            V, sha256 = int(manifest["tokenizer"]["vocab_size"]), str(manifest["tokenizer"]["sha256"])
            val_bytes = sum(float(s["bytes"]) for s in manifest["shards"] if s["split"] == "val")
            source = manifest["source"].get("dataset", "own files")
        wrong = [name for name in {**lengths, **listed} if lengths.get(name) != listed.get(name)]
        require(not wrong, f"{path} is not as its manifest says: {wrong[:1]}", f"python fineweb.py --info {path}")
    encoding = tokenizer and tokenizer.for_shards(path, cfg.tokenizer, sha256, cfg.vocab_size)
    V = encoding.n_vocab if encoding and not sha256 else V
    identity = hashlib.sha256(json.dumps([lengths, sha256, str(val_bytes)]).encode()).hexdigest()
    source, file = f"{path}, {len(train)} + {len(val)} shards, {source}", encoding and tokenizer.to_json(encoding)
    return Data(TokenStream(train, V), TokenStream(val, V), encoding, file, val_bytes, identity, source)


# === 18. Files: written whole or not at all, and read as what may be damaged. =======================================
def write_whole(path, write):
    """Calls write(file), then renames: a reader sees the old file or the new one, never half of one."""
    require(path.is_file() or not path.exists(), f"{path} is not a regular file", "give the name of a file")
    tmp = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())  # the content is on the disk before the name points to it
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:
        cause = e.__context__ if isinstance(e.__context__, OSError) else e  # torch.save wraps it in an error of its own
        raise UserError(f"cannot write {path}: {cause}", "make room, or choose another folder") from e
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path, hint="make it or fetch it again"):
    """A block that reads a file which may be wrong in any way: whatever fails there becomes a UserError."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ImportError | MemoryError | torch.OutOfMemoryError):
            raise  # nothing is wrong with the file
        if hasattr(e, "hint"):
            raise UserError(str(e) if str(path) in str(e) else f"{path}: {e}", e.hint) from e
        reason = " ".join(str(e).split())[:160] or type(e).__name__
        if reason.startswith("Weights only load failed"):  # torch goes on to say how to load it unsafely
            hint = "where it was made, save its weights alone: torch.save(model.state_dict(), 'pytorch_model.bin')"
            raise UserError(f"{path} holds Python objects, which are never run here", hint) from e
        raise UserError(f"{path} is damaged, or not what it should be: {reason}", hint) from e


def checkpoints(folder):
    """The checkpoints in the folder of a run: [(step, path)], newest first."""
    found = [(re.fullmatch(r"ckpt_(\d+)\.pt", p.name, re.ASCII), p) for p in Path(folder).glob("ckpt_*.pt")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def newest_checkpoint(folders):
    """The path of the newest checkpoint that loads in these folders of runs, or None. Says what it passes over."""
    runs = [(max(p.stat().st_mtime for _, p in checkpoints(f)), f) for f in folders if checkpoints(f)]
    for _, path in [found for _, folder in sorted(runs, reverse=True) for found in checkpoints(folder)]:
        try:
            load_checkpoint(path)
            return path
        except UserError as e:
            if os.environ.get("RANK", "0") == "0":
                print(f"passing over {path.name}: {e}", file=sys.stderr, flush=True)
    return None


def open_run(cfg):
    """-> the run's folder, and the path of the checkpoint to continue from or None. The folders of one name are
    log/tales, log/tales-2, ...: a new run never gets one that holds another, and --resume takes the last."""
    if cfg.resume not in (None, "auto"):
        return Path(cfg.resume).parent, Path(cfg.resume)
    if cfg.max_steps == 0:  # only to look: nothing will be written
        require(not cfg.resume, "there is nothing to resume for --max_steps 0", "give the run's folder with --init")
        return None, None
    name = cfg.name or cfg.recipe
    plain = name not in ("", ".", "..") and not set(name) & set("/\\")
    require(plain, f"name {name!r} is no name of a folder", "leave out slashes; --log_dir says where it is")
    folders = [Path(cfg.log_dir) / name] if cfg.name else Path(cfg.log_dir).glob("*")
    found = [(re.fullmatch(re.escape(name) + r"(?:-(\d{1,3}))?", p.name), p) for p in folders]
    taken = [(int(match[1] or 1), path) for match, path in found if match and path.is_dir() and any(path.iterdir())]
    number, last = max(taken, default=(0, None))
    if cfg.resume and last:
        newest = newest_checkpoint([last])
        require(newest or not checkpoints(last), f"no checkpoint in {last} can be used", "begin a new run: --name")
        return last, newest
    hint = "continue it with --resume, or choose another --name"
    require(not (cfg.name and last), f"{last} holds a run already", hint)
    return Path(cfg.log_dir) / (f"{name}-{number + 1}" if last else name), None


def lock(folder):
    """Keeps a run's folder for this process until the handle is closed: two would delete each other's checkpoints."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(handle)
        pids = [event["pid"] for event in read_log(folder) if "pid" in event]
        raise UserError(f"process {pids[-1:]} is writing to {folder}", "stop it, or give another --name") from e
    except OSError:
        pass  # a disk without locks, as of some clusters: the run goes on without one
    return handle


# A model that differs in one of these would load and compute something else.
ONLY = dict(
    activation_function="gelu_new", layer_norm_epsilon=1e-5, scale_attn_weights=True, add_cross_attention=False,
    scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False,
)  # fmt: skip
# OpenAI's code keeps these matrices as (in, out), nn.Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def read_weights(name_or_path):
    """-> GPTConfig and weights under this file's names, from any of the places that from_pretrained knows."""
    path = Path(name_or_path)
    if path.suffix == ".pt" or checkpoints(path):
        newest = path if path.suffix == ".pt" else newest_checkpoint([path])
        require(newest, f"no checkpoint in {path} can be used", "give another folder")
        ckpt = load_checkpoint(newest)
        return GPTConfig(**ckpt["model_config"]), ckpt["model"]
    if not path.exists() and str(path) in PRESETS and str(path) != "tales":
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(f"openai-community/{path}", allow_patterns=["config.json", "*.safetensors"]))
        except Exception as e:  # the Hub's client raises a dozen kinds, all of which mean: not there
            hint = "connect to the network once, or copy the model's directory here and give its path"
            raise UserError(f"cannot fetch {path} from the Hub: {type(e).__name__}", hint) from e
    found = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    files = [path] if path.is_file() else found
    hint = "give a checkpoint (.pt), a directory with config.json and model.safetensors, or gpt2, gpt2-medium, ..."
    require(files, f"there is no model at {name_or_path}", hint)
    from safetensors.torch import load_file

    weights = {}
    for file in files:
        tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        for name, w in tensors.items():
            if not name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks that old files hold; not weights
                name = name if name.startswith(("transformer.", "lm_head.")) else "transformer." + name
                weights[name] = w.t() if name.endswith(TRANSPOSED) else w
    c, wte = json.loads((files[0].parent / "config.json").read_text("utf-8")), weights["transformer.wte.weight"]
    if not torch.equal(wte, weights.setdefault("lm_head.weight", wte)):
        raise ValueError("lm_head.weight differs from wte.weight, which GPT-2 ties it to")
    for key, value in ONLY.items():
        require(c.get(key, value) == value, f"{key} is {c.get(key)}, and GPT-2 has {value}", "take another model")
    config = GPTConfig(c["n_positions"], c["vocab_size"], c["n_layer"], c["n_head"], c["n_embd"])
    check_sizes(config, weights)
    return config, weights


def check_sizes(config, weights):
    """Raises ValueError if the weights are not of the sizes that the configuration claims, before it costs memory."""
    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    found = (*wte.shape, len(wpe), sum(name.endswith("ln_1.weight") for name in weights))
    if found != (config.vocab_size, config.n_embd, config.block_size, config.n_layer):
        raise ValueError(f"its weights have (V, C, T, n_layer) = {found}, which is not what its configuration says")


def write_weights(model, directory):
    """A model -> model.safetensors and config.json, as transformers writes them."""
    from safetensors.torch import save

    c, weights = model.config, {}
    for name, p in model.transformer.named_parameters(prefix="transformer"):
        weights[name] = (p.t() if name.endswith(TRANSPOSED) else p).detach().cpu().contiguous()
    config = ONLY | dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=c.vocab_size, n_positions=c.block_size,
        n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, resid_pdrop=c.dropout, embd_pdrop=c.dropout,
        attn_pdrop=c.dropout, tie_word_embeddings=True, bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1,
    )  # fmt: skip
    write_whole(directory / "model.safetensors", lambda f: f.write(save(weights, {"format": "pt"})))
    write_whole(directory / "config.json", lambda f: f.write(json.dumps(config, indent=2).encode()))


# === 19. The log: a line an event in log.jsonl, a line an interval on the terminal, and a picture. ==================
FORMATS = dict(  # how the values of an event look on the terminal
    loss="loss {:.4f}", lr="lr {:.1e}", norm="norm {:.4f}", ms="{:.1f} ms", tokens_per_s="{:,.0f} tok/s",
    mfu="mfu {:.0%}", val_loss="val loss {:.4f} nats per token", val_bpb="{:.4f} bits per byte",
    acc="HellaSwag acc {:.4f}", acc_norm="acc_norm {:.4f}", text="sample: {}\n", path="saved {}", note="{}",
)  # fmt: skip
# A good run of the recipe gpt2: its validation losses by step (build-nanogpt, pull request 30, and several full runs),
# and that of OpenAI's own weights on the same text.
EXPECTED_LOSS, GPT2_LOSS = {0: 10.95, 250: 6.163, 1000: 4.153, 1250: 3.952, 19_073: 3.05}, 3.2924
# MFU, model FLOPs utilisation: the share of a card's peak that the model's own operations reach. 40 % is good; the rest
# is mostly waiting for memory. Peaks: dense products in 16 bits, in TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {
    "NVIDIA H200": 989, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 4090": 165.2, "NVIDIA GeForce RTX 3090": 71,
}  # fmt: skip


class RunLog:
    """Tells what happens: on rank 0's terminal, in log.jsonl, in checkpoints and in loss.png."""

    def __init__(self, run_dir, cfg, rt, data, model, start, best):
        self.run_dir, self.cfg, self.rt, self.data, self.model, self.best = run_dir, cfg, rt, data, model, best
        self.events, self.val_loss, self.saved, self.warm, self.told = [], math.inf, [start], False, False
        card = torch.cuda.get_device_name(rt.device) if rt.device.type == "cuda" else ""
        peak = PEAK_TFLOPS.get(card, math.inf) if rt.dtype != torch.float32 else math.inf
        self.peak = rt.world_size * 1e12 * peak
        # Whether EXPECTED_LOSS is about such a run.
        published = (replace(model.config, dropout=0.0), cfg.total_batch) == (GPTConfig(), 524_288) and not cfg.init
        self.known = published and bool(re.search("fineweb.?edu|edu.?fineweb", data.source))
        passes = cfg.max_steps * cfg.total_batch / len(data.train)
        rt.print(
            *rt.reasons,
            f"data {data.source}: {len(data.train):,} tokens to learn from, {len(data.val):,} to test on"
            + ("" if data.encoding else "; no tokenizer at hand, so no samples"),
            f"model of {model.num_params():,} parameters; {cfg.max_steps:,} steps, {passes:.1f} passes over the data",
            f"folder {run_dir or 'none: nothing will be written'}" + (f"; going on from step {start}" if start else ""),
        )
        if run_dir and rt.rank == 0:
            # Cut the log back to the checkpoint: what happened after it will happen again.
            kept = [e for e in read_log(run_dir) if start and e["step"] + (e["event"] == "train") <= start]
            write_whole(run_dir / "log.jsonl", lambda f: f.writelines(json.dumps(e).encode() + b"\n" for e in kept))
            if data.encoding and not (run_dir / "tokenizer.json").exists():
                write_whole(run_dir / "tokenizer.json", lambda f: f.write(data.tokenizer_file))
            for left in run_dir.glob("*.tmp"):  # by a killed process
                left.unlink()
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
        versions = dict(python=sys.version.split()[0], torch=torch.__version__, numpy=np.__version__, commit=commit)
        here = dict(device=card or rt.reasons[0], dtype=str(rt.dtype)[6:], world_size=rt.world_size, pid=os.getpid())
        config = dict(config=asdict(cfg), model=asdict(model.config), known=self.known, landmarks=landmarks(data.train))
        self("config", start, **config, versions=versions, **here)

    def require_finite(self, step, **values):
        """Ends the run, with its last good checkpoint untouched, if one of the values is no number."""
        hint = f"continue from the last checkpoint in {self.run_dir} with a lower --lr, more --warmup_steps, or float32"
        for name, value in values.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            require(finite, f"{name} is {value} at step {step}: the run has diverged", hint)

    def __call__(self, event, step, note=None, **values):
        """One event: all its digits go to log.jsonl, a line to the terminal. Only training counts as time."""
        self.require_finite(step, **values)
        self.events.append(dict(event=event, step=step, **values))
        if self.run_dir and self.rt.rank == 0:
            try:
                with open(self.run_dir / "log.jsonl", "ab") as f:
                    f.write(json.dumps(self.events[-1]).encode() + b"\n")
            except OSError as e:
                raise UserError(f"cannot write {self.run_dir}/log.jsonl: {e}", "make room, and use --resume") from e
        texts = [FORMATS[k].format(v) for k, v in (values | dict(note=note)).items() if k in FORMATS and v is not None]
        if texts:
            self.rt.print(f"step {step:5d}/{self.cfg.max_steps} | " + " | ".join(texts))
        self.clock, self.cpu_clock, self.steps = time.perf_counter(), time.thread_time(), 0

    def train(self, step, loss, norm, lr):
        """Notes every log_every-th step. Reading a loss from the device makes the CPU wait, so others are not read."""
        self.steps += 1
        if self.warm and (step + 1) % self.cfg.log_every and step + 1 < self.cfg.max_steps:
            return
        loss, norm = self.rt.sum([loss.item()])[0] / self.rt.world_size, norm.item()  # waits for the device
        if self.rt.scaler.is_enabled() and not math.isfinite(norm):
            norm = None  # float16: the scaler tries how far it can go, and leaves such a step out
        seconds, share = time.perf_counter() - self.clock, time.thread_time() - self.cpu_clock
        ms, share = seconds * 1000 / self.steps, share / seconds
        if self.warm and share < 0.6 and self.rt.device.type == "cpu" and self.rt.world_size == 1 and not self.told:
            self.told = True
            what = f"another program uses this CPU: the run has its core for {share:.0%} of the time"
            self.rt.print(what + "; end that program, or try OMP_NUM_THREADS=1")
        rate = self.cfg.total_batch / ms * 1000
        mfu = self.model.flops_per_token() * rate / self.peak or None
        minutes, seconds = divmod(int((self.cfg.max_steps - step - 1) * ms / 1000), 60)
        left = f"{minutes // 60} h {minutes % 60} m left" if minutes > 99 else f"{minutes} m {seconds:02d} s left"
        left, self.warm = left if self.warm else "warming up", True  # the first step compiles and takes memory
        self("train", step, left, loss=loss, lr=lr, norm=norm, ms=ms, tokens_per_s=rate, mfu=mfu)

    def val(self, step, loss):
        """Notes a validation; on a run like the published one, with a word on how it stands beside it."""
        self.val_loss, note, good = loss, None, EXPECTED_LOSS.get(step)
        if self.known and good:
            word = f"{'behind' if loss > good else 'ahead'} by {abs(loss - good):.2f}"
            note = f"{'on track' if abs(loss - good) <= 0.02 * good else word}: a good run has {good:.2f} here"
        self("val", step, note, val_loss=loss, val_bpb=self.data.bits_per_byte(loss))

    def save(self, step, optimizers):
        """Writes a checkpoint, then removes all but the last two and the best."""
        largest = torch.stack([p.detach().abs().max() for p in self.model.parameters()]).max().item()  # nan beats all
        self.require_finite(step, largest_weight=largest)
        self.best, path = min(self.best, (self.val_loss, step)), self.run_dir / f"ckpt_{step:06d}.pt"
        self.val_loss = math.inf  # of this step only
        state = dict(step=step, best=list(self.best), config=asdict(self.cfg), data=self.data.identity)
        save_checkpoint(path, self.model, optimizers, self.rt, **state)
        if self.rt.rank == 0:
            self.saved.append(step)  # known to be whole, unlike others that lie there
            for old, old_path in checkpoints(self.run_dir):
                if old not in (*self.saved[-2:], self.best[1]):
                    with contextlib.suppress(PermissionError):  # Windows, while another program reads it
                        old_path.unlink()
            samples = [e for e in read_log(self.run_dir) if e["event"] == "sample"]
            text = "".join(f"--- step {e['step']}\n{e['text']}\n\n" for e in samples)
            write_whole(self.run_dir / "samples.txt", lambda f: f.write(text.encode()))
            try:
                plot(self.run_dir)
            except Exception as e:  # a run goes on without its picture, as without matplotlib
                self.rt.print(f"no loss.png: {type(e).__name__}: {e}")
        self("checkpoint", step, path=str(path))  # last, as it starts the clock again

    def close(self, stopped):
        """Says what to do next."""
        if stopped:
            self.rt.print("stopped as asked; continue with --resume " + self.events[-1]["path"])
        elif len(self.events) == 1:  # the configuration
            self.rt.print("this run is finished; --resume with more --max_steps continues it")
        elif self.run_dir:
            run = shlex.quote(self.run_dir.as_posix())
            self.rt.print(f"look at loss.png and samples.txt in {run}; next: python generate.py --checkpoint {run}")


def read_log(run_dir):
    """The events of a run, from its log.jsonl; [] if there is none."""
    events, path = [], Path(run_dir) / "log.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # a line that a crash has cut off
            event = json.loads(line)
            events += [event] if isinstance(event, dict) and {"event", "step"} <= event.keys() else []
    return events


def landmarks(tokens):
    """Losses that need no network, in nats per token, on the first million tokens: of a model that only knows how
    frequent each token is (the unigram entropy), and how frequent after the one before it (the bigram entropy)."""
    ids = tokens.read(0, min(len(tokens), 2**20))
    pairs = ids[:-1] * tokens.vocab_size + ids[1:]
    one, two = (np.unique(kinds, return_counts=True)[1] / len(kinds) for kinds in (ids, pairs))
    one, two = (float(-(p * np.log(p)).sum()) for p in (one, two))
    return dict(unigram=one, bigram=two - one)


def plot(run_dir):
    """Draws log.jsonl as loss.png: training and validation loss, with landmarks that give the numbers a meaning."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    events = read_log(run_dir)
    config, losses = events[0], {e["step"]: e["loss"] for e in events if e["event"] == "train"}
    val = {e["step"]: e["val_loss"] for e in events if e["event"] == "val"}
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes, uniform = figure.add_subplot(), math.log(config["model"]["vocab_size"])
    axes.plot(losses.keys(), losses.values(), color="#56B4E9", linewidth=0.8, label="training")
    axes.plot(val.keys(), val.values(), "o-", color="#D55E00", markersize=4, label="validation")
    for what, loss, style in (
        ("knowing nothing: ln V", uniform, ":"),
        ("knowing how frequent each token is", config["landmarks"]["unigram"], "--"),
        ("and how frequent after the one before", config["landmarks"]["bigram"], "-."),
    ):
        axes.axhline(loss, color="grey", linestyle=style, linewidth=1, label=f"{what}: {loss:.2f}")
    if config["known"]:
        axes.axhline(GPT2_LOSS, color="black", linestyle="--", label=f"OpenAI's GPT-2 124M: {GPT2_LOSS}")
        near = {step: loss for step, loss in EXPECTED_LOSS.items() if step <= max(250, 1.5 * max(losses))}
        axes.plot(near.keys(), near.values(), "x", color="#009E73", label="a good run")
    axes.set(xlabel=f"step ({config['config']['total_batch']:,} tokens each)", ylabel="loss (nats per token)")
    axes.set_title(Path(run_dir).name)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(Path(run_dir) / "loss.png", lambda f: figure.savefig(f, format="png"))


# === 20. Options, made from TrainConfig, and what to say when something goes wrong. =================================
class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as UserError: every script prints them the same way."""

    def error(self, message):
        unknown = [word.split("=")[0] for word in message.split() if message.startswith("unrecognized")]
        near = [n for word in unknown for n in difflib.get_close_matches(word, self._option_string_actions, n=1)]
        raise UserError(message, f"did you mean {near[0]}?" if near else f"python {self.prog} --help lists all options")


def make_parser(defaults):
    """An option for each field of TrainConfig; the comment behind the field is its help."""
    parser = Parser("train_gpt2.py", description=f"Train a GPT-2. Recipes: {', '.join(RECIPES)}.", allow_abbrev=False)
    helps = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(TrainConfig), re.MULTILINE))
    for f in fields(TrainConfig):
        kinds = typing.get_args(f.type) or (f.type,)  # (int, NoneType) of `int | None`, the words of a Literal
        how = dict(choices=kinds) if isinstance(kinds[0], str) else dict(type=kinds[0])
        how = dict(action=argparse.BooleanOptionalAction) if f.type is bool else how
        how |= dict(nargs="?", const="auto", metavar="CKPT") if f.name == "resume" else {}
        text = helps[f.name].replace("%", "%%") + f" (default: {getattr(defaults, f.name)})"
        parser.add_argument(f"--{f.name}", help=text, default=argparse.SUPPRESS, **how)
    return parser


def check_settings(cfg):
    """Raises UserError for a setting of a TrainConfig that is of the wrong kind or out of range."""
    positive = ("vocab_size", "total_batch", "clip", "epochs", "val_tokens", "log_every")
    for f in fields(cfg):
        value, kinds = getattr(cfg, f.name), typing.get_args(f.type) or (f.type,)
        if isinstance(kinds[0], str):
            sound, hint = value in kinds, "choose one of: " + ", ".join(kinds)
        elif kinds[0] in (int, float) and value is not None:
            sound = isinstance(value, (int, kinds[0])) and 0 <= value < 2**53 and (value > 0 or f.name not in positive)
            hint = f"{f.name} is a number " + ("above 0" if f.name in positive else "from 0 on")
        else:
            sound, hint = isinstance(value, kinds) and value != "", f"--help explains {f.name}"
        require(sound, f"{f.name} is {value!r}", hint)
    require(not (cfg.zero and cfg.optimizer == "muon"), "zero divides the state of adamw only", "leave out --zero")
    require(cfg.min_lr <= cfg.lr, f"min_lr {cfg.min_lr} is above lr {cfg.lr}", "the rate falls from lr to min_lr")


def config_from_args(argv=None):
    """Command line -> TrainConfig: the numbers of the recipe, or of the run to resume; and over them what is given."""
    first = Parser("train_gpt2.py", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tales")
    defaults = TrainConfig.from_recipe(first.parse_known_args(argv)[0].recipe)
    given = vars(make_parser(defaults).parse_args(argv))
    cfg = replace(defaults, **given)
    require(not {"epochs", "max_steps"} <= given.keys(), "--epochs and --max_steps say the same", "give one of them")
    path = open_run(cfg)[1] if cfg.resume else None
    named = path and cfg.resume != "auto"
    later = [p.name for _, p in checkpoints(path.parent)[:1] if p.name != path.name] if named else []
    require(not later, f"{path} is not the last: {later[:1]} would be lost", "move it away, or begin anew with --init")
    if path:
        saved = load_checkpoint(path)["config"] | dict(epochs=None)  # its epochs have become max_steps
        cfg = TrainConfig(**saved | given | dict(resume=str(path)))
    return cfg


def run_main(function, argv=None):
    """Calls function(argv) and returns the exit code: 0, or after a user's mistake, told in two lines, 2."""
    with contextlib.suppress(AttributeError):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? and does not end the run
    try:
        function(argv)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130  # what a shell reports for Ctrl-C
    except BrokenPipeError:  # the reader of our output has gone (| head): what Python still writes goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(3)  # the first process reports what all of them met, and torchrun ends the others meanwhile
        text, hint = " ".join(str(e).split())[:300], getattr(e, "hint", None)
        if isinstance(e, torch.OutOfMemoryError | MemoryError) or "tried to allocate" in text.lower():
            text, hint = f"out of memory: {text}", "halve --micro_batch, or use --activation_checkpointing, --zero"
        elif isinstance(e, ModuleNotFoundError):
            hint = f"pip install {e.name}; if it is a file of this project, copy {e.name}.py here"
        elif isinstance(e, OSError):
            hint = "is it there, may you use it, and has the disk room?"
        elif type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
            text, hint = f"torch.compile failed: {text}", "--compile false needs no compiler"
        if not hint:
            raise
        print(f"error: {text}\nhint: {hint}", file=sys.stderr, flush=True)
        return 2


def main(argv=None):
    return run_main(lambda argv: train(config_from_args(argv)), argv)


if __name__ == "__main__":
    sys.exit(main())
