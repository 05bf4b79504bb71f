"""Checkpoints of a training: whole or absent, loaded whole, proven to be this user's, published while training.

transformers and Accelerate read a checkpoint's pickles as plain tensors and numbers alone (`weights_only`), and what is
more is refused. DeepSpeed reads its own without that limit. So a checkpoint written under DeepSpeed holds an HMAC over
those files, by a key that lies in the user's own folder and in no checkpoint.
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

from ..evaluation.report import write_json
from ..hub.export import form_of, write_export
from ..hub.push import create_repository, upload
from ..utils.errors import UserError
from ..utils.formats import ProofFile
from ..utils.json_files import read_json
from ..utils.outputs import atomic_file, owner_only, scratch_folder
from ..utils.processes import on_main, wait_for_all
from .engines import sharding_of
from .resume import ANOTHER, RUN_FILE, last_checkpoint
from .stock_settings import setting_errors

logger = logging.getLogger(__name__)


PROOF_FILE = "proof.json"
# What is only text or numbers to all who read it. DeepSpeed's `latest`, which names a folder, is not among them.
HARMLESS = frozenset({".safetensors", ".json", ".md", ".py", ".jinja", ".txt", ".model"})
KEY_BYTES = 32


def prove(checkpoint: Path) -> None:
    """Writes the proof into a checkpoint that is written."""
    write_json(checkpoint / PROOF_FILE, {"hmac": _hmac_of(checkpoint)})


def refuse_foreign(checkpoint: Path) -> None:
    """Raises UserError where this user's trainings did not write the files that DeepSpeed would unpickle."""
    path = checkpoint / PROOF_FILE
    said = f"checkpoint {checkpoint}: DeepSpeed would run whatever code its files hold, and"
    remedy = "give the checkpoint's model as model instead, or resume_from_checkpoint false to start anew"
    if not path.is_file():
        raise UserError(f"{said} it has no {PROOF_FILE} that says that your own training wrote them: {remedy}")
    if not hmac.compare_digest(read_json(path, ProofFile, remedy=remedy).hmac, _hmac_of(checkpoint)):
        raise UserError(f"{said} they are not those that your own training wrote ({PROOF_FILE}): {remedy}")


