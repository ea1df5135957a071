"""The models that the server offers: the runs in a folder, by their names and never by a path.

A run that is still training is served from its newest checkpoint, any other from its best one. When a run has saved
again, the next request gets the new checkpoint; requests that are open end with the old one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from quill.checkpoints.format import Checkpoint
from quill.checkpoints.index import index_file
from quill.checkpoints.lock import is_locked
from quill.checkpoints.named import TINY, find_model, tiny_model
from quill.checkpoints.run_folder import load_checkpoint, newest_run, runs_in
from quill.device import means_cpu, resolve_device
from quill.errors import CheckpointError
from quill.generation.batch_generator import BatchGenerator
from quill.generation.language_model import LanguageModel
from quill.process import lock_freed_by_fork
from quill.server.switched_models import MOST_KEPT, parts_in, whole_id, without_parts
from quill.server.writer import Writer
from quill.validation import show


@dataclass(frozen=True)
class EngineSettings:
    """How models are computed; the same values as for `quill.load`."""

    device: str = "auto"
    engine: str = "auto"
    quantization: Literal["int8"] | None = None
    most_waiting: int = 256
    """number of texts of a model that may wait for a slot"""
    on_status: Callable[[str], None] | None = None


class UnknownModelError(LookupError):
    """There is no model of this id."""


class ServedModel:
    """One model. What it consists of is loaded at the first use; all attributes may be used from any thread."""

    def __init__(self, model_id: str, folder: Path, saved_at: int, training: bool, how: EngineSettings) -> None:
        self.id, self.folder, self.training, self._how = model_id, folder, training, how
        self.saved_at = saved_at // 10**9
        """when it was saved, in seconds since 1970"""
        self.writer = Writer(self._make_batch, how.most_waiting)
        self._lock = lock_freed_by_fork()
        self._checkpoint: Checkpoint | None = None
        self._hash: str | None = None
        self._language_model: LanguageModel | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether `checkpoint` and `hash` are at hand, so that they can be used in the event loop."""
        return self._hash is not None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint: the newest of a run that is training, else the best. CheckpointError if it is damaged."""
        with self._lock:
            if self._checkpoint is None:
                device = self._how.device
                device = "cpu" if means_cpu(device) else resolve_device(device)
                self._checkpoint = load_checkpoint(self.folder, device, "last" if self.training else "best")
            return self._checkpoint

    @property
    def hash(self) -> str:
        """SHA-256 of all weights with their names and shapes, as hexadecimal digits."""
        with self._lock:
            if self._hash is None:
                digest = hashlib.sha256()
                for name, weight in sorted(self.checkpoint.weights.items()):
                    digest.update(f"{name} {weight.shape}\n".encode())
                    digest.update(weight.tobytes())
                self._hash = digest.hexdigest()
            return self._hash

    @property
    def language_model(self) -> LanguageModel:
        """The model in PyTorch, for looking inside. It shares nothing with the writer, and may be changed."""
        with self._lock:
            if self._language_model is None:
                own = replace(self.checkpoint, weights=dict(self.checkpoint.weights))
                self._language_model = LanguageModel(own, own.tokenizer)
            return self._language_model

    def load(self) -> None:
        """Read the checkpoint, which takes a moment: call it in a thread that may wait."""
        _ = self.hash

    @property
    def engine_name(self) -> str:
        """The engine and the format of its weights, such as "numba-int8", as they were asked for."""
        return f"{self._how.engine}-{self._how.quantization or 'float32'}"

    def _make_batch(self) -> BatchGenerator:
        how, checkpoint = self._how, self.checkpoint
        model = LanguageModel(
            checkpoint, checkpoint.tokenizer, engine=how.engine, quantization=how.quantization, on_status=how.on_status
        )
        return model.batch


class SwitchedModel(ServedModel):
    """A model without some of its parts."""

    def __init__(self, model_id: str, whole: ServedModel, off: tuple[str, ...]) -> None:
        super().__init__(model_id, whole.folder, whole.saved_at * 10**9, whole.training, whole._how)
        self.whole, self.off = whole, off

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the whole model with the weights of these parts at 0."""
        with self._lock:
            if self._checkpoint is None:
                self._checkpoint = without_parts(self.whole.checkpoint, self.off)
            return self._checkpoint


