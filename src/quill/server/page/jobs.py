"""Work that takes longer than a request: one job at a time, in a process of its own, with progress, cancellable.

A process can be ended at any moment, and leaves the server's memory and threads alone. It writes its result into a
file, where the other routes find it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quill.experiments.catalog import CATALOG
from quill.server.errors import ApiError
from quill.server.models import find_model
from quill.server.page.look import heads_file
from quill.server.page.questions import Question, answer, read_question
from quill.server.served_models import SwitchedModel

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories
    from quill.server.served_models import ServedModel

State = Literal["running", "done", "failed", "cancelled"]


class JobQuestion(Question, frozen=True, kw_only=True):
    """Which work: heads (role and cost of each), tuned-lens, or an experiment by its name."""

    job: Literal["heads", "tuned-lens", "experiment"]
    experiment: str | None = None
    quick: bool = False
    own_model: bool = False
    """whether the experiment looks into the model, and not into a small one that it trains"""


@dataclass(frozen=True)
class Status:
    """How far the newest job is."""

    number: int
    job: str
    model: str
    experiment: str | None
    state: State = "running"
    what: str = "starting"
    share: float = 0.0


class Jobs:
    """Runs one job at a time. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def status(self) -> Status | None:
        """How far the newest job is; None before the first one."""
        return self._status

    def start(self, question: JobQuestion, model: str, task: Mapping[str, Any]) -> Status:
        """Begin a job, and return its status; ApiError 409 if another one is running."""
        with self._lock:
            if self._status is not None and self._status.state == "running":
                raise ApiError(409, f"the job {self._status.job} is running: wait for it, or cancel it", code="busy")
            number = self._status.number + 1 if self._status else 1
            self._status = Status(number, question.job, model, question.experiment)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quill.server.page.job_process"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
            )  # fmt: skip
            follower = threading.Thread(
                target=self._follow, args=(self._process, json.dumps(task)), name="job", daemon=True
            )
            follower.start()
            return self._status

    def cancel(self) -> Status | None:
        """End the job that is running, if there is one, and return the status."""
        with self._lock:
            if self._status is not None and self._status.state == "running":
                self._change(state="cancelled")
                assert self._process is not None
                self._process.kill()
            return self._status

    def _follow(self, process: subprocess.Popen[str], task: str) -> None:
        assert process.stdin is not None and process.stdout is not None
        with process, contextlib.suppress(OSError):  # a process that has died has closed its end
            process.stdin.write(task + "\n")
            process.stdin.flush()
            for line in process.stdout:
                with self._lock:
                    if self._process is process and self._status is not None and self._status.state == "running":
                        self._change(**json.loads(line))
        with self._lock:
            if self._process is process and self._status is not None and self._status.state == "running":
                self._change(state="failed", what=f"the process of the job ended with code {process.returncode}")

    def _change(self, **changes: Any) -> None:
        assert self._status is not None
        self._status = Status(**{**asdict(self._status), **changes})


def routes(laboratories: Laboratories) -> list[Route]:
    """Return the routes of this file."""
    jobs = Jobs()

    async def start(request: Request) -> Response:
        question = await read_question(request, JobQuestion)
        model = await find_model(request, question.model)
        task = await laboratories.of(model).answer(task_of, model, question)
        return answer(jobs.start(question, model.id, task))

    async def status(request: Request) -> Response:
        return answer(jobs.status)

    async def cancel(request: Request) -> Response:
        return answer(jobs.cancel())

    return [
        Route("/jobs", start, methods=["POST"]),
        Route("/jobs", status, methods=["GET"]),
        Route("/jobs/cancel", cancel, methods=["POST"]),
    ]


def task_of(model: ServedModel, question: JobQuestion) -> dict[str, Any]:
    """Return what the process of a job is told."""
    if isinstance(model, SwitchedModel):
        raise ApiError(400, f"jobs are about whole models: name {model.whole.id}", param="model")
    path = model.folder if model.folder.is_file() else model.checkpoint.path
    common = {"job": question.job, "run": str(model.folder.absolute()), "checkpoint": str(path.absolute())}
    if question.job == "heads":
        return common | {"file": str(heads_file(model.hash))}
    if question.job == "tuned-lens":
        return common
    if question.experiment not in CATALOG:
        raise ApiError(400, f"experiment must be one of {', '.join(CATALOG)}", param="experiment")
    return common | {"experiment": question.experiment, "quick": question.quick, "own_model": question.own_model}
