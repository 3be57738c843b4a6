"""The catalogue of benchmarks, against generated sets of full structure, damaged ones, and real frames."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import png, write_set
from PIL import Image

from basicsr_ssl.data.catalog import BENCHMARKS, SCALE, TRAINING_SETS, check_clips, check_frame
from basicsr_ssl.data.frames import find_clips

UDM10_CLIPS = [f'{i:03d}' for i in range(10)]
VID4_SIZES = {'calendar': (576, 720), 'city': (576, 704), 'foliage': (480, 720), 'walk': (480, 720)}


def found_clips(root: Path) -> dict[str, list[Path]]:
    return {clip: [root / clip / name for name in names] for clip, names in find_clips(root).items()}


def vid4(root: Path) -> dict[str, list[Path]]:
    return write_set(BENCHMARKS['Vid4'], root)


# what the catalogue must say, written out a second time

@pytest.mark.parametrize(('name', 'clips', 'frames', 'channel', 'degradations'), [
    ('REDS4', 4, 400, 'RGB', ['BI']),
    ('Vimeo90K-T', 7824, 54768, 'Y', ['BI', 'BD']),
    ('Vid4', 4, 41 + 34 + 49 + 47, 'Y', ['BI', 'BD']),
    ('UDM10', 10, 320, 'Y', ['BD']),
])
def test_protocols(name: str, clips: int, frames: int, channel: str, degradations: list[str]) -> None:
    benchmark = BENCHMARKS[name]
    counts = benchmark.clips.values() if benchmark.clips else [benchmark.frames] * benchmark.clip_count
    assert (benchmark.clip_count, sum(count or 0 for count in counts)) == (clips, frames)
    assert benchmark.channel == channel
    assert list(benchmark.lr) == degradations
    assert benchmark.centre_frame_only == benchmark.flip_seq == (name == 'Vimeo90K-T')


def test_sizes() -> None:
    assert {clip: BENCHMARKS['Vid4'].size(clip) for clip in VID4_SIZES} == VID4_SIZES
    assert BENCHMARKS['REDS4'].size('000', SCALE) == (180, 320)
    assert BENCHMARKS['UDM10'].size('000', SCALE) == (180, 318)
    assert BENCHMARKS['Vimeo90K-T'].size('00001/0266') == TRAINING_SETS['vimeo90k'].size('00001/0001') == (256, 448)


def test_training_sets() -> None:
    assert len(TRAINING_SETS['reds'].clips or ()) == 270
    assert TRAINING_SETS['vimeo90k'].clip_count == 64612
    assert (BENCHMARKS['REDS4'].clips or {}).keys() < (TRAINING_SETS['reds'].clips or {}).keys()


# whole sets

@pytest.mark.parametrize('scale', [1, SCALE], ids=['gt', 'lr'])
@pytest.mark.parametrize('name', ['REDS4', 'Vid4', 'UDM10'])
def test_whole_benchmarks_pass(name: str, scale: int, tmp_path: Path) -> None:
    clips = write_set(BENCHMARKS[name], tmp_path, UDM10_CLIPS, scale)
    assert found_clips(tmp_path) == clips
    assert check_clips(BENCHMARKS[name], clips, scale) == []
    assert check_clips(BENCHMARKS[name], clips, scale, thorough=True) == []


@pytest.mark.parametrize('first', [0, 1])
def test_clips_of_udm10_go_by_any_name_and_first_number(first: int, tmp_path: Path) -> None:
    for number, clip in enumerate(('archpeople', 'archwall', 'auditorium', 'band', 'caffe', 'camera', 'clap', 'lake',
                                   'photography', 'polyflow')):
        (tmp_path / clip).mkdir()
        for i in range(32):
            (tmp_path / clip / f'{first + i:04d}.png').write_bytes(png((720, 1272), 32 * number + i))
    assert check_clips(BENCHMARKS['UDM10'], found_clips(tmp_path)) == []


@pytest.mark.slow
def test_whole_vimeo90k_test_set(tmp_path: Path) -> None:
    benchmark = BENCHMARKS['Vimeo90K-T']
    names = [f'{1 + i // 100:05d}/{1 + i % 100:04d}' for i in range(7824)]
    first, *others = names
    frames = write_set(benchmark, tmp_path, [first], pattern='im{}.png')[first]
    for name in others:
        (tmp_path / name).mkdir(parents=True)
        for path in frames:
            os.link(path, tmp_path / name / path.name)
    clips = found_clips(tmp_path)
    assert check_clips(benchmark, clips) == []
    victim = clips['00050/0012'].pop(3)
    assert check_clips(benchmark, clips) == [
        f"clip '00050/0012' of Vimeo90K-T must have 7 frames, numbered 1 to 7; missing in {victim.parent}: 4"]


# damaged sets: each problem is named, and nothing else

def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def copy_the_frame_before(path: Path) -> None:
    path.write_bytes(path.with_name('00000016.png').read_bytes())


def replace(**kind) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(png(**{'size': (576, 704), 'number': 99, **kind}))
    return write


def jpeg_in_disguise(path: Path) -> None:
    Image.new('RGB', (704, 576)).save(path, format='JPEG')


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    'missing frame': (delete, "clip 'city' of Vid4 must have 34 frames, numbered 0 to 33; missing in {folder}: 17"),
    'truncated': (truncate, '{path} is truncated: a PNG file ends with an IEND chunk. Copy or download it again'),
    'empty': (lambda path: os.truncate(path, 0), '{path} is empty. Copy or download it again'),
    'duplicate': (copy_the_frame_before,
                  '{path} is a copy of 00000016.png, byte for byte: one was written over the other'),
    'wrong size': (replace(size=(144, 176)), '{path} is 176x144, expected 704x576 (width x height)'),
    'turned': (replace(size=(704, 576)), '{path} is 576x704, expected 704x576 (width x height)'),
    '16 bit': (replace(depth=16), '{path} has 16-bit RGB pixels, expected 8-bit RGB'),
    'grey': (replace(colour=0), '{path} has 8-bit grey pixels, expected 8-bit RGB'),
    'alpha': (replace(colour=6), '{path} has 8-bit RGB with alpha pixels, expected 8-bit RGB'),
    'jpeg': (jpeg_in_disguise, '{path} is not a PNG file'),
}


@pytest.mark.parametrize(('damage', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    vid4(tmp_path)
    path = tmp_path / 'city' / '00000017.png'
    damage(path)
    expected = [message.format(path=path, folder=path.parent)]
    assert check_clips(BENCHMARKS['Vid4'], found_clips(tmp_path)) == expected


def test_only_frames_of_one_colour_may_be_the_same_in_vimeo90k(tmp_path: Path) -> None:
    benchmark = dataclasses.replace(BENCHMARKS['Vimeo90K-T'], clip_count=1)
    frames = write_set(benchmark, tmp_path, ['00001/0001'], pattern='im{}.png')['00001/0001']
    shutil.copy(frames[2], frames[3])  # black
    assert check_clips(benchmark, found_clips(tmp_path)) == []
    picture = Image.new('RGB', (448, 256))
    picture.putpixel((100, 50), (0, 0, 1))
    for path in frames[2:4]:
        picture.save(path)
    assert check_clips(benchmark, found_clips(tmp_path)) == [
        f'{frames[3]} is a copy of im3.png, byte for byte: one was written over the other']


def test_a_copy_among_frames_of_different_length(tmp_path: Path) -> None:
    clips = vid4(tmp_path)
    for i, path in enumerate(clips['city']):
        path.write_bytes(png((576, 704), 10**(5 + i)))  # one digit longer each
    shutil.copy(clips['city'][20], clips['city'][21])
    assert check_clips(BENCHMARKS['Vid4'], clips) == [
        f'{clips["city"][21]} is a copy of 00000020.png, byte for byte: one was written over the other']


def test_a_clip_copied_over_another(tmp_path: Path) -> None:
    clips = vid4(tmp_path)
    for frame, copy in zip(clips['foliage'], clips['walk']):  # of one size
        shutil.copy(frame, copy)
    assert check_clips(BENCHMARKS['Vid4'], clips) == [
        f"{clips['walk'][0]} is a copy of {clips['foliage'][0]}, byte for byte: one was written over the other"]


def test_damage_in_the_middle_is_found_by_reading_all(tmp_path: Path) -> None:
    clips = vid4(tmp_path)
    path = clips['walk'][5]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SyntaxError, match='bad header checksum'), Image.open(path) as image:  # so says Pillow
        image.verify()
    assert check_clips(BENCHMARKS['Vid4'], clips) == []
    assert check_clips(BENCHMARKS['Vid4'], clips, thorough=True) == [
        f'{path} is damaged: the check sums in the PNG file do not fit. Copy or download it again']


def test_a_hole_in_a_chunk_is_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / 'frame.png'
    content = png((8, 8))
    path.write_bytes(content[:33] + struct.pack('>I', 2**32 - 1) + content[37:])
    assert 'damaged' in (check_frame(path, (8, 8), thorough=True) or '')


def test_missing_and_surplus_clips_and_frames(tmp_path: Path) -> None:
    clips = vid4(tmp_path)
    del clips['walk']
    surplus = tmp_path / 'city' / '00000034.png'
    surplus.write_bytes(png((576, 704), 34))
    other, noname = tmp_path / 'car' / '00000000.png', tmp_path / 'city' / 'cover.png'
    twice = tmp_path / 'calendar' / '3.png'
    other.parent.mkdir()
    for path, size in ((other, (8, 8)), (noname, (576, 704)), (twice, (576, 720))):
        path.write_bytes(png(size, 50))
    clips['city'] += [surplus, noname]
    clips['car'] = [other]
    clips['calendar'].append(twice)
    del clips['foliage'][40:]
    assert check_clips(BENCHMARKS['Vid4'], clips) == [
        'Vid4: there are no frames of 1 of the 4 clips: walk',
        f"{twice} has the same number as 00000003.png: clip 'calendar' has frame 3 twice",
        f"{noname} has no number in its name, so it is no frame of clip 'city'",
        f"{surplus} is surplus: clip 'city' of Vid4 has the frames 0 to 33",
        f"clip 'foliage' of Vid4 must have 49 frames, numbered 0 to 48; missing in {tmp_path / 'foliage'}: 40 to 48",
        f"clip 'car' in {tmp_path / 'car'} is not one of Vid4, which has calendar, city, foliage, walk",
    ]


def test_missing_numbers_in_words(tmp_path: Path) -> None:
    clips = vid4(tmp_path)
    clips['city'] = [path for i, path in enumerate(clips['city']) if i not in (0, 3, 7, 8, 9, 33)]
    (problem,) = check_clips(BENCHMARKS['Vid4'], clips)
    assert problem.endswith(': 0, 3, 7 to 9, 33')


def test_septuplets_that_are_listed_but_missing_are_named(tmp_path: Path) -> None:
    clips = {**write_set(BENCHMARKS['Vimeo90K-T'], tmp_path, ['00001/0266'], pattern='im{}.png'), '00002/0001': []}
    assert check_clips(BENCHMARKS['Vimeo90K-T'], clips) == [
        'Vimeo90K-T has 7824 clips, but there are 2',
        'Vimeo90K-T: there are no frames of 1 of the 7824 clips: 00002/0001']


def test_frames_that_others_write_pass(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'pillow.png')
    cv2.imwrite(str(tmp_path / 'opencv.png'), pixels)
    (tmp_path / 'own.png').write_bytes(png((20, 30)))
    for path in tmp_path.iterdir():
        assert check_frame(path, (20, 30), thorough=True) is None, path
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((30, 20), 'RGB')
            image.load()


def test_unreadable_files_are_problems_not_errors(tmp_path: Path) -> None:
    (tmp_path / 'link.png').symlink_to(tmp_path / 'nowhere')
    assert check_frame(tmp_path / 'link.png', (8, 8)) == 'cannot be read: No such file or directory'


# real frames

def test_real_vid4_is_whole(test_data: Path) -> None:
    assert check_clips(BENCHMARKS['Vid4'], found_clips(test_data / 'vid4' / 'GT'), thorough=True) == []
    assert check_clips(BENCHMARKS['Vid4'], found_clips(test_data / 'vid4' / 'BIx4'), SCALE, thorough=True) == []
    problems = check_clips(BENCHMARKS['Vid4'], found_clips(test_data / 'vid4' / 'BIx4'))
    assert len(problems) == 171 and 'is 180x144, expected 720x576' in problems[0]


def test_real_pieces_are_known_for_pieces(test_data: Path) -> None:
    septuplets = found_clips(test_data / 'vimeo90k' / 'sequences')
    assert check_clips(BENCHMARKS['Vimeo90K-T'], septuplets, thorough=True) == [
        'Vimeo90K-T has 7824 clips, but there are 16']
    clip = test_data / 'reds' / 'GT' / 'seq_3'
    assert check_clips(BENCHMARKS['REDS4'], {'000': sorted(clip.iterdir())}, thorough=True) == [
        'REDS4: there are no frames of 3 of the 4 clips: 011, 015, 020',
        f"clip '000' of REDS4 must have 100 frames, numbered 0 to 99; missing in {clip}: 10 to 99"]
