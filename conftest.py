"""Every test runs offline: set before any library reads it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
