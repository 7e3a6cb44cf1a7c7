"""csrc/bindings.cpp as Python sees it; addresses are integers."""

has_openmp: bool
has_cuda: bool  # the three functions with "cuda" in their name are there

def count_kept(cu_seqlens: int, stay: int, rows: int, tokens: int) -> tuple[int, int]: ...
def compact(
    tokens: int,
    width_bytes: int,
    cu_seqlens: int,
    row_ids: int,
    stay: int,
    rows: int,
    new_tokens: int,
    new_cu_seqlens: int,
    new_row_ids: int,
    threads: int,
) -> None: ...
def compact_cuda(
    tokens: int,
    width_bytes: int,
    token_count: int,
    cu_seqlens: int,
    row_ids: int,
    stay: int,
    rows: int,
    new_tokens: int,
    new_cu_seqlens: int,
    new_row_ids: int,
    shift: int,
    counts: int,
    device: int,
    stream: int,
) -> int: ...
def cuda_device_count() -> tuple[int, int]: ...
def cuda_error_string(error: int) -> str: ...
