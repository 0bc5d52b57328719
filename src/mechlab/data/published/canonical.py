"""The circuits that papers found by hand, as lists of nodes: what a found circuit is compared with.

Node names are the graph's: "a9.h6" is head 6 of layer 9, "m10" the MLP of layer 10. Only what the
sources state is here. These are human findings with a method and an ablation of their own (mean over
ABC prompts for IOI, resampling for greater-than and docstring), not ground truth.

Sources:
    ioi: Wang et al. (2022), figure 2: 26 heads in seven classes.
    greater_than: Hanna et al. (2023), with the grouping of Conmy et al. (2023): early heads and MLPs
        see the start year, middle heads carry it to the last position, late MLPs turn it into later
        years. Head 6.9 is in one version of that list and not in the other.
    docstring: Heimersheim & Janiak (2023), with the heads of the edge list in Conmy et al. (2023).
        Argument movers copy the answer; the other four are what these compose with.
"""

from __future__ import annotations

from mechlab.errors import MechlabError, near

CIRCUITS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("ioi", "gpt2"): {
        "name mover": ("a9.h6", "a9.h9", "a10.h0"),
        "negative name mover": ("a10.h7", "a11.h10"),
        "S-inhibition": ("a7.h3", "a7.h9", "a8.h6", "a8.h10"),
        "induction": ("a5.h5", "a5.h8", "a5.h9", "a6.h9"),
        "duplicate token": ("a0.h1", "a0.h10", "a3.h0"),
        "previous token": ("a2.h2", "a4.h11"),
        "backup name mover": (
            "a9.h0",
            "a9.h7",
            "a10.h1",
            "a10.h2",
            "a10.h6",
            "a10.h10",
            "a11.h2",
            "a11.h9",
        ),
    },
    ("greater_than", "gpt2"): {
        "early head": ("a0.h1", "a0.h3", "a0.h5"),
        "early MLP": ("m0", "m1", "m2", "m3"),
        "middle head": ("a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"),
        "late MLP": ("m8", "m9", "m10", "m11"),
    },
    ("docstring", "attn-only-4l"): {
        "argument mover": ("a3.h0", "a3.h6"),
        "upstream": ("a0.h5", "a1.h2", "a1.h4", "a2.h0"),
    },
}
_PREFIX, _VARIANTS = "published_", ("_flip",)


def canonical(task: str, model: str) -> dict[str, tuple[str, ...]]:
    """Class → nodes of the published circuit of a task in a model.

    Args:
        task: "ioi", "greater_than" or "docstring"; the names of published tasks mean the same.
        model: "gpt2" (GPT-2 small), or "attn-only-4l" for docstring.

    Raises MechlabError when no circuit is recorded for the two.
    """
    plain = task.removeprefix(_PREFIX)
    for variant in _VARIANTS:
        plain = plain.removesuffix(variant)
    found = CIRCUITS.get((plain, model))
    if found is None:
        known = [f"{task} in {model}" for task, model in CIRCUITS]
        raise MechlabError("no published circuit", f"{plain} in {model}", near(f"{plain} in {model}", known))
    return found


def classes_of(task: str, model: str) -> dict[str, str]:
    """Node → class, for labelling drawings and tables."""
    return {node: name for name, nodes in canonical(task, model).items() for node in nodes}
