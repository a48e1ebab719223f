"""A comparison as everything that leaves the node: sentences, table, files' contents, chart and grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
from torch import Tensor

from ..compare import Compared
from .chart import comparison_chart
from .grid import decoder, grid, page
from .words import Told, as_csv, as_json, sentences, table

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shown:
    """chart and grid: IMAGEs (1, H, W, 3), with a sentence on them where there is nothing to show."""

    sentences: list[str]
    table: str
    csv: str
    json: str
    chart: Tensor
    grid: Tensor


def shown(found: Compared, vae: Any) -> Shown:
    request = found.request
    told = Told(
        request.images, request.seed, request.cfg, request.reference_steps, found.known, request.model.load_device.type
    )
    text = table(found.rows)
    chart, remark = comparison_chart(found.rows, told)
    pictures, of_grid = pictures_of(found, vae)
    said = [*sentences(found.rows, told), *found.remarks, *filter(None, (remark.strip(), of_grid))]
    facts = {name: found.facts[name] for name in ("model", "prediction", "sampling", "shift")}
    drawn = page(text) if chart is None else chart
    return Shown(said, text, as_csv(found.rows), as_json(found.rows, told, facts), drawn, pictures)


def pictures_of(found: Compared, vae: Any) -> tuple[Tensor, str]:
    """The grid, and what to say of it. What was measured is not lost where a picture cannot be decoded."""
    request = found.request
    decode, remark = decoder(vae, request.model.get_model_object("latent_format"))
    if decode is None:
        return page(remark), remark
    first = [first_of(request, ends) for ends in found.ends]
    converged = None if found.converged is None else first_of(request, found.converged)
    try:
        return grid(found.drawn, first, converged, decode), remark
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # of a VAE that is not this model's, or that has too little memory
        log.warning("Compare has no grid of pictures: %s", error, exc_info=True)
        said = f"There is no grid: the pictures could not be decoded ({' '.join(str(error).split())[:200]})."
        return page(said), said


def first_of(request: Any, ends: Tensor) -> Tensor:
    """The first latent, (1, ...); of several streams the first, which is the picture's."""
    return request.streams.apart(ends[:1])[0]
