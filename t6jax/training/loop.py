"""The training run: prepare or find the data, resume, step, validate, save, report."""

import collections
import contextlib
import itertools
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from t6jax.config import ModelConfig
from t6jax.data.batches import Batches, training_batches, validation_batches
from t6jax.data.corpus import keep_tokenizer, load_corpus, prepare_missing
from t6jax.errors import InputError
from t6jax.evaluation.validation import entropies, report, validation_loss
from t6jax.files import exclusive_lock
from t6jax.parallel import processes
from t6jax.parallel.mesh import batch_sharding, make_mesh
from t6jax.parallel.processes import Stop
from t6jax.runs import CONFIG, read_config, write_config
from t6jax.training.checkpoints import Checkpoints
from t6jax.training.failures import NotFinite, out_of_memory
from t6jax.training.metrics import MetricsLog, duration, flops_per_token, peak_flops, progress_line
from t6jax.training.profile import Profile, profiled_steps
from t6jax.training.settings import check, differences
from t6jax.training.step import Trainer, TrainState

# Steps that the host is ahead of the metrics it looks at, so that the device always has its next
# steps meanwhile.
LAG = 2


def train(config: Mapping[str, Any], workdir: str | pathlib.Path) -> signal.Signals | None:
    """Trains to config["steps"] in workdir, going on from the newest checkpoint there.

    SIGTERM and SIGINT stop it, saving first: returns the one that did, None at the end.
    Raises InputError for what the user can put right.
    """
    workdir = pathlib.Path(workdir)
    with _alone(workdir) if processes.is_first_process() else contextlib.nullcontext():
        stopped = _train(config, workdir)
        processes.wait("end")
        return stopped


def _train(config: Mapping[str, Any], workdir: pathlib.Path) -> signal.Signals | None:
    model_config = check(config)
    mesh = make_mesh(config["mesh"])

    def prepare() -> None:
        if (workdir / CONFIG).exists():
            _refuse_another_config(config, workdir)
        prepare_missing(workdir, config["data"], _say)

    processes.on_first_process("prepare", prepare)
    corpus = load_corpus(workdir, config["data"], model_config.vocab_size)
    document_start = corpus.document_start if config["data"]["document_masking"] else None
    windows = {"context_length": model_config.context_length, "vocab_size": model_config.vocab_size}
    part, parts = processes.data_part(
        batch_sharding(mesh), (config["batch_size"], model_config.context_length + 1)
    )
    batches = training_batches(
        corpus.sources,
        batch_size=config["batch_size"],
        process_index=part,
        process_count=parts,
        seed=config["seed"],
        with_replacement=config["data"]["with_replacement"],
        num_workers=config["data"]["num_workers"],
        **windows,
    )
    validation_set = lambda: validation_batches(
        corpus.sources,
        batch_size=config["validation"]["batch_size"],
        max_batches=config["validation"]["batches"],
        **windows,
    )
    validation_set()  # finds what is wrong with the validation data before anything is trained

    def write() -> None:
        write_config(workdir, config)
        keep_tokenizer(workdir, corpus, config["data"]["tokenizer"], _say)

    processes.on_first_process("write", write)
    trainer = Trainer(config, model_config, mesh, document_start)
    with out_of_memory(config), contextlib.ExitStack() as stack:
        stack.callback(batches.close)
        checkpoints = stack.enter_context(Checkpoints(workdir, config["checkpoint"]["keep"]))
        restored = checkpoints.restore_newest(trainer.abstract_arrays(), batches)
        start, state = restored or (0, trainer.create(jax.random.key(config["seed"])))
        log = stack.enter_context(MetricsLog(workdir, start, config["log"]["tensorboard"]))
        _say(f"{model_config.parameter_count:,} parameters; data in {corpus}; run in {workdir}")
        if restored:
            _say(f"resumed from step {start}")
        validate = lambda params, until: validation_loss(
            trainer.loss_sums,
            params,
            itertools.takewhile(lambda _: not until, validation_set()),
            trainer.batch_sharding,
        )
        traced = profiled_steps(config["profile"])
        if traced and traced[0] <= start:
            _say(
                f"profile={config['profile']!r} is not traced: the run is past step {traced[0]} "
                "already"
            )
        profile = Profile(workdir, traced)
        stack.callback(profile.close)
        run = _Run(config, model_config, trainer, checkpoints, log, profile)
        with processes.exit_if_peers_lost():
            state, stopped = run.steps(start, state, batches, validate)
    if stopped:
        _say(
            f"stopped by {stopped.name} and saved at step {int(state.step)}; the same command goes "
            "on from there"
        )
        return stopped

    with processes.exit_if_peers_lost(), out_of_memory(config):
        loss = validate(state.params, ())
    if processes.is_first_process():
        _say(
            report(
                loss,
                entropies(corpus.sources, model_config.vocab_size, validation_set()),
                corpus.bytes_per_token,
            )
        )
    return None


