"""A small store written by hand, as a run writes it."""

import torch

from attribkit.store.folder import StoreFolder
from attribkit.store.index import Index, Result, index_path
from attribkit.store.layout import DONE, FAILED, SHARDS, Place, shard_name
from attribkit.store.shards import Written, write_shard

METHODS = ("gradient", "lrp.flat")
RUN = {"methods": {name: {} for name in METHODS}}


def maps(position, method):
    generator = torch.Generator().manual_seed(2 * position + METHODS.index(method))
    return torch.randn(3, 4, 5, generator=generator)


def begin(folder, count=7, size=2):
    """Make a store that lists ``count`` images, none of them finished."""
    StoreFolder(folder)
    index = Index(index_path(folder), METHODS)
    index.begin({"run": RUN, "batch size": size}, (Place(f"photos/{i}.png") for i in range(count)), size)
    return index


def finish(folder, index, batch, into=None, bad=(3,)):
    """Finish one batch; the image 3 failed."""
    results, kept = [], {name: [] for name in METHODS}
    for row in range(len(batch.places)):
        position = batch.first + row
        for method in METHODS:
            if position in bad:
                results.append(Result(position, method, None, None, None, None, None, FAILED, "is damaged"))
                continue
            offset = len(kept[method])
            results.append(Result(position, method, "4", position / 3, 0, offset, None, DONE, None))
            kept[method].append(maps(position, method))
    tensors = {f"{name}/values": torch.stack(rows) for name, rows in kept.items() if rows}
    name, written = None, Written(0, 0)
    if tensors:
        name = shard_name(batch.number)
        written = write_shard(folder / SHARDS / name, tensors, {})
    (into or index).finish(batch.number, results, name, written, {"gradient": 0.5})


def whole(folder, **kwargs):
    """Make a finished store."""
    index = begin(folder, **kwargs)
    for batch in index.batches(index.pending()):
        finish(folder, index, batch)
    index.close()
    return folder
