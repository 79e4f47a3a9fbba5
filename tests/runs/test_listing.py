"""What a run explains: files, folders, patterns, lists and tar files, in an order that is always the same."""

import subprocess
import sys
import tarfile

import pytest
from PIL import Image
from run_helpers import archive, picture, pixels, png

from attribkit.errors import ImageError
from attribkit.images import find_images
from attribkit.runs.listing import list_images
from attribkit.runs.reading import Opener


def names(*sources):
    return [place.image for place in list_images(sources)]


def problems(*sources):
    return {place.image: place.problem for place in list_images(sources) if place.problem}


def test_a_folder_is_walked_in_the_order_of_the_sorted_paths(tmp_path):
    for name in ("b.png", "a/z.png", "a.png", "a/b/c.jpg", "A.png", "a-b/x.png", "c/.hidden.png", ".h/x.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names(tmp_path) == [str(path) for path in find_images(tmp_path)]
    assert names(tmp_path / "a.png", tmp_path / "no.png") == [str(tmp_path / "a.png"), str(tmp_path / "no.png")]
    assert "holds no image" in problems(tmp_path / "c")[str(tmp_path / "c")]


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.png", "in/a.png", "in/deep/c.png", "in/[x].png"):
        picture(tmp_path / name)
    assert names("in/?.png") == ["in/a.png", "in/b.png"]
    assert names("in/**/*.png") == ["in/[x].png", "in/a.png", "in/b.png", "in/deep/c.png"]
    assert names("in/d*") == ["in/deep/c.png"]
    assert names("in/[x].png") == ["in/[x].png"]  # there is such a file
    assert problems("in/*.gif") == {"in/*.gif": "no file fits this pattern"}


def test_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "lists" / "near.png")
    picture(tmp_path / "here.png")
    lines = [
        "near.png",
        "",
        str(tmp_path / "here.png"),
        "here.png",
        "gone.png",
        "naïve.png\r",
        "a\0b.png",
        "\udcff.png",
    ]
    (tmp_path / "lists" / "L.txt").write_text("\n".join(lines), "utf-8", "surrogateescape")
    found = list(list_images(["lists/L.txt"]))
    assert [place.image for place in found] == [
        "near.png", str(tmp_path / "here.png"), "here.png", "gone.png", "naïve.png", "a\\0b.png", "\udcff.png",
    ]  # fmt: skip
    assert found[0].file == "lists/near.png"
    assert found[2].file == "here.png"
    assert "null character" in found[5].problem
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "the list is empty" in problems("empty.txt")["empty.txt"]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_files(tmp_path, suffix, mode):
    hostile = ["../../etc/passwd.png", "/abs.png", "a/../b.PNG"]
    members = [(name, png(i)) for i, name in enumerate(["k0.png", *hostile, "same.png", "same.png"])]
    path = archive(tmp_path / f"x{suffix}", [("k0.cls", b"3"), *members, ("empty.png", b"")], mode)
    found = list(list_images([path]))
    assert [place.image for place in found] == [f"{path}/{name}" for name, _ in [*members, ("empty.png", 0)]]
    opener = Opener()
    order = [0, 3, 1, 5, 4, 2]  # backwards too
    for i in order:
        assert opener.read(found[i]).tobytes() == pixels(i).tobytes()
    with pytest.raises(ImageError, match=r"^the file is empty"):
        opener.read(found[-1])
    opener.close()


def test_ranges_of_tar_files(tmp_path):
    for i in range(3):
        archive(tmp_path / f"s-{i:02d}.tar", [("a.png", png(i))])
    pattern = str(tmp_path / "s-{00..02}.tar")
    assert names(pattern) == [str(tmp_path / f"s-{i:02d}.tar/a.png") for i in range(3)]
    assert names(tmp_path / "s-{0..9999999999999}.tar") == [str(tmp_path / "s-{0..9999999999999}.tar")]


def test_damaged_tar_files(tmp_path):
    path = archive(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(4)])
    whole = path.read_bytes()
    starts = [place.start for place in list_images([path])]
    path.write_bytes(whole[: starts[2] + 100])
    assert list(problems(path).values()) == [
        "is cut off: the tar file ends within it",
        *list(problems(path).values())[1:],
    ]
    assert names(path)[:2] == [f"{path}/0.png", f"{path}/1.png"]
    path.write_bytes(b"x" * 2000)
    assert "is a damaged tar file" in problems(path)[str(path)]
    path.write_bytes(whole)
    places = list(list_images([path]))
    path.write_bytes(whole[: starts[3] + 10])  # after it was listed
    opener = Opener()
    with pytest.raises(ImageError, match="the tar file ends within it"):
        opener.read(places[3])
    path.unlink()
    opener.close()
    with pytest.raises(ImageError, match="No such file"):
        opener.read(places[0])


def test_what_is_no_file_in_a_tar_file(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert len(problems(path)) == 5


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (place,) = list_images([tmp_path])
    with pytest.raises(ImageError, match=r"^is a pipe"):
        Opener().read(place)


def test_listing_needs_no_torch(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    code = (
        "import sys; from attribkit.runs import list_images;"
        "print(len(list(list_images(sys.argv[1:]))), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"
