"""A folder that stands for the Hugging Face hub: huggingface_hub's calls, and timm's download."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest


class Hub:
    """Keeps each repository as a folder `user/name`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder

        def create_repo(
            api: Any, repo_id: str, *, exist_ok: bool, **options: Any
        ) -> huggingface_hub.RepoUrl:
            assert exist_ok
            (folder / repo_id).mkdir(parents=True, exist_ok=True)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def file_exists(api: Any, repo_id: str, filename: str, **options: Any) -> bool:
            return (folder / repo_id / filename).exists()

        def upload_folder(
            api: Any,
            *,
            repo_id: str,
            folder_path: str | Path,
            commit_message: str,
            allow_patterns: list[str] | None = None,
            delete_patterns: list[str] | None = None,
            **options: Any,
        ) -> None:
            assert commit_message
            for name in delete_patterns or []:
                (folder / repo_id / name).unlink(missing_ok=True)
            for name in allow_patterns or [path.name for path in Path(folder_path).iterdir()]:
                shutil.copy(Path(folder_path) / name, folder / repo_id)

        def hf_hub_download(repo_id: str, filename: str, **options: Any) -> str:
            path = folder / repo_id / filename
            assert path.exists()
            return str(path)

        for function in (create_repo, file_exists, upload_folder):
            monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
        monkeypatch.setattr("timm.models._hub.hf_hub_download", hf_hub_download)

    def files(self, repository: str) -> dict[str, bytes]:
        """A repository's files by name."""
        return {path.name: path.read_bytes() for path in (self.folder / repository).iterdir()}
