"""
What a run needs around the lesson: the machine it is on, the data it reads, its folder, its log and its picture.

train_gpt2.py calls this; nothing here is about GPT-2, and the lesson can be read without it.
"""

import argparse
import contextlib
import ctypes
import difflib
import errno
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

import tokenizer
from train_gpt2 import RECIPES, TokenStream, TrainConfig, UserError, load_checkpoint, load_shard, save_checkpoint
from weights import cannot_write, make_directory, read_weights, remove_quietly, write_atomically


# ----------------------------------------------------------------------------------------------------------------------
# The command line: options made from the fields of a dataclass, so that nothing is declared twice.
# ----------------------------------------------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as UserError: every script prints them the same way."""

    def error(self, message):
        hint = f"python {self.prog} --help lists every option"
        if message.startswith("unrecognized"):
            words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
            near = [n for word in words for n in difflib.get_close_matches(word, self._option_string_actions, n=1)]
            if near:
                hint = f"did you mean {' '.join(near)}? " + hint
        raise UserError(message, hint)


def config_from_args(argv=None):
    """Command line -> TrainConfig: the recipe's numbers, or with --resume the run's own; then what was given."""
    first = Parser("train_gpt2.py", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tales")
    defaults = TrainConfig.from_recipe(first.parse_known_args(argv)[0].recipe)
    parser = Parser("train_gpt2.py", description=f"Train a GPT-2. Recipes: {', '.join(RECIPES)}.", allow_abbrev=False)
    given = vars(add_options(parser, defaults).parse_args(argv))
    if given.get("resume"):
        given = config_to_resume(given, defaults) | given
    return replace(defaults, **given)


def check_settings(cfg):
    """Raises UserError for a setting of a TrainConfig that is out of its range, or does not go with another."""
    for f in fields(cfg):
        value, least, choices = getattr(cfg, f.name), f.metadata["least"], f.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"{f.name} is {value!r}", "choose one of: " + ", ".join(choices))
        number = isinstance(value, int | float) and math.isfinite(value)
        if least is not None and value not in (None, "auto") and not (number and least <= value < 2**53):
            raise UserError(f"{f.name} is {value!r}", f"{f.name} is a number of at least {least}")
    if cfg.zero and cfg.optimizer == "muon":
        raise UserError("zero shards the state of adamw only", "leave out --zero, or use --optimizer adamw")
    if cfg.min_lr > cfg.lr:
        raise UserError(f"min_lr {cfg.min_lr} is above lr {cfg.lr}", "the learning rate falls from lr to min_lr")


def add_options(parser, defaults):
    """Adds --name for every field of the dataclass instance `defaults`; those not given are left out of the result."""
    either = parser.add_mutually_exclusive_group()  # two ways to say one thing
    for f in fields(defaults):
        kind = dict(type=true_or_false, nargs="?", const=True) if f.type is bool else dict(type=option_type(f.type))
        if f.name == "resume":
            kind |= dict(nargs="?", const="newest")
        default = getattr(defaults, f.name)
        text = f.metadata["help"].replace("%", "%%") + ("" if default is None else f" (default: {default})")
        place = either if f.name in ("max_steps", "epochs") else parser
        names = ["--" + f.name]
        if f.name == "run":  # torchrun takes --run, even of the script that it starts, for its own --run_path
            names += ["--run_name"]
        place.add_argument(*names, dest=f.name, default=argparse.SUPPRESS, help=text, metavar=f.name.upper(), **kind)
    return parser


def option_type(annotation):
    """How the text of an option becomes a value: int, float, str, `int | None`, or `int | str` (a number or a word)."""

    kinds = typing.get_args(annotation) or (annotation,)

    def convert(text):
        for kind in kinds:
            with contextlib.suppress(ValueError, TypeError):
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if int in kinds else ''}number")

    return convert


def true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def run_main(function, argv=None):
    """Calls function(argv); a mistake of the user's becomes two lines and exit code 2. Any other error shows itself."""
    try:
        function(argv)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130  # what a shell reports for Ctrl-C
    except BrokenPipeError:
        no_more_output()
        return 0
    except Exception as e:
        mistake = as_mistake(e)
        if mistake is None:
            raise
        if tells(e):
            print(f"error: {mistake}\nhint: {mistake.hint}", file=sys.stderr, flush=True)
        return 2


def no_more_output():
    """For when the reader of our output has gone (| head): what is still written, at exit too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def stop_quietly():
    """A block that prints. If its reader has gone, the run is asked to stop, as by SIGTERM: it saves and leaves."""
    try:
        yield
    except BrokenPipeError:
        no_more_output()
        signal.raise_signal(signal.SIGTERM)


def as_mistake(error):
    """What to tell the user of an error that no change of our code could mend; None for any other."""
    if hasattr(error, "hint"):
        return error
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if isinstance(error, OSError) and (error.filename or error.errno in full):
        place = f"{error.filename}: " if error.filename else ""
        return UserError(f"{place}{error.strerror}", "is it there, may you use it, and has the disk room?")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = str(error).strip().splitlines()[0]
        return UserError(f"torch.compile failed: {reason}", "--compile false needs no compiler")
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Several processes: what one cannot do, none goes on with; and it is said once.
# ----------------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def together(rt):
    """A block that all processes enter and that does not talk to the others itself: a mistake that any of them meets
    there is raised in all of them, so that none is left waiting. Its `teller` says whether this process prints it."""
    problem = None
    try:
        yield
    except Exception as e:
        if not hasattr(e, "hint"):
            raise
        problem = e
    if rt.any(problem is not None):
        problems = gather_objects(rt, problem and (str(problem), problem.hint))
        first = next(rank for rank, p in enumerate(problems) if p)
        error = UserError(*problems[first])
        error.teller = rt.rank == first
        raise error from problem


def gather_objects(rt, value):
    """A small Python value of every process, as a list in the order of ranks."""
    values = [value] * rt.world_size
    if rt.world_size > 1:
        torch.distributed.all_gather_object(values, value, group=rt.control)
    return values


def fresh_store(rank, world_size):
    """Where the processes find each other, as arguments of init_process_group; {} where torch's own way is good.

    torchrun starts killed processes again with the store of the dead ones, and their addresses are still in it (known
    as pytorch/pytorch issues 135712 and 167288). So rank 0 invents a name for this life of the run, under which the
    store is empty, and tells it to each of the others that greets it with a word of its own. Who greets is alive."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"greeting {rank}", word)
        life = store.get(word).decode()  # waits for rank 0
        store.set(f"{life} {rank}", "heard")
    else:
        life, absent = word, set(range(1, world_size))
        while absent:
            time.sleep(0.01)
            for other in [r for r in absent if store.check([f"greeting {r}"])]:
                store.set(store.get(f"greeting {other}").decode(), life)  # to a dead one's word: nobody hears it
            absent = {r for r in absent if not store.check([f"{life} {r}"])}
    return dict(store=torch.distributed.PrefixStore(life, store), rank=rank, world_size=world_size)


