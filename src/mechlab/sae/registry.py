"""All architectures that can be trained, by the name that ``--arch`` takes."""

from __future__ import annotations

from mechlab.errors import MechlabError, near
from mechlab.sae.abstopk import AbsTopK
from mechlab.sae.base import Sae
from mechlab.sae.batchtopk import BatchTopK
from mechlab.sae.clt import Clt
from mechlab.sae.config import TrainConfig
from mechlab.sae.gated import Gated
from mechlab.sae.jumprelu import JumpReLU
from mechlab.sae.matching_pursuit import MatchingPursuit
from mechlab.sae.matryoshka import Matryoshka
from mechlab.sae.relu import Relu
from mechlab.sae.topk import TopK

_KINDS: tuple[type[Sae], ...] = (
    TopK, AbsTopK, BatchTopK, Matryoshka, Relu, Gated, JumpReLU, MatchingPursuit, Clt,
)  # fmt: skip
ARCHITECTURES: dict[str, type[Sae]] = {kind.arch: kind for kind in _KINDS}


def architecture(name: str) -> type[Sae]:
    """The class of an architecture; MechlabError offers near names for an unknown one."""
    if name not in ARCHITECTURES:
        raise MechlabError("unknown dictionary architecture", name, near(name, ARCHITECTURES))
    return ARCHITECTURES[name]


def build(config: TrainConfig, in_sizes: tuple[int, ...], out_sizes: tuple[int, ...] | None = None) -> Sae:
    """An untrained dictionary of the architecture that ``config`` belongs to."""
    return architecture(config.arch)(config, in_sizes, out_sizes)
