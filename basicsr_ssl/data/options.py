"""Options of the datasets, typed: a key that is not here is an error, and every key says what it means."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from basicsr_ssl.data.catalog import BENCHMARKS
from basicsr_ssl.data.degradations import BD_KERNEL, BD_SIGMA, Degradation

_DEGRADATION = (f'How LR is made from GT: BI (MATLAB bicubic) or BD (Gaussian blur, sigma {BD_SIGMA}, '
                f'{BD_KERNEL}x{BD_KERNEL}, then every scale-th pixel); rounded to 8 bit.')


def quoted_names(names: Any) -> Any:
    """Raises ValueError for names that YAML takes for numbers."""
    if isinstance(names, list) and any(isinstance(name, int) for name in names):
        raise ValueError("names must be quoted in YAML, like '011': unquoted, 011 is the number 9")
    return names


class DatasetOptions(BaseModel):
    """Keys that every dataset section has."""

    model_config = ConfigDict(extra='forbid')

    name: str = Field(description='Name in logs and results.')
    type: str = Field(description='Dataset class in the registry.')
    phase: Literal['train', 'val', 'test'] = Field('train', description='Set from the section that the options are in.')
    scale: int = Field(4, ge=1, description='GT size over LR size; set from the top of the option file.')
    num_worker_per_gpu: int = Field(0, ge=0, description='Processes that load data for each training process; '
                                    '0 loads in the training process itself.')
    batch_size_per_gpu: int = Field(1, ge=1, description='Clips per training process and forward pass.')
    dataset_enlarge_ratio: int = Field(1, ge=1, description="BasicSR's key, accepted without effect: the training "
                                       'stream has no end, so there is nothing to enlarge.')
    prefetch_mode: Literal['cpu', 'cuda'] | None = Field(None, description="BasicSR's key, accepted: the workers "
                                                         'always load ahead.')
    num_prefetch_queue: int = Field(1, ge=1, description="BasicSR's key, accepted: the workers always load ahead.")
    pin_memory: bool = Field(True, description='Page-locked batches, for faster copies to a GPU; no effect without '
                             'CUDA.')
    persistent_workers: bool = Field(True, description="BasicSR's key, accepted: the training stream has no end, so "
                                     'its workers live as long as the run.')


class PatchOptions(DatasetOptions):
    """Keys of training sets that cut patches from their frames."""

    gt_size: int = Field(ge=1, description='Height and width of a GT patch in pixels; a multiple of scale.')
    use_hflip: bool = Field(True, description='Mirror at random.')
    use_rot: bool = Field(True, description='Turn by multiples of 90 degrees at random.')

    @model_validator(mode='after')
    def _check_size(self) -> Any:
        check_gt_size(self.gt_size, self.scale)
        return self


class DiskOptions(DatasetOptions):
    """Keys of this package's datasets."""

    io_backend: dict[str, Any] = Field({'type': 'disk'}, description="BasicSR's key: frames are read from files.")

    @field_validator('io_backend')
    @classmethod
    def _from_disk(cls, backend: dict[str, Any]) -> dict[str, Any]:
        if backend != {'type': 'disk'}:
            raise ValueError(f'this dataset reads plain files, so io_backend can only be {{type: disk}}, got '
                             f"{backend}. For lmdb use BasicSR's own datasets")
        return backend


class PhotographOptions(DiskOptions):
    """Keys that say which photographs to use."""

    photos: list[str] = Field([], description='Photographs that scikit-image ships inside its package, by name, e.g. '
                              'astronaut.')
    dataroot_gt: str | None = Field(None, description='Folder of photographs, searched with its subfolders.')

    @model_validator(mode='after')
    def _check_source(self) -> Any:
        if not self.photos and self.dataroot_gt is None:
            raise ValueError('no photographs: give photos (names shipped with scikit-image), dataroot_gt (a folder), '
                             'or both')
        return self


class PhotoSourceOptions(PhotographOptions):
    """Keys that say how the camera moves over photographs; those of a folder that are too small are left out."""

    num_frame: int = Field(ge=1, description='Frames per clip.')
    max_speed: float = Field(4.0, ge=0, description='Upper bound of the camera speed, in GT pixels per frame.')
    max_rotation: float = Field(2.0, ge=0, le=45, description='Upper bound of the camera roll to either side, in '
                                'degrees.')
    zoom: list[float] = Field([1.0, 1.25], min_length=2, max_length=2, description='Smallest and largest width of a GT '
                              'pixel, in pixels of the photograph; at least 1, since enlarging would blur GT.')
    degradation: Degradation = Field('BI', description=_DEGRADATION)

    @model_validator(mode='after')
    def _check_zoom(self) -> Any:
        if not 1 <= self.zoom[0] <= self.zoom[1]:
            raise ValueError(f'zoom must be [smallest, largest], both at least 1, got {self.zoom}')
        return self


