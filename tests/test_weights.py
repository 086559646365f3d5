"""
from_pretrained and save_pretrained: every format that a GPT-2 comes in gives the same model, what does not fit is
named, and no file runs code.

    python -m pytest tests/test_weights.py

Offline: transformers makes the files, from random weights. Where a test says 124M it takes the real shape once.
"""

import errno
import io
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import train_gpt2
from train_gpt2 import (
    GPT,
    PRESETS,
    TRANSPOSED,
    GPTConfig,
    Runtime,
    TrainConfig,
    UserError,
    configure_optimizers,
    save_checkpoint,
    write_whole,
)

transformers = pytest.importorskip("transformers")
CONFIG = GPTConfig(block_size=24, vocab_size=300, n_layer=2, n_head=2, n_embd=32)  # 300 ids are stored as 320 rows


def disturb(model, scale=0.3):
    """Every tensor becomes different from every other and from its initial value, biases and norms too."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * scale)
    return model


def their_model(config=CONFIG):
    """transformers' GPT-2 of the same sizes, with random weights."""
    torch.manual_seed(3)
    c = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer,
        n_head=config.n_head, bos_token_id=config.vocab_size - 1, eos_token_id=config.vocab_size - 1,
    )  # fmt: skip
    return disturb(transformers.GPT2LMHeadModel(c)).eval()


def our_model(config=CONFIG):
    torch.manual_seed(4)
    model = disturb(GPT(config))
    with torch.no_grad():
        model.transformer.wte.weight[config.vocab_size :] = 0
    return model.eval()


