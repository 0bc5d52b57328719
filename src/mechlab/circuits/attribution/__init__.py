"""Attribution: what every edge and node is worth, from a few passes. See ``methods`` for the choice."""

from mechlab.circuits.attribution.edges import edge_scores
from mechlab.circuits.attribution.methods import GRIDS, METHODS, Method, gradient_points, method_named
from mechlab.circuits.attribution.nodes import NodeScores, edges_of_nodes, node_attribution, node_scores

__all__ = [
    "GRIDS",
    "METHODS",
    "Method",
    "NodeScores",
    "edge_scores",
    "edges_of_nodes",
    "gradient_points",
    "method_named",
    "node_attribution",
    "node_scores",
]