class ServedModels:
    """All models of a server: one run, checkpoint or file, or every run in a folder. The newest is the default.

    Without a path these are the runs in the current folder, and `tiny` as long as there is none.
    """

    def __init__(self, path: str | Path | None = None, how: EngineSettings | None = None) -> None:
        self._how = how or EngineSettings()
        self._path = Path() if path is None else find_model(path)
        self._falls_back_to_tiny = path is None
        self._models: dict[str, tuple[object, ServedModel]] = {}
        self._switched: dict[str, SwitchedModel] = {}  # the one used last at the end
        self._lock = threading.Lock()
        if not self._folders():
            newest_run(self._path)  # an error that says what to do

    def ids(self) -> list[str]:
        """Return the ids of all models, the default first."""
        return list(self._folders())

    def get(self, model_id: str | None = None) -> ServedModel:
        """Return the model of this id, by default the newest; UnknownModelError if there is none."""
        folders = self._folders()
        if not folders:
            raise CheckpointError(f"{self._path} no longer holds a trained model")
        model_id = next(iter(folders)) if model_id is None else model_id
        if model_id not in folders and whole_id(model_id) in folders:
            return self._without_parts(self.get(whole_id(model_id)), model_id)
        if model_id not in folders:
            raise UnknownModelError(f"there is no model {show(model_id)}: the models are {', '.join(folders)}")
        folder = folders[model_id]
        training = is_locked(folder)
        saved_at = _saved_at(folder)
        stamp = (saved_at, training)
        with self._lock:
            if model_id in self._models:
                known, model = self._models[model_id]
                if known == stamp:
                    return model
                model.writer.retire()
            model = ServedModel(model_id, folder, saved_at, training, self._how)
            self._models[model_id] = stamp, model
            return model

    def _without_parts(self, whole: ServedModel, model_id: str) -> SwitchedModel:
        """Return a model with some parts switched off; those that were not used for a while are dropped."""
        off = parts_in(model_id, whole.checkpoint.config)
        model_id = f"{whole.id}~{','.join(off)}"
        with self._lock:
            model = self._switched.pop(model_id, None)
            if model is None or model.whole is not whole:
                if model is not None:  # the run has saved a newer checkpoint
                    model.writer.retire()
                model = SwitchedModel(model_id, whole, off)
            self._switched[model_id] = model
            while len(self._switched) > MOST_KEPT:
                self._switched.pop(next(iter(self._switched))).writer.retire()
            return model

    def loaded(self) -> list[ServedModel]:
        """Return the models that have been used."""
        with self._lock:
            return [*(model for _, model in self._models.values()), *self._switched.values()]

    def stop(self) -> None:
        """End all texts that are generated. Call it in the event loop."""
        for model in self.loaded():
            model.writer.stop()

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each model by its id, the newest first."""
        path = self._path
        if path.is_file() or (path / "checkpoints").is_dir() or (path / "model.safetensors").is_file():
            return {_name_of(path): path}
        try:
            runs = {_name_of(run): run for run in runs_in(path)}
        except OSError:
            runs = {}
        return runs or ({TINY: tiny_model()} if self._falls_back_to_tiny else {})


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "model.safetensors" else path.name


def _saved_at(folder: Path) -> int:
    """Return when the model in a folder was last replaced, in nanoseconds; 0 if that is not known."""
    for file in (index_file(folder), folder / "last", folder / "model.safetensors", folder):
        if file.is_file():
            return file.stat().st_mtime_ns
    return 0
