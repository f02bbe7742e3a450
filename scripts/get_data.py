"""Gets MGrounding-630k or MIG-Bench: lists and counts, downloads, checks, unpacks.

    python scripts/get_data.py --output_dir=data --subset=Common_Object,Group_Grounding --dry_run
    python scripts/get_data.py --output_dir=data --dataset=MIG-Bench --delete_archives

OUTPUT_DIR is then the image root of the data set's files; see docs/data.md. Run the same command
again to go on.
"""

from absl import flags

from mirg_jax import cli
from mirg_jax.files import places
from mirg_jax.published import get

_DATASET = flags.DEFINE_enum("dataset", "MGrounding-630k", list(get.REPOSITORIES), "The data set.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder that gets the data set's folder: the image root.", required=True
)
_SUBSET = flags.DEFINE_list(
    "subset", [], "Archives to get, without their endings; by default all. JSON files come always."
)
_REVISION = flags.DEFINE_string("revision", "main", "Branch, tag or commit on the hub.")
_DELETE_ARCHIVES = flags.DEFINE_bool(
    "delete_archives", False, "Delete each archive once it is unpacked, before the next is got."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List and count only.")


def main(_):
    output_dir = places.local(_OUTPUT_DIR.value, "--output_dir")
    cli.output_folder(_OUTPUT_DIR)
    plan = get.make_plan(_DATASET.value, _SUBSET.value, _REVISION.value)
    folder = get.Folder(output_dir / _DATASET.value, plan.commit)
    size = get.needed(plan, folder, _DELETE_ARCHIVES.value)
    print(get.table(plan, folder))
    print(f"commit {plan.commit}; {size / 1e9:.2f} GB of free space are needed")
    get.check_room(folder.path, size)
    if not _DRY_RUN.value:
        get.get(_DATASET.value, plan, folder, delete_archives=_DELETE_ARCHIVES.value)
        print(f"{folder.path}: done; the image root is {output_dir}")


if __name__ == "__main__":
    cli.run(main)
