"""parotid-seg: parotid gland masks from head-and-neck scans."""

import os

# onnxruntime from 1.29 on tells Microsoft about machine and model, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
