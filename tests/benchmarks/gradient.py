"""What training makes of the same students: on the same few samples, and on all labels.

**Few samples.** The student is trained on what the closed forms see and nothing else: unlabelled
samples, and the teacher's logits and block outputs on them, the latter at the channels that the
student kept. It is feature distillation (A. Romero et al., "FitNets: Hints for Thin Deep Nets",
2015) with a hint at every block, as the paper's own gradient baseline is, and without regressors,
since the kept channels are known. Where the settings of `FewSample` come from:

* Adam with its usual moments, and a cosine to zero; one loss, the mean over all blocks and the
  logits of the squared error relative to the teacher's variance, so that no weight is left to tune;
* images are shifted and mirrored at random as in `models.train.Recipe`, and the teacher labels each
  anew; batch normalisation sees the statistics of the batches, as in any training;
* a fifth of the samples is held out. Each of three peak rates, a factor of three apart, trains for
  a part of the steps; the one with the smallest error of the held-out logits trains for all of
  them, and of its states, looked at regularly, the best by the same measure is kept.

**All labels.** Conventional fine-tuning on the 60,000 labelled training images, by
`models.train.FINE_TUNE`, whose rate was tuned there: for three epochs, for ten, or for ten with the
teacher's scores beside the labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.data import Split, normalise
from models.networks import Network
from models.train import FINE_TUNE, Recipe, augment, train


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune on all labels.

    Attributes:
        recipe: of `models.train`.
        taught: whether the teacher's scores are learnt beside the labels.
    """

    recipe: Recipe
    taught: bool = False


FINE_TUNINGS = {
    "fine-tune": FineTuning(replace(FINE_TUNE, epochs=3)),
    "fine-tune-10": FineTuning(replace(FINE_TUNE, epochs=10)),
    "distil-10": FineTuning(replace(FINE_TUNE, epochs=10), taught=True),
}
"""The methods that see all labels; the prototypes fine-tuned for three epochs."""


@dataclass(frozen=True)
class FewSample:
    """How to train on few samples; see the docstring of the module for the sources.

    Attributes:
        rates: peak learning rates to choose from.
        trial_steps: steps with each of them.
        steps: steps with the chosen one.
        batch: images per step; drawn with replacement where there are fewer samples.
        held_out: fraction of the samples that only choose, at least one.
        check_every: steps between looks at the held-out error.
        shift: largest random translation, in pixels, each way along each axis.
    """

    rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    trial_steps: int = 100
    steps: int = 600
    batch: int = 64
    held_out: float = 0.2
    check_every: int = 50
    shift: int = 2


@dataclass(frozen=True)
class Trained:
    """What training on few samples gave.

    Attributes:
        network: the trained student in eval mode.
        rate: the learning rate that the held-out samples chose.
        error: of the held-out logits, relative to the teacher's variance.
    """

    network: Network
    rate: float
    error: float


def train_few(
    teacher: Network,
    student: Network,
    channels: Mapping[str, tuple[int, ...]],
    samples: npt.NDArray[np.uint8],
    settings: FewSample | None = None,
    seed: int = 0,
) -> Trained:
    """Train a pruned student on the teacher's logits and block outputs.

    Args:
        teacher: the original network in eval mode.
        student: the pruned network; it stays as it is.
        channels: the teacher's channel of each of the student's, by the name of the module that
            gives the block output.
        samples: grey levels, uint8, N x 28 x 28; at least two.
        settings: how to train.
        seed: of everything random.
    """
    settings = settings or FewSample()
    order = np.random.default_rng(seed).permutation(len(samples))
    count = max(1, round(settings.held_out * len(samples)))
    # np.array copies: the samples may be read-only, which torch does not support.
    held_out = torch.from_numpy(normalise(samples[order[:count]]))
    rest = torch.from_numpy(np.array(samples[order[count:]]))
    with torch.no_grad():
        logits = teacher(held_out)

    def attempt(rate: float, steps: int) -> Trained:
        network = copy.deepcopy(student)
        best, state = _error(network, held_out, logits), copy.deepcopy(network.state_dict())
        for step in _steps(teacher, network, channels, rest, settings, rate, steps, seed):
            if step % settings.check_every == 0 or step == steps:
                error = _error(network, held_out, logits)
                if error < best:
                    best, state = error, copy.deepcopy(network.state_dict())
        network.load_state_dict(state)
        return Trained(network.eval(), rate, best)

    trials = [attempt(rate, settings.trial_steps) for rate in settings.rates]
    chosen = min(trials, key=lambda trial: trial.error)
    return min(attempt(chosen.rate, settings.steps), chosen, key=lambda trial: trial.error)


def fine_tune(teacher: Network, student: Network, data: Split, how: FineTuning) -> Network:
    """Fine-tune a copy of a pruned student on labelled images."""
    network = copy.deepcopy(student)
    train(network, data, how.recipe, teacher=teacher if how.taught else None)
    return network


def _steps(
    teacher: Network,
    student: Network,
    channels: Mapping[str, tuple[int, ...]],
    images: Tensor,
    settings: FewSample,
    rate: float,
    steps: int,
    seed: int,
) -> Iterator[int]:
    """Train in place; yield the number of each step that was made."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(student.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    kept = {name: torch.tensor(indices) for name, indices in channels.items()}
    with _outputs(teacher, kept) as theirs, _outputs(student, kept) as mine:
        for step in range(1, steps + 1):
            chosen = torch.randint(len(images), (settings.batch,), generator=generator)
            if len(images) >= settings.batch:
                chosen = torch.randperm(len(images), generator=generator)[: settings.batch]
            moved = augment(images[chosen], settings.shift, generator)
            batch = torch.from_numpy(normalise(moved.numpy()))
            student.train()
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    target = teacher(batch)
                logits = student(batch)
            losses = [_relative(logits, target)]
            losses += [_relative(mine[name], theirs[name][:, kept[name]]) for name in kept]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            yield step


@contextmanager
def _outputs(network: Network, names: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Collect what the named modules give, at each run of the network."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            found[name] = output

        return network.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _relative(found: Tensor, target: Tensor) -> Tensor:
    """Give the squared error relative to the variance of the target over all but its channels."""
    target = target.float()
    others = [axis for axis in range(target.ndim) if axis != 1]
    energy = (target - target.mean(others, keepdim=True)).square().sum()
    return (found.float() - target).square().sum() / energy.clamp_min(1e-12)


def _error(network: Network, images: Tensor, target: Tensor) -> float:
    network.eval()
    with torch.no_grad():
        logits = network(images)
        # A single image has no variance.
        energy = (target - target.mean(0)).square().sum() if len(target) > 1 else target.square()
        error = float((logits - target).square().sum() / energy.sum())
    return error if math.isfinite(error) else math.inf
