"""Fréchet distance between two sets of features, and its jackknife interval, in float64."""

import torch
from scipy.stats import t as student
from torch import Tensor


def moments(count: Tensor, total: Tensor, outer: Tensor, *, ddof: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance from sums.

    Args:
        count: () number of vectors, above `ddof`.
        total: (D,) float64, sum of the vectors.
        outer: (D, D) float64, sum of their outer products.
        ddof: The covariance divides by count - ddof; 1 is unbiased.

    Returns:
        (D,) and (D, D) float64.

    Raises:
        ValueError: If `count` is not above `ddof`.
    """
    if count <= ddof:
        raise ValueError(f"{int(count)} vectors: a covariance with ddof={ddof} needs at least {ddof + 1}")
    mean = total / count
    return mean, (outer - count * torch.outer(mean, mean)) / (count - ddof)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982), the FD in FID and FVD.

    |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)). With R the root of cov1, R cov2 R is symmetric and has
    the eigenvalues of cov1 cov2, so no root of a general matrix is needed. Eigenvalues as small as rounding errors
    count as 0: their roots would not be small, and covariances of fewer than D vectors have many of them.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric and positive semi-definite up to rounding; of any rank.

    Returns:
        () float64, at least 0.
    """
    mean1, cov1, mean2, cov2 = (value.double() for value in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * _positive(values).sqrt()
    overlap = _positive(torch.linalg.eigvalsh(root.T @ cov2 @ root)).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap
    return distance.clamp(min=0)


def _positive(eigenvalues: Tensor) -> Tensor:
    rounding = eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > rounding, eigenvalues, 0)


def jackknife(value: Tensor, left_out: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the bias in 1/n of an estimate and give its 95 % interval, by the delete-a-group jackknife.

    Groups may differ in size (Busing, Meijer and van der Leeden, Statistics and Computing 1999). The interval is
    Student's t with G - 1 degrees of freedom.

    Args:
        value: () estimate from all groups.
        left_out: (G,) estimate without each group.
        share: (G,) the groups' shares of the clips, above 0, G at least 2.

    Returns:
        The corrected estimate and the low and high end of its interval, () float64. All may be negative.
    """
    groups, share = len(share), share.double()
    pseudo = value / share - (1 / share - 1) * left_out
    corrected = groups * value - ((1 - share) * left_out).sum()
    error = ((pseudo - corrected).square() * share / (1 - share)).mean().sqrt()
    reach = float(student.ppf(0.975, groups - 1)) * error
    return corrected, corrected - reach, corrected + reach
