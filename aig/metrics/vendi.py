"""The Vendi score: the effective number of different rows."""

import numpy as np
import torch

from aig.metrics._inputs import Features, unit_rows


def vendi_score(x: Features, q: float = 1) -> float:
    """exp of the Rényi entropy of the cosine kernel's eigenvalues over n, in [1, min(n, d)] (Friedman and Dieng 2023).

    x (n, d), q >= 0 the order: 0 counts distinct directions, 1 is Shannon's, inf sees the largest mode alone. Costs O(n
    d min(n, d)): the d × d matrix has the same non-null eigenvalues as the n × n kernel. It grows with n: fix n and
    print it.
    Raises ValueError for fewer than two rows, values that are not finite, a row of zeros, or a negative q.
    """
    if not q >= 0:
        raise ValueError(f"q is {q}: give an order >= 0, or inf")
    z = unit_rows(x, "x")
    n, d = z.shape
    gram = z @ z.T if n <= d else z.T @ z
    p = torch.linalg.eigvalsh(gram / n).cpu().numpy()
    # Null eigenvalues come out as rounding, which a small q would count.
    p = p[p > max(n, d) * np.finfo(np.float64).eps * p[-1]]
    if q == 1:
        return float(np.exp(-np.sum(p * np.log(p))))
    if np.isinf(q):
        return float(1 / p[-1])
    return float(np.sum(p**q) ** (1 / (1 - q)))
