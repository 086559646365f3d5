"""
The data: shards read as one row of tokens, batches as a pure function of (step, micro-step, rank), validation that
covers each target once. Everything is compared with plain references over random sizes.

    python -m pytest tests/test_loader.py
"""

import random
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from train_gpt2 import DataLoaderLite, TokenStream, UserError, load_shard, validation_batches

V = 60_000  # above 2**15: a signed 16-bit integer anywhere on the way would show


def numbered(n):
    """n different tokens, so that a token tells its place in the row."""
    assert n <= V
    return np.arange(n, dtype=np.uint16)


def cut(tokens, lengths):
    """The row as shards of these lengths."""
    assert sum(lengths) == len(tokens)
    return np.split(tokens, np.cumsum(lengths)[:-1])


def random_lengths(rng, n):
    """Shards of random lengths that add up to n; many of one token."""
    lengths = []
    while sum(lengths) < n:
        lengths.append(min(rng.choice([1, 1, 2, rng.randint(1, 40), rng.randint(1, 400)]), n - sum(lengths)))
    return lengths


def endless(tokens, start, length):
    """Reference for TokenStream.read: the row, repeated for ever."""
    return [int(tokens[i % len(tokens)]) for i in range(start, start + length)]


def make_case(seed):
    """A random data set and training geometry: (tokens, stream, B, T, grad_accum, world_size)."""
    rng = random.Random(seed)
    T = rng.randint(1, 17)
    tokens = numbered(rng.randint(T + 1, 40 * T + 20))
    stream = TokenStream(cut(tokens, random_lengths(rng, len(tokens))), V)
    return tokens, stream, rng.randint(1, 5), T, rng.randint(1, 4), rng.randint(1, 4)


def loaders_of(stream, B, T, grad_accum, world_size, **how):
    return [DataLoaderLite(stream, B, T, grad_accum, rank, world_size, **how) for rank in range(world_size)]


def all_windows(loaders, sequences):
    """The (x, y) rows of the first `sequences` sequences, over all steps, micro-steps and ranks, in that order."""
    rows, step = [], 0
    while len(rows) < sequences:
        for micro_step in range(loaders[0].grad_accum):
            for loader in loaders:
                rows += zip(*(half.tolist() for half in loader.batch(step, micro_step)), strict=True)
        step += 1
    return rows[:sequences]


# ------------------------------------------------------------------------------------------------ the row of tokens
@pytest.mark.parametrize("seed", range(20))
def test_shards_read_as_one_endless_row(seed):
    rng = random.Random(seed)
    tokens = numbered(rng.randint(1, 300))
    stream = TokenStream(cut(tokens, random_lengths(rng, len(tokens))), V)
    assert len(stream) == len(tokens)
    for _ in range(50):
        start, length = rng.randint(0, 3 * len(tokens)), rng.randint(1, 2 * len(tokens))
        got = stream.read(start, length)
        assert got.dtype == np.int64
        assert got.tolist() == endless(tokens, start, length)


def test_a_window_straddles_shards_and_the_end_of_the_row():
    stream = TokenStream(cut(numbered(7), [3, 1, 3]), V)
    assert stream.read(1, 5).tolist() == [1, 2, 3, 4, 5]
    assert stream.read(5, 5).tolist() == [5, 6, 0, 1, 2]
    assert stream.read(7 * 1_000_000_007 + 6, 2).tolist() == [6, 0]  # positions of a long run do not fit 32 bits


def test_token_outside_the_vocabulary_is_a_user_error():
    stream = TokenStream([np.array([0, 1, 2, 99], dtype=np.uint16)], 99)
    assert stream.read(0, 3).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="token id 99, the vocabulary ends at 98") as e:
        stream.read(0, 4)
    assert "--tokenizer" in e.value.hint


