"""``HubExport``: the best weights of a training go to the Hub while it runs and when it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from spinevision.hub.config import ModelFolderError
from spinevision.models.base import SpineModel
from spinevision.models.publishing import check_provenance

logger = logging.getLogger(__name__)


class HubExport(Callback):
    """Push the best checkpoint of a fit to the Hub, from its first process alone.

    A push that fails is said and tried again with the next one and at the end; it never ends the training. Nothing but the model
    is uploaded; results are those of `spinevision evaluate`, so the card has none yet.

    Args:
        repo_id: ``org/name``.
        license: of the weights, as the Hub names it.
        provenance: ``data_source``, ``patients`` (a number), ``device`` and ``intended_use``.
        private: None makes a new repository private and keeps the visibility of an existing one.
        branch: created when missing.
        tag: set on what is pushed at the end.
        every_n_epochs: how often the best weights so far are pushed while training, if they are new; 0 pushes at the end alone.
            The default is ours.

    Raises:
        ModelFolderError: before the first step, if licence or provenance are missing.
    """

    def __init__(
        self,
        repo_id: str,
        license: str,  # noqa: A002 - the Hub's own word
        provenance: Mapping[str, Any],
        private: bool | None = None,
        branch: str | None = None,
        tag: str | None = None,
        every_n_epochs: int = 10,
    ) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must be a whole number from 0, found {every_n_epochs}")
        check_provenance(license, provenance)
        self.repo_id = repo_id
        self.license = license
        self.provenance = dict(provenance)
        self.private = private
        self.branch = branch
        self.tag = tag
        self.every_n_epochs = every_n_epochs
        self._pushed: tuple[str, float | None] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that cannot be pushed before it is trained."""
        if not isinstance(pl_module, SpineModel):
            raise ModelFolderError(f"HubExport pushes models of spinevision, found {type(pl_module).__name__}; leave it out")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Push the best weights so far, if it is time and they are new."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._push(trainer, pl_module, last=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Push the best weights."""
        self._push(trainer, pl_module, last=True)

    def _push(self, trainer: Trainer, pl_module: LightningModule, *, last: bool) -> None:
        best = self._best(trainer)
        tag = self.tag if last else None
        nothing_new = best == self._pushed and not tag if best else not last
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # set from outside of the class
        if nothing_new or trial or not trainer.is_global_zero:
            return
        kept = f"the weights are in {best[0]}" if best else "no checkpoint was kept"
        for name in dict.fromkeys((tag, None)):  # with a tag that exists already, at least without it
            try:
                model = pl_module if best is None else SpineModel.from_checkpoint(best[0])
                assert isinstance(model, SpineModel)
                info = model.push_to_hub(
                    self.repo_id,
                    private=self.private,
                    branch=self.branch,
                    tag=name,
                    license=self.license,
                    provenance=self.provenance,
                )
            except Exception as error:  # whatever the network or the Hub does, the training is worth more
                reason = " ".join(str(error).split())
                later = "it is tried again without the tag" if name else kept if last else "it is tried again later"
                logger.warning("the push to %s failed, %s (%s)", self.repo_id, later, reason)
            else:
                self._pushed = best
                logger.info("pushed to %s, commit %s", info.repo_id, info.commit)
                return

    @staticmethod
    def _best(trainer: Trainer) -> tuple[str, float | None] | None:
        """The best checkpoint so far and its score, as its name is used again."""
        keeper = trainer.checkpoint_callback
        path, score = getattr(keeper, "best_model_path", ""), getattr(keeper, "best_model_score", None)
        return (path, None if score is None else float(score)) if path else None
