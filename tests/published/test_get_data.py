"""scripts/get_data.py against archives of the same kind and a hub that is a folder."""

import hashlib
import io
import random
import shutil
import subprocess
import tarfile
import zipfile
from types import SimpleNamespace

import huggingface_hub
import pytest

from mirg_jax.errors import DataError
from mirg_jax.published import get, unpack, volumes
from mirg_jax.published.volumes import Archive, Joined, SplitZip

HOME = "home/someone/opensource_datasets/MGrounding-630k"


def pictures(folder, count, seed=0, size=30_000):
    """Names and contents of files that don't compress."""
    rng = random.Random(seed)
    return {f"{folder}/{i // 3}/{i}.jpg": rng.randbytes(size + i) for i in range(count)}


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def split_zip(folder, stem, files, *more):
    """Volumes by zip itself: NAME.z01, NAME.z02, …, NAME.zip."""
    if not shutil.which("zip"):
        pytest.skip("needs zip")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    top = next(iter(files)).split("/")[0]
    subprocess.run(
        ["zip", "-q", "-r", "-s", "64k", *more, f"{stem}.zip", top], cwd=folder, check=True
    )
    shutil.rmtree(folder / top)


class FakeHub:
    """A repository that is a folder; `fetched` are the names that were asked for."""

    def __init__(self, folder):
        self.folder, self.fetched, self.commit, self.fail_at = folder, [], "c" * 40, ""

    def dataset_info(self, repository, revision, files_metadata):
        assert repository.startswith("Michael4933/") and files_metadata
        siblings = []
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            lfs = (
                SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if len(data) > 99 else None
            )
            siblings.append(SimpleNamespace(rfilename=path.name, size=len(data), lfs=lfs))
        return SimpleNamespace(sha=self.commit, siblings=siblings)

    def hf_hub_download(self, repository, name, *, repo_type, revision, local_dir):
        assert repo_type == "dataset" and revision == self.commit
        if name == self.fail_at:
            raise ConnectionError("gone\naway")
        self.fetched.append(name)
        shutil.copy(self.folder / name, local_dir / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


@pytest.fixture
def published(hub):
    """A small MGrounding-630k: one zip, one in volumes, one cut tar, one JSON."""
    common = pictures(f"{HOME}/Common_Object", 4, 1)
    groups = pictures(f"{HOME}/Group_Grounding", 9, 2)
    region = pictures("Region_Locating", 4, 3)
    (hub.folder / "Common_Object.zip").write_bytes(zipped(common))
    split_zip(hub.folder, "Group_Grounding", groups)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, content in region.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    cut = tar.getvalue()
    for i, end in enumerate(("aa", "ab", "ac")):
        part = cut[i * 50_000 : (i + 1) * 50_000 if i < 2 else None]
        (hub.folder / f"Region_Locating.tar.gz.part{end}").write_bytes(part)
    (hub.folder / "MGrounding-630k.json").write_text("[]")
    whole = common | groups | region
    return {name.removeprefix(f"{HOME}/"): content for name, content in whole.items()}


def there(folder):
    found = (path for path in folder.rglob("*.jpg"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_all_kinds_are_unpacked_where_rows_look(published, hub, tmp_path, refusal, capsys):
    flags = (f"--output_dir={tmp_path}/data",)
    assert refusal("get_data", *flags, "--dry_run") == ""
    said = capsys.readouterr().out
    assert "Group_Grounding.zip" in said and "5 files" in said and not hub.fetched
    assert refusal("get_data", *flags) == ""
    folder = tmp_path / "data/MGrounding-630k"
    assert there(folder) == published and (folder / "MGrounding-630k.json").exists()
    assert sorted(hub.fetched) == sorted(path.name for path in hub.folder.iterdir())
    hub.fetched.clear()
    (folder / "Common_Object.zip").unlink()  # no longer needed
    assert refusal("get_data", *flags) == "" and not hub.fetched
    assert "unpacked" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(published, hub, tmp_path, refusal):
    flags = (f"--output_dir={tmp_path}/data", "--delete_archives")
    hub.fail_at = "Group_Grounding.z02"
    line = refusal("get_data", *flags)
    assert "Group_Grounding.z02: can't be had" in line and "ConnectionError: gone away" in line
    folder = tmp_path / "data/MGrounding-630k"
    assert set(there(folder)) == {name for name in published if name.startswith("Common")}
    # Part of a file that the hub's client left is not taken for the file.
    (folder / "Group_Grounding.z02").write_bytes(b"PK")
    hub.fail_at = ""
    before, hub.fetched = hub.fetched, []
    assert refusal("get_data", *flags) == ""
    assert "Group_Grounding.z01" in before and not set(before) & set(hub.fetched)
    assert there(folder) == published
    assert not [path for path in folder.iterdir() if ".z" in path.name or ".tar" in path.name]


def test_subsets(published, hub, tmp_path, refusal):
    flags = (f"--output_dir={tmp_path}/data",)
    assert refusal("get_data", *flags, "--subset=Region_Locating") == ""
    assert {name.split("/")[0] for name in there(tmp_path / "data/MGrounding-630k")} == {
        "Region_Locating"
    }
    line = refusal("get_data", *flags, "--subset=Regions")
    assert "--subset=Regions" in line and "Common_Object, Group_Grounding, Region_Locating" in line


def test_a_changed_file_is_refused_and_a_full_disk_told_before(
    published, hub, tmp_path, refusal, monkeypatch
):
    flags = (f"--output_dir={tmp_path}/data",)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
        assert "GB are needed and 1.1 GB are free" in refusal("get_data", *flags)
    assert not hub.fetched

    def damage(repository, name, *, local_dir, **more):
        data = bytearray((hub.folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (local_dir / name).write_bytes(data)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", damage)
    assert "Common_Object.zip: isn't what the hub says" in refusal("get_data", *flags)


def test_room_that_is_needed(published, hub, tmp_path):
    plan = get.make_plan("MGrounding-630k", (), "main")
    folder = get.Folder(tmp_path, plan.commit)
    plain = plan.size(plan.plain)
    sizes = [plan.size(archive.volumes) for archive in plan.archives]
    assert get.needed(plan, folder, False) == plain + 2 * sum(sizes)
    assert get.needed(plan, folder, True) == plain + max(
        2 * sizes[0], sizes[0] + 2 * sizes[1], sizes[0] + sizes[1] + 2 * sizes[2]
    )


@pytest.mark.parametrize("name", ["get_data.json", "MGrounding-630k.json", "Region_Locating.zip"])
def test_members_that_would_replace_the_data_set_s_own_files_are_refused(
    hub, tmp_path, refusal, name
):
    (hub.folder / "MGrounding-630k.json").write_text("[]")
    files = {"Region_Locating/a.jpg": b"1", f"home/x/MGrounding-630k/{name}": b"[1]"}
    (hub.folder / "Region_Locating.zip").write_bytes(zipped(files))
    line = refusal("get_data", f"--output_dir={tmp_path}/data")
    assert f"{name}' would replace a file of the data set; nothing was unpacked" in line
    assert not there(tmp_path / "data")


def test_what_a_killed_run_had_begun_to_write_is_removed(published, hub, tmp_path, refusal):
    folder = tmp_path / "data/MGrounding-630k"
    (folder / "Common_Object/0").mkdir(parents=True)
    (folder / "Common_Object/0/1.jpg.0123456789ab.part").write_bytes(b"half")
    (folder / "Common_Object/0/mine.part").write_bytes(b"else")
    assert refusal("get_data", f"--output_dir={tmp_path}/data") == ""
    assert there(folder) == published
    assert [path.name for path in folder.rglob("*.part")] == ["mine.part"]


@pytest.mark.parametrize("form", ["zip", "zip_lzma", "zip_bz2", "tar.gz", "tar.bz2", "tar.xz"])
def test_damage_within_an_archive_is_told(form, tmp_path):
    """Wherever it is; of no decompressor's exceptions one comes through."""
    rng = random.Random(2)
    content = bytes(rng.choices(range(65, 90), k=20_000))
    name, _, method = form.partition("_")
    path, seen = tmp_path / f"a.{name}", set()
    if name == "zip":
        kind = {"": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA, "bz2": zipfile.ZIP_BZIP2}
        with zipfile.ZipFile(path, "w", kind[method]) as archive:
            archive.writestr("a/1.jpg", content)
    else:
        with tarfile.open(path, f"w:{name[4:]}") as archive:
            info = tarfile.TarInfo("a/1.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    for place in range(1, 40):
        data = bytearray(whole)
        for at in range(place * len(data) // 40, place * len(data) // 40 + 8):
            data[min(at, len(data) - 1)] ^= 0x5A
        path.write_bytes(data)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            with unpack.opened(Archive(path.name, (path.name,)), tmp_path, "d") as source:
                unpack.unpack(source, source.members(), tmp_path / "out")
        except DataError as error:
            seen.add(str(error))
    assert seen and all(f"a.{name}" in each or "1.jpg" in each for each in seen)


@pytest.mark.parametrize(
    "name", ["../out.jpg", "a/../../out.jpg", "/out.jpg", "C:/out.jpg", "a\\..\\out.jpg", "a\nb"]
)
def test_members_that_would_leave_the_folder_are_refused(name, tmp_path):
    data = zipped({"a/good.jpg": b"1", name: b"2"})
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match="would leave the folder; nothing was unpacked"):
        with unpack.opened(Archive("x.zip", ("x.zip",)), tmp_path, "MGrounding-630k") as source:
            source.members()


def test_links_bombs_and_twins_are_refused(tmp_path):
    link = zipfile.ZipInfo("a/link")
    link.external_attr = 0o120777 << 16
    bad = {
        "link.zip": ({link: b"/etc"}, "is a link or a device"),
        "bomb.zip": ({"a.jpg": bytes(1 << 22)}, "more than 20 times its own size"),
        "twin.zip": ({"x/MGrounding-630k/a.jpg": b"1", "y/MGrounding-630k/a.jpg": b"2"}, "two of"),
    }
    for name, (files, message) in bad.items():
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in files.items():
                archive.writestr(each, content)
        with pytest.raises(DataError, match=message):
            with unpack.opened(Archive(name, (name,)), tmp_path, "MGrounding-630k") as source:
                source.members()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            info = tarfile.TarInfo("a/link")
            info.type, info.linkname = kind, "../../etc/passwd"
            archive.addfile(info)
        with pytest.raises(DataError, match="is a link or a device"):
            with unpack.opened(Archive("a.tar", ("a.tar",)), tmp_path, "x") as source:
                source.members()


def test_a_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({"x/a/b.jpg": b"1"}))
    (tmp_path / "out/x").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/x/a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a link there leads out of"):
        with unpack.opened(Archive("x.zip", ("x.zip",)), tmp_path, "d") as source:
            unpack.unpack(source, source.members(), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_files_of_archives_are_put_together():
    names = ["a.zip", "a.z02", "a.z01", "b.tar.gz.part_ab", "b.tar.gz.part_aa", "c.zip.002"]
    archives, others = volumes.group([*names, "c.zip.001", "d.tgz", "e.json"])
    assert archives == [
        Archive("a.zip", ("a.z01", "a.z02", "a.zip"), True),
        Archive("b.tar.gz", ("b.tar.gz.part_aa", "b.tar.gz.part_ab")),
        Archive("c.zip", ("c.zip.001", "c.zip.002")),
        Archive("d.tgz", ("d.tgz",)),
    ]
    assert others == ["e.json"]
    for missing in (["a.z01"], ["a.z02", "a.zip"], ["c.zip.001", "c.zip.003"], ["c.zip.002"]):
        with pytest.raises(DataError, match="missing"):
            volumes.group(missing)


@pytest.mark.parametrize("form", [(), ("-fz",)], ids=["32 bits", "64 bits"])
def test_a_split_zip_is_read_as_the_whole_one(form, tmp_path):
    files = pictures("Object_Tracking", 20, size=20_000)
    split_zip(tmp_path, "o", files, *form)
    is_long = b"PK\6\6" in (tmp_path / "o.zip").read_bytes()[-500:]
    assert is_long == bool(form)
    archives, _ = volumes.group(path.name for path in tmp_path.iterdir())
    (archive,) = archives
    assert len(archive.volumes) > 5
    with Joined([tmp_path / name for name in archive.volumes]) as joined:
        source = SplitZip(joined)
        assert source.testzip() is None
        assert {n: source.read(n) for n in source.namelist() if n[-1] != "/"} == files
    (tmp_path / archive.volumes[1]).write_bytes(b"")
    with pytest.raises(DataError, match="is damaged"):
        with unpack.opened(archive, tmp_path, "d") as source:
            unpack.unpack(source, source.members(), tmp_path / "out")
