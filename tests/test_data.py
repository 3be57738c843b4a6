"""Datasets: what a clip holds, number by number, and what bad data is answered with."""

from __future__ import annotations

import logging
import random
import re
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image
from pydantic import ValidationError

from basicsr_ssl.data.camera import camera_path, render, size_needed
from basicsr_ssl.data.catalog import BENCHMARKS
from basicsr_ssl.data.clips_dataset import (
    ClipFoldersDataset,
    ClipFoldersTestDataset,
    MixedDataset,
    MovingPhotosDataset,
    MovingPhotosTestDataset,
)
from basicsr_ssl.data.degradations import degrade
from basicsr_ssl.data.frames import DatasetError, find_clips, list_images, read_image
from basicsr_ssl.data.options import DatasetOptions

OURS = [ClipFoldersDataset, ClipFoldersTestDataset, MixedDataset, MovingPhotosDataset, MovingPhotosTestDataset]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def frame(number, height=32, width=40):
    """Red is the column, green the row, blue noise, of which frames have different pieces."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(number).integers(0, 256, (height, width))
    return np.stack([x, y, noise], axis=2).astype(np.uint8)


def make_clip(folder, number_of_frames, height=32, width=40, seed=0, scale=None):
    """Writes frames 0, 1, ... of a clip, at 1/scale its size if given: noise of another seed."""
    for i in range(number_of_frames):
        if scale is None:
            save(folder / f'{i:08d}.png', frame(seed + i, height, width))
        else:
            save(folder / f'{i:08d}.png', frame(1000 + seed + i, height // scale, width // scale))
    return [frame(seed + i, height, width) for i in range(number_of_frames)]


def levels(tensor):
    """(t, h, w, 3) uint8 of (t, 3, h, w) in [0, 1], which must be whole grey levels."""
    scaled = tensor * 255
    assert (scaled - scaled.round()).abs().max() < 1e-4
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def whole(frames):
    """(t, h, w, 3) uint8 of the frames of a test item."""
    assert all(frame.dtype == torch.uint8 for frame in frames)
    return torch.stack([*frames]).permute(0, 2, 3, 1).numpy()


def photos(**options):
    return {'name': 'photos', 'type': 'MovingPhotosDataset', 'num_frame': 4, 'gt_size': 64, **options}


def cut_clips(root, **options):
    return {'name': 'folders', 'type': 'ClipFoldersDataset', 'dataroot_gt': str(root), 'num_frame': 3, 'gt_size': 16,
            'use_hflip': False, 'use_rot': False, **options}


def whole_clips(root, **options):
    return {'name': 'tests', 'type': 'ClipFoldersTestDataset', 'phase': 'test', 'dataroot_gt': str(root), **options}


# --- the camera

def ramp(height=240, width=256):
    """A photograph whose red is the column and whose green is the row."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)


@pytest.mark.parametrize('seed', range(5))
def test_a_ramp_shows_where_the_camera_looked(seed):
    """Each pixel's red and green are the point of the photograph that the path declares for it."""
    window = 48, 60
    maps = camera_path(9, window, (240, 256), 5.0, 3.0, (1.0, 1.3), random.Random(seed).uniform)
    frames = render(ramp(), maps, window).astype(float)
    assert frames.shape == (9, 48, 60, 3)
    for seen, affine in zip(frames, maps):
        for y, x in ((0, 0), (0, 59), (47, 0), (47, 59), (20, 31)):
            declared = affine @ [x, y, 1]
            assert 2 <= declared[0] <= 253 and 2 <= declared[1] <= 237  # no border in sight
            # half a level of rounding, and up to 0.05 that bicubic interpolation bends a straight line
            np.testing.assert_allclose(seen[y, x, :2], declared, atol=0.56)
    # the mean over the frame is free of rounding: sub-pixel motion is there, and as declared
    middle = maps @ [29.5, 23.5, 1]
    np.testing.assert_allclose(frames[..., :2].mean(axis=(1, 2)), middle, atol=0.06)


@pytest.mark.parametrize('seed', range(20))
def test_the_path_is_smooth_and_keeps_its_bounds(seed):
    window, max_speed, max_rotation, zoom = (64, 64), 4.0, 2.0, (1.0, 1.25)
    maps = camera_path(30, window, (600, 800), max_speed, max_rotation, zoom, random.Random(seed).uniform)
    width = np.hypot(maps[:, 0, 0], maps[:, 1, 0])
    roll = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    centre = maps @ [31.5, 31.5, 1]
    assert width.min() >= zoom[0] - 1e-9 and width.max() <= zoom[1] + 1e-9
    assert abs(roll).max() <= max_rotation
    velocity = np.diff(centre, axis=0) / width[1:, None]
    speed = np.linalg.norm(velocity, axis=1)
    assert speed.max() <= max_speed + 1e-9
    # a sinusoid of at most 0.3 rad a frame: the change per frame is at most 0.3 of the amplitude, each for speed
    # (amplitude 2) and direction (amplitude pi / 2, at speed 4)
    assert np.linalg.norm(np.diff(velocity, axis=0), axis=1).max() <= 0.3 * (2 + 4 * np.pi / 2)


def test_paths_differ_and_move():
    paths = [camera_path(5, (64, 64), (300, 300), 4.0, 2.0, (1.0, 1.25), random.Random(seed).uniform)
             for seed in range(20)]
    travelled = [np.linalg.norm((path[-1] - path[0]) @ [31.5, 31.5, 1]) for path in paths]
    assert np.mean(travelled) > 4
    assert len({path.tobytes() for path in paths}) == 20


