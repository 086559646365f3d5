"""
Text from a model: a checkpoint of train_gpt2.py, OpenAI's weights, or a directory as transformers saves them.

    python generate.py --prompt "Once upon a time"         the newest checkpoint under log/ goes on from there
    python generate.py --model gpt2 --interactive          you begin and it goes on; an empty line ends
    echo "Once upon" | python generate.py --prompt - --num_samples 3 --seed 1 > stories.txt
    python generate.py --export my_model                   for transformers: AutoModelForCausalLM, AutoTokenizer
    python generate.py --export my_model.gguf              the same in one file, in the format of llama.cpp
    python generate.py --export my_model.html              a page to look inside the model with, in any browser

Standard output gets the texts, each with its prompt, and nothing else; notes go to standard error. Several texts are
separated by a line <|endoftext|>, as in a corpus. Each begins as documents do in training: after <|endoftext|>.

Map:  1 texts that grow   2 fast products on a CPU   3 export   4 command line
"""

import base64
import codecs
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import sys
import time
from pathlib import Path

# Threads that wait go to sleep (see train_gpt2.py). torch reads this while it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import torch
import torch.nn as nn

from tokenizer import EOT, byte_names, encode, eot_id, find_tokenizer, has_gpt2_pattern, save_tokenizer, to_json
from train_gpt2 import GPT, Parser, newest_checkpoint, read_log, reading, require, run_main, setup_runtime, write_whole

ROWS = 8  # texts that grow side by side: eight take little longer than one, because the weights are read once for all
# Characters that a terminal obeys instead of showing. An untrained model writes any byte.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}")
MAX_PAGE_PARAMETERS = 20_000_000  # a page of 53 MB, in which a token takes about a tenth of a second


# === 1. Texts that grow. ============================================================================================
def grow(rows, stream, eot):
    """Adds the next token of a GPT.stream to each row (a list of ids) that does not end in eot yet. Returns whether the
    stream had one."""
    tokens = next(stream, None)  # (B, 1)
    if tokens is None:
        return False
    for row, token in zip(rows, tokens.flatten().tolist(), strict=True):
        if row[-1:] != [eot]:
            row.append(token)
    return True


def write_texts(model, encoding, prompt, args, generator, out):
    """Continues the prompt (a list of ids, maybe empty) args.num_samples times and writes the texts to `out` while
    they grow. generator: a random generator of the CPU. Returns the number of new tokens."""
    eot, count = eot_id(encoding), 0
    for first in range(0, args.num_samples, ROWS):
        rows = [list(prompt) for _ in range(first, min(first + ROWS, args.num_samples))]
        idx = torch.tensor([[eot, *prompt]] * len(rows), device=model.lm_head.weight.device)  # (B, T)
        stream = model.stream(idx, args.max_tokens, args.temperature, args.top_k, args.top_p, generator)
        for i, row in enumerate(rows, start=first):  # all rows grow, and this one is written
            out.write(f"{EOT}\n" if i else "")
            # A token may end inside a character, whose bytes then wait in the decoder for the next token.
            decoder, written, more = codecs.getincrementaldecoder("utf-8")(errors="replace"), 0, True
            while more:
                more = row[-1:] != [eot] and grow(rows, stream, eot)
                new, written = encoding.decode_bytes([token for token in row[written:] if token != eot]), len(row)
                text = decoder.decode(new, final=not more)
                out.write(text.translate(CONTROLS) if out.isatty() else text)
                out.flush()
            text = encoding.decode_bytes([token for token in row if token != eot])
            out.write("" if text.endswith(b"\n") else "\n")
        out.flush()
        count += sum(len(row) - len(prompt) for row in rows)
    return count


def converse(model, encoding, args, generator, out):
    """Reads a line, continues it, reads the next; each stands alone. An empty line or Ctrl-D ends; Ctrl-C a text."""
    with contextlib.suppress(ImportError):  # Windows has no such module, and needs none
        import readline  # noqa: F401  arrow keys and history for input()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a letter that the terminal's encoding lacks does not end the program
    note("begin a text and press Enter; an empty line ends, Ctrl-C stops a text")
    try:
        while (text := input("> ")).strip():
            try:
                write_texts(model, encoding, prompt_ids(text, encoding, model), args, generator, out)
            except KeyboardInterrupt:
                out.write("\n")
    except EOFError:
        out.write("\n")


def prompt_ids(text, encoding, model):
    """The ids of a prompt. Says so if the model cannot see all of it."""
    ids = encode(encoding, text)
    if len(ids) >= (block := model.config.block_size):
        note(f"the prompt has {len(ids):,} tokens and the model sees {block:,}: it reads the end of it")
    return ids


