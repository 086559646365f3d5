"""
Text from a model: a checkpoint of train_gpt2.py, OpenAI's weights, or a directory as transformers saves them.

    python generate.py --prompt "Once upon a time"         the newest checkpoint under log/ goes on from there
    python generate.py --model gpt2 --interactive          you begin and it goes on; an empty line ends
    echo "Once upon" | python generate.py --prompt - --num_samples 3 --seed 1 > stories.txt
    python generate.py --export my_model                   for transformers: AutoModelForCausalLM, AutoTokenizer

Standard output gets the texts, each with its prompt, and nothing else; notes go to standard error. Several texts are
separated by a line <|endoftext|>, as in a corpus. Each begins as documents do in training: after <|endoftext|>.

Map:  1 texts that grow   2 fast products on a CPU   3 export   4 command line
"""

import codecs
import contextlib
import itertools
import json
import secrets
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn

from tokenizer import EOT, eot_id, find_tokenizer, save_tokenizer
from train_gpt2 import GPT, Parser, UserError, newest_checkpoint, run_main, setup_runtime, write_whole

ROWS = 8  # texts that grow side by side: eight cost little more time than one, for the weights are read once for all
# What a terminal would obey instead of showing. An untrained model says any byte; a trained one, what it has read.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}")


# ----------------------------------------------------------------------------------------------------------------------
# 1. Texts that grow
# ----------------------------------------------------------------------------------------------------------------------
class Row:
    """A text that grows by tokens. A token may end inside a character, whose bytes then wait for the next token."""

    def __init__(self, encoding, ids, before=""):
        self.encoding, self.decoder = encoding, codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text, self.written = before + self.decoder.decode(encoding.decode_bytes(ids)), 0
        self.tokens, self.done = 0, False

    def add(self, token):
        """Takes the next token; <|endoftext|> ends the text, and what a finished row is given falls away."""
        if self.done:
            return
        self.tokens += 1
        if token == eot_id(self.encoding):
            self.finish()
        else:
            self.text += self.decoder.decode(self.encoding.decode_single_token_bytes(token))

    def finish(self):
        if not self.done:
            self.text += self.decoder.decode(b"", final=True)  # half a character becomes the replacement character
            self.text += "" if self.text.endswith("\n") else "\n"
        self.done = True

    def take(self):
        """The part of the text that has not been taken yet."""
        start, self.written = self.written, len(self.text)
        return self.text[start:]


def show(rows, out):
    """Writes the first row as far as it has grown, and once it is done goes on to the next; drops the done ones."""
    while rows:
        text = rows[0].take()
        out.write(text.translate(CONTROLS) if out.isatty() else text)
        if not rows[0].done:
            break
        rows.pop(0)
    out.flush()


def write_texts(model, encoding, prompt, args, generator, out):
    """Continues the prompt (a list of ids, maybe empty) args.num_samples times and writes the texts to `out` while
    they grow. generator: a CPU generator. Returns the number of new tokens."""
    count = 0
    for first in range(0, args.num_samples, ROWS):
        numbers = range(first, min(first + ROWS, args.num_samples))
        rows = [Row(encoding, prompt, before=f"{EOT}\n" if i else "") for i in numbers]
        waiting = list(rows)
        idx = torch.tensor([[eot_id(encoding), *prompt]] * len(rows), device=model.lm_head.weight.device)  # (B, T)
        show(waiting, out)
        for tokens in model.stream(idx, args.max_tokens, args.temperature, args.top_k, args.top_p, generator):  # (B, 1)
            for row, token in zip(rows, tokens.flatten().tolist(), strict=True):
                row.add(token)
            show(waiting, out)
            if not waiting:
                break
        for row in waiting:
            row.finish()
        show(waiting, out)
        count += sum(row.tokens for row in rows)
    return count


def converse(model, encoding, args, generator, out):
    """Reads a line, continues it, reads the next; each stands alone. An empty line or Ctrl-D ends; Ctrl-C a text."""
    with contextlib.suppress(ImportError):  # Windows has no such module, and needs none
        import readline  # noqa: F401  arrow keys and history for input()
    note("begin a text and press Enter; an empty line ends, Ctrl-C stops a text")
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            out.write("\n")
            return
        if not text.strip():
            return
        try:
            write_texts(model, encoding, encode(text, encoding, model), args, generator, out)
        except KeyboardInterrupt:
            out.write("\n")


def encode(text, encoding, model):
    """The ids of a prompt. Says so if the model cannot see all of it."""
    ids = encoding.encode_ordinary(text)
    if len(ids) >= (block := model.config.block_size):
        note(f"the prompt has {len(ids):,} tokens and the model sees {block:,}: it reads the end of it")
    return ids


