"""Checkpoints of a training: written whole or not at all, loaded with every weight, pushed to the Hub.

`CheckpointingTrainer` saves and loads checkpoints. `PublishingTrainer` pushes them. The functions below them write
files to the disk (`_whole_or_nothing` and the rest), and prove the origin of DeepSpeed checkpoints (`write_proof`).

transformers and Accelerate read the pickles of a checkpoint as plain tensors and numbers (`weights_only`). DeepSpeed
reads its own pickles without that limit. So a DeepSpeed checkpoint holds an HMAC over these files. The key is in the
user's own folder, and in no checkpoint.
Source: RFC 2104.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, rotate_checkpoints

from ..hub.export import form_of, write_export
from ..hub.push import create_repository, upload
from ..utils.checkpoint_formats import ProofFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import atomic_file, owner_only, scratch_folder, write_json
from ..utils.processes import on_main, wait_for_all
from .engines import sharding_of
from .resume import OTHER_CHECKPOINT, RUN_FILE, last_checkpoint
from .setting_errors import setting_errors

logger = logging.getLogger(__name__)

TRAINING_ARGUMENTS_FILE = "training_args.json"
PROOF_FILE = "proof.json"
# Folder inside `output_dir` for files that are not complete yet. The next save removes what a killed run leaves in it.
STAGING_FOLDER = ".saving"
# The stock method starts with new states if these files are missing, without a message.
STATE_FILES = ("optimizer.pt", "scheduler.pt")
# Files that hold only text or numbers for every reader. DeepSpeed's `latest`, which names a folder, is not among them.
HARMLESS_SUFFIXES = frozenset({".safetensors", ".json", ".md", ".py", ".jinja", ".txt", ".model"})
KEY_BYTES = 32


class CheckpointingTrainer(Trainer):
    """A Trainer of [`MllmReIDModel`] that saves and loads full and thin checkpoints.

    It writes a checkpoint into a staging folder, syncs it to the disk, and renames it. Only then does it remove older
    checkpoints and push. Only their owner can read the files, as the weights of the ID classifier are templates of
    people. `output_dir` must be on a disk that all processes share.
    """

    args: Any
    model: Any
    processing_class: Any
    # Stored in checkpoints to recognise the run, see `resume.run_fingerprint`.
    run_fingerprint: dict[str, Any] | None = None
    _staging: Path | None = None

    # ---- loading -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads every weight of a full or thin checkpoint; the stock method skips weights that it does not find.

        DeepSpeed and FSDP load their own shards.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Loads the checkpoint that is best on val, as `_load_from_checkpoint` does."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            self._refuse_foreign_checkpoint(self.state.best_model_checkpoint)
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint))

    def _refuse_foreign_checkpoint(self, checkpoint: str | None) -> None:
        """Raises UserError if DeepSpeed would unpickle foreign files. Called before a checkpoint is read."""
        if self.is_deepspeed_enabled and checkpoint is not None:
            on_main(refuse_foreign_checkpoint, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the states as transformers does; raises UserError if a file is missing, broken or of another model."""
        if checkpoint is None:
            return
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            missing = [name for name in STATE_FILES if not os.path.isfile(os.path.join(checkpoint, name))]
            if missing:
                raise UserError(
                    f"checkpoint {checkpoint}: has no {missing[0]} (was it saved with save_only_model?), so a training "
                    "cannot continue from it: give it as model, or resume_from_checkpoint false to start again"
                )
        with setting_errors(f"checkpoint {checkpoint}: states of optimiser and schedule", OTHER_CHECKPOINT):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with setting_errors(f"checkpoint {checkpoint}: state of the gradient scaler", OTHER_CHECKPOINT):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with setting_errors(f"checkpoint {checkpoint}: state of the random numbers", OTHER_CHECKPOINT):
            super()._load_rng_state(checkpoint)

    def _load_weights(self, folder: str) -> None:
        try:
            self.model.load_weights(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {' '.join(str(error).split())}") from error

    # ---- saving --------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        """Returns the staging folder while a checkpoint is written."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves the whole checkpoint or nothing; older checkpoints stay until the new one is in place.

        Raises UserError if the disk refuses the files; the message names the last complete checkpoint.
        """
        folder = Path(str(self.args.output_dir))
        final = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = folder / STAGING_FOLDER
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        wait_for_all()
        self._staging, written = staging, staging / final.name
        try:
            with _whole_or_nothing(staging, final), owner_only():
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(written / "trainer_state.json"))
                    write_json(written / RUN_FILE, self.run_fingerprint or {})
                # Other processes may still write and rename their files.
                wait_for_all()
                if self.args.should_save:
                    if self.is_deepspeed_enabled:
                        write_proof(written)
                    _sync_to_disk(written)
        finally:
            self._staging = None
        if self.args.should_save:
            _move_into_place(written, final)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        wait_for_all()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes only after the checkpoint is in place, so that a run killed while it pushes loses nothing."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves the model, the processor, and the training arguments as JSON.

        The stock method pickles the arguments, with the Hub token, into the pushed folder. Every process calls this
        method, and one writes.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        if self._staging is not None:
            self._write_model(folder, state_dict)
            return
        staging = folder / STAGING_FOLDER
        shutil.rmtree(staging, ignore_errors=True)
        with _whole_or_nothing(staging, folder), owner_only():
            self._write_model(staging, state_dict)
            _sync_to_disk(staging)
            for path in sorted(staging.iterdir()):
                _move_into_place(path, folder / path.name)
        shutil.rmtree(staging)

    def _write_model(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        write_json(folder / TRAINING_ARGUMENTS_FILE, json.loads(json.dumps(self.args.to_public_dict(), default=str)))


class PublishingTrainer(Trainer):
    """A Trainer of [`MllmReIDModel`] that pushes exports to the Hub."""

    model: Any
    hub_model_id: Any
    processing_class: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository, private by default.

        Args:
            token (`str`, *optional*): Token of the Hub; `hub_token` by default.
            private (`bool`, *optional*): Whether it is private; `hub_private_repo` by default.

        Raises:
            UserError: The Hub refuses it, the repository exists and is public although it must be private, or FSDP or
                DeepSpeed shards the model, so that no process can push it.
        """
        if engine := sharding_of(self):
            raise UserError(
                f"push_to_hub: under {engine} no process holds the whole model during training: leave it out, and use "
                "`mllmreid push` after training"
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
        """Pushes a checkpoint as a complete export; the stock method pushes no code, and a pickle with the token.

        A push that fails is logged, and the next one uploads everything.
        """
        if self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._publish(Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}")
        except UserError as error:
            logger.warning("%s; training continues", error)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", token: str | None = None, **_: Any
    ) -> str | None:
        """Pushes the model of `output_dir` as an export.

        Args:
            commit_message (`str`, *optional*): Message of the commit.
            token (`str`, *optional*): Token of the Hub; `hub_token` by default.

        Returns:
            `str`: Address of the commit; None in processes that do not push.

        Raises:
            UserError: The Hub refuses it. The trained model in `output_dir` is complete all the same.
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
                f"{error} (the model is in {self.args.output_dir}: mllmreid push --model {self.args.output_dir} "
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


# ---- files on the disk -----------------------------------------------------------------------------------------------


@contextmanager
def _whole_or_nothing(staging: Path, final: Path) -> Iterator[None]:
    """Removes the staging folder if the block fails; raises UserError if the disk refused the files."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        disk_error = _disk_error(error, final)
        if disk_error is None:
            raise
        raise disk_error from error


def _move_into_place(written: Path, final: Path) -> None:
    """Renames a file or folder; an older folder of that name is moved away first."""
    if final.is_dir():
        previous = written.with_name(f"{written.name}.before")
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
        written.rename(final)
        shutil.rmtree(previous)
    else:
        os.replace(written, final)


def _sync_to_disk(folder: Path) -> None:
    """Waits until every file is on the disk, not only in the system's cache."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _disk_error(error: BaseException, final: Path) -> UserError | None:
    """Returns the UserError for a disk that is full or broken, or None for any other exception."""
    reason = " ".join(str(error).split())
    torch_error = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in reason or "file write" in reason)
    if not (torch_error or isinstance(error, OSError | SafetensorError)):
        return None
    folder = final.parent if final.name.startswith(PREFIX_CHECKPOINT_DIR) else final
    last = last_checkpoint(folder)
    kept = (
        f"{last.name} is complete, and the same command continues from it" if last else "no earlier checkpoint exists"
    )
    return UserError(f"{final}: cannot be written ({reason[:200]}): free space on the disk; {kept}")


# ---- proof of origin -------------------------------------------------------------------------------------------------


def write_proof(checkpoint: Path) -> None:
    """Writes the proof of origin into a complete checkpoint.

    Args:
        checkpoint (`Path`): Folder of the checkpoint.

    Raises:
        UserError: The checkpoint holds a symbolic link, or the user's key is broken.
    """
    write_json(checkpoint / PROOF_FILE, {"hmac": _checkpoint_hmac(checkpoint)})


def refuse_foreign_checkpoint(checkpoint: Path) -> None:
    """Raises UserError if this user's trainings did not write the files that DeepSpeed would unpickle.

    Args:
        checkpoint (`Path`): Folder of the checkpoint.
    """
    path = checkpoint / PROOF_FILE
    danger = f"checkpoint {checkpoint}: DeepSpeed runs any code in its files, and"
    remedy = "give the checkpoint's model as model instead, or resume_from_checkpoint false to start again"
    if not path.is_file():
        raise UserError(f"{danger} no {PROOF_FILE} proves that your own training wrote them: {remedy}")
    if not hmac.compare_digest(read_json(path, ProofFile, remedy=remedy).hmac, _checkpoint_hmac(checkpoint)):
        raise UserError(f"{danger} they differ from those that your own training wrote ({PROOF_FILE}): {remedy}")


def _checkpoint_hmac(checkpoint: Path) -> str:
    """Returns the HMAC over names and contents of the files that can hold code. Raises UserError for a link."""
    files = []
    for path in sorted(checkpoint.rglob("*")):
        if path.is_symlink():
            raise UserError(f"checkpoint {checkpoint}: {path.name} is a symbolic link: put the file itself there")
        if path.is_file() and path.suffix not in HARMLESS_SUFFIXES:
            files.append(path)
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(_sha256, files)
        names = [path.relative_to(checkpoint).as_posix() for path in files]
        covered = list(zip(names, digests, strict=True))
    return hmac.new(_user_key(), json.dumps(covered).encode(), hashlib.sha256).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _user_key() -> bytes:
    """Returns the user's own key, and creates it at the first use."""
    path = Path(HF_HOME) / "mllmreid" / "checkpoint_key"
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise UserError(f"{path}: is not a key of {KEY_BYTES} bytes: remove it, and start the training again")
    return key
