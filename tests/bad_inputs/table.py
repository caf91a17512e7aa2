"""All rows."""

from __future__ import annotations

from tests.bad_inputs import models, others, samples
from tests.bad_inputs.row import Row

ROWS: tuple[Row, ...] = (*models.ROWS, *samples.ROWS, *others.ROWS)