def note(text):
    print(text, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# 2. Fast products on a CPU
# ----------------------------------------------------------------------------------------------------------------------
class PackedLinear(nn.Module):
    """nn.Linear for inference on a CPU: the weight lies in memory in the order in which oneDNN's kernels read it.

    To make one token, every weight is read once and used once a row, so the time is that of reading the memory, if all
    cores read. nn.Linear does not get there: in float32 torch hands a product with one row to a library that may use a
    single core, and in bfloat16 oneDNN puts the weight in its own order again at every call. See
    tests/benchmarks/bench_generate.py. The two operators are torch.compile's own, with no public name.
    """

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack_weights(model):
    """Replaces every nn.Linear of a GPT by a PackedLinear, where the processor is of the kind that it was measured on.

    The same numbers up to rounding, in less time (tests/benchmarks/results/generate.json). The model can no longer be
    trained or saved.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return model
    if model.lm_head.weight.dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for block in model.transformer.h:
        for part in (block.attn, block.mlp):
            for name, layer in part.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(part, name, PackedLinear(layer.weight, layer.bias))
    # The head's weight stays as it is beside its packed copy, for it is also the table of embeddings.
    model.head = PackedLinear(model.lm_head.weight, None).forward
    return model


# ----------------------------------------------------------------------------------------------------------------------
# 3. Export
# ----------------------------------------------------------------------------------------------------------------------
def export(model, encoding, directory):
    """Writes model and tokenizer as transformers reads them, and bpe.json, the tokenizer as this project reads it.

    bpe.json is not called tokenizer.json because transformers has another format of that name. Raises UserError, before
    anything is written, if the directory holds something already or the tokenizer has no merges to write.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already", "give --export the name of a new directory")
    files = hf_tokenizer_files(encoding, model.config.block_size)
    model.save_pretrained(directory)
    for name, text in files.items():
        write_whole(directory / name, lambda file, text=text: file.write(text.encode("utf-8")))
    save_tokenizer(encoding, directory / "bpe.json")


def hf_tokenizer_files(encoding, block_size):
    """{name: content} of the files from which transformers' GPT2Tokenizer is made."""
    ranks = encoding._mergeable_ranks
    names = byte_names()
    spell = {token: "".join(names[byte] for byte in token) for token in ranks}
    vocab = {spell[token]: ranks[token] for token in sorted(ranks, key=ranks.get)} | {EOT: eot_id(encoding)}
    merges = "".join(f"{spell[left]} {spell[right]}\n" for left, right in merges_of(ranks))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT)
    config = dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=False, model_max_length=block_size, **special)
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + merges,
        "tokenizer_config.json": json.dumps(config, indent=2),
    }


def byte_names():
    """Byte -> the character that GPT-2's files write for it: itself if Latin-1 shows it, else one from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


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
            if joined[i] >= ranks[token]:
                raise UserError(f"the token {token!r} cannot be made by merges", "this tokenizer cannot be exported")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


# ----------------------------------------------------------------------------------------------------------------------
# 4. Command line
# ----------------------------------------------------------------------------------------------------------------------
def make_parser():
    parser = Parser("generate.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="PATH", help="a checkpoint, or a run (default: the newest under log/)")
    source.add_argument("--model", metavar="NAME_OR_DIR", help="gpt2 .. gpt2-xl, or a directory with model.safetensors")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="how the text begins; - reads it from standard input")
    what.add_argument("--interactive", action="store_true", help="ask for one prompt after the other")
    what.add_argument("--export", metavar="DIR", help="write the model and its tokenizer for transformers, and stop")
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
    """Mistakes that can be seen before the model is loaded."""
    for name in ("num_samples", "max_tokens"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}", "it is a whole number of at least 1")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise UserError(f"--seed is {args.seed}", "it is a whole number from 0 on, of less than 64 bits")
    GPT.sample_next(torch.zeros(1, 1), args.temperature, args.top_k, args.top_p)  # refuses what it would refuse later


def read_prompt(given):
    """--prompt -> the text, "" for the start of a document."""
    if given is None:
        return ""
    if given == "-":
        try:
            given = sys.stdin.buffer.read().decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
        except UnicodeDecodeError as e:
            raise UserError(f"standard input is not UTF-8: {e.reason} at byte {e.start}", "give plain text") from e
    if not given:
        raise UserError("the prompt is empty", "leave --prompt out for a text from its very start")
    return given


def load(args):
    """-> the model that was asked for, or the newest; its tokenizer; and a line about them."""
    source = args.checkpoint or args.model or newest_checkpoint(Path("log").glob("*"))
    if source is None:
        raise UserError("there is no checkpoint under log/", "python train_gpt2.py makes one, or give --model gpt2")
    model = GPT.from_pretrained(source)
    encoding = find_tokenizer(source)
    if encoding.n_vocab != model.config.vocab_size:
        raise UserError(
            f"{source} has {model.config.vocab_size:,} tokens, but the tokenizer {encoding.name} {encoding.n_vocab:,}",
            "put the tokenizer.json that it was trained with beside it",
        )
    return model, encoding, f"{source}: {model.num_params():,} parameters, tokenizer {encoding.name}"


def run(argv):
    args = make_parser().parse_args(argv)
    check(args)
    rt = setup_runtime(args.device, args.dtype)
    prompt = read_prompt(args.prompt)
    model, encoding, description = load(args)
    if args.export:
        export(model, encoding, args.export)
        note(f"{description}; written to {args.export}")
        return
    model.to(rt.device, rt.dtype)  # all of it: autocast would convert every weight again for every token
    if rt.device.type == "cpu":
        pack_weights(model)
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    note(f"{description}; {rt.device}, {str(rt.dtype)[6:]}; seed {seed}")
    generator, out = torch.Generator().manual_seed(seed), sys.stdout
    if hasattr(out, "reconfigure"):  # a file is UTF-8 on every system; a terminal shows what it can
        out.reconfigure(encoding=None if out.isatty() else "utf-8", errors="replace")
    if args.interactive:
        converse(model, encoding, args, generator, out)
        return
    ids, begin = encode(prompt, encoding, model), time.perf_counter()
    count = write_texts(model, encoding, ids, args, generator, out)
    seconds = time.perf_counter() - begin
    note(f"{count:,} tokens in {seconds:.1f} s: {count / seconds:,.0f} tokens/s")


def main(argv=None):
    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