def test_the_smallest_photograph_still_moves_and_shows_no_border():
    window = 64, 48
    assert size_needed(window, 1.0) == (80, 64)
    for seed in range(20):
        maps = camera_path(10, window, (80, 64), 20.0, 10.0, (1.0, 2.0), random.Random(seed).uniform)
        corners = maps @ np.array([[0, 47, 0, 47], [0, 0, 63, 63], [1, 1, 1, 1]])
        assert corners.min() >= 2 - 1e-9
        assert corners[:, 0].max() <= 61 + 1e-9 and corners[:, 1].max() <= 77 + 1e-9
        assert render(ramp(80, 64), maps, window).shape == (10, 64, 48, 3)


# --- moving photographs

@pytest.mark.parametrize('degradation', ['BI', 'BD'])
def test_moving_photos_item(degradation):
    dataset = MovingPhotosDataset(photos(photos=['astronaut', 'coffee'], degradation=degradation, scale=2))
    assert len(dataset) == 2
    random.seed(1)
    item = dataset[1]
    assert item['key'] == 'coffee'
    assert item['gt'].shape == (4, 3, 64, 64) and item['lq'].shape == (4, 3, 32, 32)
    assert item['gt'].dtype == item['lq'].dtype == torch.float32
    assert levels(item['gt']).std() > 5
    # also of mirrored and turned frames: the degradation comes last
    for seed in range(6):
        random.seed(seed)
        item = dataset[0]
        assert torch.equal(item['lq'], degrade(item['gt'], degradation, 2))
    random.seed(5)
    assert torch.equal(dataset[0]['gt'], item['gt'])
    assert not torch.equal(dataset[0]['gt'], item['gt'])


def test_photographs_of_a_folder_are_shown_as_they_are(tmp_path):
    save(tmp_path / 'holiday' / 'one.png', ramp())
    still = dict(max_speed=0, max_rotation=0, zoom=[1, 1], use_hflip=False, use_rot=False)
    dataset = MovingPhotosDataset(photos(dataroot_gt=str(tmp_path), **still))
    item = dataset[0]
    assert item['key'] == 'holiday/one'
    seen = levels(item['gt']).astype(int)
    assert (np.diff(seen[..., 0], axis=2) == 1).all() and (np.diff(seen[..., 1], axis=1) == 1).all()
    assert (seen == seen[:1]).all()


def test_mirroring_and_turning_are_the_same_for_all_frames_and_leave_the_photograph_alone(tmp_path):
    save(tmp_path / 'one.png', ramp())
    dataset = MovingPhotosDataset(photos(dataroot_gt=str(tmp_path), max_rotation=0))
    seen = set()
    for seed in range(40):
        random.seed(seed)
        gt = dataset[0]['gt']
        # which way red and green grow to the right and downwards
        ways = [(*(f[:2, 0, -1] - f[:2, 0, 0]).round().sign().tolist(),
                 *(f[:2, -1, 0] - f[:2, 0, 0]).round().sign().tolist()) for f in gt * 4]
        assert len(set(ways)) == 1
        seen.add(ways[0])
    assert len(seen) == 8
    assert np.array_equal(dataset.source.library.pixels(dataset.source.photos[0]), ramp())


def test_test_clips_are_the_same_in_every_run():
    options = photos(photos=['chelsea', 'coffee'], type='MovingPhotosTestDataset', gt_size=[64, 96], clips_per_photo=3)
    first, second = MovingPhotosTestDataset(options), MovingPhotosTestDataset(options)
    assert len(first) == 6
    item = first[4]
    assert item['folder'] == 'coffee_1' and item['names'] == ['00000000', '00000001', '00000002', '00000003']
    assert item['gt'].shape == (4, 3, 64, 96) and item['lq'].shape == (4, 3, 16, 24)
    random.seed(99)
    for index in (5, 4, 0):
        assert torch.equal(second[index]['gt'], first[index]['gt'])
        assert torch.equal(second[index]['lq'], degrade(first[index]['gt'], 'BI', 4))
    clips = [first[i] for i in range(len(first))]
    assert len(clips) == 6 and len({clip['gt'].numpy().tobytes() for clip in clips}) == 6
    alone = MovingPhotosTestDataset({**options, 'photos': ['coffee']})
    assert torch.equal(alone[1]['gt'], item['gt'])
    other = MovingPhotosTestDataset({**options, 'seed': 1})
    assert not torch.equal(other[4]['gt'], item['gt'])


def test_test_clips_are_the_same_on_every_machine(tmp_path):
    save(tmp_path / 'noise.png', frame(7, 160, 200))
    item = MovingPhotosTestDataset(photos(dataroot_gt=str(tmp_path), type='MovingPhotosTestDataset'))[0]
    # sums of the grey levels that another machine had
    assert whole(item['gt']).sum(dtype=np.int64) == 3885247
    assert whole(item['lq']).sum(dtype=np.int64) == 242839


def test_small_photographs_of_a_folder_are_left_out_with_a_line_in_the_log(tmp_path, caplog):
    save(tmp_path / 'large.png', ramp(80, 80))
    save(tmp_path / 'low.png', ramp(79, 200))
    save(tmp_path / 'narrow.png', ramp(200, 79))
    logger = get_root_logger()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            dataset = MovingPhotosDataset(photos(dataroot_gt=str(tmp_path)))
    finally:
        logger.removeHandler(caplog.handler)
    assert [photo.name for photo in dataset.source.photos] == ['large']
    assert f'2 of 3 photographs in {tmp_path} are left out as too small: low, narrow' in caplog.text


