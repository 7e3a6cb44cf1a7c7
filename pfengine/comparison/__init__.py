"""Several systems on one task from one encoder: trained alike, and judged side by side."""

from .results import Comparison as Comparison
from .run import CONTESTANTS as CONTESTANTS
from .run import compare as compare
