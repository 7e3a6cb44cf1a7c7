"""Classifiers at chosen layers, each on a mix of all states so far (RightTool, Schwartz et al., ACL 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import PREFIX, OwnTensors, register
from .poolers import Pooler, PoolerKind, pooler_shapes
from .prepared import PreparedHead
from .reading import READS, Reading


@register
class Mixed(PreparedHead):
    """Exit c, after layer l_c, answers with z_c / T_c, where

        z_c = W_c sum_{j <= l_c} a_cj s_j + V_c [z_1 / T_1; ...; z_{c-1} / T_{c-1}] + w_c

    of each row. a are mixing weights (section 3.1 of the paper), used as they are: no softmax. T_c is the
    temperature that calibrates exit c (section 3.2).

    Option `layers`: [l_1, ..., l_e], rising. Option `previous`: is there a V, by which an exit reads the logits of the
    exits before it? The paper has none; the authors' code has it as `add_previous_layer_logits`. Option `pooler`:
    s_j = tanh(W h_j + b) with one W for all layers ("shared": the authors') or one per layer, or h_j itself. Option
    `reads`: what h_j is; see `Reading`. The authors read "first".

    Logits are linear in the states. So what each state adds to each exit is multiplied out at load, to one matrix per
    layer for all exits to come. The sums that a layer leaves for them are [rows, exits to come x C].

    Tensors (n layers, e exits, hidden size H, C labels): poolers [n or 1, H, H] with bias; mix.weight [e, n], whose
    columns beyond l_c are not read; classifiers [e, C, H] with bias; log_temperatures [e], ln T; with V
    previous.weight [e, C, (e - 1) C], whose columns from (c - 1) C on are not read.
    """

    name = "mixed"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        known = {"layers", "previous", "pooler", "reads"}
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", *known})]
        layers, poolers = head.get("layers"), get_args(PoolerKind)
        if not isinstance(layers, list) or not layers or not all(type(layer) is int and layer > 0 for layer in layers):
            faults.append(f"'head.layers' is {layers!r}; it must be a list of layers, such as [1, 4, 6, 12]")
        elif layers != sorted(set(layers)):
            faults.append(f"'head.layers' is {layers!r}; each layer must be larger than the one before")
        if type(head.get("previous", False)) is not bool:
            faults.append(f"'head.previous' is {head['previous']!r}; it must be true or false")
        if head.get("pooler") not in poolers:
            faults.append(f"'head.pooler' is {head.get('pooler')!r}; it must be one of {', '.join(poolers)}")
        if head.get("reads", "first") not in READS:
            faults.append(f"'head.reads' is {head['reads']!r}; it must be one of {', '.join(READS)}")
        return faults

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        return tuple(head["layers"])

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, hidden, labels, exits = config.num_layers, config.hidden_size, config.num_labels, len(head["layers"])
        shapes = pooler_shapes(head["pooler"], n, hidden) | {
            f"{PREFIX}mix.weight": (exits, n),
            f"{PREFIX}classifiers.weight": (exits, labels, hidden),
            f"{PREFIX}classifiers.bias": (exits, labels),
            f"{PREFIX}log_temperatures": (exits,),
        }
        shapes |= Reading.shapes(config, head)
        if head.get("previous", False) and exits > 1:
            shapes[f"{PREFIX}previous.weight"] = (exits, labels, (exits - 1) * labels)
        return shapes

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.ops, t = ops, OwnTensors(tensors)
        self.reading = Reading(ops, head, t)
        pooler = Pooler(ops, head["pooler"], config.num_layers, t, dtype)
        weights, biases = multiplied_out(t, head["layers"])
        labels, self.exits, self.adds_from = config.num_labels, [], [-1]
        for layer in range(1, config.num_layers + 1):
            later = [c for c, own in enumerate(head["layers"]) if own >= layer]
            answers = layer in head["layers"]
            # After a layer without an exit the first columns are the next exit's, which has more to come.
            self.adds_from.append(labels if answers else 0)
            if not later:
                self.exits.append(None)
                continue
            share = torch.cat([weights[c][layer - 1] for c in later])
            bias = F.pad(biases[later[0]], (0, len(share) - labels)) if answers else torch.zeros_like(share[:, 0])
            past = ops.prepare_linear(share, bias, torch.float32)
            own_pooler = pooler.weights[layer - 1] if pooler.weights else None
            self.exits.append(ops.prepare_exit(Exit(labels, past, own_pooler, **self.reading.exit(layer))))
        self.adds_from.pop()


def multiplied_out(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Per exit, what each state is multiplied by, [n, C, H], and the bias, [C]: float32, computed in float64."""
    mix, classifiers, bias = (tensors[key].double() for key in ("mix.weight", "classifiers.weight", "classifiers.bias"))
    previous = tensors["previous.weight"].double() if "previous.weight" in tensors else None
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for c, temperature in enumerate(tensors["log_temperatures"].double().exp()):
        read = F.pad(mix[c, : layers[c]], (0, mix.shape[1] - layers[c]))
        weight, own = read[:, None, None] * classifiers[c], bias[c]
        if previous is not None:
            for part, w, b in zip(previous[c].split(len(own), dim=1), weights, biases, strict=False):
                weight, own = weight + part @ w, own + part @ b
        weights.append(weight / temperature)
        biases.append(own / temperature)
    return [weight.float() for weight in weights], [own.float() for own in biases]
