"""The training objective: contrast captions of both grains, through the embedding and through its sparse code.

Whether sparse codes keep the accuracy is decided here: a plain contrastive space scatters the atoms, and a
picture then needs dozens of them. Three terms bring each picture into the cone of its own concepts:

* contrast: the picture against *all* distinct captions of its grain (classes, terms), so that negatives need
  no large batch; the temperature is bounded, which keeps angles meaningful;
* structure: each term's embedding lies at a fixed angle from its class's (class direction + own direction);
* code: the same contrast for the reconstruction `w D` of the picture's nonnegative sparse code, and
  `1 − cos(x, w D)`, through a few unrolled proximal steps (LISTA's idea, Gregor & LeCun 2010, with the
  dictionary itself as the only weights).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import ObjectiveConfig
from training.data.cifar10 import CLASSES


def objective(
    X: Tensor,
    D: Tensor,
    scale: Tensor,
    parent: Tensor,
    of_class: Tensor,
    of_term: Tensor,
    config: ObjectiveConfig,
    penalty: float,
) -> tuple[Tensor, dict[str, float]]:
    """Returns the loss and its parts.

    X (b, d) unit image embeddings · D (m, d) unit caption embeddings, classes first · scale: scalar, the
    inverse temperature · parent (m,) class of each caption · of_class, of_term (b,) · penalty: ρ of this step.
    """
    c = len(CLASSES)

    def contrast(Z: Tensor) -> Tensor:
        logits = scale * Z @ D.T  # (b, m)
        coarse = F.cross_entropy(logits[:, :c], of_class, label_smoothing=config.label_smoothing)
        return coarse + config.term_weight * F.cross_entropy(logits, of_term)

    parts = {"contrast": contrast(X)}
    loss = parts["contrast"]
    if config.structure_weight and len(D) > c:
        wanted = (1 + config.own_direction**2) ** -0.5
        cosine = (D[c:] * D[parent[c:]]).sum(1)
        parts["structure"] = (cosine - wanted).square().mean()
        loss = loss + config.structure_weight * parts["structure"]
    if config.code_weight or config.fidelity_weight:
        R = unrolled_code(X, D, penalty, config.code_steps) @ D
        R = F.normalize(R, dim=1, eps=1e-6)
        parts["code"] = contrast(R)
        parts["fidelity"] = 1 - (X * R).sum(1).mean()
        loss = loss + config.code_weight * parts["code"] + config.fidelity_weight * parts["fidelity"]
    return loss, {k: float(v.detach()) for k, v in parts.items()}


def unrolled_code(X: Tensor, D: Tensor, penalty: float, steps: int) -> Tensor:
    """Nonnegative l1 codes (b, m) by `steps` unrolled steps of FISTA (Beck & Teboulle 2009), differentiable.

    The penalty is relative: λ_i = penalty · max(D x_i).
    """
    G, Q = D @ D.T, X @ D.T  # (m, m), (b, m)
    with torch.no_grad():
        step = 1.0 / torch.linalg.matrix_norm(D, 2).square()
    threshold = penalty * Q.amax(1, keepdim=True)
    W = Z = F.relu(step * (Q - threshold))
    t = 1.0
    for _ in range(steps):
        previous, W = W, F.relu(Z + step * (Q - Z @ G - threshold))
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        Z = W + (t - 1) / t_next * (W - previous)
        t = t_next
    return W
