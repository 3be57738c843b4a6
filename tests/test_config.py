"""Option files: reading, merging, validation, and the files under options/."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from basicsr_ssl import config
from basicsr_ssl.config import OptionsError
from basicsr_ssl.config.files import leaves

ROOT = Path(__file__).parent.parent
OPTIONS = ROOT / 'options'
YAML = sorted(path for path in OPTIONS.rglob('*.yml') if path.name != 'zoo.yml')  # a list of networks, no options
FILES = [path for path in YAML if '_base_' not in path.parts]
RECIPES = OPTIONS / 'train' / 'BasicVSR'

STAGE = yaml.safe_load('''
name: tiny
model_type: SparsityLearningModel
network_g: {type: PrunableBasicVSR, num_feat: 8, num_block: 1, tail_feat: 8, flow: none}
datasets:
  train: {name: photos, type: MovingPhotosDataset, photos: [astronaut], num_frame: 3, gt_size: 64}
  val: {name: held_out, type: MovingPhotosTestDataset, photos: [chelsea], num_frame: 3, gt_size: 64}
path: {root: null}
train:
  total_iter: 20
  optim_g: {type: Adam, lr: 1.0e-3}
  scheduler: {type: CosineAnnealingRestartLR, periods: [20], restart_weights: [1], eta_min: 1.0e-7}
  pixel_opt: {type: CharbonnierLoss, loss_weight: 1.0}
sparsity: {select_iter: 0}
pruning: {ratio: 0.5, score: l1}
val: {val_freq: 10, metrics: {psnr: {type: calculate_psnr, crop_border: 0}}}
logger: {print_freq: 5, wandb: {project: null}}
dist_params: {port: 29501}
''')

RECIPE = yaml.safe_load('''
name: recipe
datasets:
  train: {name: photos, type: MovingPhotosDataset, photos: [astronaut], num_frame: 3, gt_size: 64}
  test: {name: held_out, type: MovingPhotosTestDataset, photos: [chelsea], num_frame: 3, gt_size: 64}
train:
  optim_g: {lr: 1.0e-3}
  pixel_opt: {type: CharbonnierLoss}
pruning: {ratio: 0.5, score: l1}
val: {metrics: {psnr: {type: calculate_psnr, crop_border: 0}}}
stages:
  dense:
    model_type: ReconstructionModel
    network_g: {type: PrunableBasicVSR, num_feat: 8, num_block: 1, tail_feat: 8, flow: none}
    train: {total_iter: 30}
  sparsity: {model_type: SparsityLearningModel, train: {total_iter: 20}, sparsity: {interval: 1}}
  prune: {model_type: PruningModel}
  finetune:
    model_type: TemporalFinetuneModel
    path: {pretrain_network_teacher: stage://dense}
    train: {total_iter: 10, temporal_opt: {type: TemporalStateLoss}}
report:
  rows: {dense: stage://dense, compact: stage://finetune}
  expect: [{row: compact, metric: macs, ratio_of: dense, at_most: 0.5}]
''')


SPARSITY = {'type': 'SSL', 'select_iter': 0, 'interval': 5, 'delta': 1e-4, 'ceiling': 0.1}


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a tree with the value at ``a:b:c`` replaced."""
    tree = copy.deepcopy(tree)
    here: Any = tree
    *way, last = path.split(':')
    for key in way:
        here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
    here[last] = value
    return tree


def without(tree: dict[str, Any], path: str) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    here: Any = tree
    *way, last = path.split(':')
    for key in way:
        here = here[key]
    del here[last]
    return tree


@pytest.fixture
def load(tmp_path):
    """Write a tree (or YAML text) to a file and load it."""
    def write_and_load(content: dict[str, Any] | str, **arguments: Any) -> dict[str, Any]:
        file = tmp_path / 'opt.yml'
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return config.load_options(file, **arguments)
    return write_and_load


def errors_of(load: Any, content: dict[str, Any] | str, **arguments: Any) -> dict[str, str]:
    """Key path to message of all problems."""
    with pytest.raises(OptionsError) as caught:
        load(content, **arguments)
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
        assert problem.file, problem
    return {':'.join(problem.keys): problem.message for problem in caught.value.problems}


# ------------------------------------------------------------------------------------------- files under options/

def names(path: Path) -> str:
    return str(path.relative_to(OPTIONS))


@pytest.mark.parametrize('path', FILES, ids=names)
def test_option_file_loads_and_all_stages_resolve(path, tmp_path):
    options = config.load_options(path)
    assert options['name']
    stages = config.stage_options(options) if 'stages' in options else {'': options}
    for stage in stages.values():
        assert stage['network_g'] or stage['path']['pretrain_network_g']
        assert len(config.digest(stage)) == 64
        config.save_options(stage, tmp_path / 'stage.yml')
        assert config.load_options(tmp_path / 'stage.yml') == stage
    config.save_options(options, tmp_path / 'options.yml')
    again = config.load_options(tmp_path / 'options.yml')
    assert again == options
    if 'stages' in options:
        assert config.stage_options(again) == stages


@pytest.mark.parametrize('path', YAML, ids=names)
def test_option_file_names_its_schema(path):
    first = path.read_text().splitlines()[0]
    found = re.fullmatch(r'# yaml-language-server: \$schema=(\S+)', first)
    assert found, first
    assert (path.parent / found[1]).resolve() == OPTIONS / 'schema.json'


@pytest.mark.parametrize('path', sorted(RECIPES.glob('*.yml')), ids=names)
def test_recipe_is_named_as_its_file_and_shares_no_output(path):
    assert f'train_{config.load_options(path)["name"]}' == path.stem


def test_schema_is_up_to_date():
    committed = json.loads((OPTIONS / 'schema.json').read_text())
    assert committed == config.json_schema(), 'run: python -m basicsr_ssl schema > options/schema.json'


def test_schema_knows_every_key_of_a_recipe():
    schema = config.json_schema()
    assert {'_base_', 'stages', 'report', *STAGE} <= set(schema['properties'])
    assert 'required' not in schema
    assert set(schema['$defs']['SSL']['properties']) == {*SPARSITY, '_replace_'}
    assert 'num_block' in schema['$defs']['PrunableBasicVSR']['properties']
    assert all('description' in field for key, field in schema['$defs']['Train']['properties'].items())


