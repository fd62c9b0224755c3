"""The machine around a job: processes, devices, signals, number formats.

Knows nothing of images, networks or configs.
"""