# -------------------------------------------------------------------------------------------------------- the order
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_epoch_reads_every_window_once_over_all_ranks(seed, shuffle):
    """Nothing lost, nothing twice: three epochs, each compared as a multiset with a plain list of windows."""
    tokens, stream, B, T, grad_accum, world_size = make_case(seed)
    per_epoch = len(tokens) // T
    rows = all_windows(loaders_of(stream, B, T, grad_accum, world_size, shuffle=shuffle, seed=seed), 3 * per_epoch)
    for epoch in range(3):
        got = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        starts = [(epoch * per_epoch + w) * T for w in range(per_epoch)]
        expected = [(endless(tokens, s, T), endless(tokens, s + 1, T)) for s in starts]
        if shuffle:
            assert sorted(got) == sorted(expected)
        else:
            assert got == expected


@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_a_target_once_in_T_epochs(seed):
    """The tokens left over at an epoch's end open the next: after T epochs of len tokens, each was read T times."""
    tokens, stream, B, T, grad_accum, world_size = make_case(seed)
    rows = all_windows(loaders_of(stream, B, T, grad_accum, world_size, shuffle=False), len(tokens))
    counts = Counter(token for _, y in rows for token in y)
    assert counts == {token: T for token in tokens.tolist()}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shuffle", [False, True])
def test_many_processes_read_what_one_reads_with_more_micro_steps(seed, shuffle):
    """(world N, accumulation 1) = (world 1, accumulation N), token for token, in the same step."""
    _, stream, B, T, _, N = make_case(seed)
    many = loaders_of(stream, B, T, 1, N, shuffle=shuffle, seed=seed)
    (one,) = loaders_of(stream, B, T, N, 1, shuffle=shuffle, seed=seed)
    for step in [0, 1, 2, 5, 1000]:
        for n in range(N):
            for ours, theirs in zip(one.batch(step, n), many[n].batch(step, 0), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(10))
