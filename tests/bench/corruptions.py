"""The package imagecorruptions (Michaelis et al., "Benchmarking Robustness in Object Detection", arXiv 1907.07484)
under current numpy, scipy and scikit-image, which have moved what it imports."""

import functools
import sys
import types
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@functools.cache
def _package() -> Any:
    import scipy.ndimage

    spec = find_spec("imagecorruptions")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: str(folder / name)  # type: ignore[attr-defined]
    moved = {"pkg_resources": resources, "scipy.ndimage.interpolation": scipy.ndimage}
    before = {name: sys.modules.get(name) for name in moved}
    sys.modules.update(moved)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import imagecorruptions
            from imagecorruptions import corruptions
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    gaussian = corruptions.gaussian

    def blurred(image: Any, sigma: Any, multichannel: bool = False, **options: Any) -> Any:
        return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    corruptions.gaussian = blurred
    return imagecorruptions


def corrupt(image: Image, name: str, severity: int, seed: int) -> Image:
    """Corrupt an image as the package does.

    Args:
        image: (height, width, 3), red, green, blue.
        name: Of the corruption, as the package has it.
        severity: 1 to 5.
        seed: The same seed gives the same image.
    """
    package = _package()
    np.random.seed(seed)  # the package draws from numpy's global generator
    changed: Image = package.corrupt(image, severity, name)
    return changed
