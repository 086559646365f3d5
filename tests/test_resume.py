"""A run that is interrupted and resumed is the run that was never interrupted: bit for bit, on a CPU.

Run: pytest tests/test_resume.py
"""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SHARD_SIZES, TOTAL_BATCH, T, losses, options, tiny, write_shards

import train_gpt2
from train_gpt2 import TrainConfig, UserError, checkpoints, load_checkpoint, read_log, train


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The picture has tests of its own, and takes longer than these runs."""
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)


STATE = ("step", "best", "model", "model_config", "optimizers", "scaler", "data")


def assert_same_state(a, b, tolerance=None):
    """Two checkpoints hold the same step, weights and optimizers: bit for bit, or nearly. Only their settings may
    differ: where the run is and from what it was resumed."""
    assert a.keys() == b.keys() == {*STATE, "config"}
    compare({k: a[k] for k in STATE}, {k: b[k] for k in STATE}, tolerance)


def told(events, *without):
    """What a log tells, in its order, without the times: (event, step, values). A run that was resumed has some more
    starts in it, and one that was stopped a checkpoint more, so these can be left out."""
    numbers = ("loss", "lr", "norm", "val_loss", "val_bpb", "text")
    return [(e["event"], e["step"], {k: e[k] for k in numbers if k in e}) for e in events if e["event"] not in without]


def compare(a, b, tolerance, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            compare(a[k], b[k], tolerance, f"{where}.{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            compare(x, y, tolerance, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor) and (tolerance is None or not a.is_floating_point()):
        assert torch.equal(a, b), where
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m: f"{where}: {m}")
    else:
        assert a == b, where


def test_the_runs_cross_the_end_of_shards_and_of_the_epoch():
    """What the tests below rely on: after step 6, where they resume, a shard and the epoch end."""
    assert 6 * TOTAL_BATCH < sum(SHARD_SIZES) < 12 * TOTAL_BATCH
    assert 6 * TOTAL_BATCH < sum(SHARD_SIZES) + SHARD_SIZES[0] < 12 * TOTAL_BATCH
    assert any(size % T for size in SHARD_SIZES)


@pytest.mark.parametrize(
    "settings",
    [
        dict(dropout=0.1),
        dict(dropout=0.1, optimizer="muon", shuffle=False),
        dict(dropout=0.1, activation_checkpointing=True),
    ],
    ids=["adamw", "muon in order", "recomputing"],
)
def test_6_and_6_steps_are_12_steps(shards, tmp_path, settings):
    straight = train(tiny(shards, tmp_path / "a", **settings))
    assert told(straight) == told(read_log(tmp_path / "a/tales"))
    end = load_checkpoint(tmp_path / "a/tales/ckpt_000012.pt")

    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a/tales", tmp_path / "b/tales")
    (tmp_path / "b/tales/ckpt_000012.pt").unlink()  # as if the run had been killed after step 6
    resumed = train(tiny(shards, tmp_path / "b", resume="auto", **settings))

    assert losses(resumed) == {step: loss for step, loss in losses(straight).items() if step >= 6}
    assert told(straight)[-len(resumed) + 1 :] == told(resumed, "config")
    assert_same_state(end, load_checkpoint(tmp_path / "b/tales/ckpt_000012.pt"))
    again = read_log(tmp_path / "b/tales")
    assert losses(again) == losses(straight)  # the whole log: each step once, in order, with the same numbers
    assert told(again, "config") == told(straight, "config")
    assert [e["step"] for e in again if e["event"] == "config"] == [0, 6]  # and each start
    assert [e["step"] for e in again if e["event"] == "val"] == [0, 5, 10, 12]


def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_had_not_been(shards, tmp_path, monkeypatch, capsys):
    settings = dict(dropout=0.1, save_every=0, val_every=4, sample_every=3)
    straight = train(tiny(shards, tmp_path / "a", **settings))
    step_of_train = train_gpt2.train_step
    count = []

    def step_and_signal(*args):
        count.append(1)
        if len(count) in (4, 9):  # the first time it is at a step where the run would validate
            os.kill(os.getpid(), (signal.SIGTERM, signal.SIGINT)[len(count) == 9])
        return step_of_train(*args)

    monkeypatch.setattr(train_gpt2, "train_step", step_and_signal)
    cfg = tiny(shards, tmp_path / "b", **settings)
    assert train_gpt2.main(options(cfg)) == 0  # a clean exit
    assert "stopped as asked; continue with --resume" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "b/tales/ckpt_000004.pt")["step"] == 4  # the step in flight was finished
    for _ in range(2):
        assert train_gpt2.main([*options(cfg), "--resume"]) == 0
    again = read_log(tmp_path / "b/tales")
    assert losses(again) == losses(straight)
    assert told(again, "config", "checkpoint") == told(straight, "config", "checkpoint")
    assert [e["step"] for e in again if e["event"] == "val"] == [0, 4, 8, 12]
    assert [e["step"] for e in again if e["event"] == "checkpoint"] == [4, 9, 12]
    ends = [load_checkpoint(tmp_path / name / "tales/ckpt_000012.pt") for name in "ab"]
    assert_same_state(*ends)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["alone", "as torchrun passes it on"])
def test_a_second_ctrl_c_leaves_at_once(shards, tmp_path, monkeypatch, capsys, second):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)
        raise AssertionError("still here")

    monkeypatch.setattr(train_gpt2, "train_step", interrupted)
    assert train_gpt2.main(options(tiny(shards, tmp_path))) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_sigterm_changes_nothing(shards, tmp_path, monkeypatch, capsys):
    step_of_train = train_gpt2.train_step

    def terminated_twice(*args):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of_train(*args)

    monkeypatch.setattr(train_gpt2, "train_step", terminated_twice)
    assert train_gpt2.main(options(tiny(shards, tmp_path))) == 0
    assert "stopped as asked" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "tales/ckpt_000001.pt")["step"] == 1


def test_another_micro_batch_differs_by_the_order_of_sums_only(shards, tmp_path):
    straight = train(tiny(shards, tmp_path))
    end = load_checkpoint(tmp_path / "tales/ckpt_000012.pt")
    path = tmp_path / "tales/ckpt_000006.pt"
    resumed = train(tiny(shards, tmp_path, resume=str(path), micro_batch=8))
    before = losses(straight)
    for step, loss in losses(resumed).items():
        assert loss == pytest.approx(before[step], abs=2e-5)
    after = load_checkpoint(tmp_path / "tales/ckpt_000012.pt")
    compare(end["model"], after["model"], tolerance=1e-4)


def test_resume_takes_the_settings_of_the_run(shards, tmp_path, capsys):
    """--resume alone is enough; what is given beside it overrides; a folder may have been moved."""
    assert train_gpt2.main(options(tiny(shards, tmp_path / "old", max_steps=6))) == 0
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert train_gpt2.main(["--resume", "--log_dir", str(tmp_path / "new"), "--max_steps", "8"]) == 0
    assert "going on from step 6" in capsys.readouterr().out
    ckpt = load_checkpoint(tmp_path / "new/tales/ckpt_000008.pt")
    assert ckpt["config"]["lr"] == 3e-3 and ckpt["config"]["n_layer"] == 2
    assert not (tmp_path / "old").exists()


def test_epochs_that_became_steps_can_be_given_anew(shards, tmp_path):
    default = train_gpt2.TrainConfig.from_recipe("tales").max_steps  # so that options() leaves it out
    assert train_gpt2.main(options(tiny(shards, tmp_path, max_steps=default, epochs=0.5))) == 0
    assert (tmp_path / "tales/ckpt_000005.pt").exists()
    assert train_gpt2.main(["--resume", "--log_dir", str(tmp_path), "--max_steps", "7"]) == 0
    assert (tmp_path / "tales/ckpt_000007.pt").exists()


@pytest.mark.parametrize(
    "change",
    [dict(seed=2), dict(shuffle=False), dict(total_batch=512), dict(optimizer="muon"), dict(n_layer=3)],
    ids=lambda change: next(iter(change)),
)
def test_resume_refuses_what_would_be_another_run(shards, tmp_path, change, finished_run):
    shutil.copytree(finished_run, tmp_path / "log")
    before = {p.name: p.read_bytes() for p in (tmp_path / "log/tales").iterdir()}
    with pytest.raises(UserError, match=next(iter(change))):
        train(tiny(shards, tmp_path / "log", resume="auto", max_steps=8, **change))
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "log/tales").iterdir()}


def test_resume_refuses_other_data(shards, tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "log")
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    np.save(other / "tiny_train_000003.npy", np.arange(100, dtype=np.uint16))
    with pytest.raises(UserError, match="other data"):
        train(tiny(other, tmp_path / "log", resume="auto", max_steps=8))


@pytest.fixture(scope="module")
def finished_run(shards, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("finished") / "log"
    train(tiny(shards, log_dir, max_steps=4, save_every=2))
    return log_dir


def test_a_second_run_of_the_same_name_has_a_folder_of_its_own(shards, tmp_path, finished_run, capsys):
    shutil.copytree(finished_run, tmp_path / "log")
    train(tiny(shards, tmp_path / "log", max_steps=2))
    assert (tmp_path / "log/tales-2/ckpt_000002.pt").exists()
    assert f"folder {tmp_path / 'log/tales-2'}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run already"):
        train(tiny(shards, tmp_path / "log", max_steps=2, name="tales"))


def test_going_back_replaces_what_came_after(shards, tmp_path):
    """Resumed from an early checkpoint, a run keeps what it then writes, not the abandoned later ones."""
    train(tiny(shards, tmp_path, save_every=3, val_every=0))
    folder = tmp_path / "tales"
    assert [p.name for _, p in checkpoints(folder)] == ["ckpt_000012.pt", "ckpt_000009.pt"]
    train(tiny(shards, tmp_path, save_every=0, val_every=0, max_steps=10, resume=str(folder / "ckpt_000009.pt")))
    assert [p.name for _, p in checkpoints(folder)] == ["ckpt_000010.pt", "ckpt_000009.pt"]
    assert sorted(losses(read_log(folder))) == list(range(10))


def test_the_last_two_checkpoints_and_the_best_are_kept(shards, tmp_path, monkeypatch):
    values = iter([9.0, 3.0, 5.0, 4.0, 6.0, 7.0, 8.0])  # at steps 0, 2, 4, ...: best at step 2
    monkeypatch.setattr(train_gpt2, "evaluate", lambda *args: next(values))
    train(tiny(shards, tmp_path, save_every=2, val_every=2))
    names = [p.name for _, p in checkpoints(tmp_path / "tales")]
    assert names == ["ckpt_000012.pt", "ckpt_000010.pt", "ckpt_000002.pt"]


@pytest.mark.parametrize("rest", [b"", b'{"event": "train", "ste'], ids=["whole lines", "a line cut off"])
def test_the_log_counts_each_step_once(shards, tmp_path, rest):
    """Whatever has happened: killed while it wrote a line, two restarts at one step, a rewind."""
    settings = dict(max_steps=8, save_every=2, val_every=2)
    straight = train(tiny(shards, tmp_path / "a", **settings))
    folder = tmp_path / "b/tales"
    train(tiny(shards, tmp_path / "b", **settings | dict(max_steps=6)))
    for path in (folder / "ckpt_000004.pt", folder / "ckpt_000004.pt", folder / "ckpt_000006.pt"):
        with open(folder / "log.jsonl", "ab") as f:
            f.write(rest)
        train(tiny(shards, tmp_path / "b", **settings | dict(max_steps=6), resume=str(path)))
    train(tiny(shards, tmp_path / "b", **settings, resume="auto"))
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]  # every line is whole
    assert [e["step"] for e in events if e["event"] == "config"] == [0, 4, 4, 6, 6]
    order = [e[:2] for e in told(events, "config", "sample")]  # step 6 was an end, which has samples
    assert order == [e[:2] for e in told(straight, "config", "sample")] and len(set(order)) == len(order)
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(8))
    assert events == read_log(folder)


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_folder(shards, tmp_path):
    """What is left of it is its log, of steps that will be done again."""
    straight = train(tiny(shards, tmp_path / "a", max_steps=4))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/tales/ckpt_000004.pt").unlink()
    train(tiny(shards, tmp_path / "b", max_steps=4, resume="auto"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["tales"]
    assert told(read_log(tmp_path / "b/tales")) == told(straight)
    ends = [load_checkpoint(tmp_path / name / "tales/ckpt_000004.pt") for name in "ab"]
    assert_same_state(*ends)


def test_a_checkpoint_is_tensors_and_plain_values(finished_run):
    """So that weights_only=True opens it, today and with the torch of in five years."""
    plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)
    ckpt = torch.load(finished_run / "tales/ckpt_000004.pt", weights_only=True)

    def walk(value, where):
        assert type(value) in plain or type(value).__name__ == "OrderedDict", (where, type(value))
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{where}.{k}")

    walk(ckpt, "checkpoint")
    assert ckpt["step"] == 4 and ckpt.keys() == {*STATE, "config"}
    assert isinstance(TrainConfig(**ckpt["config"]), TrainConfig)
    assert not any(k.startswith(("module.", "_orig_mod.")) for k in ckpt["model"])
    assert Path(finished_run / "tales/tokenizer.json").exists()