def ids(B, T, vocab_size=CONFIG.vocab_size):
    return torch.randint(0, vocab_size, (B, T), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def theirs():
    return their_model()


@torch.no_grad()
def assert_same_function(ours, theirs, T=24, tolerance=1e-4):
    x = ids(2, T)
    expected = theirs(x).logits
    assert expected.std() > 0.5  # lively enough for the tolerance to mean something
    assert (ours.eval()(x)[0] - expected).abs().max() <= tolerance


# ----------------------------------------------------------------------------------------------------------------------
# Formats
# ----------------------------------------------------------------------------------------------------------------------
def directory(path, theirs):
    theirs.save_pretrained(path)
    return path


def single_file(path, theirs):
    theirs.save_pretrained(path)
    return path / "model.safetensors"


def sharded(path, theirs):
    theirs.save_pretrained(path, max_shard_size="40KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1 and not (path / "model.safetensors").exists()
    return path


def old_binary(path, theirs):
    theirs.config.save_pretrained(path)
    torch.save(theirs.state_dict(), path / "pytorch_model.bin")
    return path


def old_binary_file(path, theirs):
    return old_binary(path, theirs) / "pytorch_model.bin"


def as_openai_published_it(path, theirs):
    """The file on the Hub: no prefix, no head, and the causal masks stored as if they were weights."""
    theirs.config.save_pretrained(path)
    tensors = {k.removeprefix("transformer."): w for k, w in theirs.state_dict().items() if k != "lm_head.weight"}
    for layer in range(CONFIG.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path / "model.safetensors")
    return path


def half_precision(path, theirs):
    """float16 files exist too; these weights are rounded to what float16 holds, so nothing is lost."""
    theirs.config.save_pretrained(path)
    tensors = {k: w.half() for k, w in theirs.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, path / "model.safetensors")
    return path


FORMATS = [directory, single_file, sharded, old_binary, old_binary_file, as_openai_published_it]


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_gives_the_same_model(tmp_path, theirs, make):
    ours = GPT.from_pretrained(make(tmp_path, theirs))
    assert ours.config == CONFIG
    assert_same_function(ours, theirs)
    assert ours.lm_head.weight is ours.transformer.wte.weight


def test_half_precision_is_read_as_float32(tmp_path):
    model = their_model().half().float()
    ours = GPT.from_pretrained(half_precision(tmp_path, model))
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_function(ours, model)


def test_a_weights_file_needs_its_configuration_beside_it(tmp_path, theirs):
    """The shapes do not tell how many heads there are, and a guess would give another model without a word."""
    file = single_file(tmp_path, theirs)
    (tmp_path / "config.json").unlink()
    for path in (file, tmp_path):
        with pytest.raises(UserError, match=r"config\.json") as caught:
            GPT.from_pretrained(path)
        assert caught.value.hint


def test_a_shorter_block_keeps_the_first_positions(tmp_path, theirs):
    ours = GPT.from_pretrained(directory(tmp_path, theirs), block_size=10)
    assert ours.config.block_size == 10 and ours.transformer.wpe.weight.shape == (10, 32)
    assert_same_function(ours, theirs, T=10)
    with pytest.raises(UserError, match="24 positions, not 25"):
        GPT.from_pretrained(tmp_path, block_size=25)


def test_names_of_openai_come_from_the_hub(tmp_path, theirs, monkeypatch):
    """Only the transfer is replaced. Each of the four names asks for its own model, and safetensors only."""
    import huggingface_hub

    asked = []

    def snapshot(repo, allow_patterns):
        asked.append(repo)
        there = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "rust_model.ot", "vocab.json"]
        wanted = huggingface_hub.utils.filter_repo_objects(there, allow_patterns=allow_patterns)
        assert list(wanted) == ["config.json", "model.safetensors"]
        return str(directory(tmp_path, theirs))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    names = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    for name in names:
        assert_same_function(GPT.from_pretrained(name), theirs)
    assert asked == [f"openai-community/{name}" for name in names]


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot fetch gpt2 from the Hub: ConnectionError") as caught:
        GPT.from_pretrained("gpt2")
    assert "path" in caught.value.hint


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_openais_sizes_equal_transformers_shapes(name):
    """Names and shapes of all four, with no memory taken: both models live on the meta device."""
    p = PRESETS[name]
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**p))
        ours = GPT(GPTConfig.from_name(name))
    shapes = {k: (*w.shape[::-1],) if k.endswith(TRANSPOSED) else (*w.shape,) for k, w in theirs.state_dict().items()}
    for k, w in ours.state_dict().items():
        rows = 50257 if k in ("transformer.wte.weight", "lm_head.weight") else len(w)
        assert shapes.pop(k) == (rows, *w.shape[1:])
    assert not shapes


# ----------------------------------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------------------------------
def test_export_and_import_are_exact(tmp_path):
    model = our_model()
    model.save_pretrained(tmp_path / "a")
    again = GPT.from_pretrained(tmp_path / "a")
    assert again.config == model.config
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert again.lm_head.weight is again.transformer.wte.weight
    again.save_pretrained(tmp_path / "b")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    assert "lm_head.weight" not in tensors  # the tied matrix once
    assert tensors["transformer.wte.weight"].shape == (300, 32)  # and without the padding
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


