import csv

import pytest

from motionanim.data import rejections
from motionanim.data.order import Order
from motionanim.data.rejections import MOST_IN_A_ROW, FileItems, Rejections
from motionanim.data.video import VideoError
from motionanim.files import printable


def test_rejections_are_counted_over_processes_and_once_each(tmp_path):
    one, two = (Rejections(tmp_path / "r.csv", total=10, max_share=0.2) for _ in range(2))
    for each, name, reason in ((one, "a", "is empty"), (two, "a", "is empty"), (one, "b, c", "is\nbroken")):
        each.add(VideoError(name, reason))
        each.succeeded()
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4
    two.add(VideoError("c", "is empty"))
    with pytest.raises(ValueError, match="3 of 10"):
        two.succeeded()


def test_a_rejection_reads_what_others_wrote_since_the_last_one_only(tmp_path, monkeypatch):
    one, two = (Rejections(tmp_path / "r.csv", total=9999, max_share=1) for _ in range(2))
    rows, names = [], [f"{k}\udcff, ü.mp4" for k in range(40)]

    def counted(text, read=csv.reader):
        rows.extend(found := list(read(text)))
        return found

    monkeypatch.setattr(rejections.csv, "reader", counted)
    for k, name in enumerate(names):
        (one, two)[k % 2].add(VideoError(name, "is\nempty"))
        (one, two)[k % 2].succeeded()
    assert len(rows) <= len(names), "each process reads the other's rows, once"
    assert one._known | two._known == set(map(printable, names))
    text = (tmp_path / "r.csv").read_text(encoding="utf-8")
    assert [row[0] for row in csv.reader(text.splitlines(keepends=True))] == ["path", *map(printable, names)]


class Files(FileItems[int]):
    """A list of files of which some cannot be used."""

    def __init__(self, folder, count, bad, random=True):
        self.root, self.names, self.random = folder, [f"{k}.mp4" for k in range(count)], random
        self.order = Order(0, [count])
        self.bad, self.asked = bad, []
        self.rejections = Rejections(folder / "r.csv", total=count, max_share=1)

    def load(self, path, position):
        self.asked.append(int(path.stem))
        if self.asked[-1] in self.bad:
            raise VideoError(path, "cannot be opened: No such file or directory")
        return self.asked[-1]


@pytest.mark.parametrize("random", [True, False])
def test_a_disk_that_went_away_stops_the_run(tmp_path, random):
    files = Files(tmp_path, 20_000, bad=(), random=random)
    files[0]
    files.bad = range(20_000)
    with pytest.raises(ValueError, match="100 clips in a row cannot be used.* No such file.*disk is still there"):
        files[1]
    assert len(set(files.asked)) == 1 + MOST_IN_A_ROW
    assert not files.rejections.path.exists(), "a resumed run does not count them"


@pytest.mark.slow
def test_a_bad_folder_in_the_list_stops_nothing(tmp_path):
    files = Files(tmp_path, 3000, bad=range(1000, 1600), random=False)
    assert not {files[position] for position in range(3000)} & set(files.bad)
    assert len(files.rejections._known) == 600


def test_every_file_is_tried_before_none_is_usable(tmp_path):
    for count in (1, 2, 3, 12, 97):
        files = Files(tmp_path, count, bad=range(count))
        with pytest.raises(ValueError, match=f"none of {count} files"):
            files[5]
        assert sorted(files.asked) == list(range(count))
        assert len(files.rejections.path.read_text().splitlines()) == 1 + count
