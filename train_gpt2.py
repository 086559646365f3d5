"""
GPT-2 from scratch: the model and its training, in one file, to be read from top to bottom.

The story: follow one token forward (Part I is all of GPT-2), follow one gradient back, then do it on many
machines (Part II is all of training). A hurried reader can stop after Part I.

    python train_gpt2.py                                  two CPU cores, about two minutes, about 1.4 bits per byte
    python train_gpt2.py --recipe finetune --init gpt2 --data my.txt          one small GPU, minutes
    torchrun --standalone --nproc_per_node=8 train_gpt2.py --recipe gpt2      eight GPUs, hours, loss about 3.05
    python train_gpt2.py --help                           every option, with its unit and its default

Map
    Part I   the model     1 imports   2 GPTConfig   3 attention   4 MLP   5 Block   6 GPT   7 generate, load, save
    Part II  the training  8 data      9 TrainConfig, RECIPES     10 schedule, optimizer    11 Runtime
                          12 train_step                           13 evaluate, checkpoints  14 train   15 command line

Symbols
    B   batch, sequences read at once            nh  number of heads
    T   time, tokens in a sequence               hs  head size, C / nh
    C   channels, width of the residual stream   V   vocabulary size

References
    GPT-2     Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"
    GPT-3     Brown et al. 2020, arXiv 2005.14165 (its appendix B gives the settings that GPT-2's paper leaves out)
    Attention Vaswani et al. 2017, arXiv 1706.03762          AdamW  Loshchilov and Hutter 2017, arXiv 1711.05101
    Muon      Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982
"""

# === 1. Imports: the standard library, numpy and torch. What else a feature needs is imported where it is used. =====
import contextlib
import math
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F


class UserError(Exception):
    """A mistake that the user can mend: main() prints it as `error:` and `hint:` and exits with code 2."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.hint = hint


# === PART I: THE MODEL ==============================================================================================
# === 2. Six numbers define a GPT-2. =================================================================================
@dataclass(frozen=True)
class GPTConfig:
    block_size: int = 1024  # T: the longest context, in tokens
    vocab_size: int = 50257  # V: 256 bytes + 50,000 merges + <|endoftext|>
    n_layer: int = 12  # blocks, one above the other
    n_head: int = 12  # nh: heads of attention in each block
    n_embd: int = 768  # C: width of the residual stream
    dropout: float = 0.0  # share of activations zeroed while training; pretraining sees each token once and needs none

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name != "dropout" and (not isinstance(value, int) or value < 1):
                raise UserError(f"{name} is {value!r}", f"{name} is a whole number of at least 1")
        if self.n_embd % self.n_head:
            fits = self.n_head * math.ceil(self.n_embd / self.n_head)
            raise UserError(f"n_embd {self.n_embd} is not shared evenly by {self.n_head} heads", f"use n_embd {fits}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}", "dropout is a share: 0 or more, less than 1")

    @classmethod
    def from_name(cls, name, **overrides):
        """The configuration called `name` in PRESETS, with single fields replaced."""
        if name not in PRESETS:
            raise UserError(f"no model is called {name!r}", "choose one of: " + ", ".join(PRESETS))
        return cls(**{**PRESETS[name], **overrides})

    @property
    def padded_vocab_size(self):
        """V rounded up to a multiple of 64, for matrices that fit the hardware's tiles: 50257 -> 50304."""
        return math.ceil(self.vocab_size / 64) * 64


PRESETS = {  # parameters: 124M, 350M, 774M, 1558M, and about a million for a laptop
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
    "tales": dict(n_layer=4, n_head=2, n_embd=128, block_size=128, vocab_size=1024),
}


# === 3. Attention: the only place where tokens look at each other. ==================================================
def causal_attention(q, k, v, return_weights=False, dropout_p=0.0):
    """Attention in plain sight (Vaswani et al. 2017, section 3.2.1): to read, to plot, to test the fused one against.

    q: (B, nh, Tq, hs), k and v: (B, nh, Tk, hs) with Tq <= Tk; the queries belong to the last Tq positions.
    Returns (B, nh, Tq, hs), and the weights (B, nh, Tq, Tk) with each row summing to 1 when return_weights is true.
    """
    Tq, Tk = q.size(-2), k.size(-2)
    future = torch.full((Tq, Tk), float("-inf"), dtype=q.dtype, device=q.device).triu(Tk - Tq + 1)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, nh, Tq, Tk); the root keeps their variance near 1
    weights = (scores + future).softmax(dim=-1)  # e**-inf is 0: no token looks at a later one
    y = F.dropout(weights, dropout_p) @ v  # (B, nh, Tq, hs): a weighted mean of values
    return (y, weights) if return_weights else y


