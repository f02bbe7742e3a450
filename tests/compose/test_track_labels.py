"""Labels of objects tracked through frames: read, left out with a reason, or refused."""

import functools

import label_files
import pytest
from label_files import boxes, picture

from mirg_jax.errors import DataError


@pytest.fixture
def read(tmp_path):
    return functools.partial(label_files.read, tmp_path)


def test_mot_is_read(read, tmp_path):
    folder = tmp_path / "MOT17/train/MOT17-02"
    (folder / "gt").mkdir(parents=True)
    (folder / "seqinfo.ini").write_text("[Sequence]\nimDir=frames\nimExt=.png\n")
    lines = [
        "2,1,11,2,10,5,1,1,1.0",
        "1,1,1,2,10,5,1,1,0.9",
        "1,2,21,2,10,5,1,3,1",
        "1,3,21,2,10,5,0,1,1",  # not to be counted
        "1,4,21,2,10,5,1,1,0.1",  # hidden
        "1,5,21,2,0,5,1,1,1",
        "1,6,21",
    ]
    (folder / "gt/gt.txt").write_text("\n".join(lines))
    photos, (found,) = read("mot=ROOT/MOT17")
    assert found["count"] == 2 and "gt.txt line 6: the box is empty" in found["first"]
    first, second = (photos[f"MOT17/train/MOT17-02/frames/00000{n}.png"] for n in (1, 2))
    assert boxes(first) == {("pedestrian", (0, 1, 10, 6)), ("car", (20, 1, 30, 6))}
    assert boxes(second) == {("pedestrian", (10, 1, 20, 6))}
    assert {each.track for each in first.objects} == {"1", "2"}
    assert first.unsure == {"pedestrian"} and not second.unsure
    assert first.looked_for == {"pedestrian", "person"} and not first.complete
    assert first.sequence == second.sequence == "MOT17/train/MOT17-02"
    assert (first.frame, second.frame) == (1, 2)


def test_folders_of_frames_are_read(read, tmp_path):
    folder = tmp_path / "lasot/airplane/airplane-3"
    for n in (1, 2, 3):
        picture(folder / f"img/0000000{n}.jpg")
    (folder / "groundtruth.txt").write_text("1,2,10,5\n0,0,0,0\n3,2,10,5\n")
    (folder / "out_of_view.txt").write_text("0,0,0")
    other = tmp_path / "lasot/bag"
    picture(other / "1.png")
    (other / "groundtruth.txt").write_text("1\t2\t10\t5\n1 2 3\n")
    photos, (found,) = read("lasot=ROOT/lasot")
    assert "bag/groundtruth.txt: 2 lines for 1 images" in found["first"]
    assert sorted(photos) == [f"lasot/airplane/airplane-3/img/0000000{n}.jpg" for n in (1, 3)]
    assert boxes(photos["lasot/airplane/airplane-3/img/00000003.jpg"]) == {
        ("airplane", (3, 2, 13, 7))
    }
    (folder / "full_occlusion.txt").write_text("0,0,1")
    assert len(read("lasot=ROOT/lasot")[0]) == 1


@pytest.mark.parametrize(
    "line", ["inf,2,5,5,30,30", "3,2,5,5,30,inf", "3,2,5,nan,30,30", f"4,{'9' * 30},5,5,30,30"]
)
def test_lines_of_mot_with_no_numbers_are_left_out(read, tmp_path, line):
    (tmp_path / "s/gt").mkdir(parents=True)
    picture(tmp_path / "s/img1/000001.jpg")
    (tmp_path / "s/gt/gt.txt").write_text(f"1,1,5,5,20,10,1,1,1\n{line},1,1,1\n")
    photos, (found,) = read("mot=ROOT/s")
    assert len(photos) == 1
    assert "gt.txt line 2: a number is too large or none" in found["first"]


def test_lines_of_lasot_with_no_numbers_are_left_out(read, tmp_path):
    for n in range(3):
        picture(tmp_path / f"dog-1/img/{n}.jpg")
    text = "1,1,20,10\nnan,nan,nan,nan\n1,1,20,inf\n"  # NaN: it isn't there
    (tmp_path / "dog-1/groundtruth.txt").write_text(text)
    photos, (found,) = read("lasot=ROOT/dog-1")
    assert len(photos) == 1 and "groundtruth.txt line 3" in found["first"]


@pytest.mark.parametrize("text", ["", "\n", "1,1,5,5,20,10,0,1,1"])
def test_sequences_of_mot_without_objects_are_told(read, tmp_path, text):
    for name in "st":
        picture(tmp_path / name / "img1/000001.jpg")
        (tmp_path / name / "gt").mkdir()
        (tmp_path / name / "gt/gt.txt").write_text(text if name == "s" else "1,1,5,5,20,10,1,1,1")
    photos, (found,) = read("mot=ROOT")
    assert len(photos) == 1
    assert "s/gt/gt.txt: has no line of an object that counts" in found["first"]
    assert found["first"].endswith("get or make it again")


def test_tracks_that_are_no_text_are_told_as_that(read, tmp_path):
    picture(tmp_path / "s/img1/000001.jpg")
    (tmp_path / "s/gt").mkdir()
    (tmp_path / "s/gt/gt.txt").write_bytes(b"\xff\xfe1")
    (tmp_path / "s/gt/groundtruth.txt").write_bytes(b"\xff\xfe1")
    for kind in ("mot", "lasot"):
        _, (found,) = read(f"{kind}=ROOT")
        assert found["first"].endswith(".txt: not UTF-8 text; get it again")


def test_sequences_of_lasot_without_their_object_are_told(read, tmp_path):
    picture(tmp_path / "dog-1/1.jpg")
    (tmp_path / "dog-1/groundtruth.txt").write_text("0,0,0,0\n")
    photos, (found,) = read("lasot=ROOT")
    assert not photos
    assert (
        "dog-1/groundtruth.txt: has no box of a frame that shows the object; get" in found["first"]
    )


def test_the_description_of_a_sequence_is_taken_literally(read, tmp_path):
    (tmp_path / "s/gt").mkdir(parents=True)
    (tmp_path / "s/gt/gt.txt").write_text("1,1,5,5,20,10,1,1,1")
    (tmp_path / "s/seqinfo.ini").write_text("[Sequence]\nimDir=%(home)s\n")
    assert list(read("mot=ROOT/s")[0]) == ["s/%(home)s/000001.jpg"]


@pytest.mark.parametrize("kind", ["mot", "lasot"])
def test_folders_without_tracks_are_refused(read, tmp_path, kind):
    with pytest.raises(DataError, match="give a folder in"):
        read(f"{kind}=ROOT")
