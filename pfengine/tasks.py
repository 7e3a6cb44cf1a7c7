"""The tasks of GLUE: where their rows are, what their labels are called, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError


@dataclass(frozen=True)
class Task:
    """labels in id order, none for regression; metrics as `evaluation.metrics` names them, the leading one first."""

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    pair: bool = True

    @property
    def regression(self) -> bool:
        return not self.labels


TASKS = {
    task.name: task
    for task in (
        Task("SST-2", ("negative", "positive"), pair=False),
        Task("MRPC", ("not_equivalent", "equivalent"), ("f1", "accuracy")),
        Task("QQP", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
        Task("STS-B", (), ("pearson", "spearman")),
        Task("QNLI", ("entailment", "not_entailment")),
        Task("RTE", ("entailment", "not_entailment")),
        Task("MNLI", ("entailment", "neutral", "contradiction")),
    )
}
HUB, HUB_SPLITS = "nyu-mll/glue", {"dev": "validation", "dev_matched": "validation_matched"}


def find(name: str) -> Task | None:
    """The task of a name ("SST-2", "sst2", "mnli") or of the last part of a path; None for others."""
    plain = {key.lower().replace("-", ""): task for key, task in TASKS.items()}
    return plain.get(Path(name).name.lower().replace("-", "").replace("_", ""))


def from_hub(task: Task, split: str) -> Path:
    """The Parquet file of a split from the Hugging Face hub or its cache. ConfigError where it is not available."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ConfigError(
            f"{task.name} is not a local file or directory, and huggingface_hub is missing; "
            "pip install 'pfengine[train]'"
        ) from None
    part = {"STS-B": "stsb"}.get(task.name, task.name.lower().replace("-", ""))
    split = "dev_matched" if (task.name, split) == ("MNLI", "dev") else split
    file = f"{part}/{HUB_SPLITS.get(split, split)}-00000-of-00001.parquet"
    try:
        return Path(hf_hub_download(HUB, file, repo_type="dataset"))
    except Exception as error:  # no network, no such file, no access: errors of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{task.name} is not a local file or directory, and the hub's {HUB} cannot be downloaded: {reason}; "
            f"give a directory with {split}.tsv"
        ) from None