class KVCache:
    """The keys and values that one layer has computed so far, so that a new token need not compute them again."""

    def __init__(self, config, batch_size, like):
        shape = (batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_cpu else like.dtype  # there bfloat16 is slow
        self.k, self.v = (like.new_empty(shape, dtype=dtype) for _ in "kv")  # once: growing would copy every time
        self.length = 0

    def append(self, k, v):
        """Adds k and v, each (B, nh, T, hs), and returns all that is held: (B, nh, length, hs) each."""
        start, self.length = self.length, self.length + k.size(2)
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value of all heads in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, C) -> (B, T, C). mask: (B or 1, 1, T, Tk), true where a token may look, not the causal one."""
        B, T, C = x.size()
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, nh, hs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each: heads are a second batch dimension
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, Tk, hs)
            q = q.to(k.dtype)
        Tk = k.size(2)
        if mask is None and 1 < T < Tk:  # several new tokens after cached ones: is_causal would align the wrong corner
            mask = torch.ones(T, Tk, dtype=torch.bool, device=x.device).tril(Tk - T)
        dropout_p = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and mask is None and T == Tk <= 256:
            y = causal_attention(q, k, v, dropout_p=dropout_p)  # here plain products are faster than the fused kernel
        else:  # the same without ever storing the (T, Tk) weights (Dao et al. 2022, arXiv 2205.14135)
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=mask is None and Tk == T)
        y = y.transpose(1, 2).reshape(B, T, C).to(x.dtype)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


# === 4. MLP: each token by itself thinks over what attention brought. ===============================================
class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C); GPT-2 was trained with the tanh form, so it stays
        return self.dropout(self.c_proj(x))  # (B, T, C)


# === 5. Block: the residual stream runs straight through; attention and MLP read from it and add to it. =============
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, cache=None):
        # The norms stand on the branches ("pre-norm"), never on the stream: gradients reach every layer undiminished.
        x = x + self.attn(self.ln_1(x), mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


# === 6. GPT: embeddings, a stack of blocks, and a head that asks for the next token. ================================
class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # True: recompute each block in the backward pass instead of storing it
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.padded_vocab_size, config.n_embd),  # what the token is
                wpe=nn.Embedding(config.block_size, config.n_embd),  # where it stands
                drop=nn.Dropout(config.dropout),
                h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                ln_f=nn.LayerNorm(config.n_embd),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: tokens alike going in are alike coming out
        # Rows V and up only fill the last tile. A logit of -inf gives them probability 0 and gradient 0, for ever.
        padding = torch.zeros(config.padded_vocab_size)
        padding[config.vocab_size :] = float("-inf")
        self.register_buffer("padding", padding, persistent=False)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() == 2:  # 0.02 as in GPT-2's code; positions get 0.01, as there
                std = 0.01 if "wpe" in name else 0.02
                if name.endswith("c_proj.weight"):  # 2 additions a block: their sum's variance must not grow
                    std /= math.sqrt(2 * self.config.n_layer)
                p.normal_(0.0, std)
        self.transformer.wte.weight[self.config.vocab_size :] = 0.0

    def hidden(self, idx, pos=None, mask=None, cache=None):
        """Token ids (B, T) -> what the last layer thinks of each, (B, T, C). cache: a list of KVCache, one a layer."""
        T, start = idx.size(1), cache[0].length if cache else 0
        if start + T > self.config.block_size and pos is None:
            raise UserError(f"{start + T} tokens in a block of {self.config.block_size}", "cut them on the left")
        if pos is None:
            pos = torch.arange(start, start + T, device=idx.device)  # (T,)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C)
        x = self.transformer.drop(x)
        for i, block in enumerate(self.transformer.h):
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask, cache[i] if cache else None)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """(..., C) -> (..., padded V): scores of the next token, -inf for ids that no tokenizer has."""
        return F.linear(x, self.lm_head.weight, self.padding)

    def forward(self, idx, targets=None):
        """idx: (B, T) token ids. Returns (logits (B, T, V), loss): the mean cross-entropy in nats per token against
        targets (B, T), where -1 marks a token not to be scored; the loss is None without targets."""
        logits = self.logits(self.hidden(idx))  # (B, T, padded V)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits[..., : self.config.vocab_size], loss

    def num_params(self):
        """Parameters of the true model: padding rows not counted, the tied matrix once. 124,439,808 for gpt2."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def flops_per_token(self):
        """Floating-point operations to train on one token: 6 for each weight that multiplies it (2 forward, 4 back),
        and 12 C T a layer for attention's two products (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
        c = self.config
        return 6 * (self.num_params() - self.transformer.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * c.block_size

    # === 7. The model speaks, and exchanges weights with the rest of the world. =====================================
    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None, use_cache=True):
        """Continues idx (B, T), one token at a time: yields (B, 1) ids. Past block_size tokens the window slides."""
        training, cache = self.training, None
        self.eval()
        try:
            for _ in range(max_new_tokens):
                if use_cache and cache and cache[0].length < self.config.block_size:
                    x = self.hidden(idx[:, -1:], cache=cache)  # one new token; all before it are in the cache
                else:  # first token, or a full block: when the window slides, every token's position changes
                    cache = [KVCache(self.config, idx.size(0), self.lm_head.weight) for _ in self.transformer.h]
                    x = self.hidden(idx[:, -self.config.block_size :], cache=cache)
                logits = self.logits(x[:, -1])[:, : self.config.vocab_size]  # (B, V): only the last position is asked
                token = sample_next(logits, temperature, top_k, top_p, generator).to(idx.device)  # (B, 1)
                idx = torch.cat((idx, token), dim=1)
                yield token
        finally:
            self.train(training)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
        """Returns idx (B, T) continued: (B, T + new). A row that has said stop_token goes on repeating it, and when
        all rows have, generation ends. temperature 0 takes the likeliest token; generator is a CPU generator."""
        done = torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device)
        out = [idx]
        for token in self.stream(idx, max_new_tokens, temperature, top_k, top_p, generator):
            if stop_token is not None:
                token = token.masked_fill(done, stop_token)
                done |= token == stop_token
            out.append(token)
            if done.all():
                break
        return torch.cat(out, dim=1)

    @torch.no_grad()
    def load_hf_state_dict(self, weights):
        """Takes weights in the layout of OpenAI and transformers, with or without the prefix `transformer.`. Raises
        UserError naming what is missing, extra or of another shape."""
        from weights import check_weights

        masks = (".attn.bias", ".attn.masked_bias")  # causal masks that old files hold; not weights
        theirs = {k.removeprefix("transformer."): w for k, w in weights.items() if not k.endswith(masks)}
        theirs = {k: w.t() if k.endswith(CONV1D) else w for k, w in theirs.items()}
        ours = dict(self.transformer.named_parameters())
        ours["wte.weight"] = ours["wte.weight"][: self.config.vocab_size]  # a view, without the padding rows
        check_weights(ours, theirs)
        for name, p in ours.items():
            p.copy_(theirs[name])

    @classmethod
    def from_pretrained(cls, name_or_path, block_size=None, dropout=0.0):
        """A model with weights from: a name (`gpt2` .. `gpt2-xl`, OpenAI's, fetched from the Hub once), a checkpoint of
        this file (.pt), or a directory or file as transformers saves them (safetensors, sharded or not, or .bin).
        block_size may cut the context short. Raises UserError for anything that is not a GPT-2."""
        from weights import load_model

        return load_model(cls, name_or_path, block_size, dropout)

    def save_pretrained(self, directory):
        """Writes config.json and model.safetensors, which transformers.GPT2LMHeadModel.from_pretrained opens."""
        from weights import save_hf

        save_hf(self, directory)


CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored as (in, out)


def sample_next(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Logits (B, V) -> one id for each row, (B, 1), drawn on the CPU: a seed gives the same text on every device,
    and the bugs of single backends do not matter. temperature 0 is greedy; top_k keeps the k likeliest ids;
    top_p keeps the likeliest ids that together have that probability (Holtzman et al. 2019, arXiv 1904.09751)."""
    if temperature < 0 or not math.isfinite(temperature):
        raise UserError(f"temperature is {temperature}", "0 always takes the likeliest token, 1 samples as trained")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}", "top_k is a number of tokens, at least 1; leave it out to keep all")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}", "top_p is a probability: more than 0, at most 1")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True).cpu()
    logits, ids = logits.float().cpu() / temperature, None
    if top_k is not None or top_p is not None:  # the likeliest first; what follows is short if top_k is
        logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)), dim=-1)  # (B, k) each
    probs = logits.softmax(dim=-1)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs  # the probability of all likelier ids; 0 for the first, so it stays
        probs = probs.masked_fill(before >= top_p, 0.0)
    place = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
    return place if ids is None else ids.gather(-1, place)


