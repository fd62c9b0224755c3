"""The files for the hub, and their upload.

The upload is huggingface_hub's, not timm's `push_to_hf_hub`: that one writes a card of its own,
keeps an old one, and takes only networks that timm has built.
"""

from pathlib import Path

from huggingface_hub import HfApi

from mobilenext.errors import InputError

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
"""Names of the files that a folder for the hub may have."""


def push(folder: Path, files: list[str], repository: str) -> str:
    """Upload files of a folder to a model repository of the hub, which is made if need be.

    Args:
        folder: The folder that has them.
        files: Their names; the repository loses others of `FILES`.
        repository: user/name.

    Returns:
        The repository's address.

    Raises:
        InputError: Anything went wrong, for instance nobody is logged in.
    """
    try:
        api = HfApi(library_name="mobilenext")
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=[name for name in FILES if name not in files] or None,
            commit_message="Weights and model card, exported by mobilenext",
        )
    except Exception as error:  # the hub's client and what it stands on raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"push={repository}: the hub did not take it ({reason}). {folder} is complete and "
            "stays; log in (hf auth login, or HF_TOKEN=...) with the right to write there, and run "
            "the same command again"
        ) from error
    return str(address)