def tells(error):
    """Whether this process prints a mistake: the first that met it; before they have met, the first of each host;
    and always a process that met it alone."""
    alone = torch.distributed.is_initialized() or os.environ.get("LOCAL_RANK", "0") == "0"
    return getattr(error, "teller", alone)


def own_dice(rt):
    """A block with torch's random state to itself: a notebook that calls us keeps its own. Only this process's GPU is
    asked: to ask all of them, as is torch's habit, takes memory on each."""
    return torch.random.fork_rng([rt.device] if rt.device.type == "cuda" else [])


def launch_marks(rt):
    """Who started each process: [torchrun's id, host and process number, our process number]; [] without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    agent = f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()}"
    return gather_objects(rt, [agent, os.getpid()])


# ----------------------------------------------------------------------------------------------------------------------
# The machine: choices that are made by themselves, each with its reason.
# ----------------------------------------------------------------------------------------------------------------------
PEAK_TFLOPS = {  # dense bf16 matrix products (fp16 for V100 and T4), from the makers' data sheets
    "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165.2, "3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip


def peak_flops(device):
    """The card's peak rate in operations a second; None where it is not known (then no share of it is claimed)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tera * 1e12 for card, tera in PEAK_TFLOPS.items() if card in name), None)


def choose_device(name, local_rank=0):
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank), torch.cuda.get_device_name(local_rank)
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple's GPU"
        return torch.device("cpu"), f"no GPU here; {torch.get_num_threads()} threads"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no kind of device called {name!r}", "use auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no CUDA device", "use --device cpu, or install torch for CUDA")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps, but torch sees no Apple GPU", "use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name} is not supported", "use auto, cpu, cuda or mps")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    return device, "as asked"


def choose_dtype(name, device):
    if name != "auto":
        if name == "float16" and device.type != "cuda":
            raise UserError(f"float16 needs a CUDA device, this is {device.type}", "use --dtype float32 or bfloat16")
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "this card multiplies it on tensor cores, and it has float32's range"
        return torch.float16, "this card has no bfloat16; the loss is scaled to keep gradients in range"
    # Private names of torch, so asked for with care: without them the answer is only slower.
    asks = [getattr(torch.cpu, n, None) for n in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if device.type == "cpu" and any(ask() for ask in asks if ask):
        return torch.bfloat16, "this CPU multiplies it about twice as fast as float32"
    return torch.float32, "no fast bfloat16 here"


def choose_compile(name, device):
    if name != "auto":
        return name == "true", "as asked"
    if device.type != "cuda":
        return False, "auto compiles on CUDA only; eager is right and starts at once"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed (Linux: pip install triton; Windows: triton-windows, or WSL)"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "Triton does not support this card"
    return True, "the first step takes a minute longer, all others less"


def keep_freed_memory():
    """Tells the C library of Linux to keep memory that was freed. By habit it hands large blocks back to the system at
    once, and each step's tensors must then be mapped and zeroed anew: on a CPU up to a fifth of its time (the rung
    "kept memory" in tests/benchmarks/results/ladder.json)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**30)


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers that look like one."""

    def __init__(self, first, second):
        self.pair, self.defaults = (first, second), {}

    @property
    def param_groups(self):
        return [group for optimizer in self.pair for group in optimizer.param_groups]

    def step(self):
        for optimizer in self.pair:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.pair:
            optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state):
        for optimizer, s in zip(self.pair, state["pair"], strict=True):
            optimizer.load_state_dict(s)


# ----------------------------------------------------------------------------------------------------------------------
# The data: a text, or shards, as streams of tokens.
# ----------------------------------------------------------------------------------------------------------------------
@dataclass
class Data:
    """What a run learns from and is tested on."""

    train: TokenStream
    val: TokenStream
    encoding: object  # tiktoken.Encoding, or None when only the tokens are known
    val_bytes: float  # bytes of text behind val; nan when unknown
    identity: str  # a hash: a run resumes only on the data that it began with
    description: str

    @property
    def vocab_size(self):
        return self.train.vocab_size

    def bits_per_byte(self, loss):
        """Nats per token -> bits per byte of text: the measure that does not depend on the tokenizer."""
        return loss * (len(self.val) - 1) / math.log(2) / self.val_bytes