def note(text):
    if sys.stderr:  # None if it is closed, and then print() would take standard output
        print(text, file=sys.stderr, flush=True)


# === 2. Fast products on a CPU. =====================================================================================
class PackedLinear(nn.Module):
    """nn.Linear for inference on a CPU: the weight lies in memory in the order in which oneDNN's kernels read it.

    To make one token, every weight is read once and used once a row, so the time is that of reading the memory, if all
    cores read. nn.Linear is slower: in float32 torch hands a product with one row to a library that may use a single
    core, and in bfloat16 oneDNN puts the weight in its own order again at every call. See
    tests/benchmarks/bench_generate.py. The two operators are torch.compile's own, with no public name.
    """

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packing_pays(model):
    """Whether a packed weight is faster here, tried on the largest product, the head's, for one token: best of ten."""
    weight = model.lm_head.weight
    if not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x, packed = weight.new_ones(1, weight.size(1)), PackedLinear(weight, None)
    seconds = {}
    with torch.no_grad():
        for product in [packed, model.head] * 10:
            begin = time.perf_counter()
            product(x)
            seconds[product] = min(seconds.get(product, math.inf), time.perf_counter() - begin)
    return seconds[packed] < 0.95 * seconds[model.head]


def pack_weights(model):
    """Replaces every nn.Linear of a GPT by a PackedLinear, where a trial says that it pays.

    The same numbers up to rounding, in less time (tests/benchmarks/results/generate.json). The model can no longer be
    trained or saved.
    """
    if not packing_pays(model):
        return model
    for block in model.transformer.h:
        for part in (block.attn, block.mlp):
            for name, layer in part.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(part, name, PackedLinear(layer.weight, layer.bias))
    # The head's weight stays as it is beside its packed copy, because it is also the table of embeddings.
    model.head = PackedLinear(model.lm_head.weight, None).forward
    return model


# === 3. Export: for transformers, as GGUF, and as a page for a browser. =============================================
def export(model, encoding, target, source):
    """Writes model and tokenizer to a new directory as transformers reads them, with a model card, and with bpe.json,
    the tokenizer as this project reads it; or to a new file whose name ends in .gguf or .html. source: where the model
    is from.

    bpe.json is not called tokenizer.json because transformers has another format of that name. Raises UserError, before
    anything is written, if the target holds something already or the tokenizer has no merges to write.
    """
    target = Path(target)
    is_new = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(is_new, f"{target} is there already", "give --export a new name")
    if target.suffix == ".html":
        export_html(model, encoding, target, page_facts(Path(source)))
        return
    hint = "train one with --pattern gpt2, or use bpe.json and this project"
    require(has_gpt2_pattern(encoding), "transformers' GPT2Tokenizer cannot cut words as this tokenizer does", hint)
    tokens, merges = spelled(encoding)
    if target.suffix == ".gguf":
        write_gguf(model, tokens, merges, target)
        return
    config = dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=False, model_max_length=model.config.block_size)
    config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT)
    files = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "README.md": model_card(model, target.resolve().name, Path(source)),
    }
    model.save_pretrained(target)
    for name, text in files.items():
        write_whole(target / name, lambda file, text=text: file.write(text.encode("utf-8")))
    save_tokenizer(encoding, target / "bpe.json")


def spelled(encoding):
    """The tokens in the order of their ids, and the merges in the order learned, as GPT-2's files spell both."""
    names, ranks = byte_names(), encoding._mergeable_ranks
    spell = {token: "".join(names[byte] for byte in token) for token in sorted(ranks, key=ranks.get)}
    return [*spell.values(), EOT], [f"{spell[left]} {spell[right]}" for left, right in merges_of(ranks)]


def merges_of(ranks):
    """{token: rank} -> [(left, right)] in the order learned: what each token was joined from.

    Ranks name only the tokens, but encoding a token with the merges before its own ends at its two halves.
    """
    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
            i = joined.index(min(joined))
            made = joined[i] < ranks[token]
            require(made, f"the token {token!r} cannot be made by merges", "this tokenizer cannot be exported")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def events_until(source):
    """What the run of a checkpoint has logged up to it; [] if `source` is no checkpoint, or without a log."""
    checkpoint = re.fullmatch(r"ckpt_(\d+)\.pt", source.name, re.ASCII)
    return [e for e in read_log(source.parent) if e["step"] <= int(checkpoint[1])] if checkpoint else []


