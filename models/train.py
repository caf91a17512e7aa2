"""Training and fine-tuning on labelled images.

The recipe is stochastic gradient descent with Nesterov momentum under a one-cycle learning rate
(L. Smith and N. Topin, "Super-Convergence", 2018), which needs few epochs. It is deterministic for
a given seed, number of threads and processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.data import SIDE, Split, normalise

_EVALUATION_BATCH = 500
# Of what is learnt from a teacher, as is common: how far its scores are softened, and their part of
# the loss beside the labels.
_TEMPERATURE, _TAUGHT = 4.0, 0.5


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        peak_rate: the highest learning rate of the cycle.
        batch: images per step.
        momentum: Nesterov momentum, constant.
        weight_decay: L2 penalty, on all parameters.
        shift: largest random translation, in pixels, each way along each axis.
    """

    epochs: int
    peak_rate: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 2


FINE_TUNE = Recipe(epochs=1, peak_rate=0.01)
"""To fine-tune a pruned network; `dataclasses.replace` gives it more epochs.

The rate was the best of 0.01, 0.03 and 0.1 for one epoch of 40,000 training images on the
``inner50`` student of ResNet-20, judged on 5,000 other training images.
"""


def train(
    network: nn.Module,
    data: Split,
    recipe: Recipe,
    seed: int = 0,
    teacher: nn.Module | None = None,
) -> None:
    """Train a network in place, from whatever parameters it has, and leave it in eval mode.

    A fresh network is trained with this, and a pruned one is fine-tuned with it: the conventional
    way, with all labels and with batch normalisation kept.

    Args:
        network: maps normalised images, N x 1 x 28 x 28, to logits, N x 10.
        data: the training images and labels; grey levels, uint8, N x 28 x 28.
        recipe: how to train.
        seed: of the order of the images and of their augmentation.
        teacher: in eval mode; its softened scores are learnt beside the labels (Hinton et al.,
            "Distilling the Knowledge in a Neural Network", 2015).
    """
    generator = torch.Generator().manual_seed(seed)
    # np.array copies: the arrays of `data` may be read-only, which torch does not support.
    images = torch.from_numpy(np.array(data.images))
    labels = torch.from_numpy(np.array(data.labels))
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    # The last, smaller batch of an epoch is left out; the next epoch has another order.
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_rate, total_steps=recipe.epochs * steps, cycle_momentum=False
    )
    # Where the processor has no bfloat16 units it is emulated, 15 times slower than float32.
    bfloat16 = torch.cpu._is_avx512_bf16_supported()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            batch = _inputs(augment(images[chosen], recipe.shift, generator).numpy())
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen])
            if teacher is not None:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    scores = teacher(batch)
                loss = (1 - _TAUGHT) * loss + _TAUGHT * _divergence(logits, scores)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _divergence(logits: Tensor, scores: Tensor) -> Tensor:
    """Give the divergence from softened scores, at the scale of a loss that is not softened."""
    mine, theirs = (
        nn.functional.log_softmax(part.float() / _TEMPERATURE, 1) for part in (logits, scores)
    )
    found = nn.functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
    return _TEMPERATURE**2 * found


def accuracy(network: nn.Module, data: Split) -> float:
    """Give the fraction of images whose largest logit is that of the label, 0..1.

    Args:
        network: a network in eval mode.
        data: images and labels; grey levels, uint8, N x 28 x 28.
    """
    return float(np.mean(predict(network, data.images) == data.labels))


def predict(network: nn.Module, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Give the predicted class numbers, int64, N, of uint8 images, N x 28 x 28."""
    found = []
    with torch.no_grad():
        for start in range(0, len(images), _EVALUATION_BATCH):
            batch = images[start : start + _EVALUATION_BATCH]
            found.append(network(_inputs(batch)).argmax(1).numpy())
    return np.concatenate(found)


def augment(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Translate and mirror each image at random; the border fills with black.

    Args:
        images: grey levels, uint8, N x 28 x 28.
        shift: largest translation, in pixels, each way along each axis.
        generator: where the random numbers come from.
    """
    count = len(images)
    padded = nn.functional.pad(images, (shift,) * 4)
    offsets = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(2, (count, 1), generator=generator).bool()
    line = torch.arange(SIDE)
    rows = offsets[0] + line
    columns = offsets[1] + torch.where(mirrored, line.flip(0), line)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _inputs(images: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(normalise(images))
