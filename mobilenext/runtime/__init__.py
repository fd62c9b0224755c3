"""What surrounds a job: processes, number formats, folders, checkpoints, reports.

Knows nothing of images, networks or configs.
"""