@torch.no_grad()
def test_an_exported_model_says_the_same_in_transformers(tmp_path):
    """The same greedy text from four beginnings, up to the end of the block."""
    model = our_model()
    model.transformer.wpe.weight.mul_(4)  # or it would soon say the same word for ever
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    prompt = ids(4, 6)
    ours = model.generate(prompt, 18, temperature=0)
    options = dict(do_sample=False, max_new_tokens=18, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(ours, expected)
    assert len(set(ours[:, 6:].flatten().tolist())) > 8  # it says something, not one word


@torch.no_grad()
def test_124M_gives_transformers_logits_both_ways(tmp_path, monkeypatch):
    """The real shape, random weights: their weights in our model, and our weights in theirs."""
    torch.manual_seed(6)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    x = ids(1, 64, 50257)
    theirs.save_pretrained(tmp_path)
    expected = theirs(x).logits
    assert expected.std() > 0.3
    assert (GPT.from_pretrained(tmp_path).eval()(x)[0] - expected).abs().max() <= 1e-4
    ours = GPT(GPTConfig()).eval()
    files = {}  # what would be written, without another half a gigabyte on the disk

    def keep(path, write):
        files[path.name] = io.BytesIO()
        write(files[path.name])

    monkeypatch.setattr(train_gpt2, "write_whole", keep)
    ours.save_pretrained("nowhere")
    assert json.loads(files["config.json"].getvalue())["n_positions"] == 1024
    keys = theirs.load_state_dict(load(files["model.safetensors"].getvalue()), strict=False)
    assert keys.missing_keys == ["lm_head.weight"] and not keys.unexpected_keys
    assert (theirs(x).logits - ours(x)[0]).abs().max() <= 1e-4


# ----------------------------------------------------------------------------------------------------------------------
# What does not fit
# ----------------------------------------------------------------------------------------------------------------------
def change(path, theirs, edit):
    """A model directory whose tensors were edited; returns its path."""
    theirs.config.save_pretrained(path)
    tensors = {k: w.clone() for k, w in theirs.state_dict().items() if k != "lm_head.weight"}
    edit(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def drop(*names):
    return lambda tensors: [tensors.pop("transformer." + name) for name in names]


def put(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "edit, named",
    [
        (drop("h.1.mlp.c_fc.bias"), ["h.1.mlp.c_fc.bias"]),
        (drop("h.0.ln_1.bias", "ln_f.weight"), ["h.0.ln_1.bias", "ln_f.weight"]),
        (drop("h.1.ln_1.weight"), ["n_layer) = (300, 32, 24, 1)"]),
        (drop("wte.weight"), ["wte.weight"]),
        (drop("wpe.weight"), ["wpe.weight"]),
        (put("transformer.h.0.attn.rotary", 4), ["h.0.attn.rotary"]),
        (put("transformer.h.2.ln_1.weight", 32), ["n_layer) = (300, 32, 24, 3)"]),
        (put("transformer.h.0.mlp.c_fc.weight", 128, 32), ["h.0.mlp.c_fc.weight", "size mismatch"]),  # not transposed
        (put("transformer.ln_f.bias", 33), ["ln_f.bias", "size mismatch"]),
        (put("transformer.wte.weight", 299, 32), ["(299, 32, 24, 2)"]),
        (put("transformer.wte.weight", 300, 33), ["(300, 33, 24, 2)"]),
        (put("transformer.wpe.weight", 25, 32), ["(300, 32, 25, 2)"]),
        (put("lm_head.weight", 300, 32), ["lm_head.weight differs from wte.weight"]),
    ],
)
def test_what_is_missing_extra_or_of_a_wrong_shape_is_named(tmp_path, theirs, edit, named):
    with pytest.raises(UserError) as caught:
        GPT.from_pretrained(change(tmp_path, theirs, edit))
    assert all(words in str(caught.value) for words in named) and caught.value.hint
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_are_compared_before_they_cost_memory(tmp_path, theirs, monkeypatch):
    """A configuration that claims a model of terabytes is refused from the shapes in the file."""
    single_file(tmp_path / "theirs", theirs)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    ours = checkpoint(tmp_path / "ckpt_000001.pt", our_model())
    monkeypatch.setattr(GPT, "__init__", None)  # it must not come to that
    monkeypatch.setattr(torch.nn.functional, "pad", None)
    for lie in (dict(n_embd=2**20), dict(vocab_size=2**40), dict(n_positions=2**40), dict(n_layer=2**30)):
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | lie))
        with pytest.raises(UserError, match="not what its configuration says"):
            GPT.from_pretrained(tmp_path / "theirs")
    content = torch.load(ours, weights_only=True)
    for lie in (dict(n_embd=2**20), dict(vocab_size=2**40), dict(block_size=2**40), dict(n_layer=2**30)):
        torch.save(content | dict(model_config=content["model_config"] | lie), ours)
        with pytest.raises(UserError, match="not what its configuration says"):
            GPT.from_pretrained(ours)


