import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pb_jax.data import DataError, flickr8k
from pb_jax.data.progress import Progress
from tests.data_files import FLICKR8K_LISTS, Flickr8kFiles, jpeg
from tests.test_data_pictures import claiming

SILENT = Progress(enabled=False)


def read(source: Path) -> flickr8k.Original:
    return flickr8k.read(flickr8k.locate(source), SILENT)


def names(original: flickr8k.Original) -> dict[str, list[str]]:
    return {split: [example.name for example in part] for split, part in original.splits.items()}


@pytest.fixture
def files() -> Flickr8kFiles:
    return Flickr8kFiles()


def test_regular_files(tmp_path, files):
    original = read(files.write(tmp_path))
    assert names(original) == FLICKR8K_LISTS
    assert original.notes == ()
    for part in original.splits.values():
        for example in part:
            assert list(example.captions) == files.captions[example.name]
            assert flickr8k.load_picture(original.images, example) == files.images[example.name]


@pytest.mark.parametrize(
    ("base", "images", "texts"),
    [
        ("flickr8k", "Flicker8k_Dataset", "Flickr8k_text"),
        ("Flickr8k", "Flickr8k_Dataset", "Flickr8k_text"),
        ("flickr8k", "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text"),
        ("flickr8k", "images", "."),
        ("", "Flicker8k_Dataset", "Flickr8k_text"),
        ("", "Images", "."),
    ],
)
def test_layouts(tmp_path, files, base, images, texts):
    files.write(tmp_path / base, images, texts)
    assert names(read(tmp_path)) == FLICKR8K_LISTS


def test_an_empty_folder_of_one_name_does_not_hide_another(tmp_path, files):
    files.write(tmp_path, images="Flickr8k_Dataset")
    (tmp_path / "Flicker8k_Dataset").mkdir()
    assert names(read(tmp_path)) == FLICKR8K_LISTS


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("Flickr8k_text/Flickr_8k.devImages.txt", r": lacks Flickr_8k\.devImages\.txt\n"),
        ("Flickr8k_text/Flickr8k.token.txt", r": lacks Flickr8k\.token\.txt\n"),
        ("Flicker8k_Dataset", r": lacks Flicker8k_Dataset/\*\.jpg\n"),
        ("Flickr8k_text", r": lacks Flickr8k\.token\.txt, Flickr_8k\.train.*test"),
        ("", "holds no files of flickr8k\n"),
    ],
)
def test_what_is_missing_is_listed(tmp_path, files, remove, message):
    base = tmp_path / "flickr8k"
    files.write(base)
    (base / remove).rename(tmp_path / "away")
    with pytest.raises(DataError, match=message) as caught:
        flickr8k.locate(tmp_path)
    assert flickr8k.describe() in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="is no folder; name one with flickr8k's files"):
        flickr8k.locate(tmp_path / "gone")


def check_note(tmp_path, files, note, expected=None):
    """Only this note, and these names in the splits."""
    original = read(files.write(tmp_path))
    assert original.notes == (note,)
    assert names(original) == {**FLICKR8K_LISTS, **(expected or {})}
    return original


def test_a_caption_without_an_image(tmp_path, files):
    files.captions["2258277193_586949ec62.jpg.1"] = ["people waiting"] * 5
    note = "1 captioned name without an image file (2258277193_586949ec62.jpg.1): "
    check_note(tmp_path, files, note + "5 captions left out")


def test_listed_images_without_a_caption(tmp_path, files):
    del files.captions["a.jpg"], files.captions["c.jpg"]
    note = "2 images of Flickr_8k.trainImages.txt without a caption (a.jpg, c.jpg): left out"
    check_note(tmp_path, files, note, {"train": ["b.jpg"]})


def test_listed_names_without_an_image(tmp_path, files):
    files.lists["test"] += ["x.jpg", "y.jpg"]
    note = "2 names in Flickr_8k.testImages.txt without an image file (x.jpg, y.jpg): left out"
    check_note(tmp_path, files, note)


def test_images_on_no_list(tmp_path, files):
    for name in "pqrs":
        files.images[f"{name}.jpg"] = jpeg()
    note = "4 files in the image folder on none of the lists (p.jpg, q.jpg, r.jpg, ...): left out"
    check_note(tmp_path, files, note)


