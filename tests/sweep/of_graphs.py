"""Models of graphs: of torch_geometric."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sweep.shrink import Build, by_signature

Cases = dict[str, Callable[[], Build]]


def torch_geometric() -> Cases:
    """Its models, convolutions, aggregations, norms and poolings."""
    from torch_geometric import nn as package

    found: Cases = {}
    for room in ("models", "conv", "aggr", "norm", "pool", "dense"):
        module = getattr(package, room)
        for name in getattr(module, "__all__", ()):
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module) and name not in _NO_MODEL:
                found[name] = partial(_geometric, kind, name)
    return found


_NO_MODEL = ("MessagePassing", "Aggregation")


def _geometric(kind: Any, name: str) -> Build:
    def mlp(*sizes: int) -> nn.Module:
        from torch_geometric.nn import MLP

        return MLP(list(sizes))

    from torch_geometric import nn as package

    deg = torch.tensor([1, 2, 3])
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
    pna = {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"], "deg": deg}
    other: dict[str, Callable[[], nn.Module]] = {
        "PNA": lambda: package.PNA(4, 8, 2, **pna),
        "PNAConv": lambda: package.PNAConv(4, 8, **pna),
        "Node2Vec": lambda: package.Node2Vec(edges, 8, 4, 2),
        "MetaPath2Vec": lambda: package.MetaPath2Vec(
            {metadata[1][0]: edges, metadata[1][1]: edges}, 8, metadata[1], 2, 2
        ),
        "DeepGraphInfomax": lambda: package.DeepGraphInfomax(
            8, package.GCN(4, 8, 2), lambda z, *_: z.mean(0), lambda x, e: (x, e)
        ),
        "GAE": lambda: package.GAE(package.GCN(4, 8, 2)),
        "VGAE": lambda: package.VGAE(package.GCN(4, 8, 2)),
        "ARGA": lambda: package.ARGA(package.GCN(4, 8, 2), mlp(8, 8)),
        "ARGVA": lambda: package.ARGVA(package.GCN(4, 8, 2), mlp(8, 8)),
        "RENet": lambda: package.models.RENet(5, 3, 8, 4),
        "DimeNet": lambda: package.DimeNet(8, 4, 2, 4, 3, 3),
        "DimeNetPlusPlus": lambda: package.DimeNetPlusPlus(8, 4, 2, 8, 4, 8, 3, 3),
        "GPSE": lambda: package.models.GPSE(dim_in=4, dim_inner=8, layers_mp=2, layers_post_mp=2),
        "GPSENodeEncoder": lambda: package.models.GPSENodeEncoder(16, 4, 4),
        "DeepGCNLayer": lambda: package.DeepGCNLayer(package.GENConv(8, 8), nn.LayerNorm(8)),
        "AttentiveFP": lambda: package.AttentiveFP(4, 8, 4, 4, 2, 2),
        "GNNFF": lambda: package.models.GNNFF(8, 8, 2),
        "GroupAddRev": lambda: package.GroupAddRev(package.SAGEConv(4, 4), num_groups=2),
        "GINConv": lambda: package.GINConv(mlp(4, 8), train_eps=True),
        "GINEConv": lambda: package.GINEConv(mlp(4, 8), edge_dim=4),
        "NNConv": lambda: package.NNConv(4, 8, mlp(4, 32)),
        "EdgeConv": lambda: package.EdgeConv(mlp(8, 8)),
        "DynamicEdgeConv": lambda: package.DynamicEdgeConv(mlp(8, 8), 2),
        "PointNetConv": lambda: package.PointNetConv(mlp(7, 8), mlp(8, 8)),
        "PPFConv": lambda: package.PPFConv(mlp(8, 8), mlp(8, 8)),
        "PointGNNConv": lambda: package.PointGNNConv(mlp(4, 3), mlp(7, 8), mlp(8, 4)),
        "GMMConv": lambda: package.GMMConv(4, 8, dim=2, kernel_size=3),
        "SplineConv": lambda: package.SplineConv(4, 8, dim=2, kernel_size=3),
        "XConv": lambda: package.XConv(4, 8, dim=2, kernel_size=3),
        "GravNetConv": lambda: package.GravNetConv(4, 8, 2, 2, 2),
        "SignedConv": lambda: package.SignedConv(4, 8, first_aggr=True),
        "GCN2Conv": lambda: package.GCN2Conv(8, 0.1, shared_weights=False),
        "PANConv": lambda: package.PANConv(4, 8, 2),
        "SSGConv": lambda: package.SSGConv(4, 8, 0.1),
        "HGTConv": lambda: package.HGTConv(8, 8, metadata),
        "HANConv": lambda: package.HANConv(8, 8, metadata),
        "HEATConv": lambda: package.HEATConv(4, 8, 2, 2, 4, 4, 4),
        "HeteroConv": lambda: package.HeteroConv(
            {kind: package.SAGEConv(4, 8) for kind in metadata[1]}
        ),
        "GPSConv": lambda: package.GPSConv(8, package.GCNConv(8, 8), heads=2),
        "DirGNNConv": lambda: package.DirGNNConv(package.GCNConv(4, 8)),
        "TGNMemory": lambda: package.TGNMemory(
            5,
            4,
            8,
            8,
            package.models.tgn.IdentityMessage(4, 8, 8),
            package.models.tgn.LastAggregator(),
        ),
        "GraphMultisetTransformer": lambda: package.GraphMultisetTransformer(8, 2, heads=2),
        "AttentionalAggregation": lambda: package.AttentionalAggregation(mlp(8, 1)),
        "DegreeScalerAggregation": lambda: package.DegreeScalerAggregation(
            "mean", ["identity"], deg, train_norm=True
        ),
        "MLPAggregation": lambda: package.MLPAggregation(4, 8, 5, num_layers=2, hidden_channels=8),
        "DeepSetsAggregation": lambda: package.DeepSetsAggregation(mlp(8, 8), mlp(8, 8)),
        "SetTransformerAggregation": lambda: package.SetTransformerAggregation(8, heads=2),
        "PatchTransformerAggregation": lambda: package.PatchTransformerAggregation(
            4, 8, 2, 8, heads=2
        ),
        "EquilibriumAggregation": lambda: package.EquilibriumAggregation(4, 8, [8, 8]),
        "DiffGroupNorm": lambda: package.DiffGroupNorm(8, 2),
        "HeteroBatchNorm": lambda: package.HeteroBatchNorm(8, 2),
        "HeteroLayerNorm": lambda: package.HeteroLayerNorm(8, 2),
        "MemPooling": lambda: package.MemPooling(4, 8, 2, 3),
        "Set2Set": lambda: package.Set2Set(8, 2),
        "DenseGINConv": lambda: package.DenseGINConv(mlp(4, 8), train_eps=True),
        "EGConv": lambda: package.EGConv(8, 8, num_heads=4),
        "FusedGATConv": lambda: package.FusedGATConv(4, 8),
        "JumpingKnowledge": lambda: package.JumpingKnowledge("lstm", 8, 2),
        "HeteroLinear": lambda: package.HeteroLinear(4, 8, 3),
        "HeteroDictLinear": lambda: package.HeteroDictLinear({"a": 4, "b": 5}, 8),
        "MLP": lambda: mlp(4, 8, 8, 2),
    }
    return other[name] if name in other else by_signature(kind)
