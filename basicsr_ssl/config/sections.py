"""The typed sections of an option file: every key with its type, range, default and meaning.

A section is a pydantic model that refuses unknown keys. Sections with a ``type`` that stands in one of BasicSR's
registries (networks, losses, datasets, metrics) take their keys from what is registered, see ``registered``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from basicsr_ssl.config.registered import FilePath, Section, check_typed, fail, stage_kinds
from basicsr_ssl.evaluation.result import COST_FIGURES, RESERVED
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.pruning.options import CompressionOptions, PruningOptions
from basicsr_ssl.terminal import suggest

# Marks a mapping in the JSON schema whose keys depend on its type.
TYPED = 'typed'
# In the name of a test, stands for a label of the network that is tested.
NETWORK_LABEL = '{network}'


def _auto_or_count(value: Any) -> Any:
    if value == 'auto' or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError('should be auto or a number of GPUs, 0 for the CPU')


def _name(value: str, parts: int = 1) -> str:
    if len(value.split('/')) > parts or not all(re.fullmatch(r'[\w+-][\w.+-]*', part) for part in value.split('/')):
        raise ValueError('should be usable as a folder name: letters, digits and _ . + -')
    return value


def _run_name(value: str) -> str:
    _name(value.replace(NETWORK_LABEL, 'network'), parts=2)
    return value


def _dataset_name(value: str) -> str:
    if not re.fullmatch(r'train|(val|test)(_\w+)?', value):
        message = 'should be train, val, val_2, ..., test or test_2, ...'
        raise ValueError(message + (suggest(value, ('train', 'val', 'test')) if len(value) < 8 else ''))
    return value


def _typed(kind: str, default: str, value: Any) -> Any:
    """``check_typed``, for what need not name its type."""
    return check_typed(kind, {'type': default, **value} if isinstance(value, dict) else value)


def _stage_kind(value: str) -> str:
    if value not in (kinds := stage_kinds()):
        raise ValueError(f'there is no stage {value!r}' + suggest(value, kinds))
    return value


def _ref(kind: str) -> WithJsonSchema:
    return WithJsonSchema({TYPED: kind})  # for `schema`, which puts the definitions there


Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0)]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Network = Annotated[dict[str, Any], BeforeValidator(partial(check_typed, 'arch')), _ref('arch')]
Loss = Annotated[dict[str, Any], BeforeValidator(partial(check_typed, 'loss')), _ref('loss')]
Metric = Annotated[dict[str, Any], BeforeValidator(partial(check_typed, 'metric')), _ref('metric')]
Method = Annotated[dict[str, Any], BeforeValidator(partial(_typed, 'method', 'SSL')), _ref('method')]
Optimizer = Annotated[dict[str, Any], BeforeValidator(partial(_typed, 'optimizer', 'Adam')), _ref('optimizer')]
Dataset = Annotated[dict[str, Any], BeforeValidator(partial(check_typed, 'dataset')), _ref('dataset')]


class Path(Section):
    """Files that a stage starts from, and where results go."""

    pretrain_network_g: FilePath | None = Field(None, description=(
        'network to start from: a .safetensors of this package, a BasicVSR file of BasicSR, mmagic or the SSL authors, '
        'zoo://NAME for an entry of options/zoo.yml, which is downloaded if needed, stage://NAME for the output of an '
        'earlier stage of the recipe (the default for all but the first stage), or bicubic'))
    pretrain_network_teacher: FilePath | None = Field(None, description=(
        'dense network whose hidden states temporal finetuning compares with; as pretrain_network_g'))
    param_key_g: str | None = Field(None, description='params or params_ema of a .pth; null prefers params_ema')
    reinitialise: bool = Field(False, description=(
        'take only the shape of pretrain_network_g, with new random weights: training from scratch; its flow network '
        'keeps its own'))
    resume_state: FilePath | None = Field(None, description='training state to resume from; see also --auto_resume')
    root: FilePath | None = Field(None, description=(
        'folder in which experiments/, results/ and tb_logger/ are made; null is the current one'))


class CosineAnnealingRestartLR(Section):
    """Cosine annealing with restarts."""

    type: Literal['CosineAnnealingRestartLR'] = Field(description="the scheduler's name")
    periods: list[Positive] = Field(min_length=1, description='iterations of each cycle; together at least total_iter')
    restart_weights: list[Factor] = Field([1.0], description='factor of the learning rate in each cycle')
    eta_min: Factor = Field(0.0, description='learning rate at the end of a cycle')

    @model_validator(mode='after')
    def _lengths(self) -> CosineAnnealingRestartLR:
        if len(self.periods) != len(self.restart_weights):
            fail(('restart_weights',), f'has {len(self.restart_weights)} entries, periods has {len(self.periods)}; '
                                       'each period needs one weight')
        return self


class MultiStepLR(Section):
    """Steps down by gamma at the milestones, with restarts; without milestones a constant learning rate."""

    type: Literal['MultiStepLR', 'MultiStepRestartLR'] = Field('MultiStepLR', description="the scheduler's name")
    milestones: list[Positive] = Field([], description='iterations after which the learning rate falls')
    gamma: Factor = Field(0.1, description='factor at each milestone')
    restarts: list[Count] = Field([0], description='iterations at which it starts again from the initial rate')
    restart_weights: list[Factor] = Field([1.0], description='factor of the initial rate at each restart')

    @model_validator(mode='after')
    def _lengths(self) -> MultiStepLR:
        if len(self.restarts) != len(self.restart_weights):
            fail(('restart_weights',), f'has {len(self.restart_weights)} entries, restarts has {len(self.restarts)}; '
                                       'each restart needs one weight')
        return self


SCHEDULERS: dict[str, type[Section]] = {'CosineAnnealingRestartLR': CosineAnnealingRestartLR,
                                        'MultiStepLR': MultiStepLR, 'MultiStepRestartLR': MultiStepLR}
Scheduler = Annotated[dict[str, Any], BeforeValidator(partial(check_typed, SCHEDULERS)), _ref('scheduler')]


class Train(Section):
    """Training of one stage."""

    total_iter: Count = Field(description='iterations')
    warmup_iter: int = Field(-1, ge=-1, description='iterations over which the learning rate rises linearly; -1: none')
    optim_g: Optimizer | None = Field(None, description='optimizer; needed as soon as total_iter is above 0')
    scheduler: Scheduler = Field(MultiStepLR.model_validate({}).model_dump(), description=(
        'learning rate; constant unless given'))
    ema_decay: Share = Field(0.0, description='decay of the moving average of the weights, which is then validated and '
                                              'saved; 0: none')
    fix_flow: Count | None = Field(None, description='the flow network is frozen before this iteration')
    flow_lr_mul: Factor = Field(1.0, description='factor on the learning rate of the flow network')
    gate_lr_mul: Factor = Field(1.0, description='factor on the learning rate of the gates')
    pixel_opt: Loss | None = Field(None, description='reconstruction loss; needed as soon as total_iter is above 0')
    temporal_opt: Loss | None = Field(None, description='loss on the hidden states; only in TemporalFinetuneModel')
    distill_opt: Loss | None = Field(None, description="loss between the network's and the teacher's output; only in "
                                                       'DistillationModel')
    amp: Literal['bf16', 'fp16'] | None = Field(None, description='mixed precision; null: full precision')
    accumulate: Positive = Field(1, description='batches whose gradients are added up for one iteration')
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = Field(None, description='greatest norm of the gradient')
    compile: bool = Field(False, description='compile the network with torch.compile')
    channels_last: bool | None = Field(None, description=(
        'keep feature maps in channels-last memory order; null: on a CPU, and on a GPU with amp'))

    @model_validator(mode='after')
    def _complete(self) -> Train:
        if self.total_iter > 0:
            for key in ('optim_g', 'pixel_opt'):
                if getattr(self, key) is None:
                    fail((key,), 'required key is missing', 'missing')
        periods = sum(self.scheduler.get('periods', [self.total_iter]))
        if periods < self.total_iter:
            fail(('scheduler', 'periods'), f'cover {periods} iterations, but total_iter is {self.total_iter}; '
                                           'BasicSR has no learning rate for the rest')
        return self


class Pruning(PruningOptions, Section):
    """What goes."""


class Compression(CompressionOptions, Section):
    """How a sparse network becomes a small one."""


class Val(Section):
    """Validation during training, and testing."""

    val_freq: Positive = Field(5000, description='iterations between two validations')
    save_img: bool = Field(False, description='save the frames as PNG')
    flip_seq: bool = Field(False, description='extend each clip by its mirror image in time')
    center_frame_only: bool = Field(False, description='measure the centre frame only (Vimeo90K-T)')
    pbar: bool = Field(True, description='show a progress bar')
    suffix: str | None = Field(None, description='ending of the names of saved frames')
    segment: Positive | None = Field(None, description=(
        'run clips in segments of this many frames, which bounds the memory of long ones and changes the result near '
        'the cuts; null: whole'))
    self_ensemble: bool = Field(False, description=(
        'run every clip or image in its 8 flips and turns by 90 degrees, and average what comes out, turned back: '
        '8 times the work'))
    overlap: Count = Field(0, description='frames that neighbouring segments share; each frame is taken from the '
                                          'segment that has more frames around it')
    keep_states: Literal['device', 'host'] = Field('device', description=(
        'where the hidden states of a clip wait while it is run: on the device, or, if they do not fit there, in host '
        'memory'))
    # YAML reads a bare off as false
    optimize: Annotated[Literal['off', 'auto'], BeforeValidator(lambda v: 'off' if v is False else v)] = Field(
        'auto', description=(
        'auto: in tests and reports, run and time the network in the form that measures fastest here, which is found '
        'before the first frame (optimize_network); it computes the same but for rounding'))
    metrics: dict[str, Metric] | None = Field(None, description='metrics by the name they are reported under')

    @field_validator('metrics')
    @classmethod
    def _names_left(cls, metrics: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = [name for name in metrics or () if name in RESERVED]
        if taken:
            raise ValueError(f'should not be named {", ".join(taken)}: results hold other figures under these names')
        return metrics

    @model_validator(mode='after')
    def _segments(self) -> Val:
        if self.segment is None and self.overlap:
            fail(('overlap',), 'is of segments; give segment, their length, too')
        if self.segment is not None and self.overlap >= self.segment:
            fail(('overlap',), f'{self.overlap} is not below segment, {self.segment}; segments would not advance')
        return self


class Wandb(Section):
    """Weights & Biases."""

    project: str | None = Field(None, description='project name; null: not used')
    resume_id: str | None = Field(None, description='run to continue')


class Logger(Section):
    """What is printed and saved, and how often."""

    print_freq: Positive = Field(100, description='iterations between two log lines')
    save_checkpoint_freq: Positive = Field(5000, description='iterations between two saved states')
    use_tb_logger: bool = Field(True, description='write TensorBoard logs')
    keep_states: Positive | None = Field(2, description='newest training states that are kept; null: all')
    wandb: Wandb | None = Field(None, description='Weights & Biases')


class DistParams(Section):
    """How processes talk to each other."""

    backend: Literal['nccl', 'gloo'] | None = Field(None, description='null: nccl with GPUs, gloo without')
    port: Positive = Field(29500, le=65535, description='port of the first process')


class Expect(Section):
    """A figure that the report enforces: a row's own value, its difference from, or its ratio to another row's."""

    row: str = Field(description='row that is judged')
    metric: str = Field(description=f'a metric of val:metrics, or {", ".join(COST_FIGURES)}')
    over: str | None = Field(None, description='row whose figure is subtracted')
    ratio_of: str | None = Field(None, description='row by whose figure is divided')
    at_least: float | None = Field(None, description='lower bound')
    at_most: float | None = Field(None, description='upper bound')
    value: float | None = Field(None, description='expected value, within the tolerance')
    tolerance: Factor | None = Field(None, description='greatest distance from value')

    @model_validator(mode='after')
    def _one_test(self) -> Expect:
        if self.over is not None and self.ratio_of is not None:
            fail(('ratio_of',), 'cannot stand beside over; choose the difference or the ratio')
        if (self.value is None) != (self.tolerance is None):
            fail(('tolerance',), 'belongs to value; give both or none')
        if self.at_least is None and self.at_most is None and self.value is None:
            fail((), 'expects nothing; give at_least, at_most, or value and tolerance')
        return self


class Report(Section):
    """The table at the end of a recipe."""

    rows: dict[str, FilePath] = Field(description='networks by row label: stage://NAME, zoo://NAME or a file')
    bicubic: bool = Field(True, description='add a row for bicubic upsampling')
    lr_size: Size = Field(list(LR_SIZE), description='LR frame (height, width) for MACs and milliseconds')
    crop: Positive = Field(32, description='side of the comparison crops, in LR pixels')
    expect: list[Expect] = Field([], description='figures that must be met, or the command fails')

    @model_validator(mode='after')
    def _rows_exist(self) -> Report:
        known = [*self.rows, *(['bicubic'] if self.bicubic else [])]
        for i, expect in enumerate(self.expect):
            for key in ('row', 'over', 'ratio_of'):
                row = getattr(expect, key)
                if row is not None and row not in known:
                    fail(('expect', str(i), key), f'there is no row {row!r}' + suggest(row, known))
        return self


class Common(Section):
    """What a single stage and a recipe share."""

    name: Annotated[str, AfterValidator(_run_name)] = Field(description=(
        'name of the experiment, and of its folder; of a test it may hold {network}, a label of the tested network'))
    scale: Positive = Field(4, description='upsampling factor')
    num_gpu: Annotated[Any, AfterValidator(_auto_or_count), WithJsonSchema(
        {'anyOf': [{'const': 'auto'}, {'type': 'integer', 'minimum': 0}]})] = Field(
        'auto', description='auto or a number; 0: CPU')
    manual_seed: Count = Field(0, description='seed of all random numbers')
    find_unused_parameters: bool = Field(False, description=(
        'let DistributedDataParallel look for parameters without gradient, as the flow network has on one-frame clips'))
    path: Path = Field(Path.model_validate({}), description='files to start from, and where results go')
    logger: Logger = Field(Logger.model_validate({}), description='what is printed and saved')
    dist_params: DistParams = Field(DistParams.model_validate({}), description='distributed training')
    auto_resume: bool = Field(False, description='resume from the newest state, as --auto_resume')
    debug: bool = Field(False, description='short intervals and no TensorBoard, as --debug')


class Stage(Common):
    """One stage: a complete option file without ``stages``."""

    model_type: Annotated[str, AfterValidator(_stage_kind), _ref('model')] = Field(description='what the stage does')
    network_g: Network | None = Field(None, description='network to build where no file gives one')
    datasets: dict[Annotated[str, AfterValidator(_dataset_name)], Dataset] = Field({}, description=(
        'train, val, val_2, ..., test, test_2, ...'))
    train: Train | None = Field(None, description='training')
    sparsity: Method | None = Field(None, description='method of sparsity learning')
    pruning: Pruning | None = Field(None, description='which units go')
    compression: Compression | None = Field(None, description='how a sparse network becomes a small one')
    val: Val | None = Field(None, description='validation; null: none')


class Recipe(Common):
    """An option file with ``stages``. The sections of a stage are its ingredients: complete only within a stage."""

    stages: dict[Annotated[str, AfterValidator(_name)], dict[str, Any]] = Field(min_length=1, description=(
        'stages by name, in order; each is merged over the top level'))
    report: Report | None = Field(None, description='table, picture and expected figures at the end')
    model_type: Any = None
    network_g: Any = None
    datasets: Any = None
    train: Any = None
    sparsity: Any = None
    pruning: Any = None
    compression: Any = None
    val: Any = None
