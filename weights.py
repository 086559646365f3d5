"""
Files of weights: reading every format that a GPT-2 comes in, and writing without ever leaving half a file.

train_gpt2.py uses this; the lesson can be read without it. Nothing here runs code that a file holds: tensors are read
with safetensors or with torch.load(weights_only=True).
"""

import contextlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from train_gpt2 import CONV1D, PRESETS, GPTConfig, UserError


def write_atomically(path, write):
    """Calls write(temporary path), then renames: whoever looks sees the old file or the new one, never half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())  # on the disk before the name points to it
        os.replace(temporary, path)
        sync_directory(path.parent)
    except (OSError, SafetensorError) as e:
        remove_quietly(temporary)
        raise cannot_write(path, e) from e
    except BaseException:
        remove_quietly(temporary)
        raise


def cannot_write(path, e):
    """An OSError while writing, as the UserError to raise."""
    reason = getattr(e, "strerror", None) or e
    return UserError(f"cannot write {path}: {reason}", "free some space or choose another folder")


def sync_directory(path):
    """Puts the new name itself on the disk, where the system has such a thing: a power cut then loses nothing."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_quietly(path):
    """Removes a file if that is possible; where a disk is read-only, the error that brought us here says more."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def save_tensors(path, tensors):
    """torch.save, atomically. Raises UserError where the disk is full or may not be written."""

    def write(temporary):
        with open(temporary, "wb") as f:  # a file of ours: torch's own loses the reason of a failure
            try:
                torch.save(tensors, f)
            except RuntimeError as e:  # torch stumbles over its half-written file and hides why it is half-written
                if isinstance(e.__context__, OSError):
                    raise e.__context__ from None
                raise

    write_atomically(path, write)


def load_tensors(path, mmap=False):
    """A file of tensors as a dict, .safetensors or torch's own; never runs code from it. Raises UserError."""
    if not Path(path).exists():
        raise UserError(f"there is no file {path}", "check the path")
    with damage_to(path):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextlib.contextmanager
def damage_to(path):
    """A block that reads a file which may be wrong in any way: whatever fails there becomes a UserError."""
    try:
        yield
    except Exception as e:
        if hasattr(e, "hint"):
            raise
        reason = (str(e).strip() or type(e).__name__).split("\n")[0][:120]
        if reason.startswith("Weights only load failed"):  # and then how to load it nevertheless, which we will not
            reason = "torch's safe reader refuses it"
        raise UserError(f"{path} is damaged, or no file of weights: {reason}", "make it or fetch it again") from e


CHECKPOINT = dict(
    model=dict, model_config=dict, optimizer=dict, step=int, position=int, looked_up=bool, best_loss=float,
    best_step=int, config=dict, data=str, rng=list,
)  # fmt: skip


def check_checkpoint(path, ckpt):
    """Raises UserError unless this is what save_checkpoint writes, as far as can be told before it is used."""
    whole = isinstance(ckpt, dict) and all(isinstance(ckpt.get(k), kind) for k, kind in CHECKPOINT.items())
    if not whole or ckpt["step"] < 0:
        raise UserError(f"{path} is no checkpoint of train_gpt2.py", "give one of the files log/<run>/ckpt_*.pt")
    own_config(path, ckpt)


def check_same_run(ckpt, now):
    """Raises UserError where going on from the checkpoint with the settings `now` would quietly be another run."""
    then = dict(ckpt["config"], data=ckpt["data"])
    for name in ("data", "optimizer", "total_batch", "block_size", "seed", "shuffle", "n_layer", "n_head", "n_embd"):
        if then.get(name) != now[name]:
            what = "other data" if name == "data" else f"{name} {then.get(name)}, not {now[name]}"
            raise UserError(f"the checkpoint was trained with {what}", f"keep the same {name}, or begin a new --run")
    if ckpt["step"] > now["max_steps"]:
        step, most = ckpt["step"], now["max_steps"]
        raise UserError(f"the checkpoint is past step {most}: at {step}", "raise --max_steps")


def own_config(path, ckpt):
    """The GPTConfig of a checkpoint. Raises UserError if its weights are of other sizes."""
    try:
        config = GPTConfig(**ckpt["model_config"])
    except (TypeError, UserError) as e:
        raise UserError(f"{path} is damaged: {e}", "make it or fetch it again") from e
    check_sizes(path, config, config.padded_vocab_size, ckpt["model"])
    return config


