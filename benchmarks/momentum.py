"""What the warm-up's momentum is to the pool's gradients, on a workspace that has them.

    python benchmarks/momentum.py --workspace runs/first

Γ(0) is what a row whose own gradient is zero would have: the momentum, adjusted as all rows are.
It takes no backward pass. Subtracting it is compared with subtracting the pool's mean.
"""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.config import GradientSettings, ModelSettings, SeedSettings, build
from g2is_ray.features.gradients import adjust_gradient, prepare_moments
from g2is_ray.features.projection import make_projection
from g2is_ray.features.store import FeatureSet
from g2is_ray.features.vectors import normalize
from g2is_ray.graph.search import knn_graph
from g2is_ray.models import checkpoints
from g2is_ray.models.lora_modules import gradient_linears
from g2is_ray.selector.interface import descending
from g2is_ray.workspace.layout import GRADIENTS
from g2is_ray.workspace.workspace import Workspace, part_name

NEIGHBORS, PICKS = 8, 100


def of_no_gradient(held: Workspace) -> NDArray[np.float64]:
    """Γ(0) [d], projected, at the last checkpoint of the warm-up."""
    values = held.stages()[GRADIENTS]["arguments"]
    settings, seed = build(GradientSettings, values), build(SeedSettings, values)
    model = checkpoints.load_model(held, build(ModelSettings, values))
    last = checkpoints.read(held, len(checkpoints.weights(held)))
    moments = prepare_moments(checkpoints.put(model, last), torch.device("cpu"))
    sizes = {
        name: module.weight.numel()
        for name, module in gradient_linears(model, settings.lora_layers).items()
    }
    projection = make_projection(settings.projection, settings.projection_dim, seed.seed, sizes)
    out_bd = torch.zeros(1, projection.dimensions)
    for name in sizes:
        zero_boi = torch.zeros_like(moments[name][0])[None]
        projection.add(out_bd, name, adjust_gradient(zero_boi, moments[name]))
    return out_bd[0].double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workspace", required=True, help="with gradients, of one checkpoint")
    held = Workspace(parser.parse_args().workspace)
    momentum, pool = of_no_gradient(held), FeatureSet(held, GRADIENTS)
    files = [f"{GRADIENTS}/{part_name(part)}.norms.npy" for part in range(pool.parts)]
    norms = np.concatenate([held.storage.read_array(file) for file in files])
    rows = norms[:, None] * pool.read_all()
    centered, without = normalize(rows, pool.pool_mean()), normalize(rows, momentum)
    lengths = np.linalg.norm(momentum), np.linalg.norm(pool.pool_mean())
    print(
        f"length of Γ(0) {lengths[0]:.0f}, of the mean {lengths[1]:.0f}, of a row (median) "
        f"{np.median(norms):.0f}"
    )
    print(f"cosine of Γ(0) with the mean: {momentum @ pool.pool_mean() / np.prod(lengths):.3f}")
    cosines = np.einsum("nd,nd->n", centered, without)
    print(
        f"cosine of a row with one less Γ(0) and less the mean: median {np.median(cosines):.3f}, "
        f"5% below {np.quantile(cosines, 0.05):.3f}"
    )
    graphs = [knn_graph(x, NEIGHBORS) for x in (centered, without)]
    common = [len({*one} & {*other}) for one, other in zip(*graphs, strict=True)]
    print(f"of {NEIGHBORS} neighbors in common: {np.mean(common):.1f}")
    for target in held.storage.names("targets"):
        mean = pool.of_target(target).mean(axis=0)
        picks = [
            set(islice(descending(x @ mean, x.any(axis=1)), PICKS)) for x in (centered, without)
        ]
        print(f"{target}: of {PICKS} nearest rows in common: {len(picks[0] & picks[1])}")


if __name__ == "__main__":
    main()