class MovingPhotosOptions(PatchOptions, PhotoSourceOptions):
    """Keys of MovingPhotosDataset: clips from a camera that moves over photographs, other ones each time."""


class MovingPhotosTestOptions(PhotoSourceOptions):
    """Keys of MovingPhotosTestDataset: the same clips in every run."""

    gt_size: int | list[int] = Field(description='Size of a GT frame in pixels, one number or [height, width]; '
                                     'multiples of scale.')
    clips_per_photo: int = Field(1, ge=1, description='Clips made from each photograph.')
    seed: int = Field(0, description='Another seed gives other camera paths.')

    @model_validator(mode='after')
    def _check_size(self) -> MovingPhotosTestOptions:
        sizes = [self.gt_size] if isinstance(self.gt_size, int) else self.gt_size
        if len(sizes) not in (1, 2) or min(sizes) < 1:
            raise ValueError(f'gt_size must be one number or [height, width], got {self.gt_size}')
        for size in sizes:
            check_gt_size(size, self.scale)
        return self


class SyntheticFlowOptions(PhotographOptions):
    """Keys of SyntheticFlowDataset and SyntheticFlowTestDataset: pairs of frames with known motion, of photographs."""

    frame_size: list[int] = Field(min_length=2, max_length=2, description='Size of a frame in pixels, [height, width]; '
                                  'multiples of 32.')
    max_motion: float = Field(24.0, gt=0.1, description='Bound of the translation of camera and objects, in pixels.')
    max_objects: int = Field(4, ge=0, description='Objects before the background: at random up to this many.')

    @model_validator(mode='after')
    def _check_frame(self) -> SyntheticFlowOptions:
        if min(self.frame_size) < 32 or any(side % 32 for side in self.frame_size):
            raise ValueError(f'frame_size must be [height, width], multiples of 32, got {self.frame_size}')
        return self


class SyntheticFlowTestOptions(SyntheticFlowOptions):
    """Keys of SyntheticFlowTestDataset: the same pairs in every run."""

    pairs_per_photo: int = Field(1, ge=1, description='Pairs that have each photograph as their background.')
    seed: int = Field(0, description='Another seed gives other motion.')


class FrameSourceOptions(DiskOptions):
    """Keys that say where frames lie."""

    rounds_twice: ClassVar[bool] = False  # see `degrade`

    dataroot_gt: str = Field(description='Folder of GT clips; every folder inside that holds images is a clip.')
    dataroot_lq: str | None = Field(None, description='Folder of LR clips, laid out like dataroot_gt; null: LR is made '
                                    'from GT by degradation.')
    degradation: Degradation = Field('BI', description=_DEGRADATION + ' Only used without dataroot_lq.')


class ClipSourceOptions(FrameSourceOptions):
    """Keys that say where folders of frames lie, and which of them to use."""

    clips: list[str] | None = Field(None, description='Clips to use, as paths below dataroot_gt, quoted; null: all.')
    meta_info_file: str | None = Field(None, description='Text file with one clip per line, as the first word, instead '
                                       "of clips: BasicSR's meta files and Vimeo90K's lists both fit.")
    exclude: list[str] = Field([], description='Clips to leave out, e.g. those held out for validation.')

    _quote = field_validator('clips', 'exclude', mode='before')(quoted_names)

    @model_validator(mode='after')
    def _one_list(self) -> ClipSourceOptions:
        if self.clips is not None and self.meta_info_file is not None:
            raise ValueError('clips and meta_info_file both say which clips to use: keep one')
        return self


class ClipFoldersOptions(PatchOptions, ClipSourceOptions):
    """Keys of ClipFoldersDataset."""

    num_frame: int = Field(ge=1, description='Frames per clip.')
    interval_list: list[int] = Field([1], min_length=1, description='Steps between the frames used, one drawn at '
                                     'random for each sample.')
    random_reverse: bool = Field(False, description='Reverse time at random.')
    flip_sequence: bool = Field(False, description='Append the reversed clip, which doubles the number of frames.')

    @model_validator(mode='after')
    def _check_intervals(self) -> ClipFoldersOptions:
        if min(self.interval_list) < 1:
            raise ValueError(f'interval_list must hold numbers from 1 on, got {self.interval_list}')
        return self


