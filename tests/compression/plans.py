"""A plan, and what plans of the same teacher may say."""

from __future__ import annotations

from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.plan_limits import PlanLimits, UnitLimits

LIMITS = PlanLimits(
    widths={
        "conv1": UnitLimits((8,), parts=((0, 1), (2, 3, 4, 5, 6, 7))),
        "grouped": UnitLimits((8,), groups=2),
        "last": UnitLimits((10,), reason="an output of the network carries them"),
    },
    factors={
        "conv1": {
            "spatial-svd": UnitLimits((24,)),
            "tucker": UnitLimits((3, 8)),
            "decouple": UnitLimits((9,), reason="its kernel sees one position"),
        },
        "fc": {"channel-svd": UnitLimits((10,))},
    },
    blocks={"add1": UnitLimits((1,))},
)

PLAN = Plan(
    "teacher.onnx",
    (
        UnitPlan("conv1", UnitKind.WIDTH, "l1", (8,), (4,), (0, 2, 3, 7)),
        UnitPlan("grouped", UnitKind.WIDTH, "thinet", (8,), (4,), (1, 2, 4, 7)),
        UnitPlan("last", UnitKind.WIDTH, "", (10,), (10,), reason=LIMITS.widths["last"].reason),
        UnitPlan("conv1", UnitKind.FACTORS, "tucker", (3, 8), (2, 4)),
        UnitPlan("fc", UnitKind.FACTORS, "", (), (), reason="too little gain"),
        UnitPlan("add1", UnitKind.BLOCK, "drop-block", (1,), (0,)),
    ),
)
