"""How many programs of a kernel fit on one multiprocessor, by what the compiler says of it."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """What there is per multiprocessor, and per program."""

    shared: int  # bytes
    shared_of_program: int
    registers: int = 65_536
    threads: int = 2_048
    programs: int = 32


CHIPS = {80: Chip(167_936, 166_912), 90: Chip(233_472, 232_448)}  # by compute capability
RESERVED = 1_024  # bytes of shared memory that each program takes besides its own
_WARP, _QUARTERS = 32, 4  # a warp keeps to a quarter of the registers
_REGISTERS, _SHARED = 256, 128  # a warp's registers and a program's bytes come in multiples of these


def programs(arch: int, registers: int, warps: int, shared: int) -> int:
    """How many programs fit at a time. registers: of a thread; warps: of a program; shared: bytes of a program."""
    chip = CHIPS[arch]
    of_warp = _multiple(registers * _WARP, _REGISTERS)
    room = {
        "registers": chip.registers // _QUARTERS // of_warp * _QUARTERS // warps,
        "shared": chip.shared // _multiple(shared + RESERVED, _SHARED),
        "threads": chip.threads // (_WARP * warps),
    }
    return min(chip.programs, *room.values())


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