def check_sizes(path, config, rows, weights):
    """Refuses a configuration that its weights do not bear out, before memory is taken for sizes that may be lies."""
    with damage_to(path):
        shapes = {k.split(".")[-2]: (*w.shape,) for k, w in weights.items() if isinstance(w, torch.Tensor)}
    for name, shape in (("wte", (rows, config.n_embd)), ("wpe", (config.block_size, config.n_embd))):
        if shapes.get(name, shape) != shape:
            what = f"the weights in {path} do not fit: {name}.weight has shape {shapes[name]}, not {shape}"
            raise UserError(what, "its configuration is of another model: fetch both again")
    n_layer = sum(k.endswith("ln_1.weight") for k in weights)
    if config.n_layer > max(n_layer, 1) or "wte" not in shapes:
        missing = f"h.{n_layer}.ln_1.weight" if "wte" in shapes else "wte.weight"
        raise UserError(f"the weights in {path} do not fit: {missing} is missing", "are they of a GPT-2 of this size?")


def load_optimizer(optimizer, state):
    """optimizer.load_state_dict, with a check that it leaves out, the shapes; and settings stay as they are now."""
    now = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, now, strict=True):
        group.update(settings)
    for part in getattr(optimizer, "pair", [optimizer]):
        for p, values in part.state.items():
            values = values or {}  # with --zero: another process holds them
            if any(v.dim() and v.shape != p.shape for v in values.values() if isinstance(v, torch.Tensor)):
                raise UserError("the optimizer's state is of other sizes than the weights", "give another checkpoint")


def load_model(cls, name_or_path, block_size=None, dropout=0.0):
    """See GPT.from_pretrained, which calls this with itself."""
    config, weights, is_hf = read_weights(name_or_path)
    if block_size and block_size > config.block_size:
        what = f"{name_or_path} has {config.block_size} positions, not {block_size}"
        raise UserError(what, "lower --block_size, or leave it out")
    config = replace(config, block_size=block_size or config.block_size, dropout=dropout)
    weights = {k: w[: config.block_size] if k.endswith("wpe.weight") else w for k, w in weights.items()}
    model = cls(config)
    if is_hf:
        model.load_hf_state_dict(weights)
    else:
        load_own_state_dict(model, weights)
    return model


def check_weights(ours, theirs):
    """Raises UserError naming what of `theirs` does not fit `ours`, dicts of tensors; takes the tied head out."""
    head = theirs.pop("lm_head.weight", theirs.get("wte.weight"))
    wrong = [f"{k} is missing" for k in sorted(ours.keys() - theirs.keys())]
    wrong += [f"{k} is no weight of this model" for k in sorted(theirs.keys() - ours.keys())]
    for k in sorted(ours.keys() & theirs.keys()):
        if theirs[k].shape != ours[k].shape:
            wrong.append(f"{k} has shape {tuple(theirs[k].shape)}, not {tuple(ours[k].shape)}")
    if not wrong and not torch.equal(head, theirs["wte.weight"]):
        wrong = ["lm_head.weight differs from wte.weight, which GPT-2 ties it to"]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError("the weights do not fit: " + "; ".join(wrong[:4]) + more, "are they of a GPT-2 of this size?")