def model_card(model, name, source):
    """README.md of an export: what the model is, how it was trained as far as its run's log tells, how to load it."""
    c, story = model.config, f"The weights are those of `{source.name}`."
    with reading(source.parent / "log.jsonl", "move it away to export without it"):
        if events := events_until(source):
            cfg = events[0]["config"]
            begin = f", from the weights of `{Path(cfg['init']).name}`" if cfg["init"] else ""
            length = f"{int(source.stem.removeprefix('ckpt_')):,} steps of {cfg['total_batch']:,} tokens"
            story = f"Trained on `{Path(cfg['data']).name}` for {length} (recipe `{cfg['recipe']}`{begin})."
        for e in [e for e in events if e["event"] == "val"][-1:]:
            bits = f"{e['val_bpb']:.4f} bits per byte, " if e["val_bpb"] else ""
            story += f" On held-out text, after step {e['step']:,}: {bits}{e['val_loss']:.4f} nats per token."
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A GPT-2 of {model.num_params():,} parameters: {c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context of \
{c.block_size:,} tokens, vocabulary of {c.vocab_size:,} tokens.

{story}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ids = tokenizer("{EOT}Once upon a time", return_tensors="pt")  # each document began so in training
print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))
```
"""


def write_gguf(model, tokens, merges, path):
    """Writes model and tokenizer as one GGUF file, all weights in float32."""
    import gguf

    c, eot = model.config, len(tokens) - 1
    entries = dict(
        block_count=c.n_layer, context_length=c.block_size, embedding_length=c.n_embd, feed_forward_length=4 * c.n_embd,
        head_count=c.n_head, layer_norm_eps=1e-5, file_type=gguf.LlamaFileType.ALL_F32, tokenizer_model="gpt2",
        tokenizer_pre="gpt-2", token_list=tokens, token_merges=merges, bos_token_id=eot, eos_token_id=eot,
        token_types=[gguf.TokenType.NORMAL] * eot + [gguf.TokenType.CONTROL],
    )  # fmt: skip
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, c.n_layer)

    def write(file):
        writer = gguf.GGUFWriter(file.name, "gpt2")  # opens the file by its name once more
        for name, value in entries.items():
            getattr(writer, f"add_{name}")(value)
        for name, p in model.named_parameters():
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), p.detach().cpu().float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_whole(path, write)


def page_facts(source):
    """What the page of export_html says about where the model is from: its name, and the bits per byte of its run."""
    facts = {"name": source.resolve().parent.name if source.suffix == ".pt" else source.name}
    with reading(source.parent / "log.jsonl", "move it away to export without it"):
        for bits in [e["val_bpb"] for e in events_until(source) if e["event"] == "val"][-1:]:
            facts |= {"bits per byte": f"{bits:.3f}"} if bits else {}
    return facts


def export_html(model, encoding, path, facts):
    """Writes one file to look inside the model with: viewer.html, filled with the weights in float16, the tokenizer
    and the facts, such as {"name": "tales", "bits per byte": "1.380"}. Raises UserError, before anything is written, if
    the model is too large, float16 cannot hold its weights, or the split pattern is not a known one."""
    template, c, count, facts = Path(__file__).with_name("viewer.html"), model.config, model.num_params(), dict(facts)
    megabytes = count * 2 * 4 / 3 / 1e6  # two bytes a weight, and base64 writes three bytes as four characters
    hint = "train a smaller model, or give --export the name of a directory, for transformers"
    require(count <= MAX_PAGE_PARAMETERS, f"a page with {count:,} parameters would have {megabytes:,.0f} MB", hint)
    require(template.is_file(), f"{template} is missing", "it belongs beside generate.py; copy it from there")
    weights = {name: p.detach().cpu().half() for name, p in model.transformer.named_parameters()}
    finite = all(w.isfinite().all() for w in weights.values())
    require(finite, "float16 cannot hold all of the weights", "it ends at 65,504; export for transformers instead")
    sizes = {"parameters": count, "layers": c.n_layer, "heads": c.n_head, "channels": c.n_embd}
    sizes |= {"tokens of context": c.block_size, "tokens in the vocabulary": c.vocab_size}
    content = dict(
        name=facts.pop("name", "a GPT-2"), facts={key: f"{n:,}" for key, n in sizes.items()} | facts, config=vars(c),
        tensors=[(name, w.numel()) for name, w in weights.items()], tokenizer=json.loads(to_json(encoding)),
    )  # fmt: skip
    html = template.read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    fields = dict(
        script_hashes=" ".join(f"'sha256-{digest}'" for digest in hashes),  # a browser runs these scripts and no other
        model=json.dumps(content).replace("<", r"\u003c"),  # no name and no token can end the element that holds them
        weights=base64.b64encode(b"".join(w.numpy().astype("<f2").tobytes() for w in weights.values())).decode(),
    )  # fmt: skip
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], html)  # one pass: what it fills in is not searched
    write_whole(path, lambda file: file.write(page.encode()))


# === 4. Command line. ===============================================================================================
def make_parser():
    parser = Parser("generate.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="PATH", help="a checkpoint, or a run (default: the newest under log/)")
    source.add_argument("--model", metavar="NAME_OR_DIR", help="gpt2 .. gpt2-xl, or a directory with model.safetensors")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="how the text begins; - reads it from standard input")
    what.add_argument("--interactive", action="store_true", help="ask for one prompt after the other")
    what.add_argument("--export", metavar="NEW", help="write a directory for transformers, NAME.gguf or NAME.html")
    parser.add_argument("--num_samples", type=int, default=1, help="texts (default: 1)")
    parser.add_argument("--max_tokens", type=int, default=400, help="longest text, in new tokens (default: 400)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default: 0.8)")
    parser.add_argument("--top_k", type=int, default=50, help="draw from so many of the likeliest tokens (default: 50)")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens with this probability together")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: another one each time)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="of weights and products (default: auto)")
    return parser


def check(args):
    """Raises UserError for mistakes that can be seen before the model is loaded."""
    for name in ("num_samples", "max_tokens"):
        require(getattr(args, name) >= 1, f"--{name} is {getattr(args, name)}", "it is a whole number of at least 1")
    in_range = args.seed is None or 0 <= args.seed < 2**63
    require(in_range, f"--seed is {args.seed}", "it is a whole number from 0 on, of less than 64 bits")
    GPT.sample_next(torch.zeros(1, 1), args.temperature, args.top_k, args.top_p)  # refuses what it would refuse later
    reads = args.interactive or args.prompt == "-"
    require(sys.stdin or not reads, "standard input is closed", "give the text with --prompt")
    require(sys.stdout or args.export is not None, "standard output is closed", "the text is written there")


def read_prompt(given):
    """--prompt -> the text, "" for the start of a document."""
    if given == "-":
        with reading("standard input", "give plain text in UTF-8"):
            given = sys.stdin.buffer.read().decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
    require(given != "", "the prompt is empty", "leave --prompt out for a text from its very start")
    return given or ""


def load(source):
    """A name or a path, or None for the newest checkpoint under log/ -> model, its tokenizer, where it was found."""
    newest = newest_checkpoint(Path("log").glob("*") if source is None else [source])
    found = newest is not None or source is not None
    require(found, "there is no checkpoint under log/", "python train_gpt2.py makes one, or give --model gpt2")
    source = newest or source
    model = GPT.from_pretrained(source)
    V = model.config.vocab_size
    size = V if V <= 50257 else None  # other trainers fill GPT-2's vocabulary up, to 50,304 for example
    return model, find_tokenizer(source, size), source


def run(argv):
    args = make_parser().parse_args(argv)
    check(args)
    rt = setup_runtime(args.device, args.dtype)
    prompt = read_prompt(args.prompt)
    model, encoding, source = load(args.model if args.checkpoint is None else args.checkpoint)
    V, other = model.config.vocab_size, f"the tokenizer {encoding.name} {encoding.n_vocab:,}"
    hint = "hellaswag.py can score such a model, but only a tokenizer with as many tokens can write its text"
    require(encoding.n_vocab == V, f"{source} has {V:,} tokens, but {other}", hint)
    description = f"{source}: {model.num_params():,} parameters, tokenizer {encoding.name}"
    if args.export is not None:
        export(model, encoding, args.export, source)
        hints = {".gguf": f"; transformers needs gguf_file=, n_positions={model.config.block_size}"}
        hints[".html"] = "; open it in a browser"
        note(f"{description}; written to {args.export}{hints.get(Path(args.export).suffix, '')}")
        return
    model.to(rt.device, rt.dtype)  # all of it: autocast would convert every weight again for every token
    if rt.device.type == "cpu":
        pack_weights(model)
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    note(f"{description}; {rt.device}, {str(rt.dtype)[6:]}; seed {seed}")
    generator, out = torch.Generator().manual_seed(seed), sys.stdout
    if hasattr(out, "reconfigure") and not out.isatty():
        out.reconfigure(encoding="utf-8")  # a file is UTF-8 on every system; run_main lets a terminal show what it can
    if args.interactive:
        converse(model, encoding, args, generator, out)
        return
    ids, begin = prompt_ids(prompt, encoding, model), time.perf_counter()
    count = write_texts(model, encoding, ids, args, generator, out)
    seconds = time.perf_counter() - begin
    note(f"{count:,} tokens in {seconds:.1f} s: {count / seconds:,.0f} tokens/s")


def main(argv=None):
    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
