"""What a training pushes to the Hub: whole exports, never a pickle and never the ID classifier."""

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from ..errors import UserError
from ..hub.export import form_of, write_export
from ..hub.push import create_repository, upload
from ..outputs import scratch_folder
from .sharding import sharding_of

logger = logging.getLogger(__name__)


class PublishingTrainer(Trainer):
    """A Trainer of [`MllmReIDModel`] that pushes exports."""

    model: Any
    hub_model_id: Any
    processing_class: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, private where not said otherwise.

        Raises UserError where the Hub refuses, for a public repository where that is not said, and where no process
        could push the whole model.
        """
        if engine := sharding_of(self):
            raise UserError(
                f"push_to_hub: under {engine} no process holds the whole model while it trains: leave it out, and when "
                "the training is done run_reid.py push"
            )
        if not self.is_world_process_zero():
            return
        private = self.args.hub_private_repo if private is None else private
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        token = token or self.args.hub_token
        self.hub_model_id = create_repository(
            name, private=private is not False, flag="--hub_private_repo", token=token
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A saved checkpoint as a whole export: the stock method pushes no code, and a pickle that holds the token.

        A push that fails is said in the log, and the next one sends what is missing.
        """
        if self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._publish(Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}")
        except UserError as error:
            logger.warning("%s; training goes on", error)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", token: str | None = None, **_: Any
    ) -> str | None:
        """Pushes what `output_dir` holds, as an export; returns the commit's address.

        Raises UserError where the Hub refuses it; the trained model in `output_dir` is whole all the same.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            return self._publish(Path(str(self.args.output_dir)), commit_message or "End of training", token)
        except UserError as error:
            raise UserError(
                f"{error} (the model is in {self.args.output_dir}: run_reid.py push --model {self.args.output_dir} "
                f"--to {self.hub_model_id})"
            ) from error

    def _publish(self, folder: Path, message: str, token: str | None = None) -> str:
        """Writes the model in memory as an export with the folder's reports, uploads it, and removes the export."""
        name = str(self.hub_model_id)
        with scratch_folder(Path(str(self.args.output_dir)) / "published") as scratch:
            export = scratch / "export"
            write_export(self.model, self.processing_class, export, to=form_of(self.model), name=name, source=folder)
            token = token or self.args.hub_token
            return upload(export, name, message=message, revision=self.args.hub_revision, token=token)
