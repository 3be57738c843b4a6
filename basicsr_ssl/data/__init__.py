"""Frames in: degradations, datasets and the loader that resumes exactly. Importing registers the datasets."""

from basicsr_ssl.data import clips_dataset, flow_dataset, images_dataset  # noqa: F401