def test_reds_recipe_is_the_papers():
    options = config.load_options(RECIPES / 'train_BasicVSR_REDS_l1.yml')
    stages = config.stage_options(options)
    assert [(name, stage['name'], stage['model_type'], stage['path']['pretrain_network_g'])
            for name, stage in stages.items()] == [
        ('sparsity', 'BasicVSR_REDS_l1/sparsity', 'SparsityLearningModel', 'zoo://BasicVSR_REDS4'),
        ('pruning', 'BasicVSR_REDS_l1/pruning', 'PruningModel', 'stage://sparsity'),
        ('finetune', 'BasicVSR_REDS_l1/finetune', 'TemporalFinetuneModel', 'stage://pruning')]
    sparsity, pruning, finetune = stages.values()

    assert sparsity['sparsity'] == SPARSITY
    ramp = sparsity['sparsity']['interval'] * round(sparsity['sparsity']['ceiling'] / sparsity['sparsity']['delta'])
    assert ramp == 5000 and sparsity['train']['total_iter'] == ramp + 14000
    assert sparsity['train']['scheduler'] == {'type': 'MultiStepLR', 'milestones': [], 'gamma': 0.1, 'restarts': [0],
                                              'restart_weights': [1.0]}
    assert sparsity['pruning']['score'] == 'l1'
    # the pruning stage removes what sparsity learning selected only if both sections agree
    assert pruning['pruning'] == sparsity['pruning']
    assert pruning['pruning']['budget'] == 'macs' and pruning['pruning']['lr_size'] == [180, 320]
    assert 337.8 * (1 - pruning['pruning']['ratio']) == pytest.approx(92, abs=0.1)
    assert pruning['train']['total_iter'] == 0 and pruning['sparsity'] is None

    train = finetune['train']
    assert train['optim_g'] == {'type': 'Adam', 'lr': 2e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]}
    assert train['scheduler'] == {'type': 'CosineAnnealingRestartLR', 'periods': [300000], 'restart_weights': [1],
                                  'eta_min': 1e-7}
    assert (train['total_iter'], train['ema_decay'], train['fix_flow'], train['flow_lr_mul']) == (
        300000, 0.999, 5000, 0.125)
    assert train['pixel_opt']['type'] == 'CharbonnierLoss' and train['temporal_opt']['type'] == 'TemporalStateLoss'
    assert finetune['path']['pretrain_network_teacher'] == sparsity['path']['pretrain_network_g']
    assert finetune['pruning'] is None
    data = finetune['datasets']['train']
    assert (data['batch_size_per_gpu'], data['gt_size'], data['num_frame'], data['val_partition']) == (
        1, 256, 15, 'REDS4')
    assert finetune['datasets']['test']['clips'] == ['000', '011', '015', '020']
    assert not any(metric['test_y_channel'] for metric in finetune['val']['metrics'].values())
    assert list(options['report']['rows']) == ['dense', 'compact']


def test_gate_recipe_lets_the_gates_train_first():
    sparsity = config.stage_options(config.load_options(RECIPES / 'train_BasicVSR_REDS_BIx4.yml'))['sparsity']
    assert sparsity['pruning']['score'] == 'gate'
    assert sparsity['train']['total_iter'] - sparsity['sparsity']['select_iter'] == 19000


@pytest.mark.parametrize('degradation', ['BIx4', 'BDx4'])
def test_vimeo_recipes_measure_vid4_on_y(degradation):
    stages = config.stage_options(config.load_options(RECIPES / f'train_BasicVSR_Vimeo90K_{degradation}.yml'))
    stage = stages['finetune']
    assert stage['datasets']['train']['flip_sequence'] is True and stage['datasets']['train']['gt_size'] == 256
    for data in (stage['datasets']['train'], stage['datasets']['val']):
        assert data['dataroot_lq'] is None and data['degradation'] == degradation[:2]
    assert all(metric['test_y_channel'] for metric in stage['val']['metrics'].values())


def test_baseline_prunes_as_ssl_does():
    ssl = config.stage_options(config.load_options(RECIPES / 'train_BasicVSR_REDS_l1.yml'))
    baseline = config.stage_options(config.load_options(RECIPES / 'train_BasicVSR_REDS_BIx4_oneshot_l1.yml'))
    assert baseline['pruning']['pruning'] == ssl['pruning']['pruning']
    assert {**ssl['finetune']['train'], 'temporal_opt': None} == baseline['finetune']['train']
    assert baseline['finetune']['model_type'] == 'ReconstructionModel'


def test_unidirectional_recipe_starts_from_what_the_dense_recipe_makes():
    dense = config.load_options(RECIPES / 'train_BasicVSRuni_REDS_dense_BIx4.yml')
    assert dense['network_g']['bidirectional'] is False
    sparsity = config.stage_options(config.load_options(RECIPES / 'train_BasicVSRuni_REDS_l1.yml'))['sparsity']
    assert sparsity['path']['pretrain_network_g'] == f'experiments/{dense["name"]}/models/net_g_latest.safetensors'
    assert sparsity['network_g']['bidirectional'] is False


def test_meta_info_lists_reds_in_basicsrs_format():
    text = (ROOT / 'datasets' / 'meta_info' / 'meta_info_REDS_GT.txt').read_text()
    rows = [line.split(' ') for line in text.splitlines()]  # as BasicSR parses it
    assert [row[0] for row in rows] == [f'{clip:03d}' for clip in range(270)]
    assert all(row[1:] == ['100', '(720,1280,3)'] for row in rows)


# ------------------------------------------------------------------------------------------------- unknown names

MISSPELT = {
    'manual_sede': 'manual_seed', 'network_g:num_blok': 'num_block', 'datasets:train:gtsize': 'gt_size',
    'datasets:val:clips_per_phot': 'clips_per_photo', 'path:pretrain_network': 'pretrain_network_g',
    'train:total_iters': 'total_iter', 'train:optim_g:lrr': 'lr', 'train:scheduler:etamin': 'eta_min',
    'train:pixel_opt:lossweight': 'loss_weight', 'sparsity:intervall': 'interval', 'pruning:ration': 'ratio',
    'val:metric': 'metrics', 'val:metrics:psnr:cropborder': 'crop_border', 'logger:print_frq': 'print_freq',
    'logger:wandb:projekt': 'project', 'dist_params:prot': 'port'}


