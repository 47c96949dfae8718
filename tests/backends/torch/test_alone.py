"""What the torch backend needs: NumPy and torch. No extension of ours, no Triton, none of the core's other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
for name in ("tuili.backends.cpu._native", "triton", "platformdirs", "psutil", "msgspec", "tokenizers", "httpx"):
    sys.modules[name] = None  # importing it fails
import numpy as np
from support.batches import Driver
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
spec = decoder()
driver = Driver(load_backend("torch", spec, random_weights(spec), BackendOptions(max_model_len=32, device="cpu")))
print(np.isfinite(driver.logits([1, 2, 3])).all())
"""


def test_it_runs_with_numpy_and_torch_alone() -> None:
    tests = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(tests)!r})\n{SCRIPT}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "True", found.stderr


def test_without_torch_the_package_to_install_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tuili.backends import choose_backend, load_quantizer\n"
        "from tuili.errors import InvalidRequestError\n"
        "print(choose_backend(None, None))\n"
        "try:\n    load_quantizer('torch', 0)\n"
        "except InvalidRequestError as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    expected = "cpu\nbackend 'torch' needs a package that is not installed: pip install 'tuili[torch]'"
    assert found.stdout.strip() == expected, found.stderr
