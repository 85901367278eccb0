"""Eight simulated devices, a persistent compilation cache, and where the published data lies."""

import os
import pathlib

# Before jax starts: afterwards both are ignored.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

import hypothesis
import jax
import pytest

# A machine under load is no defect.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
ROOT = pathlib.Path(__file__).resolve().parent.parent
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


MOST_MAPS = 40_000  # of the 65,530 memory maps that Linux allows a process


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before a process has too many: each is mapped into memory a few
    times over, and a map that is refused ends the process without a word."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The published maps, from $VRRL_DATA or a `shared/data` folder beside the checkout."""
    path = pathlib.Path(os.environ.get("VRRL_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no published data at {path}; set VRRL_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def tiny():
    """(policy, params) of the tiny random policy; shared, so nobody may donate them."""
    from vrrl_jax import testing

    return testing.tiny_policy()


@pytest.fixture(scope="session")
def tiny_processor():
    """The processor that fits the tiny policy."""
    from vrrl_jax import testing

    return testing.tiny_processor()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> pathlib.Path:
    """The tiny policy as a Hugging Face directory; shared, so nobody may write into it."""
    from vrrl_jax import testing

    return testing.write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