def truncated(path, theirs):
    data = single_file(path, theirs).read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def empty(path, theirs):
    single_file(path, theirs).write_bytes(b"")


def page_of_html(path, theirs):
    single_file(path, theirs).write_text("<html>sign in</html>")


def lost_shard(path, theirs):
    sorted(sharded(path, theirs).glob("model-*.safetensors"))[1].unlink()


def configuration_of_another_kind(path, theirs):
    single_file(path, theirs)
    (path / "config.json").write_text(json.dumps(dict(model_type="llama", hidden_size=32)))


def configuration_of_another_size(path, theirs):
    single_file(path, theirs)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | dict(n_layer=3)))


def configuration_that_is_no_json(path, theirs):
    single_file(path, theirs)
    (path / "config.json").write_text("n_layer: 2")


def nothing(path, theirs):
    pass


@pytest.mark.parametrize(
    "make",
    [
        truncated, empty, page_of_html, lost_shard, nothing,
        configuration_of_another_kind, configuration_of_another_size, configuration_that_is_no_json,
    ],
)  # fmt: skip
def test_damage_is_one_clear_error(tmp_path, theirs, make):
    make(tmp_path, theirs)
    with pytest.raises(UserError) as caught:
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and caught.value.hint


def test_a_name_that_means_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt3", "tales", "no/such/dir", "log/x/ckpt_000001.pt"):
        with pytest.raises(UserError, match=name):
            GPT.from_pretrained(name)


@pytest.mark.parametrize("index", ["{", "[]", None, "elsewhere"])
def test_the_index_of_a_model_in_parts_is_not_needed(tmp_path, theirs, index):
    """All parts are in the model's own directory, whatever path the index gives; what is in none of them is missed."""
    sharded(tmp_path / "model", theirs)
    file = tmp_path / "model" / "model.safetensors.index.json"
    if index == "elsewhere":
        content = json.loads(file.read_text())
        content["weight_map"] = {name: "../" + shard for name, shard in content["weight_map"].items()}
        index = json.dumps(content)
    if index is None:
        file.unlink()
    else:
        file.write_text(index)
    assert_same_function(GPT.from_pretrained(tmp_path / "model"), theirs)


# ----------------------------------------------------------------------------------------------------------------------
# Our own checkpoints
# ----------------------------------------------------------------------------------------------------------------------
def checkpoint(path, model, step=1):
    """A checkpoint as a run writes it. Returns its path."""
    rt = Runtime(0, 1, torch.device("cpu"), torch.float32, False, [], torch.amp.GradScaler("cpu", enabled=False))
    cfg = TrainConfig.from_recipe("tales")
    state = dict(step=step, best=[1.5, step], config=asdict(cfg), data="a hash")
    save_checkpoint(path, model, configure_optimizers(model, cfg, "cpu"), rt, **state)
    return path


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_checkpoint_or_the_folder_of_a_run(tmp_path):
    """A folder stands for its newest checkpoint by step, if it loads: a damaged newer one is passed over."""
    first, second = our_model(), disturb(our_model(), 0.1)
    checkpoint(tmp_path / "ckpt_000009.pt", first, 9)
    file = checkpoint(tmp_path / "ckpt_000010.pt", second, 10)
    assert same_weights(GPT.from_pretrained(tmp_path), second)
    assert same_weights(GPT.from_pretrained(tmp_path / "ckpt_000009.pt"), first)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == CONFIG and again.lm_head.weight is again.transformer.wte.weight
    file.write_bytes(file.read_bytes()[:-100])
    assert same_weights(GPT.from_pretrained(tmp_path), first)
    with pytest.raises(UserError, match=r"ckpt_000010\.pt is damaged"):  # but not if it was asked for by name
        GPT.from_pretrained(file)


