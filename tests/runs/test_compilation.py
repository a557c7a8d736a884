"""Counting compiled programs, and where they are kept."""

import jax
import jax.numpy as jnp
import pytest

from balcap_jax.runs import compilation
from balcap_jax.runs.compilation import Compilations, use_persistent_cache


def test_every_new_shape_is_one_program_and_none_is_counted_twice():
    arrays = [jnp.ones(3), jnp.ones(5)]
    counts = Compilations()
    double = jax.jit(lambda x: 2 * x)
    for x in (*arrays, *arrays):
        double(x)
    counts.close()
    assert counts.programs == 2
    assert counts.seconds > 0
    jax.jit(lambda x: 3 * x)(arrays[0])
    assert counts.programs == 2


@pytest.fixture
def told(monkeypatch):
    """What JAX was told."""
    calls = {}
    monkeypatch.setattr(compilation.jax.config, "update", calls.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return calls


def test_the_cache_is_in_the_users_folder_for_caches(told, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_persistent_cache()
    [folder] = told.values()
    assert folder.startswith(str(tmp_path / "balcap_jax" / "compiled-"))
    assert list(told) == ["jax_compilation_cache_dir"]
    assert (tmp_path / "balcap_jax").is_dir()


def test_the_users_own_choice_stays(told, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    use_persistent_cache()
    assert not told
    assert not list(tmp_path.iterdir())


def test_without_a_place_to_write_there_is_no_cache(told, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_persistent_cache()
    assert not told