def _hmac_of(checkpoint: Path) -> str:
    """Over names and contents of the files that are not harmless. Raises UserError for a link among them."""
    files = []
    for path in sorted(checkpoint.rglob("*")):
        if path.is_symlink():
            raise UserError(f"checkpoint {checkpoint}: {path.name} is a symbolic link: put the file itself there")
        if path.is_file() and path.suffix not in HARMLESS:
            files.append(path)
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(_sha256, files)
        names = [path.relative_to(checkpoint).as_posix() for path in files]
        covered = list(zip(names, digests, strict=True))
    return hmac.new(_key(), json.dumps(covered).encode(), hashlib.sha256).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key() -> bytes:
    """The user's own key, made where it is missing."""
    path = Path(HF_HOME) / "mllmreid" / "checkpoint_key"
    if not path.exists():
        with atomic_file(path) as aside:
            aside.write_bytes(secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise UserError(f"{path}: is no key of {KEY_BYTES} bytes: remove it, and start the training anew")
    return key


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


TRAINING_ARGUMENTS_FILE = "training_args.json"
# Inside `output_dir`: what a killed run leaves in it is no checkpoint, and the next one to be written removes it.
ASIDE = ".saving"
# Without these the stock method begins with new ones, without a word.
STATES = ("optimizer.pt", "scheduler.pt")


class CheckpointingTrainer(Trainer):
    """A Trainer of [`MllmReIDModel`] whose checkpoints, full or thin, are resumed from with every weight.

    A checkpoint is written aside, put on the disk, and renamed; only then are older ones removed and is it pushed. All
    files are their owner's alone, as rows of the ID classifier are templates of people.
    `output_dir` lies on a disk that all processes share.
    """

    args: Any
    model: Any
    processing_class: Any
    # What a checkpoint says of its run, see `resume.run_fingerprint`.
    run_fingerprint: dict[str, Any] | None = None
    _aside: Path | None = None

    # ---- loading -------------------------------------------------------------------------------------------------

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
            self._refuse_foreign(self.state.best_model_checkpoint)
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint))

    def _refuse_foreign(self, checkpoint: str | None) -> None:
        """Before anything of a checkpoint is read. Raises UserError where DeepSpeed would unpickle what is foreign."""
        if self.is_deepspeed_enabled and checkpoint is not None:
            on_main(refuse_foreign, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in transformers, which reads plain tensors alone; what is missing is not left out.

        Raises UserError for files that are missing, broken, of another model, or hold more than tensors and numbers.
        """
        if checkpoint is None:
            return
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            missing = [name for name in STATES if not os.path.isfile(os.path.join(checkpoint, name))]
            if missing:
                raise UserError(
                    f"checkpoint {checkpoint}: has no {missing[0]} (was it saved with save_only_model?), so that a "
                    "training cannot go on from it: give it as model, or resume_from_checkpoint false to start anew"
                )
        with setting_errors(f"checkpoint {checkpoint}: states of optimiser and schedule", ANOTHER):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with setting_errors(f"checkpoint {checkpoint}: state of the gradient scaler", ANOTHER):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with setting_errors(f"checkpoint {checkpoint}: state of the random numbers", ANOTHER):
            super()._load_rng_state(checkpoint)

    def _load_weights(self, folder: str) -> None:
        try:
            self.model.load_weights(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {' '.join(str(error).split())}") from error

    # ---- saving --------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        """While a checkpoint is written, the folder aside."""
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The whole checkpoint, or none: older ones stay until it is there.

        Raises UserError where the disk refuses it, naming the checkpoint that is left.
        """
        folder = Path(str(self.args.output_dir))
        final = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = folder / ASIDE
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        wait_for_all()
        self._aside, written = aside, aside / final.name
        try:
            with _whole_or_nothing(aside, final), owner_only():
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(written / "trainer_state.json"))
                    write_json(written / RUN_FILE, self.run_fingerprint or {})
                # Every process has written its part: one that still renames would be met half-way.
                wait_for_all()
                if self.args.should_save:
                    if self.is_deepspeed_enabled:
                        prove(written)
                    _to_disk(written)
        finally:
            self._aside = None
        if self.args.should_save:
            _put(written, final)
            shutil.rmtree(aside, ignore_errors=True)
            rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        wait_for_all()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not before the checkpoint is whole: a run that is killed while it pushes has lost nothing."""
        if self._aside is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model, processor and training arguments as JSON, each file whole.

        The stock method pickles the arguments, the Hub's token among them, into what is pushed. Every process calls it,
        one writes.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        if self._aside is not None:
            self._write(folder, state_dict)
            return
        aside = folder / ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        with _whole_or_nothing(aside, folder), owner_only():
            self._write(aside, state_dict)
            _to_disk(aside)
            for path in sorted(aside.iterdir()):
                _put(path, folder / path.name)
        shutil.rmtree(aside)

    def _write(self, folder: Path, state_dict: dict | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        write_json(folder / TRAINING_ARGUMENTS_FILE, json.loads(json.dumps(self.args.to_public_dict(), default=str)))


@contextmanager
def _whole_or_nothing(aside: Path, final: Path) -> Iterator[None]:
    """What the block wrote aside is removed where it fails, with one line where the disk refused it."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        plain = _refused_by_disk(error, final)
        if plain is None:
            raise
        raise plain from error


def _put(written: Path, final: Path) -> None:
    """Renames; a folder that was there before is moved out of the way first."""
    if final.is_dir():
        before = written.with_name(f"{written.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
        written.rename(final)
        shutil.rmtree(before)
    else:
        os.replace(written, final)


def _to_disk(folder: Path) -> None:
    """Waits until every file is on the disk, not in the system's memory alone."""
    for path in [*folder.rglob("*"), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _refused_by_disk(error: BaseException, final: Path) -> UserError | None:
    """The one line for a disk that is full or broken, or None for anything else."""
    reason = " ".join(str(error).split())
    of_torch = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in reason or "file write" in reason)
    if not (of_torch or isinstance(error, OSError | SafetensorError)):
        return None
    folder = final.parent if final.name.startswith(PREFIX_CHECKPOINT_DIR) else final
    left = last_checkpoint(folder)
    kept = f"{left.name} is whole, and the same command goes on from it" if left else "there is no checkpoint before it"
    return UserError(f"{final}: cannot be written ({reason[:200]}): free space on the disk; {kept}")
