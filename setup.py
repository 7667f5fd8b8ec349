"""Install components/ and pipelines/ as kfp_flywheel.components and kfp_flywheel.pipelines, new folders included."""

from setuptools import find_packages, setup

ROOTS = {"kfp_flywheel.components": "components", "kfp_flywheel.pipelines": "pipelines"}
setup(
    package_dir=ROOTS,
    packages=[
        name for root, folder in ROOTS.items() for name in (root, *(f"{root}.{p}" for p in find_packages(folder)))
    ],
    package_data={"": ["py.typed", "*.yaml", "*.html", "*.css"]},
)
