"""Where a model's weights come from and what was said of them: kept as long as they stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from spinevision.hub.config import ModelConfig, ModelFolderError, shown
from spinevision.hub.transport import HubInfo
from spinevision.models.training import TrainingSettings

logger = logging.getLogger(__name__)

_ENCODER = "encoder_weights"
_STILLS = "single_frames_alone"


@dataclass(frozen=True)
class EncoderSource:
    """Where the weights came from that an encoder started with.

    Args:
        source: Hub id, or the name of a local file without the way to it.
        commit: of the Hub repository; None for a file.
        license: as the card there names it; None when it names none.
    """

    source: str
    commit: str | None
    license: str | None


class WeightHistory:
    """The part of a model that knows where its weights come from.

    ``hub_info`` is where on the Hub exactly these weights lie, ``base_model`` what they were tuned from (``org/name@commit``),
    ``license``, ``provenance`` and ``results`` what their folder says of them, ``encoder_source`` the published weights that the
    encoder started with; each None where there is nothing to say.
    """

    HEAD: ClassVar[tuple[str, ...]] = ("head",)
    """The parts of the network that depend on the classes."""

    if TYPE_CHECKING:  # what the model itself has
        network: Any
        settings: TrainingSettings

        @property
        def parts(self) -> Mapping[str, WeightHistory]: ...  # noqa: D102
        @property
        def clip_length(self) -> int | None: ...  # noqa: D102

    def begin_history(self) -> None:
        """Of a model that has just been made."""
        self.hub_info: HubInfo | None = None
        self.base_model: str | None = None
        self.license: str | None = None
        self.provenance: dict[str, Any] | None = None
        self.results: dict[str, Any] | None = None
        self.encoder_source: EncoderSource | None = None
        self._trained, self._start = False, self._copy_head()

    @property
    def trained(self) -> bool:
        """Whether the weights are others than those it was made with; published weights of an encoder alone do not count."""
        return self._trained or self.moved or any(part.trained for part in self.parts.values())

    @property
    def moved(self) -> bool:
        """Whether the head's weights are others than when the model was made, loaded or last tuned; rounding does not count."""
        pairs = zip(self._start, self._copy_head(), strict=True)
        return any(not _same(then, now) for then, now in pairs if not now.is_meta)

    def start_here(self, *, trained: bool) -> None:
        """Take the weights as they are for those that this model starts with."""
        self._trained, self._start = trained, self._copy_head()
        for part in self.parts.values():
            part.start_here(trained=trained)

    def _copy_head(self) -> list[Tensor]:
        """The weights that every training and every loading changes."""
        heads = tuple(f"{part}." for part in self.HEAD)
        return [weight.detach().clone() for name, weight in self.network.named_parameters() if name.startswith(heads)]

    @property
    def origin(self) -> str | None:
        """Where on the Hub the weights, or those they were tuned from, lie: ``org/name@commit``."""
        return f"{self.hub_info.repo_id}@{self.hub_info.commit}" if self.hub_info else self.base_model

    def tune(self) -> None:
        """From here on the weights are others: what was said of them no longer holds, but where they came from is kept."""
        self._trained, self._start = True, self._copy_head()
        self.base_model, self.hub_info = self.origin, None
        self.license, self.provenance, self.results = None, None, None

    def history(self) -> dict[str, Any]:
        """What provenance says of the training: the published weights that encoders started with, and single frames alone."""
        record: dict[str, Any] = {}
        if self.encoder_source is not None:
            record[_ENCODER] = asdict(self.encoder_source)
        elif sources := {name: asdict(part.encoder_source) for name, part in self.parts.items() if part.encoder_source is not None}:
            record[_ENCODER] = sources
        return record | ({_STILLS: True} if self.settings.stills else {})

    def take_history(self, config: ModelConfig, info: HubInfo | None, where: str) -> None:
        """Read what a folder says, :meth:`history` included.

        Raises:
            ModelFolderError: a record of published weights that is none.
        """
        self.start_here(trained=config.trained)
        self.hub_info, self.base_model, self.license = info, config.base_model, config.license
        said = config.provenance or {}
        self.provenance = {key: value for key, value in said.items() if key not in (_ENCODER, _STILLS)} or None
        record = said.get(_ENCODER)
        if self.parts and isinstance(record, dict):
            for name, part in self.parts.items():
                part.encoder_source = encoder_source(record.get(name), where)
        else:
            self.encoder_source = encoder_source(record, where)
        if said.get(_STILLS) is True and self.clip_length is not None:
            self.settings = replace(self.settings, stills=True)
            logger.warning(
                "%s has learnt from single frames alone, so it takes each frame for itself; train it on clips to use it on clips",
                where,
            )


def _same(then: Tensor, now: Tensor) -> bool:
    """Whether weights are equal, or were so until they were rounded to half precision."""
    return any(torch.equal(then.to(kind).to(now), now) for kind in (now.dtype, torch.float16, torch.bfloat16))


def encoder_source(record: Any, where: str) -> EncoderSource | None:
    """Read the record of the published weights that an encoder started with.

    Raises:
        ModelFolderError: something else.
    """
    if record is None:
        return None
    try:
        return EncoderSource(**record)
    except TypeError as error:
        raise ModelFolderError(f"{where}: {_ENCODER} must name source, commit and license, found {shown(record)}") from error
