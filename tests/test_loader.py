"""The training stream: what a batch holds depends on the seed and its position, and on nothing else."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils import imfrombytes
from PIL import Image
from torch.utils.data import Dataset

from basicsr_ssl.data.frames import DatasetError
from basicsr_ssl.data.loader import FreshLists, PositionSampler, SeededDataset, train_loader


class Dice(Dataset):
    """Items show the index and draws from all three generators, and whether an earlier item left something behind."""

    def __init__(self, length=7):
        self.length = length
        self.order = [1, 2, 3]

    def __getitem__(self, index):
        if random.random() < 0.5:
            self.order.reverse()
        draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return {'index': index, 'draws': torch.tensor(draws), 'order': torch.tensor(self.order)}

    def __len__(self):
        return self.length


class Broken(Dice):
    """Every item is unreadable."""

    def __getitem__(self, index):
        raise DatasetError(f'cannot read the image {index}.png. Copy it again')


def batches(number, workers=0, batch_size=2, dataset=None, **options):
    stream = train_loader(dataset or Dice(), {'batch_size_per_gpu': batch_size, 'num_worker_per_gpu': workers}, 5,
                          **options)
    return list(islice(stream, number))


def rows(batches):
    """All items of the batches in order, as rows of numbers."""
    return torch.cat([torch.cat([batch['index'][:, None], batch['draws'], batch['order']], dim=1) for batch in batches])


# --- positions

def test_every_epoch_is_another_order_of_all_indices():
    places = list(islice(PositionSampler(5, seed=3), 500))
    assert [position for position, _ in places] == list(range(500))
    orders = [tuple(index for _, index in places[i:i + 5]) for i in range(0, 500, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(orders)) > 60  # of 120 possible
    assert orders != [tuple(i for _, i in islice(PositionSampler(5, seed=4), 5 * k, 5 * k + 5)) for k in range(100)]


@pytest.mark.parametrize('world_size', [1, 2, 3])
@pytest.mark.parametrize('start', [0, 6, 12345678 * 6])
def test_the_ranks_share_the_stream_of_one_process(world_size, start):
    alone = list(islice(PositionSampler(5, seed=3, start=start), 30))
    assert alone[0][0] == start
    ranks = [list(islice(PositionSampler(5, rank, world_size, 3, start), 30 // world_size))
             for rank in range(world_size)]
    assert [place for places in zip(*ranks) for place in places] == alone
    for rank, places in enumerate(ranks):
        assert {position % world_size for position, _ in places} == {rank}


def test_a_late_start_continues_the_stream():
    stream = list(islice(PositionSampler(7, seed=1), 40))
    assert list(islice(PositionSampler(7, seed=1, start=23), 17)) == stream[23:]


# --- samples

def test_a_sample_depends_on_seed_and_position_alone():
    dataset = SeededDataset(Dice(), seed=5)
    alone = {position: dataset[position, 2] for position in range(10)}
    for position in (9, 0, 4, 4, 7):
        item = dataset[position, 2]
        assert torch.equal(item['draws'], alone[position]['draws'])
        assert torch.equal(item['order'], alone[position]['order'])
    draws = torch.stack([item['draws'] for item in alone.values()]).flatten()
    assert draws.unique().numel() == 30
    assert not torch.equal(SeededDataset(Dice(), seed=6)[0, 2]['draws'], alone[0]['draws'])


def test_lists_are_fresh_for_every_item():
    random.seed(0)
    dataset = Dice()
    carried = [dataset[0]['order'].tolist() for _ in range(50)]
    fresh = FreshLists(Dice())
    random.seed(0)
    states = []
    for item in carried:
        reverse = random.getstate()
        states.append((fresh[0]['order'].tolist(), reverse, item))
    for order, state, _ in states:
        random.setstate(state)
        assert order == ([3, 2, 1] if random.random() < 0.5 else [1, 2, 3])
    assert any(order != item for order, _, item in states)  # as it is, the dataset does carry over


def test_the_main_process_keeps_its_generators():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = [draw() for _ in range(4)]
    seed()
    dataset = SeededDataset(Dice(), 5)
    found = [draw()]
    dataset[3, 1]
    found.append(draw())
    stream = train_loader(Dice(), {}, 5)
    next(stream)
    found.append(draw())
    with pytest.raises(DatasetError):
        SeededDataset(Broken(), 5)[0, 0]
    assert [*found, draw()] == expected


def test_septuplets_of_basicsr_do_not_carry_over(tmp_path):
    """BasicSR's Vimeo90K datasets reverse their list of frames in place and leave it so."""
    for i in range(1, 8):
        for name, size in (('gt', 16), ('lq', 4)):
            folder = tmp_path / name / '00001' / '0001'
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size, size, 3), i, dtype=np.uint8)).save(folder / f'im{i}.png')
    (tmp_path / 'meta.txt').write_text('00001/0001 7 (16,16,3)\n')
    options = {'name': 'Vimeo90K', 'type': 'Vimeo90KRecurrentDataset', 'dataroot_gt': str(tmp_path / 'gt'),
               'dataroot_lq': str(tmp_path / 'lq'), 'meta_info_file': str(tmp_path / 'meta.txt'), 'scale': 4,
               'io_backend': {'type': 'disk'}, 'num_frame': 7, 'gt_size': 16, 'random_reverse': True,
               'flip_sequence': False, 'use_hflip': False, 'use_rot': False}

    def first_frames(number, **loader):
        return [int(batch['gt'][0, 0, 0, 0, 0] * 255 + 0.5) for batch in
                islice(train_loader(build_dataset(options), {'batch_size_per_gpu': 1}, 0, **loader), number)]

    run = first_frames(20)
    assert set(run) == {1, 7}
    for start in (1, 2, 3, 11):
        assert first_frames(20 - start, start_iter=start) == run[start:]


