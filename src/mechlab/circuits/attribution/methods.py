"""Every attribution method, and where its gradient is taken.

For a source s, a reader r and a metric m, the methods of edges that use gradients are all

    score[s, r] = Σ_positions (s_clean − s_ablated) · mean_α ∂m/∂x_r |_α

where x_r is the stream that r reads, before its norm, and the gradient passes through r alone. A
positive score means that the edge supports the metric: ablating it is predicted to lower m by the
score. (Syed et al. write ablated − clean, the change itself.) They differ in the points α, which lie
between the ablated (0) and the clean run (1): the embeddings are ablated + α (clean − ablated), and the
rest of the model follows. Under zero or mean ablation the path starts at those embeddings.
(From zero embeddings a model with norms sees one direction all the way: all change lies at α = 0, where
no point is, and integrated gradients do not sum to the gap. Use another ablation for these paths.)

    eap                 α = 1 (Syed et al. 2023, *Attribution patching outperforms automated circuit
                        discovery*)
    eap-corrupt         α = 0
    eap-mean            both ends
    eap-ig              α on a grid of m points: integrated gradients over the inputs (Hanna et al. 2024,
                        *Have faith in faithfulness*)
    eap-ig-activations  a path of each source's own: its output alone moves from ablated to clean in the
                        clean run (Marks et al. 2024, *Sparse feature circuits*). The edges of a source
                        sum to the exact effect of ablating it, as m grows. Not the variant of the same
                        name in MIB, which moves all heads of a layer at once and adds every node's
                        gradients to all edges. Costs m restarts of the model per source.
    ifr                 no gradient: share of the stream that the source makes up, by L1 proximity
                        (Ferrando & Voita 2024, *Information flow routes*)

Methods of nodes (``nodes``) take their gradient on the clean run:

    atp       (a_clean − a_ablated) · ∂m/∂a: attribution patching (Nanda 2023)
    atp*      the same with softmaxes computed anew for queries and keys, and without cancellation
              between paths (Kramár et al. 2024); unsigned
    act-grad  a · ∂m/∂a
    hisp      |a · ∂m/∂a| of every prompt, averaged: head importance score for pruning (Michel et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass

from mechlab.errors import MechlabError, near

GRIDS = ("midpoint", "right")


@dataclass(frozen=True)
class Method:
    """What a method scores and where it takes its gradient.

    Attributes:
        level: "edge" or "node".
        gradient: the gradient point, in words.
    """

    level: str
    gradient: str


METHODS: dict[str, Method] = {
    "eap": Method("edge", "clean run"),
    "eap-corrupt": Method("edge", "ablated embeddings"),
    "eap-mean": Method("edge", "both ends"),
    "eap-ig": Method("edge", "path of the embeddings"),
    "eap-ig-activations": Method("edge", "path of each source"),
    "ifr": Method("edge", "none"),
    "atp": Method("node", "clean run"),
    "atp*": Method("node", "clean run, one layer's outputs held at a time"),
    "act-grad": Method("node", "clean run"),
    "hisp": Method("node", "clean run"),
}


def method_named(name: str) -> Method:
    """The method called ``name``; MechlabError offers near names when there is none."""
    if name not in METHODS:
        raise MechlabError("unknown attribution method", name, near(name, METHODS))
    return METHODS[name]


def gradient_points(method: str, steps: int = 5, grid: str = "midpoint") -> tuple[float, ...]:
    """The values of α that a method averages over; none without a gradient.

    Args:
        steps: m, how many points integrated gradients take.
        grid: "midpoint" takes (k − ½)/m for k = 1 … m, with error O(1/m²); "right" takes k/m as Hanna et
            al. do, with error O(1/m).

    Raises MechlabError for an unknown method or grid, or fewer than one step.
    """
    chosen = method_named(method)
    if steps < 1:
        raise MechlabError("integrated gradients need at least one step", steps)
    if grid not in GRIDS:
        raise MechlabError("unknown grid", grid, near(grid, GRIDS))
    if method == "ifr":
        return ()
    if chosen.gradient.startswith("path"):
        shift = 0.5 if grid == "midpoint" else 0.0
        return tuple((k - shift) / steps for k in range(1, steps + 1))
    return {"eap-corrupt": (0.0,), "eap-mean": (0.0, 1.0)}.get(method, (1.0,))