def test_a_checkpoint_of_the_earlier_version_is_refused_in_one_line(tmp_path):
    model = our_model()
    old = dict(model=model.state_dict(), model_config=asdict(CONFIG), optimizer={}, step=1, position=0, looked_up=True)
    torch.save(old, tmp_path / "ckpt_000001.pt")
    with pytest.raises(UserError, match="earlier version") as caught:
        GPT.from_pretrained(tmp_path / "ckpt_000001.pt")
    assert "\n" not in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("lost", ["model", "model_config", "optimizers", "scaler", "config", "data", "step", "best"])
def test_a_checkpoint_without_one_of_its_parts_is_refused(tmp_path, lost):
    file = checkpoint(tmp_path / "ckpt_000001.pt", our_model())
    content = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != lost}, file)
    with pytest.raises(UserError, match="no checkpoint of train_gpt2"):
        GPT.from_pretrained(file)


def test_a_checkpoint_whose_weights_do_not_fit_is_refused(tmp_path):
    file = checkpoint(tmp_path / "ckpt_000001.pt", our_model())
    content = torch.load(file, weights_only=True)
    del content["model"]["transformer.h.1.mlp.c_fc.bias"]
    torch.save(content, file)
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.bias") as caught:
        GPT.from_pretrained(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_can_start_a_model_with_a_shorter_block_and_dropout(tmp_path):
    model = our_model()
    again = GPT.from_pretrained(checkpoint(tmp_path / "ckpt_000001.pt", model), block_size=10, dropout=0.3)
    assert again.config == replace(CONFIG, block_size=10, dropout=0.3)
    x = ids(2, 10)
    torch.testing.assert_close(again.eval()(x)[0], model(x)[0])


@pytest.mark.parametrize("wrapped", [lambda m: torch.compile(m, backend="eager"), torch.nn.DataParallel])
def test_wrappings_leave_no_trace_in_names(tmp_path, wrapped):
    """torch.compile and DDP put a prefix before the names of what they wrap: so the raw model is what is saved."""
    model = our_model()
    assert next(iter(wrapped(model).state_dict())) != next(iter(model.state_dict()))
    names = torch.load(checkpoint(tmp_path / "ckpt_000001.pt", model), weights_only=True)["model"].keys()
    assert names == GPT(CONFIG).state_dict().keys()


# ----------------------------------------------------------------------------------------------------------------------
# Nothing in a file is executed
# ----------------------------------------------------------------------------------------------------------------------
class WouldRun:
    """Unpickling this creates a file: the way such an attack works, with a harmless deed."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt_000001.pt"])
@pytest.mark.parametrize("save", [torch.save, lambda thing, file: Path(file).write_bytes(pickle.dumps(thing))])
def test_a_hostile_file_runs_nothing(tmp_path, theirs, name, save):
    target, folder = tmp_path / "deed", tmp_path / "model"
    folder.mkdir()
    theirs.config.save_pretrained(folder)
    thing = dict(model={}, model_config=asdict(CONFIG), more=WouldRun(target))
    save(thing, folder / name)
    pickle.loads(pickle.dumps(thing))["more"].close()
    assert target.exists()  # the attack would work
    target.unlink()
    with pytest.raises(UserError, match=r"is damaged|never run here"):
        GPT.from_pretrained(folder / name)
    if name.endswith(".bin"):
        with pytest.raises(UserError):
            GPT.from_pretrained(folder)
    assert not target.exists()


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "new folder" / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert [p.read_text() for p in path.parent.iterdir()] == ["old"]
    write_whole(path, lambda file: file.write(b"new"))
    assert [p.read_text() for p in path.parent.iterdir()] == ["new"]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = our_model()
    monkeypatch.setattr(train_gpt2.os, "fsync", full)
    for save in (model.save_pretrained, lambda path: checkpoint(path, model)):
        with pytest.raises(UserError, match="No space left") as caught:
            save(tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert caught.value.hint
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