def load_data(cfg, run_dir):
    """cfg.data, a text file or a directory of shards, as Data. Raises UserError for what cannot be used."""
    path = Path(cfg.data)
    if not path.exists() and (Path(__file__).parent / path).exists():
        path = Path(__file__).parent / path  # input.txt is found from any directory
    if not path.exists():
        hint = "python fineweb.py makes edu_fineweb10B; any text file can be given with --data"
        raise UserError(f"there is no data at {cfg.data}", hint)
    return load_shards(path, cfg) if path.is_dir() else load_text(path, cfg, run_dir)


def load_text(path, cfg, run_dir):
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8: {e.reason} at byte {e.start}", "give a plain text file") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}", "give a text file that you may read") from e
    if "\0" in text:
        raise UserError(f"{path} is not text: it holds zero bytes", "give a plain text file, or a directory of shards")
    # Held out: the last tenth of the bytes, from the first end of a document (or else of a line) on.
    cut = len(raw[: len(raw) * 9 // 10].decode("utf-8", errors="ignore"))
    for mark in (tokenizer.EOT + "\n", "\n"):
        if (found := text.find(mark, cut)) >= 0:
            cut = found + len(mark)
            break
    train_docs, val_docs = tokenizer.split_documents(text[:cut]), tokenizer.split_documents(text[cut:])
    if not train_docs or not val_docs:
        raise UserError(f"{path} is too short to learn from ({len(raw)} bytes)", "give some ten thousand bytes of text")
    encoding = text_tokenizer(cfg, train_docs, run_dir)
    streams = []
    for docs in (train_docs, val_docs):
        eot, ids = encoding.n_vocab - 1, []
        for doc in docs:
            ids += [eot, *encoding.encode_ordinary(doc)]
        dtype = np.uint16 if encoding.n_vocab <= 2**16 else np.int32
        streams.append(TokenStream([np.array(ids, dtype=dtype)], encoding.n_vocab))
    val_bytes = sum(len(doc.encode("utf-8")) for doc in val_docs)
    identity = hashlib.sha256(raw + tokenizer.fingerprint(encoding).encode()).hexdigest()
    description = f"{path.name}: {len(train_docs)} + {len(val_docs)} documents to learn from and to test on"
    return Data(*streams, encoding, val_bytes, identity, description)


def text_tokenizer(cfg, docs, run_dir):
    """The tokenizer for a text: the one asked for; else the run's or the initial model's; else a new one."""
    if cfg.tokenizer != "auto":
        return tokenizer.load_tokenizer(cfg.tokenizer)
    if (run_dir / "tokenizer.json").exists():
        return tokenizer.load_tokenizer(run_dir / "tokenizer.json")
    if cfg.init:
        try:
            return find_tokenizer(cfg.init)
        except tokenizer.DataError:
            read_weights(cfg.init)  # if it is no model at all, that is the mistake to tell
            raise
    return tokenizer.make_encoding(tokenizer.train_bpe(docs, cfg.vocab_size), cfg.run or cfg.recipe)


def find_tokenizer(model_path):
    """The tokenizer that belongs to a model: in or beside its place, bpe.json (of an export) or tokenizer.json (of
    a run; transformers has another format of that name, which is passed over); else GPT-2's."""
    path = Path(model_path)
    for place in (path, path.parent):
        for file in (place / "bpe.json", place / "tokenizer.json"):
            if path.exists() and file.is_file():
                with contextlib.suppress(tokenizer.DataError):
                    return tokenizer.load_tokenizer(file)
    return tokenizer.load_tokenizer("gpt2")


def load_shards(path, cfg):
    """A directory of shards: fineweb.py's, with manifest.json; or, with less to check, build-nanogpt's or llm.c's."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".npy", ".bin"))
    val, train = [f for f in files if "val" in f.name], [f for f in files if "train" in f.name]
    if not val or not train:
        missing = "shards" if not files else "validation shard (*val*)" if not val else "training shard (*train*)"
        raise UserError(f"{path} holds no {missing}", "python fineweb.py writes both; or give a text file")
    manifest = read_manifest(path, train + val, cfg.verify) if (path / "manifest.json").exists() else None
    encoding, vocab_size, val_bytes, note = None, 50257, math.nan, "no manifest: source and bits per byte are unknown"
    given = cfg.tokenizer if cfg.tokenizer != "auto" else path if (path / "tokenizer.json").exists() else "gpt2"
    try:
        if given == cfg.tokenizer or given == path or not tokenizer._gpt2_missing():  # never fetched unasked
            encoding = tokenizer.load_tokenizer(given)
            vocab_size = encoding.n_vocab
    except tokenizer.DataError:  # only samples need a tokenizer; but one that was asked for must be there
        if cfg.tokenizer != "auto":
            raise
    if manifest:
        info, source = manifest["tokenizer"], manifest["source"]
        if encoding and tokenizer.fingerprint(encoding) != info["sha256"]:
            raise UserError(
                f"the shards in {path} were made with tokenizer {info['name']}, not with {encoding.name}",
                "leave out --tokenizer, or make the shards again with it: python fineweb.py --tokenizer PATH",
            )
        vocab_size = info["vocab_size"]
        val_bytes = sum(s["bytes"] for s in manifest["shards"] if s["split"] == "val") or math.nan
        note = f"{source.get('dataset') or source['kind']}, revision {source.get('revision')}, tokenizer {info['name']}"
        note += "" if manifest.get("complete", True) else "; not complete: the same fineweb.py command goes on"
    streams = [TokenStream([load_shard(f) for f in part], vocab_size) for part in (train, val)]
    if len(streams[1]) < 2:
        raise UserError(f"{path} has one token to validate on", "it takes two: one to read, one to predict")
    shards = manifest["shards"] if manifest else [(f.name, f.stat().st_size) for f in files]
    identity = hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
    return Data(*streams, encoding, val_bytes, identity, f"{path}: {len(train)} + {len(val)} shards; {note}")


def read_manifest(path, files, verify):
    """manifest.json of a directory of shards, checked against the files: their sizes, and if asked, their sha256."""
    try:
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        shards = {s["file"]: s for s in manifest["shards"]}
        info, source = manifest["tokenizer"], manifest["source"]
        texts = [info["name"], info["sha256"], source["kind"], *shards, *(s["split"] for s in shards.values())]
        numbers = [info["vocab_size"], *(s[k] for s in shards.values() for k in ("tokens", "bytes"))]
        if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError("a number where a text should be, or the other way round")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as e:
        raise UserError(f"{path}/manifest.json is damaged: {e!r}", "make the shards again: python fineweb.py") from e
    for file in files:
        entry = shards.pop(file.name, None)
        if entry is None or len(load_shard(file)) != entry["tokens"]:
            raise UserError(f"{file} is not the shard that the manifest lists", "delete it and run fineweb.py again")
        if verify:
            with open(file, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != entry.get("sha256"):
                    raise UserError(f"{file} has changed since it was written (sha256)", "delete it and make it again")
    if shards:
        raise UserError(f"{path} lacks {', '.join(shards)}", "the manifest lists it: fetch it or run fineweb.py again")
    return manifest


# ----------------------------------------------------------------------------------------------------------------------
# Memory: how much fits, and what to say when it did not.
# ----------------------------------------------------------------------------------------------------------------------
def check_memory(cfg, rt):
    """Refuses sizes that this machine's memory cannot hold, before the system kills the process, or others, for them.
    What it counts is the least that is needed; much that passes will not fit."""
    if None in (cfg.n_layer, cfg.n_embd, cfg.block_size):
        return
    C, T, on_cpu = cfg.n_embd, cfg.block_size, rt.device.type == "cpu"
    parameters = cfg.n_layer * (12 * C + 13) * C + (cfg.vocab_size + T + 2) * C
    need = parameters * (16 if on_cpu else 4)  # in float32, with gradient and AdamW's two moments; or only made here
    need += cfg.total_batch // rt.world_size * 8  # the tokens of a step
    if on_cpu:
        sequences = 1 if cfg.micro_batch == "auto" else cfg.micro_batch
        need += sequences * T * (8 * cfg.vocab_size + 4 * cfg.n_layer * C)  # logits and their gradient; the stream
    have = math.inf
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        what = f"such a run needs {need / 2**30:,.0f} GiB of memory at least, this machine has {have / 2**30:,.0f}"
        raise UserError(what, "use a smaller model (--n_layer, --n_embd, --block_size), --micro_batch or --total_batch")


ENOUGH_TOKENS = {"cuda": 65_536, "mps": 8_192, "cpu": 4_096}  # read at once; more makes no device faster


def largest_micro_batch(model, sequences, rt, try_batch=None):
    """The largest divisor of `sequences` that fits in memory; beyond ENOUGH_TOKENS it does not look.

    On CUDA each size is tried with a real forward and backward pass; elsewhere memory is not the limit."""
    T = model.config.block_size
    limit = max(1, ENOUGH_TOKENS[rt.device.type] // T)
    sizes = [b for b in range(1, min(sequences, limit) + 1) if sequences % b == 0]
    if rt.device.type != "cuda" and try_batch is None:
        return sizes[-1]
    best = 0
    for B in sizes:
        try:
            (try_batch or try_on_device)(model, B, rt)
        except torch.OutOfMemoryError:
            break
        best = B
    best = min(int(b) for b in rt.gather(torch.tensor(best)))  # what fits on every card
    with together(rt):
        if best == 0:
            raise UserError(
                f"not even one sequence of {T} tokens fits in memory",
                "use --activation_checkpointing, a smaller --block_size, or a smaller model",
            )
    return best


def try_on_device(model, B, rt):
    """One forward and backward pass of B sequences, with room for what the optimizer will hold later."""
    later = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
    x = torch.zeros(B, model.config.block_size, dtype=torch.long, device=rt.device)
    try:
        with rt.autocast():
            _, loss = model(x, x)
        loss.backward()
    finally:
        del later
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def settle(cfg, model, data, rt):
    """The numbers that depend on the model, the data and the number of processes: -> cfg, micro-steps in a step."""
    numbers = {k: v for k, v in asdict(cfg).items() if isinstance(v, int | float)}
    all_asked = gather_objects(rt, numbers | dict(data=data.identity))
    sizes = {k: getattr(model.config, k) for k in ("block_size", "n_layer", "n_head", "n_embd")}
    T = model.config.block_size
    sequences, rest = divmod(cfg.total_batch, T * rt.world_size)  # each process reads so many in a step
    with together(rt):
        if different := sorted(k for k, v in all_asked[0].items() if any(other[k] != v for other in all_asked)):
            what = "the processes do not have the same " + " and ".join(different)
            raise UserError(what, "on every host, start the same command on the same data")
        for name, size in sizes.items():
            asked = getattr(cfg, name)
            if asked not in (None, size):
                what = f"{name} is {asked}, but the model to start from has {size}"
                raise UserError(what, f"leave --{name} out; with --init, use --recipe finetune")
        if rest or not sequences:
            what = f"total_batch {cfg.total_batch} is no multiple of {T} tokens x {rt.world_size} processes"
            raise UserError(what, f"for example --total_batch {T * rt.world_size * max(1, sequences)}")
    B = largest_micro_batch(model, sequences, rt) if cfg.micro_batch == "auto" else min(cfg.micro_batch, sequences)
    with together(rt):
        if sequences % B:
            fits = max(b for b in range(1, B + 1) if sequences % b == 0)
            raise UserError(f"{sequences} sequences a step cannot be read {B} at once", f"use --micro_batch {fits}")
    if cfg.epochs:
        steps_per_epoch = len(data.train) // T / (sequences * rt.world_size)
        cfg = replace(cfg, max_steps=math.ceil(cfg.epochs * steps_per_epoch))
    return replace(cfg, micro_batch=B, **sizes), sequences // B


@contextlib.contextmanager
def out_of_memory(cfg, rt):
    """Turns an out-of-memory error into the command that fits: half the micro-batch, the same total batch."""
    with together(rt):
        check_memory(cfg, rt)
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        on_cpu = isinstance(e, MemoryError) or "you tried to allocate" in str(e)  # there it has no class of its own
        if not on_cpu and not isinstance(e, torch.OutOfMemoryError):
            raise
        error = UserError(f"out of memory on {rt.device} with micro_batch {cfg.micro_batch}", smaller_command(cfg, rt))
        raise error from e


def smaller_command(cfg, rt):
    """The command that was given, changed in the first thing that still can be to need less memory."""
    B, options = cfg.micro_batch, sys.argv[1:]
    if B != "auto" and B > 1:
        for flag in [a for a in options if a.startswith("--micro_batch")]:
            i = options.index(flag)
            del options[i : i + (1 if "=" in flag else 2)]
        options += ["--micro_batch", str(max(b for b in range(1, B // 2 + 1) if B % b == 0))]
    elif not cfg.activation_checkpointing:
        options.append("--activation_checkpointing")
    elif not cfg.zero and rt.world_size > 1 and cfg.optimizer == "adamw":
        options.append("--zero")
    else:
        return "use a smaller --block_size or a smaller model; more processes with --zero also help"
    start = ["python"]
    if rt.world_size > 1:
        local = os.environ.get("LOCAL_WORLD_SIZE", str(rt.world_size))
        hosts = ["--standalone"] if local == str(rt.world_size) else ["(as before)"]
        start = ["torchrun", *hosts, f"--nproc_per_node={local}"]
    return " ".join(start) + " " + shlex.join(["train_gpt2.py", *options])


# ----------------------------------------------------------------------------------------------------------------------
# The run's folder: which one, and which checkpoint in it.
# ----------------------------------------------------------------------------------------------------------------------
def run_folders(log_dir, name):
    """The folders `name`, `name-2`, `name-3`, ... that are there, oldest first."""
    found = [(re.fullmatch(re.escape(name) + r"(?:-(\d+))?", p.name), p) for p in Path(log_dir).glob("*") if p.is_dir()]
    return [path for _, path in sorted((int(match[1] or 1), path) for match, path in found if match)]


def checkpoints(run_dir):
    """The checkpoints of a run, newest first."""
    found = [(int(p.stem.removeprefix("ckpt_")), p) for p in Path(run_dir).glob("ckpt_*.pt") if p.stem[5:].isdigit()]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(log_dir="log"):
    """The checkpoint that was written last in any run; None if there is none."""
    found = [p for run in Path(log_dir).glob("*") if run.is_dir() for p in checkpoints(run)]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def newest_whole_checkpoint(run_dir, say=print):
    """The path of the newest one that loads, None if there is none; says which were passed over."""
    for path in checkpoints(run_dir):
        try:
            load_checkpoint(path, mmap=True)
            return path
        except UserError as e:
            say(f"passing over {path.name}: {e}")
    return None


def find_resume(given, name, log_dir, say=print):
    """What --resume asks for -> (run folder, path of the checkpoint)."""
    if given != "newest":
        load_checkpoint(given, mmap=True)
        return Path(given).parent, Path(given)
    for run_dir in reversed(run_folders(log_dir, name)):
        path = newest_whole_checkpoint(run_dir, say)
        if path:
            return run_dir, path
    raise UserError(f"there is no checkpoint to go on from in {Path(log_dir) / name}", "train first, or give its path")


def config_to_resume(given, defaults):
    """The settings, as a dict, of the run that the command line asks to go on with."""
    name, log_dir = given.get("run") or defaults.recipe, given.get("log_dir", defaults.log_dir)
    _, path = find_resume(given["resume"], name, log_dir, say=lambda line: None)
    # Where the run stood may have changed since; and its epochs have become max_steps, which may be given anew.
    known = {f.name for f in fields(defaults)} - {"run", "log_dir", "resume", "epochs"}
    kinds = {f.name: f.type for f in fields(defaults) if f.name in known}
    settings = {k: v for k, v in load_checkpoint(path, mmap=True)["config"].items() if k in known}
    for name, value in settings.items():
        whole = type(value) is int and isinstance(0.0, kinds[name])  # 3 for 3.0
        if not isinstance(value, kinds[name]) and not whole:
            raise UserError(f"{path} is damaged: {name} is {value!r}", "give another checkpoint")
    return settings


def open_run(cfg, rt):
    """Chooses the run's folder, on rank 0 for all: -> (folder, checkpoint to go on from or None). Only rank 0 writes
    there; to go on, all must be able to read it."""
    marks, answer, ckpt = launch_marks(rt), None, None
    with together(rt):
        if rt.is_main:
            answer = choose_run(cfg, rt, marks)
    run_dir, ckpt_path = gather_objects(rt, answer)[0]
    with together(rt):
        if ckpt_path:
            ckpt = load_checkpoint(ckpt_path)
    return Path(run_dir), ckpt


def choose_run(cfg, rt, marks):
    """-> (folder, path of the checkpoint or None), as strings. Never a folder that holds another run."""
    name = cfg.run or cfg.recipe
    if any(c in name for c in "/\\") or name in (".", ".."):
        raise UserError(f"--run {name} is no name of a folder", "no slashes; --log_dir is where it stands")
    folders = run_folders(cfg.log_dir, name)
    places = [*folders, Path(cfg.resume).parent] if cfg.resume not in (None, "newest") else folders
    for run_dir in reversed(places):
        if restarted_by_torchrun(run_dir, marks):
            path = newest_whole_checkpoint(run_dir, rt.print)
            return str(run_dir), str(path) if path else None
    if cfg.resume:
        run_dir, path = find_resume(cfg.resume, name, cfg.log_dir, rt.print)
        return str(run_dir), str(path)
    taken = [f for f in folders if any(f.iterdir())]
    if taken and cfg.run:
        raise UserError(f"{taken[-1]} holds a run already", "go on with it: --resume; or choose another --run")
    run_dir = Path(cfg.log_dir) / name
    if taken:
        number = max(int(f.name.removeprefix(name).removeprefix("-") or 1) for f in taken) + 1
        run_dir = Path(cfg.log_dir) / f"{name}-{number}"
        rt.print(f"{taken[-1]} holds a run already (--resume goes on with it); this one goes to {run_dir}")
    return str(run_dir), None


def restarted_by_torchrun(run_dir, marks):
    """Whether this folder's run was begun by a torchrun that has now started us: after a failure it starts new
    processes in the place of the old, and one of its own processes, on one host at least, has lived through it.

    (Its TORCHELASTIC_RESTART_COUNT does not tell: it is 0 on a host that has come back.)"""
    launches = [e.get("launch") or [] for e in read_log(run_dir) if e["event"] == "config"]
    before = launches[-1] if launches else []
    same_agent = {agent for agent, _ in before} & {agent for agent, _ in marks}
    return bool(same_agent) and not any(mark in before for mark in marks)


class StopSignals:
    """Ctrl-C and SIGTERM ask the loop to finish its step, save and leave; a second Ctrl-C, which torchrun passes on as
    SIGTERM, leaves at once. (Two SIGTERM are one wish: a job scheduler and torchrun may both have sent it.)"""

    def __enter__(self):
        self.requested = 0  # the first signal
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            self.old = {s: signal.signal(s, self.handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def handle(self, number, frame):
        if self.requested and signal.SIGINT in (self.requested, number):
            raise KeyboardInterrupt
        self.requested = number

    def __exit__(self, *error):
        for number, handler in self.old.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------------------------------------------
# The log: one line an event on disk, one line an interval on the terminal, and a picture.
# ----------------------------------------------------------------------------------------------------------------------
GPT2_LOSS = 3.2924  # OpenAI's GPT-2 124M on the validation shard of FineWeb-Edu
GPT2_HELLASWAG = 0.2955  # and its HellaSwag accuracy, completion style
# Validation losses of a good run of the recipe gpt2, by step (build-nanogpt, pull request 30, and several full runs).
EXPECTED_LOSS = {0: 10.95, 250: 6.163, 1000: 4.153, 1250: 3.952, 19_073: 3.05}


def on_track(step, loss):
    """In words, how a run of the recipe gpt2 stands beside a good one; None at steps that nothing is known of."""
    if step not in EXPECTED_LOSS:
        return None
    difference = loss - EXPECTED_LOSS[step]
    if abs(difference) <= 0.02 * EXPECTED_LOSS[step]:
        return f"on track: a good run has {EXPECTED_LOSS[step]:.2f} here"
    word = "behind" if difference > 0 else "ahead"
    return f"{word} by {abs(difference):.2f}: a good run has {EXPECTED_LOSS[step]:.2f} here"


class RunLog:
    """Writes what happens: log.jsonl, checkpoints and loss.png on rank 0; lines on the terminal."""

    def __init__(self, run_dir, cfg, rt, data, model, ckpt):
        self.run_dir, self.cfg, self.rt, self.data, self.model = run_dir, cfg, rt, data, model
        self.events, self.pending = [], []  # pending: steps whose loss is still on the device
        self.best = (ckpt["best_loss"], ckpt["best_step"]) if ckpt else (math.inf, -1)
        self.val_loss, self.peak, self.first_step = math.nan, peak_flops(rt.device), True
        start = ckpt["step"] if ckpt else 0
        self.saved = [start]  # the steps of this run's checkpoints, the newest last
        self.print_start(start)
        with together(rt):
            if rt.is_main:
                self.tidy(start)
        versions = dict(python=sys.version.split()[0], torch=torch.__version__, numpy=np.__version__)
        looked_up = bool(ckpt and ckpt["looked_up"])
        self.write(
            "config", start, looked_up=looked_up, config=asdict(cfg), model=asdict(model.config), versions=versions,
            device=device_name(rt.device), dtype=str(rt.dtype)[6:], world_size=rt.world_size, commit=git_commit(),
            launch=launch_marks(rt), data=data.identity,
        )  # fmt: skip
        self.clock = time.perf_counter()

    def tidy(self, start):
        """Makes the folder ready: the tokenizer goes in, and what a killed process left half-written goes out.
        Only now, when all is well, so that a mistake leaves nothing behind."""
        make_directory(self.run_dir)
        for left in self.run_dir.glob("*.tmp"):
            remove_quietly(left)
        if self.data.encoding and not (self.run_dir / "tokenizer.json").exists():
            tokenizer.save_tokenizer(self.data.encoding, self.run_dir / "tokenizer.json")

    def print_start(self, start):
        cfg, rt, say = self.cfg, self.rt, self.rt.print
        for reason in rt.reasons:
            say(reason)
        if self.data.encoding:
            say(f"tokenizer {self.data.encoding.name}: {self.data.vocab_size:,} tokens")
        else:
            say(f"no tokenizer at hand: no samples will be printed ({self.data.vocab_size:,} tokens)")
        say(f"data {self.data.description}; {len(self.data.train):,} + {len(self.data.val):,} tokens")
        say(
            f"model {self.model.num_params():,} parameters; {cfg.total_batch:,} tokens a step = {cfg.micro_batch} x "
            f"{cfg.block_size} x {cfg.total_batch // (cfg.micro_batch * cfg.block_size * rt.world_size)} micro-steps x "
            f"{rt.world_size} process{'es' if rt.world_size > 1 else ''}; {cfg.max_steps:,} steps = "
            f"{cfg.max_steps * cfg.total_batch / len(self.data.train):.1f} passes over the data"
        )
        say(f"folder {self.run_dir}" + (f"; going on from step {start}" if start else ""))

    def write(self, event, step, **values):
        self.write_all([dict(event=event, step=step, **values)])

    def write_all(self, events):
        """Every process must call it; rank 0 writes."""
        self.events += events
        with together(self.rt):
            if self.rt.is_main:
                append_lines(self.run_dir / "log.jsonl", map(json.dumps, events))

    def train(self, step, loss, norm, lr):
        """Notes a step. Its loss is read from the device only at the interval, so that the CPU need not wait for it."""
        self.pending.append((step, loss, norm, lr))
        if self.first_step or (step + 1) % self.cfg.log_every == 0:
            self.flush()

    def flush(self):
        """Reads the pending losses, writes them, and stops the run if one is no number."""
        if not self.pending:
            return
        steps, losses, norms, lrs = zip(*self.pending, strict=True)
        self.pending = []
        losses, norms = torch.stack(losses).tolist(), torch.stack(norms).tolist()  # waits for the device
        losses = [total / self.rt.world_size for total in self.rt.sum(losses)]
        ms = (time.perf_counter() - self.clock) * 1000 / len(steps)
        tokens_per_s = self.cfg.total_batch / ms * 1000
        events = []
        for step, loss, norm, lr in zip(steps, losses, norms, lrs, strict=True):
            if not math.isfinite(norm) and self.rt.scaler.is_enabled():
                norm = None  # the scaler tries how far it can go, and leaves such a step out
            self.stop_unless_finite(f"the loss is {loss} and the norm of its gradient {norm}", step, loss, norm or 0.0)
            values = dict(loss=loss, lr=lr, norm=norm, ms=ms, tokens_per_s=tokens_per_s)
            events.append(dict(event="train", step=step, **values))
        self.write_all(events)
        line = f"step {step:5d} | loss {loss:.4f} | lr {lr:.1e} | norm {norms[-1]:.4f}"
        line += f" | {ms:.1f} ms | {tokens_per_s:,.0f} tok/s"
        if self.peak:
            line += f" | mfu {self.model.flops_per_token() * tokens_per_s / self.peak / self.rt.world_size:.0%}"
        if self.first_step:
            line += " (first step: warming up" + (", compiling)" if self.rt.compile else ")")
        self.first_step = False
        self.rt.print(line)
        self.clock = time.perf_counter()

    def stop_unless_finite(self, what, step, *numbers):
        """Ends the run if one of the numbers, which are the same in all processes, is none."""
        if all(map(math.isfinite, numbers)):
            return
        with together(self.rt):
            raise UserError(
                f"{what} at step {step}: the run has diverged",
                f"go on from the last checkpoint in {self.run_dir} with a lower --lr, more --warmup_steps, or "
                "--dtype float32",
            )

    def val(self, step, loss):
        self.flush()
        self.stop_unless_finite(f"the validation loss is {loss}", step, loss)
        bpb = self.data.bits_per_byte(loss)
        line = f"step {step:5d} | val loss {loss:.4f} nats per token"
        line += f" | {bpb:.4f} bits per byte" if math.isfinite(bpb) else ""
        values = dict(val_loss=loss, val_bpb=bpb if math.isfinite(bpb) else None)
        if self.cfg.recipe == "gpt2" and (words := on_track(step, loss)):
            line, values["on_track"] = f"{line} | {words}", words
        self.write("val", step, **values)
        self.rt.print(line)
        self.val_loss = loss
        self.clock = time.perf_counter()

    def hellaswag(self, step, model):
        import hellaswag

        self.flush()
        path = hellaswag.default_path("val")
        if self.rt.any(not path.exists() or self.data.encoding is None):  # on any host: all or none take part
            if step == 0:
                self.rt.print("no HellaSwag on this disk: python hellaswag.py --download fetches it; going on without")
            return
        with together(self.rt):
            examples = hellaswag.load_examples(path)[self.rt.rank :: self.rt.world_size]
        place = dict(device=self.rt.device, autocast=self.rt.autocast)
        result = hellaswag.evaluate(model, examples, self.data.encoding, **place)
        n, correct, correct_norm = self.rt.sum([result["n"], result["correct"], result["correct_norm"]])
        self.write("hellaswag", step, acc=correct / n, acc_norm=correct_norm / n)
        self.rt.print(f"step {step:5d} | HellaSwag acc {correct / n:.4f} | acc_norm {correct_norm / n:.4f}")
        self.clock = time.perf_counter()

    def sample(self, step, model, count):
        self.flush()
        texts = self.texts(step, model, count) if self.rt.is_main and self.data.encoding else []
        self.write_all([dict(event="sample", step=step, text=text) for text in texts])
        for text in texts:
            self.rt.print(f"step {step:5d} | sample: " + text.strip().replace("\n", "\n    ") + "\n")
        self.clock = time.perf_counter()

    def texts(self, step, model, count):
        """What the model says when it is only told that a document begins: a list of `count` texts."""
        encoding = self.data.encoding
        eot = encoding.n_vocab - 1
        start = torch.full((count, 1), eot, device=self.rt.device)
        dice = torch.Generator().manual_seed(self.cfg.seed + step)
        with self.rt.autocast():
            rows = model.generate(start, 256, temperature=0.8, top_k=50, stop_token=eot, generator=dice)
        return [encoding.decode(row[: row.index(eot)] if eot in row else row) for row in rows[:, 1:].tolist()]

    def save(self, step, model, optimizer, **state):
        """Writes a checkpoint, then removes all but the last two and the best."""
        self.flush()
        worst = torch.stack([p.detach().abs().max() for p in model.parameters()]).max().item()  # nan wins over all
        self.stop_unless_finite(f"the largest weight is {worst}", step, worst)
        if self.val_loss < self.best[0] and state["looked_up"]:
            self.best = (self.val_loss, step)
        path = self.run_dir / f"ckpt_{step:06d}.pt"
        state |= dict(step=step, config=asdict(self.cfg), data=self.data.identity)
        save_checkpoint(path, model, optimizer, self.rt, best_loss=self.best[0], best_step=self.best[1], **state)
        self.saved.append(step)
        self.write("checkpoint", step, path=str(path))
        with together(self.rt):
            if self.rt.is_main:
                remove_old(self.run_dir, keep=[*self.saved[-2:], self.best[1]])
                plot(self.run_dir)
        self.rt.print(f"step {step:5d} | saved {path}")
        self.clock = time.perf_counter()

    def close(self, stopped):
        if stopped:
            self.rt.print("stopped as asked; go on with --resume")
        elif len(self.events) == 1:  # it has only said how it began
            self.rt.print("this run is finished; --resume with more --max_steps goes on")
        return self.events


def remove_old(run_dir, keep):
    """Removes a run's checkpoints but for those of the steps to keep. Among the others may be later ones, damaged or
    left behind when the run was resumed from before them: as in its log, what is done again takes their place."""
    for path in checkpoints(run_dir):
        if int(path.stem.removeprefix("ckpt_")) not in keep:
            remove_quietly(path)


def append_lines(path, lines):
    """Adds lines to a text file; a last line that a crash has cut off keeps to itself. Raises UserError."""
    try:
        with open(path, "ab+") as f:
            if f.tell() > 0:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    f.write(b"\n")
            f.write("".join(line + "\n" for line in lines).encode("utf-8"))
    except OSError as e:
        raise cannot_write(path, e) from e


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def git_commit():
    """The commit of this checkout; None outside one."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return None


def read_log(run_dir):
    """The events of a run as they count: where a run was resumed, what it did again replaces what it did before."""
    events, path = [], Path(run_dir) / "log.jsonl"
    if not path.exists():
        return events
    for line in path.read_text("utf-8").splitlines():
        try:
            e = json.loads(line)
        except ValueError:  # the line that a crash cut off
            continue
        if e["event"] == "config":
            events = [o for o in events if stands(o, e)]
        events.append(e)
    return events


def stands(event, config):
    """Whether an event of the log counts beside a later start of the run. At the step of that start itself the run
    has looked up already, or does so again; it has not trained."""
    if event["step"] != config["step"] or event["event"] == "config":
        return event["step"] < config["step"] or event["event"] == "config"
    return event["event"] == "checkpoint" or (config.get("looked_up", True) and event["event"] != "train")


def plot(run_dir):
    """Draws log.jsonl as loss.png: training and validation loss, with landmarks that give the numbers a meaning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    events = read_log(run_dir)
    pick = {kind: [e for e in events if e["event"] == kind] for kind in ("train", "val", "hellaswag")}
    config = next(e for e in events if e["event"] == "config")
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = [e["step"] for e in pick["train"]], [e["loss"] for e in pick["train"]]
    axes.plot(steps, losses, color="#56B4E9", linewidth=0.8, alpha=0.8, label="training")
    steps, losses = [e["step"] for e in pick["val"]], [e["val_loss"] for e in pick["val"]]
    axes.plot(steps, losses, "o-", color="#D55E00", markersize=4, label="validation")
    uniform = math.log(config["model"]["vocab_size"])
    axes.axhline(uniform, color="grey", linestyle=":", label=f"knowing nothing: ln V = {uniform:.2f}")
    if config["config"]["recipe"] == "gpt2":
        axes.axhline(GPT2_LOSS, color="black", linestyle="--", label=f"OpenAI's GPT-2 124M: {GPT2_LOSS}")
        end = max([250, *steps])  # later ones would squeeze a young run to the left edge
        expected = [(step, loss) for step, loss in EXPECTED_LOSS.items() if step <= 1.5 * end]
        axes.plot(*zip(*expected, strict=True), "x", color="#009E73", label="a good run")
    axes.set(xlabel=f"step ({config['config']['total_batch']:,} tokens each)", ylabel="loss (nats per token)")
    axes.set_title(f"{Path(run_dir).name}: {pick['val'][-1]['val_loss']:.3f} nats per token" if pick["val"] else "")
    axes.grid(alpha=0.3)
    axes.legend()
    if pick["hellaswag"]:
        right = axes.twinx()
        points = [(e["step"], e["acc_norm"]) for e in pick["hellaswag"]]
        right.plot(*zip(*points, strict=True), "s-", color="#CC79A7")
        right.axhline(GPT2_HELLASWAG, color="#CC79A7", linestyle="--")
        right.set_ylabel(f"HellaSwag acc_norm (squares; dashes: GPT-2 124M, {GPT2_HELLASWAG})")
    write_atomically(Path(run_dir) / "loss.png", lambda f: figure.savefig(f, format="png"))