# --- batches

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(workers, accumulate):
    run = rows(batches(12, accumulate=accumulate))
    assert len(run) == 12 * 2 * accumulate
    for start in (0, 5):
        resumed = rows(batches(12 - start, workers, start_iter=start, accumulate=accumulate))
        assert torch.equal(resumed, run[start * 2 * accumulate:])


@pytest.mark.parametrize('start', [0, 3])
def test_two_ranks_see_what_one_process_sees_with_twice_the_batch(start):
    alone = batches(6, batch_size=4, start_iter=start)
    ranks = [batches(6, batch_size=2, rank=rank, world_size=2, start_iter=start) for rank in range(2)]
    for whole, *halves in zip(alone, *ranks):
        # rank 0 has the even places of the batch, rank 1 the odd ones
        both = torch.stack([rows([half]) for half in halves], dim=1).flatten(0, 1)
        assert torch.equal(both, rows([whole]))


def test_accumulating_sees_what_a_larger_batch_sees():
    assert torch.equal(rows(batches(4, batch_size=2, accumulate=3)), rows(batches(4, batch_size=6)))


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_come_with_their_own_message(workers):
    stream = train_loader(Broken(length=1), {'num_worker_per_gpu': workers, 'batch_size_per_gpu': 2}, 5)
    with pytest.raises(DatasetError, match=r'^cannot read the image 0\.png\. Copy it again$'):
        next(stream)


def test_a_frame_that_is_not_in_the_lmdb(tmp_path):
    class Absent(Dice):
        """Reads as BasicSR's datasets do."""
        file_client = None
        io_backend_opt = {'type': 'lmdb', 'db_paths': [str(tmp_path / 'x.lmdb')], 'client_keys': ['gt']}

        def __getitem__(self, index):
            assert self.file_client is not None
            return imfrombytes(self.file_client.get('000/00000010', 'gt'), float32=True)

    lmdb.open(str(tmp_path / 'x.lmdb')).close()
    with pytest.raises(DatasetError, match=r'^cannot use 000/00000010: it is not in the LMDB\. Build the LMDB again'):
        FreshLists(Absent())[0]