def load_own_state_dict(model, weights):
    """Weights as this file saves them; the prefixes that torch.compile and DDP put before names are dropped."""
    weights = {k.replace("_orig_mod.", "").removeprefix("module."): w for k, w in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        reason = "; ".join(line.strip() for line in str(e).split("\n")[1:4])
        raise UserError(f"the checkpoint is of another model: {reason}", "give the sizes it was trained with") from e


def read_weights(name_or_path):
    """-> (GPTConfig, dict of tensors, whether they are in transformers' layout). See GPT.from_pretrained."""
    path = Path(name_or_path)
    if not path.exists() and str(name_or_path) in PRESETS and str(name_or_path) != "tales":
        path = download(str(name_or_path))
    if not path.exists():
        raise UserError(
            f"no model is called {name_or_path}, and there is no such file or directory",
            "give a checkpoint (.pt), a directory with config.json and model.safetensors, or gpt2, gpt2-medium, ...",
        )
    if path.is_dir() and any(path.glob("ckpt_*.pt")):  # the folder of a run stands for its newest checkpoint
        path = max(path.glob("ckpt_*.pt"))
    if path.suffix == ".pt":
        ckpt = load_tensors(path)
        if not isinstance(ckpt, dict) or not {"model", "model_config"} <= ckpt.keys():
            raise UserError(f"{path} is no checkpoint of train_gpt2.py", "give one of the files log/<run>/ckpt_*.pt")
        return own_config(path, ckpt), ckpt["model"], False
    weights = {}
    with damage_to(path):
        for file in weight_files(path):
            weights |= dict(load_tensors(file))
    config = read_hf_config((path if path.is_dir() else path.parent) / "config.json", weights)
    check_sizes(path, config, config.vocab_size, weights)
    return config, weights, True


def weight_files(path):
    """The files that hold the weights of a model in transformers' layout: one, or the shards that an index names."""
    if path.is_file():
        return [path]
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        file = path / name
        if file.exists() and file.suffix == ".json":
            shards = json.loads(file.read_text("utf-8"))["weight_map"].values()
            return [path / Path(shard).name for shard in sorted(set(shards))]
        if file.exists():
            return [file]
    raise UserError(f"{path} holds no model", "it needs model.safetensors or pytorch_model.bin (and config.json)")


def read_hf_config(file, weights):
    """A transformers config.json as GPTConfig; without it, what the shapes tell (heads of 64, as OpenAI's)."""
    if file.exists():
        try:
            c = json.loads(file.read_text("utf-8"))
            return GPTConfig(c["n_positions"], c["vocab_size"], c["n_layer"], c["n_head"], c["n_embd"])
        except (ValueError, KeyError, TypeError, UserError) as e:
            raise UserError(f"{file} is no GPT-2's configuration: {e!r}", "it needs n_layer, n_head, n_embd ...") from e
    shapes = {k.removeprefix("transformer."): w.shape for k, w in weights.items()}
    if not {"wte.weight", "wpe.weight"} <= shapes.keys():
        raise UserError(f"there is no {file.name} beside weights that are not GPT-2's", "give a GPT-2 model")
    n_layer = sum(k.endswith("ln_1.weight") for k in shapes)
    (V, C), T = shapes["wte.weight"], shapes["wpe.weight"][0]
    return GPTConfig(T, V, n_layer, max(1, C // 64), C)


def download(name):
    """OpenAI's weights from the Hub, into its cache; returns the snapshot's directory."""
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            files = ["config.json", "model.safetensors"]
            return Path(snapshot_download(f"openai-community/{name}", allow_patterns=files))
    except Exception as e:  # the Hub's client raises a dozen kinds, all of which mean: not there
        raise UserError(
            f"cannot fetch {name} from the Hub: {type(e).__name__}",
            "connect to the network once, or copy the model's directory here and give its path",
        ) from e


@contextlib.contextmanager
def quiet_hub():
    """A block in which the Hub's client does not log each of its retries: if none helps, one error says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_hf(model, directory):
    """Writes config.json and model.safetensors in the layout of transformers' GPT2LMHeadModel: no padding rows, the
    tied matrix once, Conv1D matrices as (in, out)."""
    c, weights = model.config, {}
    for name, p in model.transformer.named_parameters():
        p = p.detach().cpu()[: c.vocab_size] if name == "wte.weight" else p.detach().cpu()
        weights["transformer." + name] = (p.t() if name.endswith(CONV1D) else p).contiguous()
    config = dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=c.vocab_size, n_positions=c.block_size,
        n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, activation_function="gelu_new", layer_norm_epsilon=1e-5,
        resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout, tie_word_embeddings=True,
        bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1,
    )  # fmt: skip
    directory = make_directory(directory)
    write_atomically(directory / "model.safetensors", lambda f: save_file(weights, f, metadata={"format": "pt"}))
    write_atomically(directory / "config.json", lambda f: f.write_text(json.dumps(config, indent=2), "utf-8"))


def make_directory(path):
    """The directory as a Path, made if it is not there. Raises UserError where that is not allowed."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the directory {path}: {e.strerror}", "choose another place") from e
    return Path(path)
