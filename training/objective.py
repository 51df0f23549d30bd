"""The loss of training. A picture is compared with all captions twice: by its embedding and by its sparse code.

A space trained by the first comparison alone gives up accuracy once it is coded sparsely: its captions' directions
are scattered, and a picture then needs dozens of them. The other parts bring each picture between its own concepts:

* contrast: the cross-entropy of a picture against *all* distinct captions, once among the classes and once among
  classes and terms. No large batch is needed for negatives. The temperature is bounded, so that angles keep a meaning.
* structure: each term's embedding is drawn to a fixed angle from its class's. It is then the sum of the class's
  direction and a direction of its own.
* code: the same contrast of the reconstruction w D, where w is the picture's non-negative sparse code.
* fidelity: 1 − cos(x, w D).

The code is computed by a few unrolled proximal steps, so that gradients pass through it. That is the idea of LISTA
(Gregor & LeCun 2010), here without weights of its own: the dictionary is all it uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import ObjectiveConfig
from training.data.cifar10 import CLASSES


class Targets(NamedTuple):
    """Which captions are right, as ids (int64) into the m captions.

    parent: (m,) the class of each caption. of_class, of_term: (b,) the class and the term of each picture.
    """

    parent: Tensor
    of_class: Tensor
    of_term: Tensor

    def of(self, rows: Tensor) -> Targets:
        """Those of some pictures: rows (k,) of their numbers."""
        return Targets(self.parent, self.of_class[rows], self.of_term[rows])


def objective(
    X: Tensor, D: Tensor, scale: Tensor, targets: Targets, config: ObjectiveConfig, penalty: float
) -> tuple[Tensor, dict[str, float]]:
    """Returns the loss of a batch, a scalar to be minimised, and its parts by name before they are weighed.

    X: (b, d) unit embeddings of pictures. D: (m, d) unit embeddings of captions, the classes first. scale: the inverse
    temperature, a scalar. penalty: ρ, the l1 penalty of the codes as a fraction of each picture's λ_max.
    """
    c = len(CLASSES)

    def contrast(Z: Tensor) -> Tensor:
        logits = scale * Z @ D.T  # (b, m)
        coarse = F.cross_entropy(logits[:, :c], targets.of_class, label_smoothing=config.label_smoothing)
        return coarse + config.term_weight * F.cross_entropy(logits, targets.of_term)

    parts = {"contrast": contrast(X)}
    loss = parts["contrast"]
    if config.structure_weight and len(D) > c:
        wanted = (1 + config.own_direction**2) ** -0.5
        cosine = (D[c:] * D[targets.parent[c:]]).sum(1)
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
    """Approximates non-negative l1 codes W (b, m) by `steps` steps of FISTA (Beck & Teboulle 2009), differentiably.

    Row i nears the w ≥ 0 that minimises ½ ‖x_i − w D‖² + λ_i · sum(w), where λ_i = penalty · max_j ⟨x_i, D_j⟩.
    X: (b, d) unit rows. D: (m, d) unit rows. penalty: a fraction, 0 … 1.
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
