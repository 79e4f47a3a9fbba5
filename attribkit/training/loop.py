"""One process's part of a run: epochs of steps, from wherever the folder's state says the run is."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribkit.engine.outputs import class_scores
from attribkit.folders import made_folder
from attribkit.progress import track
from attribkit.training.division import Division
from attribkit.training.evaluation import errors_from, evaluate
from attribkit.training.finish import save_snapshot
from attribkit.training.interrupts import Interrupted
from attribkit.training.machine import Machine
from attribkit.training.networks import Normaliser, build_network, input_std, measure_mean
from attribkit.training.parallel import Team
from attribkit.training.pixels import Augmentation, Pixels, Rows, ahead, order
from attribkit.training.recipe import Recipe, TrainingError
from attribkit.training.steps import Plateau, renormalise
from attribkit.training.storage import Position, load_state, save_state, write_log

__all__ = ["STATE", "Run"]

STATE = "state.safetensors"


class Run:
    """One process's part of a run."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        machine: Machine,
        division: Division,
        members: Team,
        device: torch.device,
        network: nn.Module | None,
        snapshots: tuple[int, ...],
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.recipe, self.machine, self.members, self.device = folder, recipe, machine, members, device
        self.snapshots, self.say = snapshots, say
        self.amp = machine.precision(device)
        channels = int(recipe.model_options.get("in_chans", division.channels))
        self.train_pixels = Pixels(division.train, division.train_rows, recipe.resize, channels, machine.cache)
        self.val_pixels = Pixels(division.val, division.val_rows, recipe.resize, channels, machine.cache)
        self.train_classes = torch.from_numpy(division.train_classes)
        self.val_classes = torch.from_numpy(division.val_classes)
        plain = network if network is not None else build_network(recipe, len(division.labels), channels)
        self.network = plain.to(device)
        if machine.channels_last:
            self.network.to(memory_format=torch.channels_last)
        held = division.train.pixels is not None
        self.workers = machine.threads_for(device, held)
        self.optimiser = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.position = Position(Plateau(recipe.lr))
        self.identity = {
            **{key: value for key, value in recipe.to_dict().items() if key != "epochs"},
            **division.identity(),
            "amp": str(self.amp or "off").removeprefix("torch."),
            "channels_last": machine.channels_last,
        }
        self.resumed = False
        self.normaliser: Normaliser
        self._saved = time.monotonic()

    def begin(self, resume: bool) -> None:
        """Take up the run in the folder, or start one."""
        path = self.folder / STATE
        if path.exists():
            self.position, mean = load_state(path, self.identity, self.network, self.optimiser)
            self.normaliser = Normaliser(mean, input_std(self.recipe, self.network, self.train_pixels.channels))
            if self.position.scaler:
                self.scaler.load_state_dict(self.position.scaler)
            begun = self.position.epoch + (self.position.step > 0)
            if begun > self.recipe.epochs:
                raise TrainingError(f"{self.folder}: is in epoch {begun}; only {self.recipe.epochs} are asked for")
            self.resumed = True
            where = f"epoch {self.position.epoch}, step {self.position.step}"
            self.say(f"{self.folder}: goes on after {where}")
            if self.members.leads and self.position.rows:
                write_log(self.folder, self.position.rows)
            return
        if resume:
            raise TrainingError(f"{self.folder}: holds no run to resume ({STATE} is not there)")
        taken = next((n for n in ("weights.safetensors", "log.csv", "snapshots") if (self.folder / n).exists()), None)
        if taken is not None:
            raise TrainingError(f"{self.folder}: holds {taken} but no run to go on with; give another --out")
        self.members.wait()
        with made_folder(self.folder):
            self.normaliser = measure_mean(self.train_pixels, self.recipe, self.network)
            if self.members.size == 1:  # of several each reads only its share
                self.val_pixels.read()
            self._snapshot(0)
            self._save()
        self.members.wait()

    def go(self, signals: Interrupted) -> None:
        """Train until the last epoch is done or the learning rate is at its least."""
        compiled: Any = torch.compile(self.network) if self.machine.compile else self.network
        model = self.members.wrapped(compiled, self.device)
        while self.position.epoch < self.recipe.epochs and not self.position.stopped:
            self._epoch(model, signals)

    def errors(self, pixels: Pixels, classes: Tensor, crops: int = 1, alone: bool = True) -> Tensor:
        """Return the error counts over images, by this process alone or all together."""
        share = (0, 1) if alone else (self.members.rank, self.members.size)
        return evaluate(
            self.network, pixels, classes, self.normaliser, self.recipe.size, device=self.device, crops=crops,
            batch_size=min(256, 2 * self.recipe.batch_size), workers=self.workers, context=self._context,
            share=share, channels_last=self.machine.channels_last,
        )  # fmt: skip

    def _epoch(self, model: nn.Module, signals: Interrupted) -> None:
        recipe, position, members = self.recipe, self.position, self.members
        epoch = position.epoch + 1
        for group in self.optimiser.param_groups:
            group["lr"] = position.plateau.lr
        count = len(self.train_pixels)
        augment = Augmentation(count, recipe.resize - recipe.size, recipe.flip, recipe.seed, epoch)
        numbers = order(count, recipe.seed, epoch)
        batches = [numbers[start : start + recipe.batch_size] for start in range(0, count, recipe.batch_size)]
        shares = [_share(batch, members) for batch in batches[position.step :]]

        def make(share: Rows) -> Tensor:
            crops = augment(self.train_pixels.take(share), share, recipe.size, self.normaliser.image)
            return crops.pin_memory() if self.device.type == "cuda" else crops

        sums = torch.tensor(position.sums, dtype=torch.float64)
        model.train()
        start = time.monotonic()
        made = contextlib.closing(ahead(make, shares, self.workers))  # type: ignore[type-var]
        with made as crops_of_steps:
            bar = track(crops_of_steps, f"epoch {epoch}", len(shares))
            for share, crops in zip(shares, bar, strict=True):
                batch = batches[position.step]
                torch.manual_seed(_seed(recipe.seed, epoch, position.step, members.rank))
                sums[:3] += self._step(model, crops, share, len(batch), epoch)
                position.step += 1
                now = time.monotonic()
                sums[3] += now - start
                start = now
                due = now - self._saved >= self.machine.checkpoint_seconds and members.size == 1
                if signals.came and members.size == 1:
                    position.sums = sums.tolist()
                    self._save()
                    raise KeyboardInterrupt
                if signals.came:
                    raise KeyboardInterrupt
                if (due or position.step % self.machine.checkpoint_steps == 0) and position.step < len(batches):
                    sums = self._gathered(sums)
                    position.sums = sums.tolist()
                    self._save()
                    start = time.monotonic()
        self._end(epoch, self._gathered(sums).tolist())

    def _step(self, model: nn.Module, crops: Tensor, share: Rows, whole: int, epoch: int) -> Tensor:
        """Do one step; return summed loss, errors and images of this process's share."""
        inputs = self.normaliser(crops.to(self.device, non_blocking=True))
        if self.machine.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        classes = self.train_classes[torch.from_numpy(share)].to(self.device, non_blocking=True)
        counted = len(share) if self.members.rank < whole else 0
        with self._context():
            scores = class_scores(model(inputs))
        loss = F.cross_entropy(scores.float(), classes, reduction="sum")
        # The processes' gradients are averaged, so that each divides by its part of the whole batch.
        self.optimiser.zero_grad(set_to_none=True)
        scaled = loss * (self.members.size / whole if counted else 0.0)
        self.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {epoch}, step {self.position.step}: training diverged at learning rate"
                f" {self.position.plateau.lr:g}; try a smaller --lr, or another --init"
            )
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.recipe.max_norm > 0:
            renormalise(self.network, self.recipe.max_norm)
        wrong = int((scores.argmax(dim=1) != classes).sum())
        return torch.tensor([value, wrong, len(share)], dtype=torch.float64) if counted else torch.zeros(3).double()

    def _end(self, epoch: int, sums: list[float]) -> None:
        """Validate, anneal, log and save."""
        position = self.position
        counts = self.members.summed(self.errors(self.val_pixels, self.val_classes, alone=False), self.device)
        val = errors_from(counts)
        if not math.isfinite(val.loss):
            raise TrainingError(f"the validation loss is {val.loss} after epoch {epoch}: training diverged")
        images = max(sums[2], 1.0)
        row = {
            "epoch": epoch,
            "lr": position.plateau.lr,
            "train_loss": sums[0] / images,
            "train_error": sums[1] / images,
            "val_loss": val.loss,
            "val_error": val.top1,
            "seconds": round(sums[3], 3),
            "images_per_second": round(images / sums[3], 1) if sums[3] > 0 else 0.0,
        }
        position.stopped = not position.plateau.update(val.top1, self.recipe)
        position.epoch, position.step, position.sums = epoch, 0, [0.0] * 4
        position.rows.append(row)
        self._snapshot(epoch)
        self._save()
        if self.members.leads:
            write_log(self.folder, position.rows)
            self.say(
                f"epoch {epoch}: lr {row['lr']:g}, training loss {row['train_loss']:.4f}, error"
                f" {row['train_error']:.2%}; validation loss {val.loss:.4f}, error {val.top1:.2%};"
                f" {row['images_per_second']:.0f} images/s"
            )

    def _gathered(self, sums: Tensor) -> Tensor:
        """Return the sums over all processes, in the first one; zeros in the others, whose share they hold."""
        if self.members.size == 1:
            return sums
        seconds = float(sums[3])
        total = self.members.summed(sums, self.device)
        total[3] = seconds
        return total if self.members.leads else torch.tensor([0.0, 0.0, 0.0, seconds], dtype=torch.float64)

    def _snapshot(self, epoch: int) -> None:
        if epoch in self.snapshots and self.members.leads:
            save_snapshot(self.folder, self.network, epoch, self.recipe)

    def _save(self) -> None:
        if self.members.leads:
            self.position.scaler = self.scaler.state_dict() if self.scaler.is_enabled() else {}
            path = self.folder / STATE
            save_state(path, self.identity, self.network, self.optimiser, self.normaliser.mean, self.position)
        self._saved = time.monotonic()

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Autocast, where it is on."""
        if self.amp is None:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.amp):
            yield


def _share(batch: Rows, members: Team) -> Rows:
    """Return a process's part of a batch; one of its images, which will not count, where there are too few."""
    return batch[members.rank :: members.size] if members.rank < len(batch) else batch[:1]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
