"""The options of the commands that fit a student, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fskd_onnx.cli.arguments import (
    Groups,
    MemoryLimit,
    Reports,
    checked_reports,
    file_of,
    with_own,
)
from fskd_onnx.cli.values import names
from fskd_onnx.options import (
    MOVE_NAMES,
    AdapterName,
    FitOptions,
    OptimizerName,
    RunOptions,
    SolverName,
    TargetsName,
)


@dataclass(frozen=True)
class FitSettings:
    """What the options of a fit come to.

    Attributes:
        adapter: family of adapters.
        targets: which teacher channels a narrower block aims at.
        augment: ways to move image samples.
        augment_copies: moved copies of each image.
        refine: gradient steps from the fitted student.
        optimizer: how adapters are found.
        solver: what solves the small systems.
        groups: a file of groups, or the word for folders.
        memory_limit: as it was written.
        reports: files of reports.
    """

    adapter: AdapterName
    targets: TargetsName
    augment: tuple[str, ...]
    augment_copies: int
    refine: int
    optimizer: OptimizerName
    solver: SolverName
    groups: str | None
    memory_limit: str | None
    reports: tuple[Path, ...]

    @property
    def groups_file(self) -> Path | None:
        """The file that groups are read from, if there is one."""
        return file_of(self.groups)

    @property
    def written(self) -> list[tuple[str, Path]]:
        """The reports, each with the option that names it."""
        return [("--report", path) for path in self.reports]

    def options(self, run: RunOptions, block_map: Path | None = None) -> FitOptions:
        """Return the options of the fit.

        Args:
            run: what the shared options come to.
            block_map: file of pairs.
        """
        return FitOptions(
            run=with_own(run, self.memory_limit, self.groups),
            adapter=self.adapter,
            targets=self.targets,
            augment=self.augment,
            augment_copies=self.augment_copies,
            refine=self.refine,
            optimizer=self.optimizer,
            solver=self.solver,
            map=None if block_map is None else str(block_map),
        )


def read_fit_settings(
    adapter: Annotated[
        AdapterName, typer.Option(help="Family of adapters; auto decides per block.")
    ] = AdapterName.AUTO,
    targets: Annotated[
        TargetsName,
        typer.Option(help="Teacher channels that a narrower block aims at; auto decides."),
    ] = TargetsName.AUTO,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Add moved copies of images: flip, shift, crop, rotate."
        ),
    ] = None,
    augment_copies: Annotated[
        int, typer.Option(min=1, help="Moved copies of each image.")
    ] = FitOptions.augment_copies,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Gradient steps from the fitted student, on the same samples.",
        ),
    ] = FitOptions.refine,
    optimizer: Annotated[
        OptimizerName,
        typer.Option(
            help="bcd: the closed form, block by block; sgd: all 1x1 adapters at once, by gradient."
        ),
    ] = OptimizerName.BCD,
    solver: Annotated[
        SolverName, typer.Option(help="What solves the small systems; torch uses the GPU.")
    ] = SolverName.NUMPY,
    groups: Groups = None,
    memory_limit: MemoryLimit = None,
    report: Reports = None,
) -> FitSettings:
    """Read the options of a fit.

    Raises:
        typer.BadParameter: a value is impossible.
    """
    moves = names(augment) if augment else ()
    for move in moves:
        if move not in MOVE_NAMES:
            raise typer.BadParameter(
                f"{move!r} is not one of {', '.join(MOVE_NAMES)}", param_hint="--augment"
            )
    return FitSettings(
        adapter,
        targets,
        moves,
        augment_copies,
        refine,
        optimizer,
        solver,
        groups,
        memory_limit,
        checked_reports(report),
    )