def test_names_on_two_lists_are_not_trained_on(tmp_path, files):
    files.lists["train"].insert(0, "e.jpg")
    files.lists["validation"].append("e.jpg")
    files.lists["train"].append("d.jpg")
    note = "2 names on two lists (d.jpg, e.jpg): kept in test, else validation, not in training"
    check_note(tmp_path, files, note)


def test_a_name_more_than_once_on_a_list(tmp_path, files):
    files.lists["train"].append("b.jpg")
    note = "1 name more than once in Flickr_8k.trainImages.txt (b.jpg): taken once"
    check_note(tmp_path, files, note)


def test_few_and_many_captions(tmp_path, files):
    files.captions["a.jpg"] = ["one", "two"]
    files.captions["d.jpg"] = [f"number {n}" for n in range(7)]
    original = read(files.write(tmp_path))
    assert original.notes == (
        "1 image with fewer than five captions (a.jpg): some are repeated",
        "1 image with more than five captions (d.jpg): the first five are used",
    )
    assert original.splits["train"][0].captions == ("one", "two")
    assert original.splits["validation"][0].captions == tuple(files.captions["d.jpg"])


def test_captions_come_in_the_order_of_their_numbers(tmp_path, files):
    files.captions["a.jpg"] = []
    files.more_lines = "a.jpg#2\tthird\na.jpg#10\tlast\na.jpg#0\tfirst\na.jpg#2\tfourth\n"
    original = read(files.write(tmp_path))
    assert original.splits["train"][0].captions == ("first", "third", "fourth", "last")


def test_captions_without_a_word(tmp_path, files):
    files.captions["b.jpg"][1] = " . "
    original = read(files.write(tmp_path))
    assert original.notes[0] == "1 caption without a word in Flickr8k.token.txt (line 7): left out"
    assert len(original.splits["train"][1].captions) == 4


def test_images_that_cannot_be_used_are_named_with_the_reason(tmp_path, files):
    files.images["a.jpg"] = files.images["a.jpg"][:-30]
    files.images["b.jpg"] = claiming(8, 8)
    files.lists["test"].append("f.jpg")
    files.images["f.jpg"] = b""
    files.captions["f.jpg"] = files.captions["a.jpg"]
    original = read(files.write(tmp_path))
    assert names(original) == {**FLICKR8K_LISTS, "train": ["c.jpg"]}
    (note,) = original.notes
    assert note.startswith(
        "3 image files that cannot be used (a.jpg is no picture, or is damaged ("
    )
    assert "b.jpg is no picture, or is damaged (cannot identify" in note
    assert note.endswith("): left out")
    assert str(tmp_path) not in note


def test_a_picture_that_claims_gigabytes(tmp_path, files):
    content = bytearray(files.images["a.jpg"])
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xea\x60\xea\x60"  # 60,000 x 60,000
    files.images["a.jpg"] = bytes(content)
    (note,) = read(files.write(tmp_path)).notes
    assert "a.jpg is" in note
    assert "limit" in note or "more than 50,000,000" in note


def test_a_picture_that_is_no_file(tmp_path, files):
    files.write(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "a.jpg").unlink()
    (tmp_path / "Flicker8k_Dataset" / "a.jpg").mkdir()
    os.mkfifo(tmp_path / "Flicker8k_Dataset" / "b.jpg.fifo")
    note = read(tmp_path).notes
    assert note[1] == "1 name in Flickr_8k.trainImages.txt without an image file (a.jpg): left out"
    assert len(note) == 2


PATHS = ["../secret.jpg", "/etc/passwd", "..", "sub/a.jpg", "C:\\a.jpg", "a\0.jpg"]


@pytest.mark.parametrize("path", PATHS)
def test_names_never_leave_the_image_folder(tmp_path, files, path):
    source = tmp_path / "source"
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    files.lists["train"].append(path)
    files.more_lines = f"{path}#0\ta secret\n"
    files.write(source)
    (source / "secret.jpg").write_bytes(jpeg())
    (source / "Flicker8k_Dataset" / "sub").mkdir()
    (source / "Flicker8k_Dataset" / "sub" / "a.jpg").write_bytes(jpeg())
    original = read(source)
    assert names(original) == FLICKR8K_LISTS
    assert [note.partition(" (")[0] for note in original.notes] == [
        "1 line of Flickr8k.token.txt without NAME#NUMBER, tab, caption",
        "1 line of Flickr_8k.trainImages.txt with no file name",
    ]


