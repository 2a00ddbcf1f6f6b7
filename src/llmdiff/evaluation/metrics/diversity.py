"""Diversity of the pictures of one prompt: a perceptual distance on the layers of a vision model."""

from itertools import combinations

import torch
from torch.nn import functional as F

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ModelMetric, VisionModel


class Diversity(ModelMetric):
    """The mean pairwise distance of pictures of a prompt from different seeds. Higher is not always better.

        d(x, y) = mean over layers l of  mean over places p of  | u_lp(x) - u_lp(y) |^2,    u = f / |f|

    Units: 0 (the same picture) to 4.

    Source: Zhang et al. 2018 (LPIPS, arXiv 1801.03924), equation 1 with all channel weights 1 (its uncalibrated form),
    on the layers of the given model: not comparable with distances on other features.
    """

    name, model_kind = "diversity", VisionModel

    @torch.no_grad()
    def diversity(self, pictures: Pictures) -> float:
        """Return the mean pairwise distance of these pictures.

        Raises:
            MetricError: there is only one picture.
        """
        if len(pictures) < 2:
            raise MetricError(
                f"metric diversity: got {len(pictures)} picture of a prompt, expected at least two: draw more with "
                "--images-per-prompt"
            )
        units = [F.normalize(states, dim=-1) for states in self.model.layers(pictures)]
        distances = [
            torch.stack([(unit[i] - unit[j]).square().sum(-1).mean() for unit in units]).mean()
            for i, j in combinations(range(len(pictures)), 2)
        ]
        return float(torch.stack(distances).mean())