class _Run:
    """The loop over steps, with what it reports to."""

    def __init__(
        self,
        config: Mapping[str, Any],
        model_config: ModelConfig,
        trainer: Trainer,
        checkpoints: Checkpoints,
        log: MetricsLog,
        profile: Profile,
    ):
        self._config, self._trainer, self._checkpoints, self._log = (
            config,
            trainer,
            checkpoints,
            log,
        )
        self._profile = profile
        self._not_finite = NotFinite(config["stop_after_not_finite"], config["batch_size"])
        self._batch_shape = (config["batch_size"], model_config.context_length + 1)
        self._tokens_per_step = config["batch_size"] * model_config.context_length
        self._flops_per_token = flops_per_token(model_config, model_config.context_length)
        self._peak = peak_flops()
        self._waited = 0.0  # seconds for data, since the last report

    def steps(
        self, start: int, state: TrainState, batches: Batches, validate: Callable
    ) -> tuple[TrainState, signal.Signals | None]:
        """Steps to the end, or to a signal, and saves there."""
        config, total = self._config, self._config["steps"]
        every = {name: config[name]["every_steps"] for name in ("log", "validation", "checkpoint")}
        if start >= total:
            _say(f"nothing left to train: {start} of {total} steps are done")
            return state, None
        batches.start_prefetch()  # while the step is compiled
        step_fn = self._compile(state)
        self._saved = start or None
        pending: collections.deque[tuple] = (
            collections.deque()
        )  # (step, metrics, answer to `stop`) not looked at yet
        self._clock, self._counted = time.perf_counter(), start
        with _signals() as caught:
            stop = Stop(self._trainer.mesh, caught)
            for step in range(start + 1, total + 1):
                asked = time.perf_counter()
                rows = next(batches)
                self._waited += time.perf_counter() - asked
                self._profile.before(step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    batch = jax.make_array_from_process_local_data(
                        self._trainer.batch_sharding, rows, self._batch_shape
                    )
                    state, metrics = step_fn(state, batch)
                if self._profile.after(step, metrics):
                    _say(f"traced steps {self._config['profile']} into {self._profile.folder}")
                pending.append((step, metrics, stop.ask()))
                due = {name: step % n == 0 for name, n in every.items()}
                pause = due["validation"] or due["checkpoint"] or step == total
                while len(pending) > (0 if pause or stop.by else LAG):
                    number, metrics, answer = pending.popleft()
                    stop.read(answer)
                    self._look(number, metrics, last=bool(stop.by) and not pending)
                if pause or stop.by:
                    paused = time.perf_counter()
                    if due["validation"] and not stop.by:
                        self._validated(step, validate(state.params, stop.at_once), stop.at_once)
                    # a signal may come at any time before this line, and is obeyed here or a step
                    # later
                    stopped = stop.by
                    # amid steps that were not applied, nothing new is there to replace an older
                    # checkpoint with
                    if (
                        step == total
                        or stopped
                        or (due["checkpoint"] and not self._not_finite.in_a_row)
                    ):
                        self._checkpoints.save(step, state, batches)
                        self._saved = step
                    self._clock += time.perf_counter() - paused
                    if stopped:
                        return state, stopped
        return state, None

    def _compile(self, state: TrainState) -> Callable:
        began = time.perf_counter()
        batch = jax.ShapeDtypeStruct(
            self._batch_shape, "int32", sharding=self._trainer.batch_sharding
        )
        compiled = self._trainer.step.lower(state, batch).compile()
        _say(f"compiled the training step in {duration(time.perf_counter() - began)}")
        return compiled

    def _validated(self, step: int, loss: float, caught: Sequence) -> None:
        if not caught:  # else only some of the batches were looked at
            self._log.write(step, {"val_loss": loss})
            _say(f"step {step}/{self._config['steps']}  validation loss {loss:.4f}")

    def _look(self, step: int, metrics: Mapping, *, last: bool) -> None:
        """Waits for a step's metrics; logs them where they are due, or the step is the last."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if event := self._not_finite.event(step, values):
            self._log.event(step, event)
            first, final = event["windows"]
            _say(
                f"step {step}: loss {event['train_loss']}, gradient norm {event['grad_norm']}: not "
                "applied "
                f"({event['in_a_row']} in a row; windows {first} to {final} of the data)"
            )
            self._not_finite.stop_at_limit(step, self._saved)
        elif (
            last or step == self._config["steps"] or step % self._config["log"]["every_steps"] == 0
        ):
            self._report(step, values)

    def _report(self, step: int, values: dict[str, float]) -> None:
        now, total = time.perf_counter(), self._config["steps"]
        rate = (step - self._counted) / max(now - self._clock, 1e-9)
        values["tokens_per_second"] = rate * self._tokens_per_step
        # of the host's time; the device, which has its next step by then, waits less or not at all
        values["data_wait_fraction"], self._waited = (
            self._waited / max(now - self._clock, 1e-9),
            0.0,
        )
        if self._peak:
            values["mfu"] = values["tokens_per_second"] * self._flops_per_token / self._peak
        self._log.write(step, values)
        _say(progress_line(step, total, values, (total - step) / rate))
        self._clock, self._counted = now, step


def _refuse_another_config(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
    changed = differences(read_config(workdir), config)
    if changed:
        listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise InputError(
            f"{workdir} holds a run of another config ({listed}): give another --workdir, or the "
            "old values"
        )


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
    """Makes workdir, and keeps other processes of this machine from training in it at the same
    time.
    """
    held = f"another process is training in {workdir}: wait for it, or give another --workdir"
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(workdir / ".lock", held))
        except OSError as e:
            raise InputError(f"--workdir={workdir} cannot be written: {e.strerror}") from e
        yield


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """The SIGTERM and SIGINT received inside, in place of their usual effect; a second one has
    it.
    """
    caught: list[signal.Signals] = []
    previous = {}

    def note(number, frame):
        caught.append(signal.Signals(number))
        signal.signal(number, previous[number])
        _say(f"{caught[-1].name}: saving after this step")

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    if processes.is_first_process():
        print(text, flush=True)