@pytest.mark.parametrize(
    "line",
    ["no tab or number", "a.jpg\tno number", "a.jpg#x\tdog", "#1\tdog", "a.jpg#1", "a.jpg#1\t"],
)
def test_malformed_lines_are_counted(tmp_path, files, line):
    files.more_lines = f"{line}\n\n"
    original = read(files.write(tmp_path))
    assert len(original.notes) == 1
    assert "(line 26)" in original.notes[0]
    assert names(original) == FLICKR8K_LISTS


def test_a_space_for_the_tab_and_windows_line_ends_and_a_byte_order_mark(tmp_path, files):
    files.write(tmp_path)
    for path in (tmp_path / "Flickr8k_text").iterdir():
        text = path.read_text().replace("\t", " ").replace("\n", "\r\n")
        path.write_text(text, encoding="utf-8-sig", newline="")
    original = read(tmp_path)
    assert original.notes == ()
    assert original.splits["test"][0].captions == tuple(files.captions["e.jpg"])


def test_what_is_not_utf8(tmp_path, files):
    files.write(tmp_path)
    path = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_bytes(path.read_bytes().replace(b"A dog", b"A caf\xe9", 1))
    original = read(tmp_path)
    assert original.notes == (
        "1 line of Flickr8k.token.txt not in UTF-8 (line 1): odd letters become spaces",
    )


def test_control_characters_do_not_reach_the_terminal(tmp_path, files):
    files.lists["train"] += ["\x1b[31mred.jpg", "long" * 200]
    (note,) = read(files.write(tmp_path)).notes
    assert note.isprintable()
    assert len(note) < 500


def test_a_split_without_a_picture_is_an_error_that_says_why(tmp_path, files):
    del files.images["d.jpg"]
    with pytest.raises(DataError, match=r"devImages\.txt: no image of it .*1 name in .*d\.jpg"):
        read(files.write(tmp_path))


def test_an_empty_list(tmp_path, files):
    files.lists["test"] = []
    with pytest.raises(DataError, match=r"testImages\.txt: no image of it can be used"):
        read(files.write(tmp_path))


def test_text_files_of_impossible_size(tmp_path, files, monkeypatch):
    monkeypatch.setattr(flickr8k, "_MOST_TEXT", 100)
    with pytest.raises(DataError, match=r"token\.txt: has more than 100 bytes"):
        read(files.write(tmp_path))


def test_image_files_of_impossible_size(tmp_path, files, monkeypatch):
    files.images["a.jpg"] = jpeg(0, (60, 60))
    monkeypatch.setattr(flickr8k, "_MOST_IMAGE", len(files.images["a.jpg"]) - 1)
    (note,) = read(files.write(tmp_path)).notes
    assert "(a.jpg has more than" in note


def test_a_picture_that_changes_while_it_is_read(tmp_path, files):
    original = read(files.write(tmp_path))
    (original.images / "a.jpg").write_bytes(jpeg(99))
    with pytest.raises(DataError, match=r"a\.jpg: changed while it was being read"):
        flickr8k.load_picture(original.images, original.splits["train"][0])


PIECES = st.sampled_from(
    ["a.jpg", "b.jpg", "#", "0", "1", "\t", " ", "dog", "\n", "\r", "../", "\0", "é", "\ufeff", "."]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60),
    st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=30),
    st.binary(max_size=20),
)
def test_whatever_is_in_the_text_files(tmp_path, captions, train_list, junk):
    """What is read is right or reported: no crash, and no example that is not as it must be."""
    source = tmp_path / "source"
    if not source.exists():
        Flickr8kFiles().write(source)
    texts = source / "Flickr8k_text"
    original = Flickr8kFiles()
    good = "".join(f"{n}.jpg#{i}\t{n} {i}\n" for n in "de" for i in range(5))
    (texts / "Flickr8k.token.txt").write_bytes(
        good.encode() + captions.encode(errors="surrogatepass") + junk
    )
    (texts / "Flickr_8k.trainImages.txt").write_bytes(
        b"c.jpg\n" + train_list.encode(errors="surrogatepass") + junk
    )
    try:
        found = read(source)
    except DataError as error:
        assert "trainImages.txt: no image of it can be used" in str(error)  # noqa: PT017
        return
    every = [example.name for part in found.splits.values() for example in part]
    assert len(every) == len(set(every))
    assert set(every) <= set(original.images)
    assert all(note.isprintable() for note in found.notes)
    for part in found.splits.values():
        assert all(example.captions and all(example.captions) for example in part)
