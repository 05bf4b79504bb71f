"""What a training keeps on disk: checkpoints that are loaded whole, and no pickle of the arguments."""

import json
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..errors import UserError
from ..evaluation.report import write_json

TRAINING_ARGUMENTS_FILE = "training_args.json"


class CheckpointingTrainer(Trainer):
    """A Trainer of [`MllmReIDModel`] whose checkpoints, full or thin, are resumed from with every weight."""

    args: Any
    processing_class: Any

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every weight of the checkpoint, in its full or its thin form; the stock method leaves out what it misses.

        DeepSpeed and FSDP load their own shards.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, from the checkpoint that is best on val."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint))

    def _load_weights(self, folder: str) -> None:
        try:
            self.accelerator.unwrap_model(self.model).load_weights(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {' '.join(str(error).split())}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model, processor and training arguments as JSON.

        The stock method pickles the arguments, the Hub's token among them, into what is pushed.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        write_json(folder / TRAINING_ARGUMENTS_FILE, json.loads(json.dumps(self.args.to_public_dict(), default=str)))
