"""pfengine._C as Python sees it. This is where go-to-definition stops; the C++ is in csrc.

csrc/parts.cpp has the parts of a model, from Linear to Model, with find_kernels, columns_of and kept_stride.
csrc/rules.cpp has exit rules with run_signal and run_decide, csrc/flights.cpp has Flight, csrc/segment_loops.cpp has
SegmentLoop, csrc/bindings.cpp all others.

An argument of type int is the address of an array, or a size. 0 is the null address. What must lie at an address is
said where the function is declared in csrc/cpu or csrc/cuda; the callers in Python check it.
"""

import enum

import numpy as np

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

class SegmentLoop:
    def __init__(
        self, launch: int, query: int, words: int, slots: int, least_tokens: int, least_longest: int
    ) -> None: ...
    def add(self, segment: int, bucket: tuple[int, int, int, int], graph: int) -> None: ...
    def clear(self) -> None: ...
    def drop_oldest(self) -> tuple[int, tuple[int, int, int, int]]: ...
    def run(
        self,
        segments: list[int],
        slots: list[int],
        next: int,
        rows: int,
        tokens: int,
        queries: int,
        bucket: tuple[int, int, int, int] | None,
        longest: int,
        ticket: int,
        stream: int,
    ) -> tuple[int, int, int, int]: ...

class Precision(enum.Enum):
    fp32 = 0
    bf16 = 1
    int8 = 2
    int4 = 3

class Activation(enum.Enum):
    none = 0
    gelu = 1
    gelu_tanh = 2
    relu = 3
    tanh = 4

class Kernels:
    name: str
    panel: int  # output columns per panel

class Linear:
    def __init__(
        self, *, weights: int, scale: int, weight_sum: int, bias: int, inputs: int, outputs: int, row_major: bool
    ) -> None: ...

class Norm:
    def __init__(self, *, weight: int, bias: int, eps: float) -> None: ...

class Embedding:
    def __init__(
        self,
        *,
        word: int,
        position: int,
        token_type: int,
        words: int,
        positions: int,
        token_types: int,
        size: int,
        bf16: bool,
        norm: Norm,
    ) -> None: ...

class Block:
    def __init__(
        self,
        *,
        precision: Precision,
        activation: Activation,
        heads: int,
        head_size: int,
        scale: float,
        qkv: Linear,
        attention_output: Linear,
        intermediate: Linear,
        output: Linear,
        attention_norm: Norm | None,
        output_norm: Norm,
        norm_first: bool,
        gated: bool,
        distances: Distances | None,
        rotary: Rotary | None,
        window: int | None,
    ) -> None: ...

class Rotary:
    def __init__(self, *, half: int, most: int, angles: int) -> None: ...

class Distances:
    def __init__(self, *, heads: int, words: int, most: int, bias: int, keys: int, queries: int) -> None: ...

DISTANCE_ZEROS: int  # after the distances of each of its tables

class Queries(enum.Enum):
    all = 0
    firsts = 1
    list = 2

def find_kernels(name: str) -> Kernels | None: ...
def kept_stride(block: Block) -> int: ...  # bytes per token of what keys_values makes
def keys_values(
    kernels: Kernels, block: Block, x: int, tokens: int, cu_seqlens: int, rows: int, kept: int, threads: int
) -> None: ...
def run_block(
    kernels: Kernels,
    block: Block,
    x: int,
    tokens: int,
    cu_seqlens: int,
    rows: int,
    kind: Queries,
    queries: int,
    query_tokens: int,
    query_bounds: int,
    targets: int,
    kept: int,
    out: int,
    out_rows: int,
    sums: int,
    threads: int,
) -> None: ...
def run_norm(kernels: Kernels, norm: Norm, x: int, rows: int, size: int, out: int, threads: int) -> None: ...
def poison_scratch(on: bool) -> None: ...  # for tests: all scratch memory starts as NaN
def run_linear(
    kernels: Kernels,
    precision: Precision,
    linear: Linear,
    first_column: int,
    columns: int,
    activation: Activation,
    x: int,
    stride: int,
    rows: int,
    add: int,
    add_stride: int,
    out: int,
    threads: int,
) -> None: ...
def columns_of(kernels: Kernels, linear: Linear, precision: Precision, first: int) -> Linear: ...

class Gate(enum.Enum):
    none = 0
    paper = 1
    authors = 2

