"""pyproject.toml says everything but this: conf/ stands at the top level, and is installed inside of blockshock/."""

from setuptools import find_namespace_packages, setup

PACKAGES = ("blockshock", "profiler", "checkpointing", "sweeps", "hydra_plugins")

setup(
    packages=[
        *find_namespace_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
        "blockshock.conf",
    ],
    package_dir={"blockshock.conf": "conf"},
    package_data={"": ["*.html", "*.js", "*.css", "*.cu", "py.typed"], "blockshock.conf": ["**/*.yaml"]},
)