# === PART II: THE TRAINING ==========================================================================================
# === 8. Data: what goes in is a row of token ids x, and what should come out is y, the same row one token later. ====
def load_shard(path):
    """One file of tokens, mapped, not read: .npy (uint16, from fineweb.py) or .bin (llm.c: 256 int32, then uint16)."""
    path, hint = Path(path), "write it again: python fineweb.py"
    try:
        if path.suffix == ".bin":
            magic, version, count = np.fromfile(path, dtype="<i4", count=3).tolist()
            shard = np.memmap(path, dtype="<u2", mode="r", offset=1024)
            if (magic, version, count) != (20240520, 1, len(shard)):
                raise ValueError(f"magic {magic}, version {version}, {len(shard):,} of {count:,} tokens")
        else:
            shard = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives and pickles, too
    except Exception as e:  # numpy's readers of headers raise many kinds
        raise UserError(f"{path} is damaged, or no shard of tokens: {e}", hint) from e
    if shard.dtype != np.uint16 or shard.ndim != 1 or len(shard) == 0:
        raise UserError(f"{path} holds {shard.dtype} of shape {shard.shape}, not a row of uint16", hint)
    return shard


class TokenStream:
    """Shards read as one long row of tokens that starts again at its end. Nothing is lost where two shards meet."""

    def __init__(self, shards, vocab_size):
        self.shards, self.vocab_size = shards, vocab_size
        self.ends = np.cumsum([len(s) for s in shards])  # where each shard ends in the long row

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start, length):
        """`length` tokens from position `start` on, going round the end: int64 (length,). Only this is copied."""
        pieces = []
        while length > 0:
            start %= len(self)
            i = int(np.searchsorted(self.ends, start, side="right"))  # the shard that holds `start`
            end = min(start + length, int(self.ends[i]))
            shard, count = self.shards[i], end - start
            first = start - int(self.ends[i]) + len(shard)  # counted within the shard
            if isinstance(shard, np.memmap):  # read, not touched: touched pages of a map count as our memory
                pieces.append(np.fromfile(shard.filename, shard.dtype, count, offset=shard.offset + 2 * first))
            else:
                pieces.append(shard[first : first + count])
            length -= end - start
            start = end
        tokens = np.concatenate(pieces).astype(np.int64)  # torch's uint16 cannot index an embedding
        if tokens.max() >= self.vocab_size:
            raise UserError(
                f"the data has token id {tokens.max()}, the vocabulary ends at {self.vocab_size - 1}",
                "the shards were made with another tokenizer: give it with --tokenizer, or make them again",
            )
        return tokens


