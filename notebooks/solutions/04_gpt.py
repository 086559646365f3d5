"""Lesson 4: a GPT-2 as one function of its weights."""

from torch.nn import functional as F


def gpt(idx, weights, config):
    B, T = idx.shape
    C, n_head = config.n_embd, config.n_head
    w = {name.removeprefix("transformer."): p for name, p in weights.items()}

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(x, name):
        qkv = linear(x, f"{name}.c_attn").split(C, dim=-1)
        q, k, v = (part.view(B, T, n_head, C // n_head).transpose(1, 2) for part in qkv)  # (B, nh, T, hs)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(y.transpose(1, 2).reshape(B, T, C), f"{name}.c_proj")

    def mlp(x, name):
        return linear(F.gelu(linear(x, f"{name}.c_fc"), approximate="tanh"), f"{name}.c_proj")

    x = F.embedding(idx, w["wte.weight"]) + w["wpe.weight"][:T]  # (B, T, C)
    for i in range(config.n_layer):
        x = x + attention(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        x = x + mlp(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return F.linear(norm(x, "ln_f"), w["wte.weight"])  # (B, T, V): the head is the embedding
