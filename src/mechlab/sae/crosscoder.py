"""Crosscoders: one dictionary over several sites, or over the same site of two models.

A crosscoder is any architecture with several sites, ``site="a,b"``: each site's activations are
scaled to the same norm and laid side by side, and a penalty weighs a latent by the sum of its
decoder norms (Lindsey et al. 2024, *Sparse Crosscoders*, transformer-circuits.pub). To compare two
models, train it on ``pairs`` of them and look at where each latent's decoder has its norm.

Which figure to use for model diffing:

* ``norm_shares`` says where a latent writes. Near (1/2, 1/2) it is shared; near (0, 1) it looks
  exclusive to the second model.
* Looking exclusive is not being so. With an L1 penalty a weak decoder is pushed to zero although the
  concept is there, and one concept can be split into two "exclusive" latents; of the latents that an L1
  crosscoder calls specific to a chat model many are not (Minder et al. 2025, arXiv 2504.02922). A
  BatchTopK crosscoder has no such penalty and its norms can be trusted further: prefer it, and check
  what looks exclusive by how much each model's activations and errors the latent's direction explains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae


@torch.no_grad()
def site_norms(sae: Sae, mean_norms: Sequence[float] | None = None) -> Float[Tensor, "d_sae site"]:
    """Norm of every latent's decoder at each site it writes to.

    Args:
        mean_norms: mean norm of the activations of each site (``store.statistics(site)["mean_norm"]``),
            which norms are divided by. A trained dictionary is in the activations' own units, so sites
            of different size cannot be compared without.
    """
    parts = torch.split(sae.W_dec, list(sae.out_sizes), dim=1)
    norms = torch.stack([part.norm(dim=1) for part in parts], dim=1)
    if mean_norms is None:
        return norms
    if len(mean_norms) != len(sae.out_sizes) or min(mean_norms) <= 0:
        raise MechlabError(
            "mean norms do not fit the sites", list(mean_norms), f"{len(sae.out_sizes)} positive numbers"
        )
    # Scaled to norm sqrt(d), as in training.
    typical = norms.new_tensor(list(mean_norms)) / norms.new_tensor(list(sae.out_sizes)).sqrt()
    return norms / typical


def norm_shares(sae: Sae, mean_norms: Sequence[float] | None = None) -> Float[Tensor, "d_sae site"]:
    """Each site's share of a latent's decoder norm; rows sum to 1 (0 for a decoder of zeros).

    With two sites the second column is the relative decoder norm of Lindsey et al. (2024):
    0 exclusive to the first, 1/2 shared, 1 exclusive to the second. Arguments and errors as for
    ``site_norms``.
    """
    norms = site_norms(sae, mean_norms)
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