@pytest.mark.parametrize(('path', 'right'), MISSPELT.items(), ids=list(MISSPELT))
def test_misspelt_key_is_refused_with_the_right_one(load, path, right):
    assert errors_of(load, put(STAGE, path, 1))[path] == f'unknown key; did you mean {right!r}?'


REPORT_MISSPELT = {'report:row': 'rows', 'report:expect:0:metrik': 'metric',
                   'stages:sparsity:sparsity:deltaa': 'delta', 'stages:prune:pruning:scop': 'scope',
                   'stages:finetune:train:temporal_opt:step_wight': 'step_weight', 'train:amq': 'amp'}


@pytest.mark.parametrize(('path', 'right'), REPORT_MISSPELT.items(), ids=list(REPORT_MISSPELT))
def test_misspelt_key_in_a_recipe_is_refused_where_it_stands(load, path, right):
    assert errors_of(load, put(RECIPE, path, 1)) == {path: f'unknown key; did you mean {right!r}?'}


@pytest.mark.parametrize(('dataset', 'wrong', 'right'), [
    ({'type': 'REDSRecurrentDataset', 'dataroot_gt': 'a', 'dataroot_lq': 'b', 'meta_info_file': 'c', 'gt_size': 64},
     'val_partitions', 'val_partition'),
    ({'type': 'Vimeo90KRecurrentDataset', 'dataroot_gt': 'a', 'dataroot_lq': 'b', 'meta_info_file': 'c',
      'gt_size': 64}, 'flip_sequenc', 'flip_sequence'),
    ({'type': 'ClipFoldersDataset', 'dataroot_gt': 'a', 'num_frame': 3, 'gt_size': 64}, 'interval_lst',
     'interval_list'),
    ({'type': 'ClipFoldersTestDataset', 'dataroot_gt': 'a'}, 'max_frame', 'max_frames'),
], ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_keys_of_datasets_are_those_of_their_class(load, dataset, wrong, right):
    key = 'test' if 'Test' in dataset['type'] else 'val_2'
    good = put(STAGE, f'datasets:{key}', {'name': 'extra', **dataset})
    assert load(good)['datasets'][key]['phase'] == key.split('_')[0]
    assert errors_of(load, put(good, f'datasets:{key}:{wrong}', 1)) == {
        f'datasets:{key}:{wrong}': f'unknown key; did you mean {right!r}?'}


def test_parts_of_a_mixture_are_checked_one_by_one(load):
    part = {'type': 'ClipFoldersDataset', 'dataroot_gt': 'a', 'num_frame': 3, 'gt_size': 64, 'weight': 2}
    mixture = put(STAGE, 'datasets:train', {'name': 'mix', 'type': 'MixedDataset', 'parts': [part, {**part}]})
    parts = load(mixture)['datasets']['train']['parts']
    assert [(p['name'], p['weight'], p['num_frame'], p['scale']) for p in parts] == [
        ('mix/0', 2, 3, 4), ('mix/1', 2, 3, 4)]
    assert errors_of(load, put(mixture, 'datasets:train:parts:1:gt_sice', 1)) == {
        'datasets:train:parts:1:gt_sice': "unknown key; did you mean 'gt_size'?"}


@pytest.mark.parametrize(('path', 'wrong', 'right'), [
    ('model_type', 'SparsityLearnModel', 'SparsityLearningModel'),
    ('network_g:type', 'PrunableBasicVRS', 'PrunableBasicVSR'),
    ('datasets:train:type', 'MovingPhotoDataset', 'MovingPhotosDataset'),
    ('train:pixel_opt:type', 'CharbonierLoss', 'CharbonnierLoss'),
    ('train:scheduler:type', 'CosineAnnealingLR', 'CosineAnnealingRestartLR'),
    ('train:optim_g:type', 'Adamm', 'Adam'),
    ('val:metrics:psnr:type', 'calculate_pnsr', 'calculate_psnr'),
    ('pruning:score', 'gates', 'gate')])
def test_unknown_names_get_a_suggestion(load, path, wrong, right):
    assert f'did you mean {right!r}?' in errors_of(load, put(STAGE, path, wrong))[path]


# -------------------------------------------------------------------------------------------------- wrong values

@pytest.mark.parametrize(('path', 'value', 'message'), [
    ('pruning:ratio', 1.0, 'must be in [0, 1)'),
    ('pruning:ratio', -0.1, 'at least 0 and below 1; got -0.1'),
    ('train:total_iter', -1, 'greater than or equal to 0'),
    ('train:total_iter', 'many', 'valid integer'),
    ('train:optim_g:betas', [0.9], 'at least 2 items'),
    ('train:amp', 'fp8', "'bf16' or 'fp16'"),
    ('num_gpu', -1, 'auto or a number'),
    ('num_gpu', 'all', 'auto or a number'),
    ('name', 'a b', 'folder name'),
    ('name', '../up', 'folder name'),
    ('path:root', 3, 'write it in quotes'),
    ('datasets:train', 'REDS', 'mapping'),
    ('datasets:trane', STAGE['datasets']['train'], "did you mean 'train'?"),
    ('datasets:train:gt_size', 62, 'not a multiple of scale 4: use 60 or 64'),
    ('datasets:train:scale', 2, 'should be 4'),
    ('network_g:scale', 2, 'scale is 4'),
    ('network_g:act', 'gelu', "'lrelu' or 'relu'"),
    ('sparsity:select_iter', 20, 'nothing would ever be selected'),
    ('sparsity', 'on', 'mapping'),
])
def test_wrong_value_is_refused(load, path, value, message):
    found = errors_of(load, put(STAGE, path, value))
    # a condition on the whole section is reported at the section
    assert message in found.get(path, found.get(path.rpartition(':')[0], '')), found


@pytest.mark.parametrize(('scheduler', 'key', 'message'), [
    ({'type': 'CosineAnnealingRestartLR', 'periods': [10, 9], 'restart_weights': [1, 1]}, 'periods',
     'cover 19 iterations, but total_iter is 20'),
    ({'type': 'CosineAnnealingRestartLR', 'periods': [10, 10]}, 'restart_weights', 'periods has 2'),
    ({'type': 'MultiStepLR', 'restarts': [0, 5]}, 'restart_weights', 'restarts has 2'),
    ({'type': 'CosineAnnealingRestartLR'}, 'periods', 'required key is missing'),
])
def test_schedulers_that_basicsr_would_crash_on(load, scheduler, key, message):
    assert message in errors_of(load, put(STAGE, 'train:scheduler', scheduler))[f'train:scheduler:{key}']


def test_basicsr_has_no_learning_rate_beyond_its_periods():
    # the reason for the check above; the last step asks for position total_iter - 1
    from basicsr.models.lr_scheduler import get_position_from_periods
    assert get_position_from_periods(20, [10, 20]) == 1
    assert get_position_from_periods(20, [10, 19]) is None


@pytest.mark.parametrize('missing', ['name', 'model_type', 'train', 'sparsity', 'pruning', 'datasets:train',
                                     'train:optim_g', 'train:pixel_opt', 'train:total_iter', 'pruning:ratio',
                                     'datasets:train:gt_size', 'network_g:type', 'val:metrics:psnr:crop_border'])
def test_missing_keys_are_named(load, missing):
    found = errors_of(load, without(STAGE, missing))
    assert re.search('missing|needs', found[missing]), found


def test_stage_without_a_network_is_refused(load):
    assert 'no network' in errors_of(load, without(STAGE, 'network_g'))['path:pretrain_network_g']


def test_unquoted_clip_names_are_refused(load):
    # YAML reads 011 as the octal number 9
    text = yaml.safe_dump(STAGE) + 'stages: null\n'
    text = text.replace('photos:\n    - chelsea', 'clips: [000, 011]\n    dataroot_gt: a').replace(
        'MovingPhotosTestDataset', 'ClipFoldersTestDataset')
    assert 'quoted' in errors_of(load, text)['datasets:val:clips']


def test_duplicate_dataset_names_are_refused_within_a_phase(load):
    val = STAGE['datasets']['val']
    assert load(put(STAGE, 'datasets:test', val))['datasets']['test']['phase'] == 'test'
    assert 'datasets:val;' in errors_of(load, put(STAGE, 'datasets:val_2', val))['datasets:val_2:name']


def test_gate_score_needs_trained_gates(load):
    by_gate = put(STAGE, 'pruning:score', 'gate')
    assert 'select_iter' in errors_of(load, by_gate)['pruning:score']
    assert load(put(by_gate, 'sparsity:select_iter', 5))['pruning']['score'] == 'gate'
    # a file may hold trained gates, also a .pth, of the SSL authors; the published dense networks do not
    for file in ('gated.safetensors', 'net_g_5000.pth'):
        assert load(put(by_gate, 'path:pretrain_network_g', file))['sparsity']['select_iter'] == 0
    assert 'pruning:score' in errors_of(load, put(by_gate, 'path:pretrain_network_g', 'zoo://BasicVSR_REDS4'))


def test_which_scores_a_method_can_rank_by(load):
    def stage_of(sparsity, score, total=20000):
        tree = put(put(put(STAGE, 'sparsity', sparsity), 'pruning:score', score), 'train:total_iter', total)
        return put(tree, 'train:scheduler:periods', [total])

    assert load(stage_of({'type': 'ASSL', 'select_iter': 0}, 'gate'))  # norms differ from the start
    assert load(stage_of({'type': 'ASSL'}, 'gate', 17261))
    assert 'is 17260, but train:total_iter is 17260' in errors_of(
        load, stage_of({'type': 'ASSL'}, 'gate', 17260))['sparsity:select_iter']
    assert 'SRP works without' in errors_of(load, stage_of({'type': 'SRP'}, 'gate'))['pruning:score']
    assert load(stage_of({'type': 'SRP'}, 'random'))


def test_pruning_by_gate_needs_sparsity_learning(load):
    by_gate = put(put(RECIPE, 'stages:prune:pruning', {'score': 'gate'}), 'stages:sparsity:pruning', {'score': 'l1'})
    assert config.stage_options(load(by_gate))['prune']['pruning']['score'] == 'gate'
    by_gate['stages']['prune']['path'] = {'pretrain_network_g': 'stage://dense'}
    assert 'stage://dense has none' in errors_of(load, by_gate)['stages:prune:pruning:score']


def test_all_errors_are_shown_at_once(load, tmp_path):
    wrong = put(put(put(STAGE, 'train:optim_g:lrr', 1), 'pruning:ratio', 2), 'datasets:val_2', STAGE['datasets']['val'])
    wrong = put(without(wrong, 'network_g'), 'train:scheduler:periods', [1])
    found = errors_of(load, wrong, overrides=['logger:prnt_freq=1', 'oops'])
    assert set(found) == {'train:optim_g:lrr', 'pruning:ratio', 'datasets:val_2:name', 'path:pretrain_network_g',
                          'logger:prnt_freq', ''}


def test_sections_that_a_stage_does_not_use_are_refused_unless_inherited(load):
    finetune = without(put(STAGE, 'model_type', 'ReconstructionModel'), 'sparsity')
    assert 'does not use' in errors_of(load, finetune)['pruning']
    assert load(without(finetune, 'pruning'))['pruning'] is None
    inside = put(RECIPE, 'stages:finetune:pruning', {'ratio': 0.1})
    assert 'does not use' in errors_of(load, inside)['stages:finetune:pruning']


def test_pruning_stage_needs_no_training(load):
    pruning = {key: STAGE[key] for key in ('name', 'network_g', 'pruning')}
    options = load({**pruning, 'model_type': 'PruningModel'})
    assert options['train']['total_iter'] == 0 and options['datasets'] == {}


def test_file_that_only_tests_needs_no_training(load):
    test = {key: STAGE[key] for key in ('name', 'val')}
    test |= {'model_type': 'ReconstructionModel', 'path': {'pretrain_network_g': 'net.safetensors'},
             'datasets': {'test': STAGE['datasets']['val']}}
    assert load(test)['train'] is None
    assert 'val:metrics' in errors_of(load, without(test, 'val'))['val']


def test_temporal_loss_needs_a_teacher(load):
    key = 'stages:finetune:path:pretrain_network_teacher'
    assert 'dense network' in errors_of(load, put(RECIPE, key, None))[key]
    plain = without(without(RECIPE, 'stages:finetune:train:temporal_opt'), 'stages:finetune:path')
    assert config.stage_options(load(plain))['finetune']['train']['temporal_opt'] is None
    other = put(RECIPE, 'stages:finetune:model_type', 'ReconstructionModel')
    assert 'use TemporalFinetuneModel' in errors_of(load, other)['stages:finetune:train:temporal_opt']


# -------------------------------------------------------------------------------------------------------- reading

def test_floats_as_basicsr_and_people_write_them(load):
    text = yaml.safe_dump(without(STAGE, 'train')) + '''
train:
  total_iter: !!float 2e1
  ema_decay: ~
  optim_g: {lr: 2e-4, weight_decay: !!float 1e-5, betas: [9e-1, .99]}
  scheduler: {type: MultiStepLR, milestones: [!!float 1e1], gamma: 5E-1}
  pixel_opt: {type: CharbonnierLoss, eps: 1e-12, loss_weight: "1e0"}
'''
    train = load(text.replace('  ema_decay: ~\n', ''))['train']
    assert train['total_iter'] == 20 and isinstance(train['total_iter'], int)
    assert train['optim_g'] == {'type': 'Adam', 'lr': 2e-4, 'weight_decay': 1e-5, 'betas': [0.9, 0.99]}
    assert train['scheduler']['milestones'] == [10] and train['scheduler']['gamma'] == 0.5
    assert train['pixel_opt']['eps'] == 1e-12  # BasicSR's classes have no types: the reader must get it right
    assert 'valid number' in errors_of(load, text)['train:ema_decay']


@pytest.mark.parametrize(('text', 'message'), [
    ('name: [unclosed', 'no valid YAML'), ('', 'key: value'), ('- a\n- b', 'key: value'),
    ('name: a\nscale: 4\nname: b', "'name' is written twice"), ('!!python/object:os.system {}', 'no valid YAML')])
def test_files_that_are_no_options(load, tmp_path, text, message):
    with pytest.raises(OptionsError, match=re.escape(message)) as caught:
        load(text)
    assert str(tmp_path / 'opt.yml') in str(caught.value)


def test_missing_file():
    with pytest.raises(OptionsError, match=r'there is no option file nowhere\.yml'):
        config.load_options('nowhere.yml')


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f'{name}.yml').parent.mkdir(exist_ok=True)
        (folder / f'{name}.yml').write_text(text)