# --- folders of frames

def test_find_clips_at_any_depth_in_the_order_of_their_numbers(tmp_path):
    for name in ('10/im2.png', '10/im10.png', '10/im1.PNG', '9/a/x.jpg', '9/notes.txt', '.hidden/x.png', '9/a/.x.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_clips(tmp_path) == {'9/a': ('x.jpg',), '10': ('im1.PNG', 'im2.png', 'im10.png')}
    assert list(find_clips(tmp_path)) == ['9/a', '10']
    assert list_images(tmp_path / '9') == ()


def test_read_image_gives_rgb_whatever_the_file_holds(tmp_path):
    pixels = frame(3)
    save(tmp_path / 'rgb.png', pixels)
    save(tmp_path / 'grey.png', pixels[..., 2])
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / 'rgba.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'rgb.png'), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / 'rgba.png'), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / 'grey.png'), np.repeat(pixels[..., 2:], 3, axis=2))


@pytest.mark.parametrize('kind', ['BI', 'BD'])
def test_made_lr_is_cut_from_the_degraded_whole_frame(tmp_path, kind):
    frames = make_clip(tmp_path / 'gt' / 'a' / 'b', 4, height=34, width=43)  # no multiples of 4
    dataset = ClipFoldersDataset(cut_clips(tmp_path / 'gt', degradation=kind))
    assert len(dataset) == 2
    for seed in range(8):
        random.seed(seed)
        index = seed % 2
        item = dataset[index]
        assert item['key'] == f'a/b/{index:08d}'
        gt, lq = levels(item['gt']), levels(item['lq'])
        left, top = gt[0, 0, 0, :2].astype(int)
        for t in range(3):
            whole = frames[index + t][:32, :40]
            np.testing.assert_array_equal(gt[t], whole[top:top + 16, left:left + 16])
            if kind == 'BI':
                small = imresize(whole.astype(np.float32) / 255, 0.25).clip(0, 1) * 255
            else:
                small = degrade(torch.from_numpy(whole).permute(2, 0, 1), kind, 4).permute(1, 2, 0).numpy()
            small = small[top // 4:top // 4 + 4, left // 4:left // 4 + 4]
            np.testing.assert_allclose(lq[t], small, rtol=0, atol=0.5001 if kind == 'BI' else 0)


def test_lr_files_are_cut_at_the_same_place(tmp_path):
    make_clip(tmp_path / 'gt' / 'a', 3, scale=None)
    make_clip(tmp_path / 'lq' / 'a', 3, scale=4)
    dataset = ClipFoldersDataset(cut_clips(tmp_path / 'gt', dataroot_lq=str(tmp_path / 'lq')))
    places = set()
    for seed in range(30):
        random.seed(seed)
        item = dataset[0]
        left, top = levels(item['gt'])[0, 0, 0, :2].astype(int)
        for t, lq in enumerate(levels(item['lq'])):
            whole = frame(1000 + t, 8, 10)
            np.testing.assert_array_equal(lq, whole[top // 4:top // 4 + 4, left // 4:left // 4 + 4])
        places.add((left, top))
    assert {left for left, _ in places} == set(range(0, 25, 4)) and {top for _, top in places} == set(range(0, 17, 4))


def test_augmentation_treats_lr_gt_and_all_frames_alike(tmp_path):
    y, x = np.mgrid[:32, :32]
    save(tmp_path / 'gt' / 'a' / '0.png', np.stack([8 * (x // 4), 8 * (y // 4), 0 * x], 2))
    save(tmp_path / 'gt' / 'a' / '1.png', np.stack([8 * (x // 4), 8 * (y // 4), 0 * x + 9], 2))
    for i in range(2):
        save(tmp_path / 'lq' / 'a' / f'{i}.png', np.stack([8 * x, 8 * y, 0 * x + 9 * i], 2)[:8, :8])
    dataset = ClipFoldersDataset(cut_clips(tmp_path / 'gt', dataroot_lq=str(tmp_path / 'lq'), num_frame=2,
                                           use_hflip=True, use_rot=True))
    ways = set()
    for seed in range(40):
        random.seed(seed)
        item = dataset[0]
        gt, lq = levels(item['gt']), levels(item['lq'])
        np.testing.assert_array_equal(gt[:, ::4, ::4], lq)  # each LR pixel stands for its own 4 x 4 block
        np.testing.assert_array_equal(gt[0, ..., :2], gt[1, ..., :2])
        assert gt[0, 0, 0, 2] == 0 and gt[1, 0, 0, 2] == 9
        corner, right, down = lq[0, 0, 0, :2].astype(int), lq[0, 0, 3, :2].astype(int), lq[0, 3, 0, :2].astype(int)
        ways.add((*np.sign(right - corner), *np.sign(down - corner)))
    assert len(ways) == 8


def numbered_clip(root, length):
    """Frames whose grey level is their number."""
    for i in range(length):
        save(root / 'clip' / f'im{i}.png', np.full((16, 16, 3), i))


@pytest.mark.parametrize(('options', 'allowed'), [
    ({}, {(s, s + 1, s + 2) for s in range(10)}),
    ({'interval_list': [2]}, {(s, s + 2, s + 4) for s in range(8)}),
    ({'interval_list': [1, 5]}, {(s, s + i, s + 2 * i) for i in (1, 5) for s in range(12 - 2 * i)}),
    ({'random_reverse': True}, {(s, s + 1, s + 2)[::step] for s in range(10) for step in (1, -1)}),
    ({'flip_sequence': True}, {(s, s + 1, s + 2, s + 2, s + 1, s) for s in range(10)}),
])
def test_which_frames_a_sample_has(tmp_path, options, allowed):
    numbered_clip(tmp_path, 12)
    dataset = ClipFoldersDataset(cut_clips(tmp_path, **options))
    assert len(dataset) == 10
    random.seed(0)
    drawn = set()
    for index in list(range(10)) * 12:
        item = dataset[index]
        order = tuple(int(level) for level in levels(item['gt'])[:, 0, 0, 0])
        np.testing.assert_array_equal(levels(item['lq'])[:, 0, 0, 0], order)
        drawn.add(order)
    assert drawn == allowed


def test_a_start_too_late_for_the_interval_becomes_any_that_fits(tmp_path):
    numbered_clip(tmp_path, 12)
    dataset = ClipFoldersDataset(cut_clips(tmp_path, interval_list=[2]))
    random.seed(0)
    assert {int(levels(dataset[9]['gt'])[0, 0, 0, 0]) for _ in range(150)} == set(range(8))


def test_items_count_through_clips_of_different_length(tmp_path):
    for name, length in (('b', 3), ('a', 5), ('c', 4)):
        make_clip(tmp_path / name, length)
    dataset = ClipFoldersDataset(cut_clips(tmp_path))
    assert [dataset[i]['key'] for i in range(len(dataset))] == [
        'a/00000000', 'a/00000001', 'a/00000002', 'b/00000000', 'c/00000000', 'c/00000001']
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize(('options', 'names'), [
    ({}, ['00001/0001', '00001/0002', '00002/0001']),
    ({'clips': ['00002/0001', '00001/0001']}, ['00002/0001', '00001/0001']),
    ({'exclude': ['00001/0002']}, ['00001/0001', '00002/0001']),
    ({'meta_info_file': 'meta.txt'}, ['00001/0002', '00002/0001']),
    ({'meta_info_file': 'meta.txt', 'exclude': ['00001/0002']}, ['00002/0001']),
])
@pytest.mark.parametrize('make', [cut_clips, whole_clips])
def test_which_clips_are_used(tmp_path, monkeypatch, options, names, make):
    for name in ('00001/0001', '00001/0002', '00002/0001'):
        make_clip(tmp_path / 'gt' / name, 3)
    (tmp_path / 'meta.txt').write_text('00001/0002 7 (256,448,3)\r\n\r\n00002/0001\n')
    monkeypatch.chdir(tmp_path)
    dataset = build_dataset(make('gt', **options))
    assert [clip.name for clip in dataset.clips] == names


def test_test_clips_are_whole_and_cropped_to_multiples_of_scale(tmp_path):
    frames = make_clip(tmp_path / 'a', 5, height=34, width=43)
    make_clip(tmp_path / 'b', 2, height=16, width=20, seed=50)
    dataset = ClipFoldersTestDataset(whole_clips(tmp_path))
    first, second = dataset[0], dataset[1]
    assert first['folder'] == 'a' and first['names'] == [f'{i:08d}' for i in range(5)]
    np.testing.assert_array_equal(whole(first['gt']), np.stack(frames)[:, :32, :40])
    gt = torch.stack([*first['gt']])
    assert torch.equal(torch.stack([*first['lq']]), degrade(gt, 'BI', 4))
    assert whole(second['gt']).shape == (2, 16, 20, 3) and whole(second['lq']).shape == (2, 4, 5, 3)
    for sequence in (first['lq'], first['gt']):
        assert len(sequence) == 5 and len([*sequence]) == 5
        with pytest.raises(IndexError, match='there are 5 frames, got index 5'):
            sequence[5]

    window = ClipFoldersTestDataset(whole_clips(tmp_path, first_frame=1, max_frames=2, degradation='BD'))
    assert window[0]['names'] == ['00000001', '00000002'] and window[1]['names'] == ['00000001']
    np.testing.assert_array_equal(whole(window[0]['gt']), np.stack(frames[1:3])[:, :32, :40])
    assert torch.equal(torch.stack([*window[0]['lq']]), degrade(gt[1:3], 'BD', 4))


def test_test_clips_with_lr_files(tmp_path):
    make_clip(tmp_path / 'gt' / 'a', 2, height=34, width=43)
    make_clip(tmp_path / 'lq' / 'a', 2, height=34, width=43, scale=4)
    item = ClipFoldersTestDataset(whole_clips(tmp_path / 'gt', dataroot_lq=str(tmp_path / 'lq')))[0]
    np.testing.assert_array_equal(whole(item['lq']), np.stack([frame(1000, 8, 10), frame(1001, 8, 10)]))
    assert whole(item['gt']).shape == (2, 32, 40, 3)


@pytest.mark.parametrize('cache', [False, True])
def test_frames_are_read_when_asked_for_and_kept_only_on_request(tmp_path, cache):
    make_clip(tmp_path / 'a', 2)
    dataset = ClipFoldersTestDataset(whole_clips(tmp_path, cache_data=cache))
    first = dataset[0]
    before = whole(first['gt'])
    make_clip(tmp_path / 'a', 2, seed=30)
    for item in (first, dataset[0]):
        assert np.array_equal(whole(item['gt']), before) == cache


def test_a_folder_of_frames_is_itself_a_clip(tmp_path):
    make_clip(tmp_path / 'holiday', 3)
    assert [item['folder'] for item in ClipFoldersTestDataset(whole_clips(tmp_path / 'holiday'))] == ['holiday']


# --- benchmarks

@pytest.fixture
def small_vid4(tmp_path, monkeypatch):
    """A Vid4 of two clips of 3 and 2 frames, 32 x 40, that the catalogue knows; with LR files; as relative paths."""
    small = replace(BENCHMARKS['Vid4'], clips={'a': 3, 'b': 2}, clip_count=2, sizes=(32, 40))
    monkeypatch.setitem(BENCHMARKS, 'Vid4', small)
    for seed, (name, length) in enumerate((small.clips or {}).items()):
        make_clip(tmp_path / 'gt' / name, length, seed=10 * seed)
        make_clip(tmp_path / 'lq' / name, length, seed=10 * seed, scale=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vid4(**options):
    return whole_clips('gt', **{'benchmark': 'Vid4', 'dataroot_lq': 'lq', **options})


def check_partial(problem, frames, **options):
    """Refused with a message that matches; with allow_partial a set of these frames by clip, which says so."""
    with pytest.raises(DatasetError, match=problem) as caught:
        ClipFoldersTestDataset(vid4(**options))
    message = str(caught.value)
    assert message.startswith('tests: the frames are not the whole benchmark Vid4: ') and '\n' not in message
    assert 'go on with what there is, which marks the results as partial: --allow-partial for a test' in message
    dataset = ClipFoldersTestDataset(vid4(allow_partial=True, **options))
    assert re.search(problem, '; '.join(dataset.partial))
    assert {item['folder']: ' '.join(name[-1] for name in item['names']) for item in dataset} == frames
    for item in dataset:
        assert whole(item['gt']).shape[1:3] == tuple(4 * side for side in whole(item['lq']).shape[1:3])


def test_options_know_the_benchmarks_of_the_catalogue():
    names = get_args(get_args(ClipFoldersTestDataset.Options.model_fields['benchmark'].annotation)[0])
    assert set(names) == set(BENCHMARKS)


def test_a_whole_benchmark(small_vid4):
    make_clip(small_vid4 / 'gt' / 'of_another_benchmark', 3)
    for options in ({}, {'dataroot_lq': None}, {'allow_partial': True}, {'clips': ['b', 'a']}):
        dataset = ClipFoldersTestDataset(vid4(**options))
        assert dataset.partial == []
        assert sorted(clip.name for clip in dataset.clips) == ['a', 'b']
        assert [len(item['gt']) for item in dataset] == ([2, 3] if 'clips' in options else [3, 2])
    assert ClipFoldersTestDataset(whole_clips('gt')).partial == []


def test_frames_of_a_whole_benchmark_go_by_their_order(small_vid4, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, 'Vid4', replace(BENCHMARKS['Vid4'], first_frame=None))
    for path in sorted((small_vid4 / 'lq').rglob('*.png'), reverse=True):  # from 1 on, where GT begins with 0
        path.rename(path.with_name(f'{int(path.stem) + 1:08d}.png'))
    dataset = ClipFoldersTestDataset(vid4())
    assert [(item['names'][0], len(item['lq']), len(item['gt'])) for item in dataset] == [
        ('00000000', 3, 3), ('00000000', 2, 2)] and dataset.partial == []


@pytest.mark.parametrize('root', ['gt', 'lq'])
def test_a_benchmark_with_a_frame_missing(small_vid4, root):
    (small_vid4 / root / 'a' / '00000001.png').unlink()
    check_partial(f"clip 'a' of Vid4 must have 3 frames, numbered 0 to 2; missing in {root}/a: 1",
                  {'a': '0 2', 'b': '0 1'})


@pytest.mark.parametrize('root', ['gt', 'lq'])
def test_a_benchmark_with_a_clip_missing(small_vid4, root):
    shutil.rmtree(small_vid4 / root / 'a')
    check_partial("there are no frames of 1 of the 2 clips: a", {'b': '0 1'})
    shutil.rmtree(small_vid4 / root / 'b')
    with pytest.raises(DatasetError, match=r'tests: nothing of the benchmark Vid4 is in gt and lq\. datasets/README'):
        ClipFoldersTestDataset(vid4(allow_partial=True))


def test_a_benchmark_used_in_part(small_vid4):
    check_partial("clip 'a' of Vid4 must have 3 frames.*missing in gt/a: 0, 2", {'a': '1', 'b': '1'}, first_frame=1,
                  max_frames=1)
    check_partial("there are no frames of 1 of the 2 clips: a", {'b': '0 1'}, exclude=['a'])
    check_partial("there are no frames of 1 of the 2 clips: a", {'b': '0 1'}, clips=['b'])


def test_a_benchmark_with_files_that_are_none_of_it(small_vid4):
    pixels = frame(1)
    save(small_vid4 / 'gt' / 'a' / '00000001.png', pixels[..., 2])
    check_partial('gt/a/00000001.png has 8-bit grey pixels, expected 8-bit RGB', {'a': '0 1 2', 'b': '0 1'})
    for root, i in (('gt', 1), ('gt', 2), ('lq', 0), ('lq', 1), ('lq', 2)):
        small = pixels[:16, :20] if root == 'gt' else pixels[:4, :5]
        save(small_vid4 / root / 'a' / f'{i:08d}.png', small + np.uint8(i))
    save(small_vid4 / 'gt' / 'a' / '00000000.png', pixels[16:, 20:])
    with pytest.raises(DatasetError, match=r'gt/a/00000000.png is 20x16, expected 40x32 .*; and 2 more\. Complete it'):
        ClipFoldersTestDataset(vid4())
    dataset = ClipFoldersTestDataset(vid4(allow_partial=True))
    assert len(dataset.partial) == 6 and 'LR: lq/a/00000002.png is 5x4, expected 10x8 (width x height)' in \
        dataset.partial
    Image.fromarray(np.zeros((32, 40), dtype=np.uint16)).save(small_vid4 / 'gt' / 'b' / '00000001.png')
    with pytest.raises(DatasetError, match=r'gt/b/00000001\.png has 16-bit grey pixels, expected 8-bit RGB'):
        ClipFoldersTestDataset(vid4(exclude=['a'], dataroot_lq=None))


def test_a_benchmark_whose_clips_a_list_names(small_vid4, monkeypatch):
    small = replace(BENCHMARKS['Vimeo90K-T'], clip_count=2, frames=2, sizes=(32, 40), first_frame=0)
    monkeypatch.setitem(BENCHMARKS, 'Vimeo90K-T', small)
    with pytest.raises(ValidationError, match='the clips of Vimeo90K-T are those that a list names: set meta_info'):
        ClipFoldersTestDataset(whole_clips('gt', benchmark='Vimeo90K-T'))
    make_clip(small_vid4 / 'gt' / '00001' / '0002', 2)
    (small_vid4 / 'list.txt').write_text('b\n00001/0002\n')
    dataset = ClipFoldersTestDataset(whole_clips('gt', benchmark='Vimeo90K-T', meta_info_file='list.txt'))
    assert [item['folder'] for item in dataset] == ['b', '00001/0002'] and dataset.partial == []
    (small_vid4 / 'list.txt').write_text('b\n')
    with pytest.raises(DatasetError, match='Vimeo90K-T has 2 clips, but there are 1'):
        ClipFoldersTestDataset(whole_clips('gt', benchmark='Vimeo90K-T', meta_info_file='list.txt'))


def test_real_benchmarks(test_data, tmp_path):
    vid4_root = test_data / 'vid4'
    dataset = ClipFoldersTestDataset(whole_clips(vid4_root / 'GT', benchmark='Vid4',
                                                 dataroot_lq=str(vid4_root / 'BIx4')))
    assert dataset.partial == [] and [len(item['lq']) for item in dataset] == [41, 34, 49, 47]
    (tmp_path / '000').symlink_to(test_data / 'reds' / 'GT' / 'seq_3')
    with pytest.raises(DatasetError, match=r"no frames of 3 of the 4 clips: 011, 015, 020; GT: clip '000' of REDS4 "
                                           r'must have 100 frames, numbered 0 to 99; missing in .*000: 10 to 99'):
        ClipFoldersTestDataset(whole_clips(tmp_path, benchmark='REDS4'))
    dataset = ClipFoldersTestDataset(whole_clips(tmp_path, benchmark='REDS4', allow_partial=True))
    assert len(dataset.partial) == 2 and [(item['folder'], len(item['gt'])) for item in dataset] == [('000', 10)]


# --- mixtures

def test_mixture_draws_from_its_parts_by_weight(tmp_path):
    for name, length, clips in (('a', 3, 2), ('b', 3, 6), ('c', 7, 1)):
        for i in range(clips):
            make_clip(tmp_path / name / f'{name}{i}', length)
    parts = [{**cut_clips(tmp_path / name), **weight}
             for name, weight in (('a', {}), ('b', {'weight': 2}), ('c', {'weight': 0.5}))]
    for part in parts:
        del part['name']
    mixed = MixedDataset({'name': 'mixed', 'type': 'MixedDataset', 'scale': 2, 'parts': parts})
    assert [part['name'] for part in mixed.options.parts] == ['mixed/0', 'mixed/1', 'mixed/2']
    # part c has 5 items at weight 0.5: so part a appears 10 times, part b 20 times
    keys = [mixed[i]['key'] for i in range(len(mixed))]
    assert [sum(key.startswith(name) for key in keys) for name in 'abc'] == [10, 20, 5]
    assert keys[30:] == [f'c0/{i:08d}' for i in range(5)]
    assert keys[:10] == ['a0/00000000', 'a1/00000000'] * 5
    random.seed(3)
    item = mixed[31]
    random.seed(3)
    alone = ClipFoldersDataset(cut_clips(tmp_path / 'c', scale=2))[1]
    assert torch.equal(item['gt'], alone['gt']) and torch.equal(item['lq'], alone['lq'])
    assert item['lq'].shape == (3, 3, 8, 8)


# --- options

@pytest.mark.parametrize('dataset', OURS)
def test_every_key_is_described_and_unknown_ones_are_refused(dataset):
    assert issubclass(dataset.Options, DatasetOptions)
    assert DATASET_REGISTRY.get(dataset.__name__) is dataset
    for name, field in dataset.Options.model_fields.items():
        assert field.description and field.description.endswith('.'), name
    with pytest.raises(ValidationError, match='gt_sise'):
        dataset.Options.model_validate({'name': 'x', 'type': dataset.__name__, 'gt_sise': 64})


@pytest.mark.parametrize(('make', 'options', 'message'), [
    (photos, {'photos': ['coffee'], 'gt_size': 130}, 'gt_size 130 is not a multiple of scale 4: use 128 or 132'),
    (photos, {'photos': ['coffee'], 'gt_size': 2}, 'gt_size 2 is not a multiple of scale 4: use 4'),
    (photos, {'photos': ['coffee'], 'gt_size': [64, 66], 'type': 'MovingPhotosTestDataset'},
     'gt_size 66 is not a multiple of scale 4'),
    (photos, {'photos': ['coffee'], 'gt_size': [64, 64, 3], 'type': 'MovingPhotosTestDataset'},
     r'gt_size must be one number or \[height, width\]'),
    (photos, {}, r'no photographs: give photos \(names shipped with scikit-image\), dataroot_gt'),
    (photos, {'photos': ['coffee'], 'zoom': [0.5, 1]}, r'zoom must be \[smallest, largest\], both at least 1'),
    (cut_clips, {'gt_size': 15}, 'gt_size 15 is not a multiple of scale 4: use 12 or 16'),
    (cut_clips, {'interval_list': [0]}, r'interval_list must hold numbers from 1 on, got \[0\]'),
    (cut_clips, {'clips': [9]}, "names must be quoted in YAML, like '011': unquoted, 011 is the number 9"),
    (cut_clips, {'clips': ['a'], 'meta_info_file': 'b'}, 'clips and meta_info_file both say which clips to use'),
    (cut_clips, {'io_backend': {'type': 'lmdb'}}, r'io_backend can only be \{type: disk\}'),
    (cut_clips, {'degradation': 'BX'}, "degradation\n.*'BI' or 'BD'"),
])
def test_bad_options(make, options, message, tmp_path):
    options = make(str(tmp_path), **options) if make is cut_clips else make(**options)
    with pytest.raises(ValidationError, match=message):
        build_dataset(options)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'weight': 0}, r'parts\[1\].weight must be a number above 0, got 0'),
    ({'type': 'ClipsDataset'}, r"parts\[1\].type: no dataset named 'ClipsDataset'; there are .*ClipFoldersDataset"),
    ({'num_frame': 2}, r'the parts differ in num_frame .*\{.mixed/0.: 3, .folders.: 2\}'),
    ({'flip_sequence': True}, r'the parts differ in num_frame \(doubled by flip_sequence\)'),
    ({'gt_size': 20}, r'the parts differ in gt_size'),
    ({'gt_sise': 20}, 'gt_sise'),
])
def test_bad_mixtures(tmp_path, changes, message):
    first = cut_clips(tmp_path)
    del first['name']
    with pytest.raises(ValidationError, match=message):
        MixedDataset({'name': 'mixed', 'type': 'MixedDataset', 'parts': [first, {**cut_clips(tmp_path), **changes}]})


# --- bad data: one message that names the place and the way out

@pytest.fixture
def root(tmp_path, monkeypatch):
    """gt/a and gt/b of 3 frames, 32 x 40, with lq/a and lq/b; named relative to the current folder."""
    for name in 'ab':
        make_clip(tmp_path / 'gt' / name, 3)
        make_clip(tmp_path / 'lq' / name, 3, scale=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_message(message, options):
    """Building, or else reading, must fail with a DatasetError of one line that matches."""
    with pytest.raises(DatasetError, match=message) as caught:
        for item in build_dataset(options):
            list(item['lq'])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('make', [cut_clips, whole_clips])
@pytest.mark.parametrize(('options', 'message'), [
    ({'dataroot_gt': 'missing'}, r'dataroot_gt: missing does not exist \(seen from .*\)\. Correct the option'),
    ({'dataroot_gt': 'gt/a/00000000.png'}, 'dataroot_gt: gt/a/00000000.png is not a folder'),
    ({'dataroot_lq': 'missing'}, 'dataroot_lq: missing does not exist'),
    ({'clips': ['a', 'c', 'd']}, 'gt has no frames of the clips c, d. Correct clips; the folder holds a, b'),
    ({'exclude': ['c']}, 'exclude: there is no clip c in gt; there are a, b. Correct the name'),
    ({'exclude': ['a', 'b']}, 'exclude leaves no clip of gt'),
    ({'meta_info_file': 'missing.txt'}, 'meta_info_file: cannot read missing.txt: No such file'),
    ({'scale': 2, 'dataroot_lq': 'lq'}, "clip 'a': GT frames are 32 x 40 and LR frames 8 x 10, but at scale 2 LR must "
     'be 16 x 20. Check scale and dataroot_lq'),
])
def test_wrong_folders(root, make, options, message):
    check_message(message, make('gt', **options))


@pytest.mark.parametrize('make', [cut_clips, whole_clips])
def test_empty_or_unfit_folders(root, make):
    (root / 'empty' / 'a').mkdir(parents=True)
    check_message('dataroot_gt: no folder in empty holds images. It should hold one folder of frames per clip',
                  make('empty'))
    (root / 'empty.txt').write_text('\n')
    check_message('meta_info_file: empty.txt names no clip', make('gt', meta_info_file='empty.txt'))
    (root / 'lq' / 'b' / '00000001.png').unlink()
    check_message("clip 'b' has 3 GT frames in gt/b but 2 LR frames in lq/b. Complete it, exclude it",
                  make('gt', dataroot_lq='lq'))
    shutil.rmtree(root / 'lq' / 'b')
    check_message("clip 'b' has 3 GT frames in gt/b but 0 LR frames in lq/b", make('gt', dataroot_lq='lq'))


@pytest.mark.parametrize('make', [cut_clips, whole_clips])
def test_unfit_frames(root, make):
    save(root / 'lq' / 'b' / '00000000.png', frame(0, 8, 11))
    check_message("clip 'b' has frames of different sizes: lq/b/00000000.png is 8 x 11 and lq/b/00000001.png is 8 x 10",
                  make('gt', dataroot_lq='lq'))
    for i in range(3):
        save(root / 'lq' / 'b' / f'{i:08d}.png', frame(0, 8, 11))
    check_message("clip 'b': GT frames are 32 x 40 and LR frames 8 x 11, but at scale 4 LR must be 8 x 10",
                  make('gt', dataroot_lq='lq'))
    (root / 'gt' / 'b' / '00000001.png').write_bytes(b'no image')
    check_message('cannot read the image gt/b/00000001.png: .*. Copy or download it again', make('gt'))
    whole = (root / 'gt' / 'a' / '00000001.png').read_bytes()
    (root / 'gt' / 'a' / '00000001.png').write_bytes(whole[:len(whole) // 2])
    check_message('cannot read the image gt/a/00000001.png: .*truncated', make('gt'))
    Image.fromarray(np.zeros((32, 40), dtype=np.uint16)).save(root / 'gt' / 'a' / '00000001.png')
    check_message('gt/a/00000001.png has more than 8 bits per channel.*: convert it to 8 bit', make('gt'))


def test_clips_too_short_or_small_for_training(root):
    check_message(r"clip 'a' has 3 frames, and num_frame 3 with interval_list \[1, 2\] needs 5. Lower num_frame",
                  cut_clips('gt', interval_list=[1, 2]))
    check_message("clip 'a' has GT frames of 32 x 40, smaller than gt_size 36. Lower gt_size",
                  cut_clips('gt', gt_size=36))
    check_message("clip 'a' has 3 frames, so none is left from first_frame 3 on", whole_clips('gt', first_frame=3))
    check_message("clip 'a' has GT frames of 32 x 40, smaller than scale 64", whole_clips('gt', scale=64))


def test_wrong_photographs(root):
    check_message('photos: the installed scikit-image ships no nobody; it has .*astronaut.*coffee',
                  photos(photos=['nobody']))
    check_message('photos: chelsea has 300 x 451 pixels, and a camera that moves over it with a window of 288 x 288 '
                  'needs 304 x 304. Take it out, or lower gt_size', photos(photos=['coffee', 'chelsea'], gt_size=288))
    (root / 'empty').mkdir()
    check_message('dataroot_gt: there is no image in empty. Put photographs', photos(dataroot_gt='empty'))
    check_message('dataroot_gt: all 3 photographs in gt/a are too small: 00000000 has 32 x 40 pixels, .* needs 80 x 80.'
                  ' Lower gt_size', photos(dataroot_gt='gt/a'))
    Image.fromarray(ramp()).save(root / 'lq' / 'photo.jpg')
    whole = (root / 'lq' / 'photo.jpg').read_bytes()
    (root / 'lq' / 'photo.jpg').write_bytes(whole[:len(whole) * 3 // 4])
    # a reader less strict would train on the grey rest of it
    check_message('cannot read the image lq/photo.jpg: .*truncated', photos(dataroot_gt='lq'))


# --- real data

def test_real_septuplets(test_data):
    dataset = ClipFoldersDataset({
        'name': 'vimeo', 'type': 'ClipFoldersDataset', 'dataroot_gt': str(test_data / 'vimeo90k' / 'sequences'),
        'num_frame': 7, 'gt_size': 256, 'flip_sequence': True, 'random_reverse': True})
    assert len(dataset) == 16
    random.seed(0)
    item = dataset[9]
    assert item['key'] == '00002/0002/im1'
    assert item['lq'].shape == (14, 3, 64, 64) and item['gt'].shape == (14, 3, 256, 256)
    assert torch.equal(item['gt'], item['gt'].flip(0))
    # the clip is one scene: neighbouring frames are alike, frames of another clip are not
    other = dataset[0]['gt'][0]
    near = (item['gt'][1] - item['gt'][0]).abs().mean()
    assert near < 0.5 * (other - item['gt'][0]).abs().mean()


def test_real_reds_frames_with_their_lr(test_data):
    dataset = ClipFoldersDataset({
        'name': 'reds', 'type': 'ClipFoldersDataset', 'dataroot_gt': str(test_data / 'reds' / 'GT'),
        'dataroot_lq': str(test_data / 'reds' / 'BIx4'), 'exclude': ['seq_3'], 'num_frame': 2, 'gt_size': 256})
    assert len(dataset) == 15
    random.seed(0)
    item = dataset[3]
    # the crops belong together: LR is GT made small, but for the borders of the crop and the other rounding of REDS
    made = degrade(item['gt'], 'BI', 4)
    assert (made - item['lq'])[..., 4:-4, 4:-4].abs().max() * 255 < 4.5


def test_real_photographs_of_a_folder(test_data):
    dataset = MovingPhotosDataset(photos(dataroot_gt=str(test_data / 't91'), num_frame=2))
    assert 60 <= len(dataset) <= 91
    assert dataset[0]['gt'].shape == (2, 3, 64, 64)