class BenchmarkOptions(FrameSourceOptions):
    """Keys of test sets that may be a benchmark."""

    cache_data: bool = Field(False, description='Keep the frames in memory, as 8 bit, after their first use.')
    allow_partial: bool = Field(False, description='Test on what there is of the benchmark, and mark the results as '
                                'partial; as --allow-partial.')


class ClipFoldersTestOptions(BenchmarkOptions, ClipSourceOptions):
    """Keys of ClipFoldersTestDataset."""

    first_frame: int = Field(0, ge=0, description='Frames to skip at the start of each clip.')
    max_frames: int | None = Field(None, ge=1, description='Use at most this many frames of each clip; null: all.')
    benchmark: Literal['REDS4', 'Vimeo90K-T', 'Vid4', 'UDM10'] | None = Field(None, description=(
        'The published benchmark that the clips must be, in names, frames and sizes, or they are refused; null: any '
        'clips. Chooses its clips where they have fixed names, unless clips or meta_info_file is given.'))

    @model_validator(mode='after')
    def _named_by_a_list(self) -> ClipFoldersTestOptions:
        list_file = BENCHMARKS[self.benchmark].list_file if self.benchmark else None
        if list_file is not None and self.clips is None and self.meta_info_file is None:
            raise ValueError(f'the clips of {self.benchmark} are those that a list names: set meta_info_file to it, '
                             f'e.g. datasets/{list_file}')
        return self


class ImageFolderOptions(PatchOptions, DiskOptions):
    """Keys of ImageFolderDataset."""

    dataroot_gt: str = Field(description='Folder of GT images, searched with its subfolders.')
    degradation: Degradation = Field('BI', description=_DEGRADATION)
    exclude: list[str] = Field([], description='Names of images to leave out, without suffix.')
    cache_data: bool = Field(False, description='Keep all images in the memory of every worker, as 8 bit.')

    _quote = field_validator('exclude', mode='before')(quoted_names)


class ImageFolderTestOptions(BenchmarkOptions):
    """Keys of ImageFolderTestDataset."""

    rounds_twice: ClassVar[bool] = True
    first_frame: ClassVar[int] = 0
    max_frames: ClassVar[int | None] = None

    dataroot_gt: str = Field(description='Folder of GT images.')
    dataroot_lq: str | None = Field(None, description='Folder of LR images, named as filename_tmpl says; null: LR is '
                                    'made from GT by degradation.')
    filename_tmpl: str = Field('{}', description="BasicSR's key: name of an LR image, without suffix, where {} is that "
                               'of GT, e.g. {}x2.')
    exclude: list[str] = Field([], description='Names of images to leave out, without suffix.')
    benchmark: Literal['Set5', 'Set14', 'B100', 'Urban100', 'Manga109'] | None = Field(None, description=(
        'The published benchmark that the images must be, or they are refused; null: any images.'))

    _quote = field_validator('exclude', mode='before')(quoted_names)

    @model_validator(mode='after')
    def _check_template(self) -> ImageFolderTestOptions:
        if self.filename_tmpl.count('{}') != 1:
            raise ValueError(f'filename_tmpl must hold {{}} once, for the name of the GT image, got '
                             f'{self.filename_tmpl!r}')
        return self