class Merge:
    def __init__(self, *, kind: Gate, labels: int, width: int, gate: Linear | None, gate_states: float) -> None: ...

class Reads(enum.Enum):
    first = 0
    mean = 1
    query = 2
    all = 3

class TokenPooling(enum.Enum):
    first = 0
    max = 1

class Attentive:
    def __init__(
        self,
        *,
        precision: Precision,
        heads: int,
        head_size: int,
        scale: float,
        narrow: Linear,
        qkv: Linear,
        output: Linear,
        pooling: TokenPooling,
    ) -> None: ...

class Exit:
    def __init__(
        self,
        *,
        reads: Reads,
        precision: Precision,
        learner_precision: Precision,
        pooler: Linear | None,
        pooler_activation: Activation,
        pooler_norm: Norm | None,
        past: Linear,
        folded: Linear | None,
        learners: Linear | None,
        activation: Activation,
        projection: Linear | None,
        learned: Linear | None,
        merge: Merge,
        attentive: Attentive | None,
        queries: QueryMean | None,
    ) -> None: ...

class QueryMean:
    def __init__(self, *, queries: int, count: int, size: int) -> None: ...

class Layer:
    def __init__(self, *, blocks: list[Block], exit: Exit | None, adds_from: int) -> None: ...

class Model:
    def __init__(
        self,
        *,
        embedding: Embedding,
        projection: Linear | None,
        precision: Precision,
        layers: list[Layer],
        renormalises: bool,
        final_norm: Norm | None,
    ) -> None: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def labels(self) -> int: ...
    @property
    def scores_tokens(self) -> bool: ...

def run_exit(
    kernels: Kernels, exit: Exit, x: int, add: int, rows: int, past: int, logits: int, learned: int, threads: int
) -> None: ...
def run_mean(x: int, tokens: int, cu_seqlens: int, rows: int, size: int, out: int) -> None: ...
def run_query_mean(
    kernels: Kernels, queries: QueryMean, x: int, tokens: int, cu_seqlens: int, rows: int, out: int, threads: int
) -> None: ...
def run_attentive(
    kernels: Kernels, attentive: Attentive, x: int, tokens: int, cu_seqlens: int, rows: int, out: int, threads: int
) -> None: ...

class Clause:
    def __init__(
        self,
        signal: str,
        comparison: str,
        threshold: np.ndarray,
        memory: str,
        times: np.ndarray,
        size: int,
        temperature: np.ndarray,
    ) -> None: ...

class TokenRule:
    def __init__(self, unit: str, pool: str, window: int, freezes: bool) -> None: ...

class ExitRule:
    def __init__(self, tested: bytes, clauses: list[Clause], tokens: TokenRule | None) -> None: ...
    def width(self, labels: int) -> int: ...

class Flight:
    def __init__(
        self,
        kernels: Kernels,
        model: Model,
        ids: np.ndarray,
        positions: np.ndarray,
        types: np.ndarray,
        cu_seqlens: np.ndarray,
        pieces: np.ndarray | None,
        slots: np.ndarray,
        logits: np.ndarray,
        layers: np.ndarray,
        threads: int,
    ) -> None: ...
    @property
    def layer(self) -> int: ...
    def __len__(self) -> int: ...
    def slots(self) -> np.ndarray: ...
    def advance(self, rule: ExitRule, until: int, scores: bool, threads: int) -> bool: ...  # is any row left?
    def exit(self) -> tuple[int, np.ndarray | None, np.ndarray, np.ndarray | None]: ...  # layer, logits, slots, learned
    def leave(self, gone: np.ndarray, answered: bool, threads: int) -> None: ...
    def join(self, other: Flight, threads: int) -> None: ...
    def states(self) -> np.ndarray: ...

def run_signal(signal: str, logits: int, rows: int, labels: int, temperature: float, out: int) -> None: ...
def run_decide(
    rule: ExitRule,
    layer: int,
    logits: int,
    learned: int,
    count: int,
    labels: int,
    cu_seqlens: int,
    rows: int,
    slots: int,
    state: int,
    leave: int,
) -> None: ...
def run_merge(kernels: Kernels, merge: Merge, past: int, gates: int, future: int, rows: int, out: int) -> None: ...
def run_embed(
    kernels: Kernels,
    embedding: Embedding,
    ids: int,
    positions: int,
    types: int,
    tokens: int,
    out: int,
    threads: int,
) -> None: ...