def write_reds(root, lengths):
    """Clips of REDS' names, GT 32 x 32 and LR 8 x 8; every frame of one level that tells clip and number."""
    for clip, length in lengths.items():
        for folder, side in (('gt', 32), ('lq', 8)):
            (root / folder / clip).mkdir(parents=True)
            for i in range(length):
                level = 10 * int(clip) + i
                Image.new('RGB', (side, side), (level, level, level)).save(root / folder / clip / f'{i:08d}.png')
    (root / 'meta.txt').write_text(''.join(f'{clip} {length} (32,32,3)\n' for clip, length in lengths.items()))
    return {'name': 'REDS', 'type': 'REDSRecurrentDataset', 'dataroot_gt': str(root / 'gt'),
            'dataroot_lq': str(root / 'lq'), 'meta_info_file': str(root / 'meta.txt'), 'val_partition': 'REDS4',
            'io_backend': {'type': 'disk'}, 'num_frame': 3, 'gt_size': 32, 'interval_list': [1],
            'random_reverse': False, 'use_hflip': False, 'use_rot': False, 'scale': 4, 'test_mode': False}


def test_pieces_of_reds_clips(tmp_path):
    """BasicSR's dataset would go on to frame 99 of every clip."""
    options = write_reds(tmp_path, {'001': 6, '002': 4})
    stream = train_loader(build_dataset(options), {'batch_size_per_gpu': 6}, 5)
    batch = next(stream)  # one epoch
    stream.close()
    found = sorted((255 * clip[:, 0, 0, 0]).round().int().tolist() for clip in batch['gt'])
    assert found == [[10, 11, 12], [11, 12, 13], [12, 13, 14], [13, 14, 15], [20, 21, 22], [21, 22, 23]]


def test_reds_clips_that_are_too_short(tmp_path):
    options = write_reds(tmp_path, {'001': 2, '002': 1})
    with pytest.raises(DatasetError, match=r'no clip in meta_info_file has the 3 frames .* the longest has 2\. Lower'):
        train_loader(build_dataset(options), {}, 5)


def test_an_empty_dataset_is_refused_at_once():
    with pytest.raises(DatasetError, match='the training dataset is empty: check its dataroot_gt'):
        train_loader(Dice(length=0), {}, 5)


def test_workers_outlive_the_signals_that_the_training_process_answers():
    stream = train_loader(Dice(), {'num_worker_per_gpu': 2, 'batch_size_per_gpu': 2}, 5)
    found = [next(stream), next(stream)]  # one from each worker: both are up
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    found += islice(stream, 18)
    assert torch.equal(rows(found), rows(batches(20)))
    assert all(worker.is_alive() for worker in workers)
    stream.close()
    assert not any(worker.is_alive() for worker in workers)


def test_a_process_that_ends_without_closing_its_stream_does_not_wait_for_workers():
    program = ('import basicsr_ssl\nfrom test_loader import Dice, train_loader\n'
               'stream = train_loader(Dice(), {"num_worker_per_gpu": 2, "batch_size_per_gpu": 2}, 5)\n'
               'next(stream), next(stream)\n'
               'raise KeyError("reached the end")')
    ended = subprocess.run([sys.executable, '-c', program], cwd=Path(__file__).parent, capture_output=True, text=True,
                           timeout=120)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == "KeyError: 'reached the end'"


def test_datasets_travel_to_spawned_workers():
    """Spawned workers get the dataset pickled."""
    options = {'name': 'photos', 'type': 'MovingPhotosDataset', 'photos': ['coffee'], 'num_frame': 2, 'gt_size': 32}
    dataset = SeededDataset(build_dataset(options), 5)
    item = dataset[8, 0]
    again = pickle.loads(pickle.dumps(dataset))[8, 0]
    assert torch.equal(again['gt'], item['gt']) and torch.equal(again['lq'], item['lq'])


def test_a_mixture_resumes_too():
    part = {'type': 'MovingPhotosDataset', 'photos': ['coffee'], 'num_frame': 2, 'gt_size': 32}
    options = {'name': 'mixed', 'type': 'MixedDataset', 'parts': [part, {**part, 'photos': ['rocket'], 'weight': 3}]}
    run = batches(4, dataset=build_dataset(options), batch_size=3)
    assert sum(key == 'rocket' for batch in run for key in batch['key']) == 9
    resumed = batches(1, workers=1, dataset=build_dataset(options), batch_size=3, start_iter=3)[0]
    assert resumed['key'] == run[3]['key']
    assert torch.equal(resumed['gt'], run[3]['gt']) and torch.equal(resumed['lq'], run[3]['lq'])
