"""Sparse codes over learned atoms that have no names: a TopK autoencoder, and CSR.

TopK: Gao et al. 2024 (arXiv 2406.04093). CSR, contrastive sparse representation: Wen et al. 2025 (arXiv 2503.01776), a
TopK autoencoder with a second, wider reconstruction and a contrastive loss over the codes, by whose own inner products
neighbours are found. Both are trained for some seconds on the same embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from eval.baselines.kept import Kept, Material, kept_codes, timed

if TYPE_CHECKING:
    from torch import Tensor

ATOMS = 512
STEPS, BATCH, RATE = 400, 256, 2e-3
AUXILIARY = 1 / 32  # weight of the part that silent atoms must explain
SILENT = 50  # steps without use after which an atom counts as silent
CONTRAST = 0.1  # weight of CSR's contrastive loss
LEAST = 1000  # rows to learn from


def unfit(rows: int) -> str | None:
    """Why an autoencoder cannot be trained on so many rows; None where it can."""
    return f"{rows} pictures to train on, {LEAST} are needed" if rows < LEAST else None


def autoencoder(material: Material, k: int, *, contrastive: bool = False) -> Kept:
    """X by the k most active of ATOMS learned atoms; contrastive: trained as CSR, whose neighbours are of the codes."""
    import torch

    from training.device import single_threads

    X = torch.from_numpy(material.X)
    # The steps are small: where other work has the cores, threads wait for each other much longer than they compute.
    with single_threads() as alone:
        alone()
        (encoder, bias, decoder, mean), train_seconds = timed(lambda: trained(material, k, contrastive))

    def code() -> sparse.csr_matrix:
        values, chosen = torch.topk((X - mean) @ encoder + bias, k, dim=1)
        rows = np.repeat(np.arange(len(X)), k)
        W = sparse.csr_matrix(
            (values.clamp_min(0).numpy().ravel(), (rows, chosen.numpy().ravel())), shape=(len(X), ATOMS)
        )
        W.eliminate_zeros()
        return W

    W, code_seconds = timed(code)
    atoms = decoder.numpy()
    kept = kept_codes(W, atoms, code_seconds)
    return Kept(
        A=kept.A + mean.numpy(),
        bytes_per_image=kept.bytes_per_image,
        table_bytes=4 * (2 * atoms.size + ATOMS + atoms.shape[1]),
        concepts=kept.concepts,
        latent=W.toarray() if contrastive else None,
        train_seconds=train_seconds,
        code_seconds=code_seconds,
    )


def trained(material: Material, k: int, contrastive: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of the encoder (d, ATOMS), its bias, the decoder (ATOMS, d), of unit rows, and the mean (d,).

    The decoder starts from rows of the training set, the encoder as its transpose, so that few atoms stay silent.
    """
    import torch
    from torch.nn.functional import normalize

    generator = torch.Generator().manual_seed(material.seed)
    rows = torch.from_numpy(material.train)
    mean = rows.mean(0)
    rows = rows - mean
    picks = torch.randint(len(rows), (ATOMS,), generator=generator)
    decoder = normalize(rows[picks], dim=1).clone().requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(ATOMS, requires_grad=True)
    adam = torch.optim.Adam([encoder, bias, decoder], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / STEPS)
    used = torch.zeros(ATOMS, dtype=torch.long)  # the step of each atom's last use
    for step in range(STEPS):
        x = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        activations = x @ encoder + bias
        z = most_active(activations, k)
        used[(z.detach() > 0).any(0)] = step
        loss = missed(x, z @ decoder)
        if (silent := step - used > SILENT).any():
            left = (x - z @ decoder).detach()
            aside = most_active(activations[:, silent], min(2 * k, int(silent.sum())))
            loss = loss + AUXILIARY * missed(left, aside @ decoder[silent]).nan_to_num()
        if contrastive:
            loss = loss + missed(x, most_active(activations, 4 * k) @ decoder) / 8 + CONTRAST * told_apart(z)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return encoder.detach(), bias.detach(), decoder.detach(), mean


def most_active(activations: Tensor, k: int) -> Tensor:
    """The k largest of each row, as far as they are positive, and 0 elsewhere."""
    import torch

    values, places = torch.topk(activations, k, dim=1)
    return torch.zeros_like(activations).scatter(1, places, values.clamp_min(0))


def missed(x: Tensor, r: Tensor) -> Tensor:
    """The share of x (b, d) that r does not explain."""
    return (x - r).square().sum() / x.square().sum()


def told_apart(z: Tensor) -> Tensor:
    """CSR's loss: each code (b, l) should be most like itself among the batch's."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    z = normalize(z, dim=1)
    return cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))
