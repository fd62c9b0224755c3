"""Write a trained network for the hub: `python scripts/export.py checkpoint=... output=FOLDER`."""

from mobilenext.jobs.export import ExportConfig, export
from mobilenext.main import launch

if __name__ == "__main__":
    launch(export, ExportConfig, "export")