def shuffled(i, n, key):
    """Where item i of n comes in the shuffle called `key`: computed, never stored, so that billions cost nothing.

    Four rounds of a Feistel network (each half of i's bits is mixed into the other half, which can be undone, so no two
    items meet) over the next power of 4; a result past the end goes round again until it lands inside."""
    half = (max(n - 1, 1).bit_length() + 1) // 2
    while True:
        left, right = i >> half, i & ((1 << half) - 1)
        for r in range(4):
            mixed = ((right + 1) * 0x9E3779B97F4A7C15 + (key * 4 + r) * 0xBF58476D1CE4E5B9) % 2**64
            mixed = (mixed ^ (mixed >> 29)) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ (mixed >> (64 - half))
        i = (left << half) | right
        if i < n:
            return i


class DataLoaderLite:
    """Batches as a pure function of (step, micro-step, rank): no state, so no rank can drift and resuming is exact.

    The endless row of tokens is cut into windows of T. Number the sequences of all steps, micro-steps and ranks in one
    count: sequence s reads window s in order, or, shuffled, window s of this epoch's permutation. An epoch is len // T
    windows; the next one begins where it ended, so the few tokens left over open the next epoch, cut differently.
    """

    def __init__(self, tokens, B, T, grad_accum=1, rank=0, world_size=1, shuffle=True, seed=0):
        if len(tokens) < T + 1:
            raise UserError(f"the data has {len(tokens)} tokens, a window {T + 1}", "use more text or smaller blocks")
        self.tokens, self.B, self.T, self.shuffle, self.seed = tokens, B, T, shuffle, seed
        self.grad_accum, self.rank, self.world_size = grad_accum, rank, world_size
        self.windows_per_epoch = len(tokens) // T
        self.sequences_per_step = B * grad_accum * world_size

    def window(self, sequence):
        """Which window of the endless row sequence number `sequence` reads."""
        epoch, i = divmod(sequence, self.windows_per_epoch)
        if self.shuffle:
            i = shuffled(i, self.windows_per_epoch, key=self.seed * 1_000_003 + epoch)
        return epoch * self.windows_per_epoch + i

    def batch(self, step, micro_step=0):
        """-> x, y: int64 (B, T) each, y one token ahead of x."""
        first = ((step * self.grad_accum + micro_step) * self.world_size + self.rank) * self.B
        rows = [self.tokens.read(self.window(s) * self.T, self.T + 1) for s in range(first, first + self.B)]
        rows = torch.from_numpy(np.stack(rows))  # (B, T + 1): neighbours share a token, the last y is the next first x
        return rows[:, :-1], rows[:, 1:]