class MixedOptions(DiskOptions):
    """Keys of MixedDataset."""

    parts: list[dict[str, Any]] = Field(min_length=1, description='Options of the datasets to mix; name, scale and '
                                        'phase are taken from here where absent. An optional weight is the share of '
                                        'the samples relative to a part of weight 1, the default.')

    @model_validator(mode='after')
    def _check(self) -> MixedOptions:
        self.parts = [self._checked(number, part) for number, part in enumerate(self.parts)]
        lengths = {part['name']: part.get('num_frame', 0) * (1 + part.get('flip_sequence', False))
                   for part in self.parts}
        sizes = {part['name']: part.get('gt_size') for part in self.parts}
        for key, values in (('num_frame (doubled by flip_sequence)', lengths), ('gt_size', sizes)):
            if len(set(values.values())) > 1:
                raise ValueError(f'the parts differ in {key}, so they cannot share a batch: {values}')
        return self

    def _checked(self, number: int, part: dict[str, Any]) -> dict[str, Any]:
        part = {'name': f'{self.name}/{number}', 'scale': self.scale, 'phase': self.phase, 'weight': 1.0, **part}
        weight = part.pop('weight')
        if not isinstance(weight, (int, float)) or weight <= 0:
            raise ValueError(f'parts[{number}].weight must be a number above 0, got {weight!r}')
        if part.get('type') not in DATASET_REGISTRY:
            raise ValueError(f'parts[{number}].type: no dataset named {part.get("type")!r}; there are '
                             f'{", ".join(sorted(DATASET_REGISTRY.keys()))}')
        options = getattr(DATASET_REGISTRY.get(part['type']), 'Options', None)
        if options is not None:  # BasicSR's own datasets have none
            part = options(**part).model_dump()
        return {**part, 'weight': float(weight)}


class IoBackend(BaseModel):
    """Where files are read from."""

    model_config = ConfigDict(extra='forbid')

    type: Literal['disk', 'lmdb'] = Field('disk', description='disk or lmdb.')


class BasicSRTrainingOptions(PatchOptions):
    """Keys that BasicSR's training sets share."""

    dataroot_gt: str = Field(description='Folder (or lmdb) of the GT frames.')
    dataroot_lq: str = Field(description='Folder (or lmdb) of the LR frames.')
    io_backend: IoBackend = Field(IoBackend(type='disk'), description='Where files are read from.')
    meta_info_file: str = Field(description='Text file that lists the clips.')
    random_reverse: bool = Field(False, description='Reverse time at random.')


class REDSRecurrentOptions(BasicSRTrainingOptions):
    """BasicSR's REDS training clips."""

    val_partition: Literal['REDS4', 'official'] = Field('REDS4', description='Clips left out of training.')
    test_mode: bool = Field(False, description='Read the left-out clips instead.')
    num_frame: int = Field(15, ge=1, le=100, description='Frames of a sample.')
    interval_list: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1, description=(
        'Steps between the frames used, one drawn at random for each sample.'))

    @model_validator(mode='after')
    def _check_clip(self) -> REDSRecurrentOptions:
        if self.num_frame * max(self.interval_list) > 100:
            raise ValueError(f'num_frame {self.num_frame} frames {max(self.interval_list)} apart do not fit into the '
                             '100 frames of a clip')
        return self


class Vimeo90KRecurrentOptions(BasicSRTrainingOptions):
    """BasicSR's Vimeo90K septuplets."""

    num_frame: int = Field(7, description='Without effect: a septuplet always has 7 frames.')
    interval_list: list[int] = Field([1], description='Without effect.')
    flip_sequence: bool = Field(False, description='Append the reversed clip: 14 frames instead of 7.')


class PairedImageOptions(PatchOptions):
    """BasicSR's pairs of GT and LR images."""

    task: ClassVar[str] = 'image'

    dataroot_gt: str = Field(description='Folder (or lmdb) of the GT images.')
    dataroot_lq: str = Field(description='Folder (or lmdb) of the LR images.')
    io_backend: IoBackend = Field(IoBackend(type='disk'), description='Where files are read from.')
    meta_info_file: str | None = Field(None, description='Text file that lists the images; null: all of the folder.')
    filename_tmpl: str = Field('{}', description='Name of an LR image, without suffix, where {} is that of GT.')


#: Of BasicSR's own training sets, which declare none (its test sets know three benchmarks by name, and hold all frames
#: in memory: ClipFoldersTestDataset takes their place); ours carry theirs as the class attribute `Options`.
BASICSR_OPTIONS: dict[str, type[DatasetOptions]] = {
    'PairedImageDataset': PairedImageOptions, 'REDSRecurrentDataset': REDSRecurrentOptions,
    'Vimeo90KRecurrentDataset': Vimeo90KRecurrentOptions}


def check_gt_size(gt_size: int, scale: int) -> None:
    """Raises ValueError, naming the nearest sizes that would pass, when ``gt_size`` is no multiple of ``scale``."""
    if gt_size % scale:
        lower = gt_size - gt_size % scale
        nearest = f'{lower} or {lower + scale}' if lower else f'{scale}'
        raise ValueError(f'gt_size {gt_size} is not a multiple of scale {scale}: use {nearest}')