def test_bases_are_merged_in_order_and_own_keys_win(tmp_path):
    (tmp_path / 'sub').mkdir()
    write(tmp_path / 'sub', common=yaml.safe_dump(STAGE),
          faster='train: {optim_g: {lr: 1.0e-2}}\nlogger: {print_freq: 7}')
    write(tmp_path, own='_base_: [sub/common.yml, sub/faster.yml]\n'
                        'logger: {save_checkpoint_freq: 9}\ndatasets: {train: {photos: [coffee, rocket]}}')
    write(tmp_path, child='_base_: own.yml\nname: child')
    options = config.load_options(tmp_path / 'child.yml')
    assert options['name'] == 'child'
    assert options['train']['optim_g']['lr'] == 1e-2 and options['train']['total_iter'] == 20
    assert (options['logger']['print_freq'], options['logger']['save_checkpoint_freq']) == (7, 9)
    assert options['datasets']['train']['photos'] == ['coffee', 'rocket']  # lists are replaced
    assert options['datasets']['train']['gt_size'] == 64


def test_replace_takes_the_place_of_the_bases_mapping(tmp_path):
    write(tmp_path, base=yaml.safe_dump(STAGE))
    write(tmp_path, merged='_base_: base.yml\ntrain: {scheduler: {type: MultiStepLR, milestones: [5]}}')
    with pytest.raises(OptionsError, match='periods: unknown key'):
        config.load_options(tmp_path / 'merged.yml')
    write(tmp_path, replaced='_base_: base.yml\n'
                             'train: {scheduler: {_replace_: true, type: MultiStepLR, milestones: [5]}}')
    options = config.load_options(tmp_path / 'replaced.yml')
    assert options['train']['scheduler']['milestones'] == [5] and options['train']['total_iter'] == 20
    assert '_replace_' not in json.dumps(options)
    write(tmp_path, again='_base_: replaced.yml\ntrain: {scheduler: {gamma: 0.3}}')
    assert config.load_options(tmp_path / 'again.yml')['train']['scheduler']['gamma'] == 0.3