def validation_batches(tokens, B, T, max_tokens, rank=0, world_size=1):
    """The first max_tokens targets of `tokens`, each once, in windows of T shared out among ranks: (x, y) of (<= B, T).
    The last window is filled up with targets of -1, which are not scored."""
    count = min(max_tokens, len(tokens) - 1)
    starts = range(0, count, T)[rank::world_size]
    for i in range(0, len(starts), B):
        x, y = np.zeros((2, len(starts[i : i + B]), T), dtype=np.int64)
        y -= 1
        for row, start in enumerate(starts[i : i + B]):
            n = min(T, count - start)
            window = tokens.read(start, n + 1)
            x[row, :n], y[row, :n] = window[:-1], window[1:]
        yield torch.from_numpy(x), torch.from_numpy(y)


# === 9. TrainConfig: every number of a run, with its unit; RECIPES: which of them go together. ======================
DTYPES = ("auto", "float32", "bfloat16", "float16")


def option(default, help, least=None, choices=None):
    return field(default=default, metadata=dict(help=help, least=least, choices=choices))


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = option("tales", "a set of settings that go together; every other option overrides it")
    data: str = option("input.txt", "a text file, or a directory of token shards made by fineweb.py")
    run: str | None = option(None, "name of the run's folder under --log_dir; the recipe's name if left out")
    log_dir: str = option("log", "where the folders of runs are")
    init: str | None = option(None, "start from these weights: gpt2 .. gpt2-xl, a checkpoint, or a directory")
    resume: str | None = option(None, "go on with a run: its newest whole checkpoint, or the one given")
    tokenizer: str = option("auto", "gpt2, or a file; auto: that of the shards, or one trained on the text")
    vocab_size: int = option(1024, "tokens in the vocabulary that auto trains on a text file", least=257)
    n_layer: int | None = option(12, "blocks")
    n_head: int | None = option(12, "heads of attention a block")
    n_embd: int | None = option(768, "channels of the residual stream")
    block_size: int | None = option(1024, "context, in tokens")
    dropout: float = option(0.0, "share of activations zeroed while training", least=0)
    micro_batch: int | str = option("auto", "sequences read at once by each process; auto: the most that fit", least=1)
    total_batch: int = option(524_288, "tokens a step, over all processes and micro-steps", least=1)
    max_steps: int = option(19_073, "steps", least=1)
    epochs: float | None = option(None, "passes over the data, another way to say --max_steps", least=1e-9)
    lr: float = option(6e-4, "peak learning rate", least=0)
    min_lr: float = option(6e-5, "learning rate at the last step", least=0)
    warmup_steps: int = option(715, "steps until the peak", least=0)
    weight_decay: float = option(0.1, "for matrices; biases and norms have none", least=0)
    clip: float = option(1.0, "largest norm of the gradient", least=1e-9)
    optimizer: str = option("adamw", "adamw; or muon for hidden matrices, adamw for others", choices=("adamw", "muon"))
    val_every: int = option(250, "steps between validations; 0: only at the end", least=0)
    val_tokens: int = option(10_485_760, "tokens of a validation", least=1)
    sample_every: int = option(1000, "steps between samples; 0: only at the end", least=0)
    hellaswag_every: int = option(0, "steps between HellaSwag evaluations; 0: none", least=0)
    save_every: int = option(1000, "steps between checkpoints; 0: only at the end", least=0)
    log_every: int = option(10, "steps between lines", least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = option("auto", "of the matrix products: auto, float32, bfloat16, float16", choices=DTYPES)
    compile: str = option("auto", "compile the training step: auto, true, false", choices=("auto", "true", "false"))
    shuffle: bool = option(True, "permute the windows of each epoch")
    verify: bool = option(False, "check the sha256 of every shard first")
    seed: int = option(1337, "of the weights, the order of the data and the samples", least=0)
    zero: bool = option(False, "shard the optimizer's state over the processes")
    activation_checkpointing: bool = option(False, "recompute activations instead of storing them: less memory, slower")

    def __post_init__(self):
        from runs import check_settings

        check_settings(self)

    @classmethod
    def from_recipe(cls, recipe="tales", **overrides):
        """The configuration called `recipe` in RECIPES, with single fields replaced."""
        if recipe not in RECIPES:
            raise UserError(f"no recipe is called {recipe!r}", "choose one of: " + ", ".join(RECIPES))
        return cls(recipe=recipe, **{**RECIPES[recipe], **overrides})


# GPT-2's numbers for training were never published; these are GPT-3's for the same sizes (Brown et al. 2020, table 2.1)
# on 10 billion tokens of FineWeb-Edu: 2**19 tokens a step for 19,073 steps, warm-up over 375 million tokens.
FINEWEB = dict(data="edu_fineweb10B", block_size=1024)
RECIPES = {
    "tales": dict(
        **PRESETS["tales"], micro_batch=16, total_batch=2048, max_steps=2000, lr=6e-3, min_lr=0.0, warmup_steps=50,
        weight_decay=1.0,  # ten times the usual: the text is read 12 times, and what is learnt by heart must fade
        val_every=200, val_tokens=200_000, sample_every=500, save_every=1000, log_every=50,
    ),
    "gpt2": dict(**PRESETS["gpt2"], **FINEWEB),
    "gpt2-medium": dict(**PRESETS["gpt2-medium"], **FINEWEB, lr=3e-4, min_lr=3e-5),
    "gpt2-large": dict(**PRESETS["gpt2-large"], **FINEWEB, lr=2.5e-4, min_lr=2.5e-5),
    "gpt2-xl": dict(**PRESETS["gpt2-xl"], **FINEWEB, lr=2e-4, min_lr=2e-5),
    "finetune": dict(
        n_layer=None, n_head=None, n_embd=None, block_size=None, total_batch=4096, max_steps=200, lr=3e-5, min_lr=3e-6,
        warmup_steps=10, val_every=50, val_tokens=100_000, sample_every=100, save_every=100,
    ),
}  # fmt: skip


# === 10. How fast to learn, and how: two pure functions. ============================================================
def get_lr(step, cfg):
    """Learning rate of a step: a straight line up over warmup_steps, then half a cosine from lr to min_lr."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, cfg.max_steps - cfg.warmup_steps))  # 0 -> 1
    return cfg.min_lr + 0.5 * (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * progress))


def decay_groups(named_parameters, weight_decay):
    """Two groups: matrices, which decay, and biases and norms, for which small is not simpler."""
    params = [p for _, p in named_parameters if p.requires_grad]
    return [
        dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay),
        dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0),
    ]


def configure_optimizers(model, cfg, device):
    """AdamW over two decay groups; with cfg.optimizer "muon", torch.optim.Muon for the hidden matrices beside it.
    cfg.zero shards the state over the processes (Rajbhandari et al. 2019, arXiv 1910.02054, stage 1)."""
    adamw = dict(lr=cfg.lr, betas=(0.9, 0.95), eps=1e-8)
    if torch.device(device).type in ("cuda", "cpu"):
        adamw["fused"] = True  # one kernel for all tensors instead of a dozen small ones for each
    named = list(model.named_parameters())
    if cfg.optimizer == "muon":
        from runs import OptimizerPair

        hidden = [p for n, p in named if p.dim() == 2 and ".h." in n]
        rest = [(n, p) for n, p in named if not (p.dim() == 2 and ".h." in n)]
        # match_rms_adamw makes an update as large as AdamW's, so that both can share one learning rate.
        muon = torch.optim.Muon(hidden, lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
        return OptimizerPair(muon, torch.optim.AdamW(decay_groups(rest, cfg.weight_decay), **adamw))
    groups = decay_groups(named, cfg.weight_decay)
    if cfg.zero and dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, **adamw)
    return torch.optim.AdamW(groups, **adamw)


# === 11. Runtime: where this process runs and how it talks to the others; alone, it is one of one. ===================
@dataclass
class Runtime:
    rank: int
    local_rank: int  # which GPU of this machine
    world_size: int
    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights and optimizer stay float32
    compile: bool
    reasons: list  # one line a choice
    scaler: torch.amp.GradScaler  # does nothing unless dtype is float16
    control: object = None  # group of processes for small messages between CPUs

    @property
    def is_main(self):
        return self.rank == 0

    def print(self, *args):
        from runs import stop_quietly

        with stop_quietly():  # if whoever reads this has gone
            if self.is_main:
                print(*args, flush=True)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def send(self, tensor):
        """A tensor of the CPU, on the device."""
        if self.device.type == "cuda":  # from pinned memory the GPU fetches by itself, and the CPU need not wait
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def sum(self, values):
        """A list of numbers, summed over all processes in double precision (a sum: gloo has had wrong means)."""
        values = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(values, group=self.control)
        return values.tolist()

    def any(self, flag):
        """Whether the flag is set in any process: all must agree on which step is their last."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, tensor):
        """A tensor of every process, as a list in the order of ranks."""
        tensors = [torch.empty_like(tensor) for _ in range(self.world_size)]
        if self.world_size > 1:
            dist.all_gather(tensors, tensor, group=self.control)
            return tensors
        return [tensor]

    def close(self, kind=None, error=None, trace=None):
        """Parts from the others; not after an error of this process alone, who would wait for ever to be joined."""
        if dist.is_initialized() and (error is None or hasattr(error, "teller")):
            dist.destroy_process_group()


def setup_runtime(device="auto", dtype="auto", compile="auto"):
    """Chooses device, dtype and compile, notes why, and joins the other processes if torchrun started this one."""
    from runs import choose_compile, choose_device, choose_dtype, fresh_store, keep_freed_memory

    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))  # set by torchrun
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    device, why_device = choose_device(device, local_rank)
    dtype, why_dtype = choose_dtype(dtype, device)
    compile, why_compile = choose_compile(compile, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32: what stays in float32 runs on tensor cores too
    control = None
    if "RANK" in os.environ:
        if os.name == "nt":
            os.environ.setdefault("USE_LIBUV", "0")  # torch for Windows is built without it
        nccl = device.type == "cuda" and dist.is_nccl_available()
        dist.init_process_group("nccl" if nccl else "gloo", **fresh_store(rank, world_size))
        control = dist.new_group(backend="gloo")
    if device.type == "cpu":
        keep_freed_memory()
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    reasons = [f"device {device}: {why_device}", f"dtype {str(dtype)[6:]}: {why_dtype}"]
    reasons += [f"compile {compile}: {why_compile}"]
    return Runtime(rank, local_rank, world_size, device, dtype, compile, reasons, scaler, control)


# === 12. THE HEART: one step of training. ===========================================================================
def train_step(model, batches, optimizer, rt, clip):
    """One update from a list of micro-batches (x, y), each (B, T). Returns this process's mean loss and the norm of the
    gradient before clipping, as tensors: reading them would make the CPU wait for the GPU."""
    total = torch.zeros((), device=rt.device)
    for i, (x, y) in enumerate(batches):
        x, y = rt.send(x), rt.send(y)
        # DDP averages gradients over processes in the backward pass; once a step is enough. Whether it will is decided
        # in the *forward* pass, so no_sync must enclose both.
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last or rt.world_size == 1 else model.no_sync():
            with rt.autocast():
                loss = model(x, y)[1]  # not the logits too: held by a name, they would stay for the backward pass
            loss = loss / len(batches)  # gradients of micro-batches add up; the mean over the batch is wanted
            rt.scaler.scale(loss).backward()
        total += loss.detach()
    rt.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    rt.scaler.step(optimizer)
    rt.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


# === 13. How good is it, and how not to lose it. ====================================================================
@torch.no_grad()
def evaluate(model, tokens, B, max_tokens, rt):
    """Validation loss, nats per token: the sum over the first max_tokens of `tokens`, shared out among the processes,
    divided by their count. The same for every B and number of processes."""
    training = model.training
    model.eval()
    total, count = 0.0, 0  # Python's floats are double: a sum of ten million losses needs it
    for x, y in validation_batches(tokens, B, model.config.block_size, max_tokens, rt.rank, rt.world_size):
        n = int((y >= 0).sum())
        with rt.autocast():
            _, loss = model(rt.send(x), rt.send(y))
        total += loss.item() * n
        count += n
    model.train(training)
    total, count = rt.sum([total, count])
    return total / count


def save_checkpoint(path, model, optimizer, rt, **state):
    """Writes all that a run needs to go on, as tensors, numbers, strings, lists, dicts. Every process must call it."""
    from runs import together
    from weights import save_tensors

    state["rng"] = rt.gather(torch.get_rng_state())  # dropout's dice, of every process
    if rt.device.type == "cuda":
        state["cuda_rng"] = rt.gather(torch.cuda.get_rng_state())
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.consolidate_state_dict(to=0)  # --zero: each process holds a part, rank 0 collects them
    with together(rt):
        if rt.is_main:
            state |= dict(model=model.state_dict(), model_config=asdict(model.config), optimizer=optimizer.state_dict())
            save_tensors(path, state)


def load_checkpoint(path, mmap=False):
    """A checkpoint as the dict that save_checkpoint wrote; mmap: its tensors stay on disk until used. Or UserError."""
    from weights import check_checkpoint, load_tensors

    ckpt = load_tensors(path, mmap)
    check_checkpoint(path, ckpt)
    return ckpt


def restore(ckpt, model, optimizer, rt, cfg, data):
    """Puts everything back as it was. Refuses what would quietly be another run."""
    from weights import check_same_run, damage_to, load_optimizer, load_own_state_dict

    check_same_run(ckpt, asdict(cfg) | dict(data=data.identity))
    with damage_to("the checkpoint"):
        load_own_state_dict(model, ckpt["model"])
        load_optimizer(optimizer, ckpt["optimizer"])
        if rt.rank < len(ckpt["rng"]):  # with more processes than before, the new ones begin with fresh seeds
            torch.set_rng_state(ckpt["rng"][rt.rank])
            if rt.device.type == "cuda" and "cuda_rng" in ckpt:
                torch.cuda.set_rng_state(ckpt["cuda_rng"][rt.rank])


# === 14. The loop: everything above, in the order in which it happens. ==============================================
def build_model(cfg, data, ckpt, rt):
    """The model on its device: of the checkpoint's sizes, or with --init's weights, or new."""
    if ckpt:
        model = GPT(replace(GPTConfig(**ckpt["model_config"]), dropout=cfg.dropout))
    elif cfg.init:
        model = GPT.from_pretrained(cfg.init, block_size=cfg.block_size, dropout=cfg.dropout)
    else:
        sizes = {k: getattr(cfg, k) for k in ("block_size", "n_layer", "n_head", "n_embd", "dropout")}
        if None in sizes.values():
            raise UserError(f"recipe {cfg.recipe} starts from weights", "give --init gpt2, a checkpoint or a directory")
        model = GPT(GPTConfig(vocab_size=data.vocab_size, **sizes))
    if model.config.vocab_size != data.vocab_size:
        what = f"the model knows {model.config.vocab_size} tokens, the data's tokenizer {data.vocab_size}"
        raise UserError(what, "give the model's own tokenizer with --tokenizer")
    model.activation_checkpointing = cfg.activation_checkpointing
    return model.to(rt.device)


def wrap(model, rt):
    """The model as train_step runs it: compiled, and in step with other processes. The raw one stays for evaluation,
    sampling and saving: the same weights, shapes of any kind, names without prefixes."""
    step_model = torch.compile(model) if rt.compile else model
    if rt.world_size > 1:
        # Gradients live in the buckets that are sent, not also beside them: 4 bytes a parameter less.
        step_model = nn.parallel.DistributedDataParallel(step_model, gradient_as_bucket_view=True)
    return step_model


def due(step, every):
    return every > 0 and step % every == 0


def train(cfg):
    """Trains as cfg says and leaves everything in the run's folder. Returns the events, as log.jsonl has them."""
    from runs import RunLog, StopSignals, load_data, open_run, out_of_memory, own_dice, settle, together

    with contextlib.ExitStack() as stack:
        rt = setup_runtime(cfg.device, cfg.dtype, cfg.compile)
        stack.push(rt.close)
        stack.enter_context(own_dice(rt))
        stack.enter_context(out_of_memory(cfg, rt))
        stop = stack.enter_context(StopSignals())

        # Gather what is there
        run_dir, ckpt = open_run(cfg, rt)
        torch.manual_seed(cfg.seed)  # before the weights: every process makes the same
        with together(rt):
            data = load_data(cfg, run_dir)
            model = build_model(cfg, data, ckpt, rt)
        cfg, grad_accum = settle(cfg, model, data, rt)
        stack.enter_context(out_of_memory(cfg, rt))  # once more, now that micro_batch is a number
        optimizer = configure_optimizers(model, cfg, rt.device)
        torch.manual_seed(cfg.seed + 1 + rt.rank)  # after them: dropout differs between processes
        if ckpt:
            with together(rt):
                restore(ckpt, model, optimizer, rt, cfg, data)
        start, looked_up = (ckpt["step"], ckpt["looked_up"]) if ckpt else (0, False)
        step_model = wrap(model, rt)
        place = dict(rank=rt.rank, world_size=rt.world_size, shuffle=cfg.shuffle, seed=cfg.seed)
        loader = DataLoaderLite(data.train, cfg.micro_batch, cfg.block_size, grad_accum, **place)
        log = RunLog(run_dir, cfg, rt, data, model, ckpt)

        for step in range(start, cfg.max_steps + 1):
            # Look up: how is it doing? (Not again where a checkpoint was made after looking up.)
            last = step == cfg.max_steps
            stopped = not last and rt.any(stop.requested)
            if not stopped and not (step == start and looked_up):
                if last or due(step, cfg.val_every):
                    log.val(step, evaluate(model, data.val, cfg.micro_batch, cfg.val_tokens, rt))
                if due(step, cfg.hellaswag_every) or (last and cfg.hellaswag_every):
                    log.hellaswag(step, model)
                if last or due(step, cfg.sample_every):
                    log.sample(step, model, count=3 if last else 1)
                if last or (step > 0 and due(step, cfg.save_every)):
                    log.save(step, model, optimizer, position=step * loader.sequences_per_step, looked_up=True)
            if stopped:
                log.save(step, model, optimizer, position=step * loader.sequences_per_step, looked_up=False)
            if last or stopped:
                break

            # Look down: one step.
            lr = get_lr(step, cfg)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batches = [loader.batch(step, micro_step) for micro_step in range(grad_accum)]
            loss, norm = train_step(step_model, batches, optimizer, rt, cfg.clip)
            log.train(step, loss, norm, lr)
        return log.close(stopped)


# === 15. The command line, made from the fields of TrainConfig. =====================================================
def main(argv=None):
    from runs import config_from_args, run_main

    return run_main(lambda argv: train(config_from_args(argv)), argv)


if __name__ == "__main__":
    from train_gpt2 import main  # the importable copy, which the companions import too: one GPT, one UserError

    sys.exit(main())
