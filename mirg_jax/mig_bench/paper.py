"""The figures of the paper's tables: Acc@0.5 on MIG-Bench in per cent, for comparison with ours.

AVE is the mean of the ten tasks; Spontaneous that of Static, Robust and Common, Referential that of
the other seven. The figures don't always agree with each other: see docs/evaluation.md.
"""

from typing import NamedTuple


class Means(NamedTuple):
    """A row of Tables 2 and 3."""

    spontaneous: float
    referential: float
    average: float


# Table 1: the ten tasks in the order of `tasks.MIG_BENCH_TASKS`, then AVE.
TABLE_1: dict[str, tuple[float, ...]] = {
    "LLaVA-OV-72B": (13.26, 5.34, 26.84, 12.91, 7.64, 2.14, 17.83, 21.60, 11.88, 8.55, 13.65),
    "InternVL2-76B": (15.91, 10.64, 36.40, 30.73, 20.83, 5.74, 46.46, 41.28, 32.67, 26.50, 26.72),
    "Qwen2-VL-72B": (46.12, 46.81, 64.46, 26.73, 22.57, 18.62, 33.33, 62.53, 50.50, 17.09, 38.88),
    "Mantis": (1.52, 0.00, 3.31, 12.18, 2.08, 1.00, 1.01, 10.02, 0.00, 0.85, 3.20),
    "LLaVA-OV-7B": (6.06, 3.19, 3.43, 0.18, 1.04, 1.08, 9.09, 15.43, 6.93, 0.85, 4.73),
    "MiniCPM2.6": (14.58, 2.13, 14.34, 9.82, 6.25, 1.75, 11.11, 10.02, 2.97, 2.56, 7.55),
    "mPLUG-Owl3": (18.56, 6.38, 34.93, 8.55, 7.64, 2.41, 7.07, 22.85, 9.09, 5.98, 12.35),
    "InternVL2-8B": (6.92, 7.45, 25.49, 20.73, 9.72, 3.49, 28.28, 30.26, 17.82, 9.40, 15.96),
    "Qwen2-VL-7B": (27.84, 38.30, 19.36, 20.73, 11.81, 25.95, 23.23, 58.52, 48.51, 11.97, 28.62),
    "Migician": (65.15, 46.81, 84.19, 70.73, 60.07, 74.31, 76.77, 66.53, 59.41, 34.19, 63.82),
    "MIRG-RL-7B": (50.25, 53.49, 83.11, 80.75, 50.35, 73.67, 80.81, 71.14, 67.84, 36.75, 64.82),
}

TABLE_2: dict[str, Means] = {
    "Qwen2-VL-7B": Means(34.29, 26.79, 29.04),
    "Qwen2-VL-7B + Trajectory SFT": Means(55.82, 58.57, 57.74),
    "Qwen2-VL-7B + Trajectory SFT + RL": Means(59.47, 63.15, 62.05),
    "Qwen2.5-VL-7B": Means(14.75, 10.38, 12.03),
    "Qwen2.5-VL-7B + Trajectory SFT": Means(53.84, 54.31, 54.17),
    "Qwen2.5-VL-7B + Trajectory SFT + RL": Means(56.15, 60.22, 59.00),
}

TABLE_3: dict[str, Means] = {
    "Qwen2-VL-72B": Means(52.46, 33.05, 38.88),
    "Qwen2-VL-7B": Means(34.29, 26.79, 29.04),
    "RL": Means(44.47, 32.23, 35.90),
    "SFT": Means(50.93, 50.98, 50.96),
    "SFT + RL": Means(56.59, 54.53, 55.55),
    "Reasoning-only SFT": Means(55.82, 58.57, 57.74),
    "Reasoning-only SFT + RL": Means(59.47, 63.15, 62.05),
    "Reasoning and Grounding SFT": Means(59.54, 61.05, 60.60),
    "Reasoning and Grounding SFT + RL": Means(62.28, 65.90, 64.82),
}