def test_a_step_is_the_same_set_for_every_micro_batch(seed):
    """The micro-batch is a matter of memory: the same total batch holds the same windows in the same order."""
    _, stream, _, T, _, _ = make_case(seed)
    steps = [
        [row for m in range(12 // B) for row in DataLoaderLite(stream, B, T, 12 // B).batch(3, m)[0].tolist()]
        for B in (1, 2, 3, 4, 6, 12)
    ]
    assert all(step == steps[0] for step in steps)


@pytest.mark.parametrize("shuffle", [False, True])
def test_targets_are_the_inputs_shifted_by_one(shuffle):
    tokens = numbered(103)
    loader = DataLoaderLite(TokenStream([tokens], V), B=3, T=10, shuffle=shuffle)
    for step in range(8):
        x, y = loader.batch(step)
        assert x.shape == y.shape == (3, 10)
        assert x.dtype == y.dtype == torch.int64
        assert x.is_contiguous() and y.is_contiguous()
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal((x + 1) % len(tokens), y)  # tokens are their own positions


def test_batches_have_no_memory():
    """A pure function: any order of calls, any loader made anew, gives the same batch."""
    stream = TokenStream([numbered(500)], V)
    loader = DataLoaderLite(stream, 2, 8, grad_accum=3, rank=1, world_size=2, seed=5)
    there = [loader.batch(step, m)[0] for step in range(6) for m in range(3)]
    back = [loader.batch(step, m)[0] for step in reversed(range(6)) for m in reversed(range(3))]
    anew = [DataLoaderLite(stream, 2, 8, 3, 1, 2, seed=5).batch(step, m)[0] for step in range(6) for m in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(there, back[::-1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(there, anew, strict=True))


def test_seed_and_epoch_change_the_order():
    def order(seed, epoch):
        loader = DataLoaderLite(TokenStream([numbered(800)], V), 1, 8, seed=seed)
        return [loader.window(epoch * 100 + i) % 100 for i in range(100)]

    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(sorted(o) == list(range(100)) for o in orders)
    assert len({tuple(o) for o in orders}) == 9
    assert all(sum(i == w for i, w in enumerate(o)) < 10 for o in orders)  # a random order keeps 1 of 100 in place


def test_data_shorter_than_a_window_is_a_user_error():
    DataLoaderLite(TokenStream([numbered(9)], V), 1, 8)
    with pytest.raises(UserError, match="8 tokens, a window 9"):
        DataLoaderLite(TokenStream([numbered(8)], V), 1, 8)


def test_regression_ranks_stay_together_at_the_end_of_a_shard():
    """A famous loader lets each rank decide by its own position that the shard is over: with 8 ranks, 64 x 1024 and
    100M tokens, some ranks leave a shard after 189 batches, others after 190, and drift apart. The same geometry in
    small: whatever the shard lengths, all ranks of a step read one consecutive piece of the row."""
    B, T, world_size = 4, 8, 8

    def rank_local_steps(rank, shard):  # the bug, as a calculation
        position, steps = B * T * rank, 0
        while position + B * T + 1 <= shard:
            position, steps = position + B * T * world_size, steps + 1
        return steps

    shard = 100 * B * T * world_size + 5 * B * T
    assert len({rank_local_steps(rank, shard) for rank in range(world_size)}) == 2

    tokens = numbered(2 * shard)
    loaders = loaders_of(TokenStream(cut(tokens, [shard, shard]), V), B, T, 1, world_size, shuffle=False)
    for step in range(210):
        together = torch.cat([loader.batch(step)[0].flatten() for loader in loaders])
        first = step * B * T * world_size
        assert together.tolist() == endless(tokens, first, B * T * world_size)


# ------------------------------------------------------------------------------------------------------ the shuffle
def order_of(n, seed, epoch, loader=None):
    """In which order an epoch of n windows is read, each counted from the epoch's first window."""
    loader = loader or DataLoaderLite(TokenStream([np.zeros(2 * n + 1, dtype=np.uint16)], V), 1, 2, seed=seed)
    assert loader.windows_per_epoch == n
    return [loader.window(epoch * n + i) - epoch * n for i in range(n)]


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4096, 4097])
def test_each_epoch_is_a_permutation_of_all_windows(n):
    for seed, epoch in [(0, 0), (0, 1), (1337, 2), (2**31, 7), (2**53 - 1, 2**31)]:
        assert sorted(order_of(n, seed, epoch)) == list(range(n))


def test_the_order_depends_on_seed_and_epoch_alone():
    """Whatever was read before, or drawn from numpy's own generator: equal for equal (seed, epoch), else different."""
    n, keys = 200, [(seed, epoch) for seed in (0, 1, 2, 1337) for epoch in (0, 1, 2, 3)]
    orders = {key: order_of(n, *key) for key in keys}
    assert len({tuple(order) for order in orders.values()}) == len(keys)
    loaders = {seed: DataLoaderLite(TokenStream([numbered(2 * n + 1)], V), 1, 2, seed=seed) for seed, _ in keys}
    for seed, epoch in random.Random(0).sample(keys * 2, 2 * len(keys)):  # epochs in any order, each twice
        np.random.rand()
        state = np.random.get_state()[1].tolist()
        assert order_of(n, seed, epoch, loaders[seed]) == orders[seed, epoch]
        assert order_of(n, seed, epoch) == orders[seed, epoch]
        assert np.random.get_state()[1].tolist() == state  # the caller's generator is left alone


def test_the_order_mixes():
    n = 1000
    orders = [order_of(n, seed, epoch) for seed in range(4) for epoch in range(5)]
    assert len({tuple(o) for o in orders}) == 20
    places = np.array(orders)
    assert abs(np.corrcoef(np.tile(np.arange(n), 20), places.ravel())[0, 1]) < 0.03  # 20,000 pairs: noise is 0.007
    steps = np.abs(np.diff(places, axis=1))
    assert 0.9 < steps.mean() / (n / 3) < 1.1  # neighbours land a third of the way apart, as in a random order
    stream = TokenStream([np.zeros(2 * n + 1, dtype=np.uint16)], V)
    first = np.array([DataLoaderLite(stream, 1, 2, seed=seed).window(0) for seed in range(2000)])
    counts = np.histogram(first, bins=10, range=(0, n))[0]
    assert counts.min() > 140 and counts.max() < 260  # 200 each, standard deviation 13


def test_ranks_and_a_resumed_run_see_one_order():
    """Each process makes the permutation for itself, and a run that goes on makes it again."""
    stream = TokenStream([numbered(1000)], V)  # 125 windows of 8; a step takes 12 of them
    reference = DataLoaderLite(stream, 1, 8, seed=3)
    order = [125 * epoch + w for epoch in range(3) for w in order_of(125, 3, epoch, reference)]
    ranks = loaders_of(stream, 2, 8, 3, 2, seed=3)
    for step in range(len(order) // 12):
        anew = loaders_of(stream, 2, 8, 3, 2, seed=3)
        for micro_step in range(3):
            for rank in range(2):
                first = ((step * 3 + micro_step) * 2 + rank) * 2
                expected = [endless(numbered(1000), w * 8, 8) for w in order[first : first + 2]]
                assert ranks[rank].batch(step, micro_step)[0].tolist() == expected
                assert anew[rank].batch(step, micro_step)[0].tolist() == expected


def test_the_order_of_ten_billion_tokens():
    class Long:
        def __len__(self):
            return 10**10

    loader = DataLoaderLite(Long(), 64, 1024, seed=3)
    n = loader.windows_per_epoch
    for epoch in (0, 3):
        some = {loader.window(epoch * n + i) - epoch * n for i in range(2000)}
        assert len(some) == 2000 and all(0 <= w < n for w in some) and max(some) > 0.99 * n


# ------------------------------------------------------------------------------------------------------- validation
@pytest.mark.parametrize("seed", range(30))
def test_validation_covers_each_target_once(seed):
    rng = random.Random(seed)
    _, stream, _, T, _, _ = make_case(seed)
    n = len(stream)
    max_tokens = rng.choice([1, T, T + 1, n - 1, n, 10**9, rng.randint(1, n)])
    count = min(max_tokens, n - 1)
    for B, world_size in [(1, 1), (4, 1), (2, 2), (3, 5)]:
        pairs = []
        for rank in range(world_size):
            batches = list(validation_batches(stream, B, T, max_tokens, rank, world_size))
            windows = len(range(0, count, T)[rank::world_size])
            assert len(batches) == -(-windows // B)
            for x, y in batches:
                assert x.shape == y.shape == (B, T)  # one shape, for which the model is compiled once
                assert x.dtype == y.dtype == torch.int64
                assert (y >= -1).all() and (y >= 0).any()  # a batch without targets would have no loss
                pairs += [(a, b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True) if b >= 0]
        assert sorted(pairs) == [(i, i + 1) for i in range(count)]  # tokens are their own positions


def test_validation_windows_are_the_same_for_every_B_and_world():
    """Not only the targets: the context that each target is predicted from, too."""
    stream = TokenStream([numbered(333)], V)

    def windows(B, world_size):
        return sorted(
            (x, y)
            for rank in range(world_size)
            for batch in validation_batches(stream, B, 16, 300, rank, world_size)
            for x, y in zip(*(half.tolist() for half in batch), strict=True)
            if max(y) >= 0  # not the rows that fill up the last batch
        )

    reference = windows(1, 1)
    assert len(reference) == 19  # 300 / 16, rounded up
    assert all(windows(B, world_size) == reference for B in (1, 2, 7, 50) for world_size in (1, 2, 3, 30))


# ------------------------------------------------------------------------------------------------------------ files
def write_npy(path, array):
    np.save(path, array)
    return path


def write_bin(path, tokens, magic=20240520, version=1, count=None):
    """llm.c's format: 256 int32 (magic, version, number of tokens, zeros), then uint16 tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


def test_both_formats_are_mapped_not_read(tmp_path):
    tokens = (numbered(5000).astype(np.int64) * 13 % 2**16).astype(np.uint16)  # up to 65,535
    for path in (write_npy(tmp_path / "a.npy", tokens), write_bin(tmp_path / "a.bin", tokens)):
        shard = load_shard(path)
        assert isinstance(shard, np.memmap) and shard.mode == "r"  # no copy of a file that may be larger than memory
        assert shard.dtype == np.uint16 and np.array_equal(shard, tokens)
        stream = TokenStream([shard], 2**16)
        assert stream.shards[0] is shard
        assert stream.read(4990, 20).tolist() == endless(tokens, 4990, 20)


def bad_shards(folder):
    """(name of the fault, path of a file with it)."""
    tokens = numbered(3000)
    good_npy = write_npy(folder / "good.npy", tokens).read_bytes()
    good_bin = write_bin(folder / "good.bin", tokens).read_bytes()

    def write(name, data):
        (folder / name).write_bytes(data)
        return folder / name

    yield "missing npy", folder / "nowhere.npy"
    yield "missing bin", folder / "nowhere.bin"
    yield "empty npy", write("empty.npy", b"")
    yield "empty bin", write("empty.bin", b"")
    yield "no tokens", write_npy(folder / "none.npy", numbered(0))
    yield "no tokens, bin", write_bin(folder / "none.bin", [])
    for n in (3, 50, 127, 128, 1000, len(good_npy) - 1):
        yield f"npy cut at {n}", write(f"cut{n}.npy", good_npy[:n])
    for n in (3, 1023, 1024, 1025, 3000, len(good_bin) - 1, len(good_bin) - 2):
        yield f"bin cut at {n}", write(f"cut{n}.bin", good_bin[:n])
    yield "bin too long", write("long.bin", good_bin + b"\0\0")
    yield "bin of negative length", write_bin(folder / "negative.bin", tokens, count=-1)
    yield "wrong magic npy", write("magic.npy", b"\x93NUMPX" + good_npy[6:])
    yield "wrong magic bin", write_bin(folder / "magic.bin", tokens, magic=20240521)
    yield "wrong version bin", write_bin(folder / "version.bin", tokens, version=2)
    for dtype in ("int16", "uint8", "int64", "float32", ">u2", "bool", "S2"):
        yield f"dtype {dtype}", write_npy(folder / f"dtype-{dtype.strip('>')}.npy", np.ones(2000).astype(dtype))
    yield "two dimensions", write_npy(folder / "two.npy", tokens.reshape(2, -1))
    yield "no dimension", write_npy(folder / "scalar.npy", np.uint16(7))
    yield "header of a larger file", write("larger.npy", good_npy.replace(b"(3000,)", b"(9**9,)"[:7]))
    yield "header with code", write("code.npy", good_npy.replace(b"(3000,)", b"exit(3)"))
    yield "header with open bracket", write("bracket.npy", good_npy.replace(b"(3000,)", b"(3000,["))
    with zipfile.ZipFile(folder / "zip.npy", "w") as z:  # numpy opens an .npz whatever its name
        z.writestr("a.npy", good_npy)
    yield "npz", folder / "zip.npy"


def test_bad_shards_are_user_errors(tmp_path):
    for fault, path in bad_shards(tmp_path):
        with pytest.raises(UserError) as e:
            pytest.fail(f"{fault}: loaded {load_shard(path)!r}")
        assert str(path) in str(e.value) and "\n" not in str(e.value) and e.value.hint, fault


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_opened(tmp_path):
    objects = np.array([Bomb(tmp_path / "hit")], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    objects.dump(tmp_path / "bare.npy")
    (tmp_path / "bare.bin").write_bytes((tmp_path / "bare.npy").read_bytes() + bytes(2000))
    for name in ("objects.npy", "bare.npy", "bare.bin"):
        with pytest.raises(UserError):
            load_shard(tmp_path / name)
    assert not (tmp_path / "hit").exists()


def test_header_of_llm_c_is_what_we_think(tmp_path):
    """The bytes themselves, so that a mistake in both writer and reader cannot hide."""
    path = write_bin(tmp_path / "a.bin", [1, 2, 50256])
    data = path.read_bytes()
    assert struct.unpack("<3i", data[:12]) == (20240520, 1, 3) and len(data) == 1024 + 6
    assert data[1024:] == b"\x01\x00\x02\x00\x50\xc4"
    assert load_shard(path).tolist() == [1, 2, 50256]