def test_replace_in_a_stage_works_on_the_top_level(load, tmp_path):
    recipe = put(RECIPE, 'train:scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [30]})
    recipe = put(recipe, 'stages:sparsity:train:scheduler', {'_replace_': True, 'type': 'MultiStepLR'})
    options = load(recipe)
    assert config.stage_options(options)['sparsity']['train']['scheduler']['type'] == 'MultiStepLR'
    assert config.stage_options(options)['finetune']['train']['scheduler']['periods'] == [30]
    config.save_options(options, tmp_path / 'saved.yml')
    assert config.stage_options(config.load_options(tmp_path / 'saved.yml')) == config.stage_options(options)


def test_circular_and_missing_bases(tmp_path):
    write(tmp_path, a='_base_: b.yml', b='_base_: [a.yml]', c='_base_: d.yml', d2='_base_: 3')
    with pytest.raises(OptionsError, match=r'in a circle: .*a\.yml -> .*b\.yml -> .*a\.yml'):
        config.load_options(tmp_path / 'a.yml')
    with pytest.raises(OptionsError, match=r'c\.yml: _base_: .*d\.yml does not exist'):
        config.load_options(tmp_path / 'c.yml')
    with pytest.raises(OptionsError, match='a file or a list of files'):
        config.load_options(tmp_path / 'd2.yml')


def test_errors_name_the_file_that_wrote_the_key(tmp_path):
    write(tmp_path, base=yaml.safe_dump(put(STAGE, 'logger:prnt_freq', 1)), own='_base_: base.yml\nscal: 2')
    with pytest.raises(OptionsError) as caught:
        config.load_options(tmp_path / 'own.yml', overrides=['val:frq=1'])
    where = {':'.join(problem.keys): problem.file for problem in caught.value.problems}
    assert where == {'logger:prnt_freq': str(tmp_path / 'base.yml'), 'scal': str(tmp_path / 'own.yml'),
                     'val:frq': '--force_yml'}


# ------------------------------------------------------------------------------------------------------ environment

@pytest.mark.parametrize(('text', 'value'), [
    ('${ROOT:-datasets}/GT', 'data/GT'), ('${UNSET:-datasets}/GT', 'datasets/GT'), ('${EMPTY:-datasets}', 'datasets'),
    ('${ROOT}/${ROOT}', 'data/data'), ('${EMPTY:-}x', 'x'), ('${UNSET:-a: b}', 'a: b'), ('$ROOT {A}', '$ROOT {A}'),
    ('${NESTED}', '${ROOT}')])
def test_variables_of_the_environment(load, monkeypatch, text, value):
    for name, content in (('ROOT', 'data'), ('EMPTY', ''), ('NESTED', '${ROOT}')):
        monkeypatch.setenv(name, content)
    monkeypatch.delenv('UNSET', raising=False)
    assert load(put(STAGE, 'datasets:train:photos', [text]))['datasets']['train']['photos'] == [value]
    assert load(STAGE, overrides=[f'val:suffix="{text}"'])['val']['suffix'] == value


def test_variables_without_a_value_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv('UNSET', raising=False)
    monkeypatch.setenv('EMPTY', '')
    write(tmp_path, base=yaml.safe_dump(put(STAGE, 'val:suffix', '${UNSET}')),
          own="_base_: base.yml\npath: {root: '${EMPTY}/x', pretrain_network_g: '${EMPTY-x}'}")
    with pytest.raises(OptionsError) as caught:
        config.load_options(tmp_path / 'own.yml')
    found = {':'.join(problem.keys): (problem.file, problem.message) for problem in caught.value.problems}
    assert set(found) == {'val:suffix', 'path:root', 'path:pretrain_network_g'}
    assert found['val:suffix'][0].endswith('base.yml') and found['path:root'][0].endswith('own.yml')
    assert 'needs the environment variable UNSET, which is not set' in found['val:suffix'][1]
    assert '${NAME:-default}' in found['path:pretrain_network_g'][1]
    # what nobody needs in the end need not be set
    assert config.load_options(tmp_path / 'own.yml', ['val:suffix=a', 'path:root=~', 'path:pretrain_network_g=~'])


def test_saved_options_have_the_variables_filled_in(load, tmp_path, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', '/data')
    options = config.load_options(RECIPES / 'train_BasicVSR_Vimeo90K_BDx4.yml')
    config.save_options(options, tmp_path / 'saved.yml')
    monkeypatch.delenv('DATA_ROOT')
    assert config.load_options(tmp_path / 'saved.yml') == options
    assert options['datasets']['train']['meta_info_file'] == '/data/vimeo90k/vimeo_septuplet/sep_trainlist.txt'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_data_root_moves_all_data_of_every_option_file(path, monkeypatch):
    """All but the lists of clips that belong to the project."""
    roots = []
    for root in ('/one', '/two'):
        monkeypatch.setenv('DATA_ROOT', root)
        options = config.load_options(path)
        stages = config.stage_options(options).values() if options.get('stages') else [options]
        roots.append([value for stage in stages for keys, value in leaves(stage['datasets'])
                      if value and (keys[-1].startswith('dataroot') or keys[-1] == 'meta_info_file')])
    assert [value.replace('/one', '/two') for value in roots[0]] == roots[1]
    assert {value for value in roots[0] if not value.startswith('/one/')} <= {
        'datasets/meta_info/meta_info_REDS_GT.txt'}


def test_network_in_the_name_of_a_test(load):
    test = {key: STAGE[key] for key in ('network_g', 'val')} | {
        'name': 'of_{network}', 'model_type': 'ReconstructionModel', 'datasets': {'test': STAGE['datasets']['val']}}
    assert load(test)['name'] == 'of_{network}'
    for wrong in ('of_{net}', '{network', 'a {network}'):
        assert 'folder name' in errors_of(load, put(test, 'name', wrong))['name']
    for training in (STAGE, RECIPE):
        assert 'name a training without it' in errors_of(load, put(training, 'name', 'of_{network}'))['name']


# ------------------------------------------------------------------------------------------------------ overrides

def test_overrides(load):
    options = load(STAGE, overrides=['train:total_iter=10', 'train:optim_g:betas=[0.5, 0.9]', 'logger:keep_states=~',
                                     'train:optim_g:lr=1e-5', 'path:root=none', 'val:suffix=a=b', 'train:amp=bf16'])
    assert options['train']['total_iter'] == 10
    assert options['train']['optim_g'] == {'type': 'Adam', 'lr': 1e-5, 'weight_decay': 0, 'betas': [0.5, 0.9]}
    assert options['logger']['keep_states'] is None and options['path']['root'] is None
    assert options['val']['suffix'] == 'a=b' and options['train']['amp'] == 'bf16'


@pytest.mark.parametrize(('override', 'key', 'message'), [
    ('train:total_itr=10', 'train:total_itr', "did you mean 'total_iter'?"),
    ('stages:finetun:train:total_iter=3', 'stages:finetun:train:total_iter', "did you mean 'finetune'?"),
    ('stages:finetune:trian:total_iter=3', 'stages:finetune:trian', "did you mean 'train'?"),
    ('datasets:tets:name=x', 'datasets:tets:name', "did you mean 'test'?"),
    ('stages:dense:datasets:tets:name=x', 'stages:dense:datasets:tets:name', "did you mean 'test'?"),
    ('val:metrics:pnsr:crop_border=2', 'val:metrics:pnsr:crop_border', "did you mean 'psnr'?"),
    ('train:total_iter', '', 'should look like')])
def test_overrides_of_nothing_are_refused(load, override, key, message):
    assert message in errors_of(load, RECIPE, overrides=[override])[key]


def test_overrides_of_a_recipe(load):
    stages = config.stage_options(load(RECIPE, overrides=['stages:finetune:train:total_iter=3']))
    assert [stage['train']['total_iter'] for stage in stages.values()] == [30, 20, 0, 3]
    # a key that every stage sets itself: an override of the top level reaches them, or it would have no effect
    stages = config.stage_options(load(RECIPE, overrides=['train:total_iter=2', 'val:val_freq=1']))
    assert [stage['train']['total_iter'] for stage in stages.values()] == [2, 2, 0, 2]
    assert all(stage['val']['val_freq'] == 1 for stage in stages.values())
    recipe = put(RECIPE, 'stages:finetune:logger', {'print_freq': 5})
    stages = config.stage_options(load(recipe, overrides=['logger:print_freq=7']))
    assert [stage['logger']['print_freq'] for stage in stages.values()] == [7] * 4


def test_debug(load, tmp_path):
    options = load(STAGE, debug=True)
    assert options['name'] == 'debug_tiny' and options['val']['val_freq'] == 8
    assert (options['logger']['print_freq'], options['logger']['save_checkpoint_freq']) == (1, 8)
    config.save_options(options, tmp_path / 'saved.yml')
    assert config.load_options(tmp_path / 'saved.yml') == options
    recipe = load(RECIPE, debug=True, auto_resume=True)
    assert recipe['name'] == 'debug_recipe' and recipe['auto_resume']
    stage = config.stage_options(recipe)['dense']
    assert (stage['name'], stage['val']['val_freq'], stage['logger']['print_freq']) == ('debug_recipe/dense', 8, 1)


# --------------------------------------------------------------------------------------------------------- stages

def test_stages_are_merged_over_the_top_level(load):
    stages = config.stage_options(load(RECIPE))
    assert [stage['path']['pretrain_network_g'] for stage in stages.values()] == [
        None, 'stage://dense', 'stage://sparsity', 'stage://prune']
    assert [stage['name'] for stage in stages.values()] == [f'recipe/{name}' for name in RECIPE['stages']]
    assert stages['sparsity']['sparsity'] == {**SPARSITY, 'interval': 1}
    assert stages['sparsity']['train']['optim_g']['lr'] == 1e-3
    assert stages['dense']['pruning'] is None and stages['dense']['sparsity'] is None
    assert not any({'stages', 'report'} & set(stage) for stage in stages.values())


def test_top_level_network_is_where_the_recipe_starts(load):
    stages = config.stage_options(load(put(RECIPE, 'path', {'pretrain_network_g': 'start.safetensors'})))
    assert [stage['path']['pretrain_network_g'] for stage in stages.values()] == [
        'start.safetensors', 'stage://dense', 'stage://sparsity', 'stage://prune']
    fresh = put(RECIPE, 'stages:finetune:path:pretrain_network_g', None)
    fresh['stages']['finetune']['network_g'] = RECIPE['stages']['dense']['network_g']
    assert config.stage_options(load(fresh))['finetune']['path']['pretrain_network_g'] is None


@pytest.mark.parametrize(('path', 'value', 'message'), [
    ('stages:prune:path:pretrain_network_g', 'stage://sparsty', "did you mean 'sparsity'?"),
    ('stages:prune:path:pretrain_network_g', 'stage://finetune', 'stages before it (dense, sparsity)'),
    ('stages:prune:path:pretrain_network_g', 'stage://prune', 'does not exist yet'),
    ('report:rows:compact', 'stage://finetun', "did you mean 'finetune'?"),
    ('report:expect:0:row', 'compakt', "did you mean 'compact'?"),
    ('report:expect:0:ratio_of', 'dens', "did you mean 'dense'?"),
    ('report:expect:0:metric', 'psnrr', "did you mean 'psnr'?"),
    ('report:expect:0:over', 'dense', 'cannot stand beside over'),
    ('path:resume_state', 'x.state', 'belongs to one stage'),
])
def test_references_that_lead_nowhere(load, path, value, message):
    recipe = put(RECIPE, path, value)
    found = errors_of(load, recipe)
    assert any(message in text for text in found.values()), found
    assert path in found or path.endswith('over')


def test_problem_of_the_top_level_is_reported_once(load):
    assert errors_of(load, put(RECIPE, 'train:optim_g:lr', -1)) == {
        'train:optim_g:lr': 'should be greater than 0, got -1'}
    periods = {'type': 'CosineAnnealingRestartLR', 'periods': [25]}
    assert errors_of(load, put(RECIPE, 'train:scheduler', periods))['train:scheduler:periods'].endswith(
        '(in stage dense)')


def test_single_stage_cannot_refer_to_others(load, tmp_path):
    alone = put(STAGE, 'path:pretrain_network_g', 'stage://dense')
    assert 'there is no stage' in errors_of(load, alone)['path:pretrain_network_g']
    config.save_options(config.stage_options(load(RECIPE))['prune'], tmp_path / 'saved.yml')
    assert config.load_options(tmp_path / 'saved.yml')['path']['pretrain_network_g'] == 'stage://sparsity'


@pytest.mark.parametrize('stages', [{}, [], {'a b': {}}, {'a': 1}, {1: {}}])
def test_stages_that_are_none(load, stages):
    assert any(key.startswith('stages') for key in errors_of(load, {**RECIPE, 'stages': stages}))


# ------------------------------------------------------------------------------------------- files, saving, digest

def test_check_files_names_everything_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dense = 'experiments/pretrained_models/dense.pth'
    options = config.load_options(RECIPES / 'train_BasicVSR_REDS_l1.yml', [
        f'{key}={dense}' for key in ('path:pretrain_network_g', 'path:pretrain_network_teacher', 'report:rows:dense')])
    with pytest.raises(OptionsError) as caught:
        config.check_files(options)
    text = str(caught.value)
    assert len(caught.value.problems) == 4  # each missing thing once, with all keys that name it
    assert 'datasets:train:dataroot_gt: datasets/REDS/train_sharp does not exist' in text
    assert 'datasets:val:dataroot_lq' in text and 'datasets:train:meta_info_file' in text
    assert f'path:pretrain_network_g: {dense}' in text
    assert 'path:pretrain_network_teacher' in text and 'train_BasicVSR*_REDS_dense_*.yml' in text
    for name in ('datasets/REDS/train_sharp', 'datasets/REDS/train_sharp_bicubic/X4'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('datasets/meta_info/meta_info_REDS_GT.txt', dense):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    config.check_files(options)
    for stage in config.stage_options(options).values():
        config.check_files(stage)


def test_check_files_leaves_names_alone_that_are_no_files(load):
    stage = put(STAGE, 'path', {'pretrain_network_g': 'bicubic', 'pretrain_network_teacher': 'bicubic'})
    config.check_files(load(stage))
    config.check_files(load(RECIPE))
    with pytest.raises(OptionsError, match=r'^stages:finetune:path:pretrain_network_teacher: t\.pth does not exist'):
        config.check_files(load(put(RECIPE, 'stages:finetune:path:pretrain_network_teacher', 't.pth')))
    stage = put(STAGE, 'network_g:spynet_path', 'nowhere.pth')
    with pytest.raises(OptionsError, match=r'network_g:spynet_path: nowhere\.pth does not exist'):
        config.check_files(load(stage))


def test_home_folder_in_paths(load, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    options = load(put(put(STAGE, 'path:root', '~/runs'), 'datasets:train:dataroot_gt', '~/photos'))
    assert options['path']['root'] == str(tmp_path / 'runs')
    assert options['datasets']['train']['dataroot_gt'] == str(tmp_path / 'photos')


def test_saved_options_come_back(load, tmp_path):
    # text that YAML would read as numbers
    options = load(STAGE, overrides=['val:suffix="1e-4"', "datasets:val:name='011'"])
    assert (options['val']['suffix'], options['datasets']['val']['name']) == ('1e-4', '011')
    config.save_options(options, tmp_path / 'runs' / 'options.yml')
    assert config.load_options(tmp_path / 'runs' / 'options.yml') == options
    assert [path.name for path in (tmp_path / 'runs').iterdir()] == ['options.yml']


def test_defaults_are_filled_in_and_not_shared(load):
    first, second = copy.deepcopy(load(STAGE)), load(STAGE)
    assert first == second
    assert first['dist_params'] == {'backend': None, 'port': 29501}
    assert first['network_g']['scale'] == 4 and first['datasets']['val']['scale'] == 4
    first['path']['root'] = 'elsewhere'
    first['train']['scheduler']['periods'].append(1)
    assert load(STAGE) == second


def test_options_are_read_only_and_copies_are_not(load):
    options = load(RECIPE)
    for tree in (options, *config.stage_options(options).values()):
        for change in (lambda o: o.update(name='x'), lambda o: o['path'].pop('root'),
                       lambda o: o['datasets'].setdefault('more', {}), lambda o: o['logger'].__setitem__('wandb', 1)):
            with pytest.raises(TypeError, match='read-only'):
                change(tree)
        own = copy.deepcopy(tree)
        own['path']['root'] = 'elsewhere'
        assert type(own['path']) is dict and tree['path'].get('root') is None
    with pytest.raises(TypeError, match='read-only'):
        config.stage_options(options)['dense']['train']['optim_g']['betas'].append(1)
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize('change', [
    'name=other', 'num_gpu=0', 'logger:print_freq=1', 'logger:save_checkpoint_freq=3', 'val:val_freq=3',
    'val:pbar=false', 'datasets:train:num_worker_per_gpu=3', 'datasets:train:prefetch_mode=cpu',
    'datasets:train:pin_memory=false', 'datasets:train:persistent_workers=false', 'dist_params:port=1234',
    'path:root=elsewhere',
    'path:resume_state=1.state', 'auto_resume=true', 'debug=true', 'find_unused_parameters=true',
    'datasets:val:num_frame=2', 'val=~', 'path:pretrain_network_g=copy.safetensors'])
def test_digest_ignores_what_does_not_decide_the_result(load, change):
    assert config.digest(load(STAGE, overrides=[change])) == config.digest(load(STAGE))


@pytest.mark.parametrize('change', [
    'manual_seed=1', 'train:total_iter=10', 'train:optim_g:lr=1e-5', 'train:accumulate=2', 'train:amp=bf16',
    'sparsity:delta=2e-4', 'pruning:ratio=0.4', 'path:reinitialise=true', 'network_g:num_block=2',
    'datasets:train:gt_size=32', 'datasets:train:batch_size_per_gpu=2', 'datasets:train:photos=[coffee]'])
def test_digest_obeys_what_decides_the_result(load, change):
    assert config.digest(load(STAGE, overrides=[change])) != config.digest(load(STAGE))


def test_keys_of_later_versions_count_where_they_are_set(load):
    options = copy.deepcopy(load(STAGE))
    before = config.digest(options)
    for key in ('structure', 'ratios'):
        del options['pruning'][key]
    del options['sparsity']['type']
    assert config.digest(options) == before
    named = load(STAGE, overrides=['pruning:ratios={fusion: 0.5}', 'pruning:budget=units'])
    assert config.digest(named) != config.digest(load(STAGE, overrides=['pruning:budget=units']))


def test_finished_stages_stay_finished(load):
    """The digests of these options as they were before sections and keys came that leave what they say as it was.

    Whoever sees this fail has changed what an option file of old means, or has forgotten ``_LATER``.
    """
    stages = config.stage_options(load(RECIPE))
    assert {name: config.digest(stage)[:16] for name, stage in {'tiny': load(STAGE), **stages}.items()} == {
        'tiny': 'aab0db1be1c3646d', 'dense': '576c161483c9c175', 'sparsity': 'c6db611c1bfcb4d0',
        'prune': '508c6f562cf444b7', 'finetune': '1b993e3ced37b08e'}


def test_the_memory_order_counts_where_it_is_said(load):
    said = {value: config.digest(load(STAGE, overrides=[f'train:channels_last={value}']))
            for value in ('null', 'false', 'true')}
    assert said['null'] == said['false'] == config.digest(load(STAGE)) != said['true']


def test_what_pruning_is_told_must_go_together(load):
    with pytest.raises(config.OptionsError, match=r'pruning:structure: sparsity learning drives units to zero, not '
                                                  r'weights: leave structure out'):
        load(STAGE, overrides=['pruning:structure=weights', 'pruning:score=l1', 'pruning:budget=units'])
    with pytest.raises(config.OptionsError, match='pruning: with structure: filters nothing becomes smaller'):
        load(STAGE, overrides=['pruning:structure=filters', 'pruning:score=l1', 'pruning:budget=macs'])


def test_digest_is_that_of_the_options_alone(load):
    options = load(STAGE)
    before = config.digest(options)
    assert config.digest(dict(reversed(list(options.items())))) == before
    assert config.digest({**options, 'compression': {'density': 0.5}}) != before  # a section that is yet to come
    other = config.stage_options(load(RECIPE, overrides=['train:optim_g:lr=1e-5']))
    same = config.stage_options(load(RECIPE))
    assert config.digest(other['prune']) == config.digest(same['prune'])  # a pruning stage does not train
    assert config.digest(other['dense']) != config.digest(same['dense'])
