"""The training run: prepare or find the data, resume, step, validate, save, report."""

import collections
import contextlib
import itertools
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from t6jax.config import RunConfig, differences
from t6jax.data.batches import Batches, training_batches, validation_batches
from t6jax.data.corpus import keep_tokenizer, load_corpus, prepare_missing
from t6jax.errors import InputError
from t6jax.evaluation.validation import entropies, report, validation_loss
from t6jax.files import exclusive_lock, writing
from t6jax.parallel import processes
from t6jax.parallel.mesh import batch_sharding
from t6jax.parallel.processes import Stop
from t6jax.runs import CONFIG, read_config, write_config
from t6jax.training.checkpoints import Checkpoints
from t6jax.training.console import Console
from t6jax.training.failures import NonFiniteSteps, out_of_memory
from t6jax.training.layout import mesh_for
from t6jax.training.metrics import MetricsLog, duration, flops_per_token, peak_flops, progress_line
from t6jax.training.profile import Profile
from t6jax.training.signals import caught_signals
from t6jax.training.step import Trainer, TrainState

# Steps launched before the host looks at the metrics of the first of them, so that the device
# always has its next step.
LAG = 2


def train(config: RunConfig, workdir: str | pathlib.Path) -> signal.Signals | None:
    """Trains to config.steps in workdir, resuming from the newest checkpoint there.

    SIGTERM, SIGINT and SIGHUP stop it after a checkpoint, and so do a closed standard output and a
    log that cannot be written. Returns the signal that did, SIGPIPE for standard output; None if
    the run reached its end.

    Raises:
        InputError: the config, the data or the directory cannot be used, the disk is full, or the
            loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    mesh = mesh_for(config)
    # of the batch's rows: which shard this process reads, and of how many
    batch_shape = (config.batch_size, config.model.context_length + 1)
    shard = processes.batch_shard(batch_sharding(mesh), batch_shape)
    console = Console()
    with _locked(workdir) if processes.is_first_process() else contextlib.nullcontext():
        stopped = _train(config, workdir, mesh, shard, console)
        processes.wait("end")
        return stopped


def _train(
    config: RunConfig,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    shard: tuple[int, int],
    console: Console,
) -> signal.Signals | None:
    say = console.say

    def prepare() -> None:
        if (workdir / CONFIG).exists():
            _refuse_another_config(config, workdir)
        prepare_missing(workdir, config.data, say)

    processes.on_first_process("prepare", prepare)
    model = config.model
    corpus = load_corpus(workdir, config.data, model.vocab_size)
    windows = {"context_length": model.context_length, "vocab_size": model.vocab_size}
    batches = training_batches(
        corpus.sources,
        batch_size=config.batch_size,
        process_index=shard[0],
        process_count=shard[1],
        seed=config.seed,
        with_replacement=config.data.with_replacement,
        num_workers=config.data.num_workers,
        **windows,
    )

    def validation_set() -> Iterator:
        return validation_batches(
            corpus.sources,
            batch_size=config.validation.batch_size,
            max_batches=config.validation.batches,
            **windows,
        )

    validation_set()  # finds what is wrong with the validation data before anything is trained
    trainer = Trainer(config, mesh, corpus.document_start if config.data.document_masking else None)

    def write() -> None:  # from here on the directory is this config's
        with writing(workdir):
            write_config(workdir, config.to_dict())
            keep_tokenizer(workdir, corpus, config.data.tokenizer, say)

    processes.on_first_process("write", write)

    def validate(params: dict, until: Sequence = ()) -> tuple[float, int]:
        """(nats a token, tokens); of fewer batches if `until` gets an element meanwhile."""
        batches = itertools.takewhile(lambda _: not until, validation_set())
        return validation_loss(trainer.loss_sums, params, batches, trainer.batch_sharding)

    with out_of_memory(config), contextlib.ExitStack() as stack:
        stack.callback(batches.close)
        with writing(workdir):
            checkpoints = stack.enter_context(Checkpoints(workdir, config))
        restored = checkpoints.restore_newest(trainer.abstract_arrays(), batches)
        start, state = restored or (0, trainer.create(jax.random.key(config.seed)))
        with writing(workdir):
            log = stack.enter_context(MetricsLog(workdir, start, config.log.tensorboard))
        say(f"{model.parameter_count:,} parameters; data in {corpus}; run in {workdir}")
        if restored:
            say(f"resumed from step {start}")
        traced = config.profiled_steps
        if traced and traced[0] <= start:
            say(
                f"profile={config.profile!r} is not traced: the run is past step {traced[0]} "
                "already"
            )
        profile = Profile(workdir, traced)
        stack.callback(profile.close)
        loop = _Loop(config, trainer, checkpoints, log, profile, console)
        with processes.exit_if_peers_lost():
            state, stopped = loop.run(start, state, batches, validate)
            checkpoints.wait()
            saved = f"saved at step {int(state.step)}; the same command resumes from there"
            if log.failed:
                raise InputError(f"{log.failed}: make room there; {saved}")
            if stopped:
                if console.closed:
                    print(f"nobody reads the output ({console.closed}); {saved}", file=sys.stderr)
                say(f"stopped by {stopped.name} and {saved}")
                return stopped
            loss, tokens = loop.final_validation or validate(state.params)
    if processes.is_first_process():
        baseline = entropies(corpus.sources, model.vocab_size, validation_set())
        say(report(loss, tokens, baseline, corpus.bytes_per_token))
    return signal.SIGPIPE if console.closed else None


class _Loop:
    """The loop over steps, with what it reports to.

    final_validation: the validation loss after the last step and its tokens, if it was taken.
    """

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        checkpoints: Checkpoints,
        log: MetricsLog,
        profile: Profile,
        console: Console,
    ):
        self._config, self._trainer = config, trainer
        self._console, self._say = console, console.say
        self._checkpoints, self._log, self._profile = checkpoints, log, profile
        self._non_finite = NonFiniteSteps(config.stop_after_not_finite, config.batch_size)
        self._batch_shape = (config.batch_size, config.model.context_length + 1)
        self._flops_per_token = flops_per_token(config.model, config.model.context_length)
        self._peak = peak_flops()
        self._waited = 0.0  # seconds for data, since the last report
        self._rate = 0.0  # steps a second, of the last report that could measure it
        self.final_validation: tuple[float, int] | None = None

    def run(
        self, start: int, state: TrainState, batches: Batches, validate: Callable
    ) -> tuple[TrainState, signal.Signals | None]:
        """Steps to the end, or to a signal, and saves there."""
        config, total = self._config, self._config.steps
        if start >= total:
            self._say(f"nothing left to train: {start} of {total} steps are done")
            return state, None
        batches.start_prefetch()  # while the step is compiled
        step_fn = self._compile(state)
        self._saved = start or None
        # (step, metrics, answer to `stop`) of the steps that the host has not looked at yet
        pending: collections.deque[tuple] = collections.deque()
        self._clock, self._counted = time.perf_counter(), start
        with caught_signals() as caught:
            mesh = self._trainer.mesh
            assert isinstance(mesh, jax.sharding.Mesh), "a run is on devices"
            stop = Stop(mesh, caught)
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
                    self._say(f"traced steps {config.profile} into {self._profile.folder}")
                self._note_failures(caught)
                pending.append((step, metrics, stop.ask()))
                last = step == total
                validation_due = last or step % config.validation.every_steps == 0
                checkpoint_due = last or step % config.checkpoint.every_steps == 0
                pause = validation_due or checkpoint_due
                while len(pending) > (0 if pause or stop.by else LAG):
                    number, metrics, answer = pending.popleft()
                    stop.read(answer)
                    self._account(number, metrics, last=bool(stop.by) and not pending)
                self._note_failures(caught)
                self._checkpoints.check()
                if pause or stop.by:
                    paused = time.perf_counter()
                    if validation_due and not stop.by:
                        self._validated(step, validate(state.params, stop.at_once), stop.at_once)
                    # a signal may come at any time before this line, and is obeyed here or one
                    # step later
                    stopped = stop.by
                    # while steps are not applied, there is nothing new to save
                    applied = checkpoint_due and not self._non_finite.in_a_row
                    if last or stopped or applied:
                        self._log.flush()
                        self._checkpoints.save(step, state, batches)
                        self._saved = step
                    self._clock += time.perf_counter() - paused
                    if stopped:
                        return state, stopped
        return state, None

    def _note_failures(self, caught: list[signal.Signals]) -> None:
        """Has the run stop, as by a signal, once what it reports to is gone."""
        if self._console.closed and signal.SIGPIPE not in caught:
            caught.append(signal.SIGPIPE)
        if self._log.failed and signal.SIGTERM not in caught:
            caught.append(signal.SIGTERM)

    def _compile(self, state: TrainState) -> Callable:
        self._say("compiling the training step ...")
        began = time.perf_counter()
        batch = jax.ShapeDtypeStruct(
            self._batch_shape, "int32", sharding=self._trainer.batch_sharding
        )
        compiled = self._trainer.step.lower(state, batch).compile()
        self._say(f"compiled the training step in {duration(time.perf_counter() - began)}")
        return compiled

    def _validated(self, step: int, validation: tuple[float, int], interrupted: Sequence) -> None:
        if interrupted:  # only some of the batches were evaluated
            return
        loss, tokens = validation
        self._log.write(step, {"val_loss": loss})
        self._say(
            f"step {step}/{self._config.steps}  validation loss {loss:.4f} ({tokens:,} tokens)"
        )
        if step == self._config.steps:
            self.final_validation = validation

    def _account(self, step: int, metrics: Mapping, *, last: bool) -> None:
        """Waits for a step's metrics; reports them if a report is due or the step is the last."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if event := self._non_finite.event(step, values):
            self._log.event(step, event)
            first, final = event["windows"]
            self._say(
                f"step {step}: loss {event['train_loss']}, gradient norm {event['grad_norm']}: not "
                f"applied ({event['in_a_row']} in a row; windows {first} to {final} of the data)"
            )
            self._non_finite.stop_at_limit(step, self._saved)
        elif last or step == self._config.steps or step % self._config.log.every_steps == 0:
            self._report(step, values)

    def _report(self, step: int, values: dict[str, float]) -> None:
        """Logs a step's metrics, and the speed since the last report.

        The speed is left out if steps in between were traced, which slows them down and takes
        seconds to write. The host launches steps LAG ahead, so that the steps around count too.
        """
        now, total = time.perf_counter(), self._config.steps
        traced = self._config.profiled_steps
        timed = not traced or step < traced[0] - LAG or self._counted >= traced[-1] + LAG
        if timed:
            seconds = max(now - self._clock, 1e-9)
            self._rate = (step - self._counted) / seconds
            values["tokens_per_second"] = self._rate * self._config.tokens_per_step
            # of the host's time; the device, which has its next step by then, waits less or not at
            # all
            values["data_wait_fraction"] = self._waited / seconds
            if self._peak:
                values["mfu"] = values["tokens_per_second"] * self._flops_per_token / self._peak
        self._log.write(step, values)
        left = (total - step) / self._rate if self._rate else None
        self._say(progress_line(step, total, values, left))
        self._clock, self._counted, self._waited = now, step, 0.0


def _refuse_another_config(config: RunConfig, workdir: pathlib.Path) -> None:
    changed = differences(read_config(workdir), config)
    if changed:
        listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise InputError(
            f"{workdir} holds a run of another config ({listed}): give another --workdir, or the "
            "old values"
        )


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes workdir, and keeps other processes of this machine from training in it meanwhile."""
    held = f"another process is training in {workdir}: wait for it, or give another --workdir"
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(workdir / ".lock", held))
        except OSError as e:
            raise InputError(f"--workdir={workdir} cannot be written: {e.strerror}") from e
        yield
