from __future__ import annotations

import pytest

from pfengine.kernels.occupancy import programs


@pytest.mark.parametrize(
    ("arch", "registers", "warps", "shared", "expected"),
    [
        (80, 128, 8, 65_536, 2),
        (80, 129, 8, 65_536, 1),  # 136 registers of 32 threads: 15 warps
        (80, 168, 4, 0, 3),
        (80, 170, 1, 0, 8),  # registers of 11 warps, but only of 2 in each quarter
        (80, 255, 8, 0, 1),
        (80, 32, 1, 0, 32),
        (80, 16, 32, 0, 2),
        (80, 32, 4, 82_944, 2),  # 83,968 with what is reserved, half of all
        (80, 32, 4, 82_945, 1),
        (90, 32, 4, 82_945, 2),
        (90, 32, 4, 232_448, 1),
        (90, 32, 4, 232_449, 0),
    ],
)
def test_programs(arch: int, registers: int, warps: int, shared: int, expected: int) -> None:
    assert programs(arch, registers, warps, shared) == expected
