"""Where tokens go when they are packed, by hand and for any lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.models.packing import Packing, Room, next_size, room_for, tile_of


def masks(prefixes, lengths, *, prefix, length):
    """[b p] and [b g c] of prompts and completions of these lengths."""
    return (
        jnp.arange(prefix)[None] < jnp.asarray(prefixes)[:, None],
        jnp.arange(length)[None, None] < jnp.asarray(lengths)[..., None],
    )


def test_sizes_by_hand():
    counts = [1, 4, 5, 7, 8, 9, 11, 13, 15, 3047, 3073, 4097]
    sizes = [4, 4, 5, 7, 8, 10, 12, 14, 16, 3072, 3584, 5120]
    assert [next_size(count) for count in counts] == sizes
    assert all(next_size(n) < 1.25 * n for n in range(16, 5000))


def test_room_by_hand():
    """Tiles of 2: the prompts need 4 + 2 + 8 + 6, in one row, in two, or in one each."""
    own, prefix = np.array([3, 2, 8, 5]), np.array([3, 4, 2, 2])
    sizes = {"group": 2, "length": 8, "prefix_length": 4}
    assert room_for(own, prefix, **sizes) == Room(20, 12)
    assert room_for(own.reshape(2, 2), prefix.reshape(2, 2), **sizes) == Room(14, 7)
    assert room_for(own[:, None], prefix[:, None], **sizes) == Room(8, 4)
    full = np.full(4, 16)
    assert room_for(full, np.full(4, 4), **sizes) is None
    # Completions that are full, and prompts of which half is padding.
    assert room_for(full, np.full(4, 2), **sizes) == Room(64, 8)


def test_packing_by_hand():
    """Two prompts in one row, a group of 2, completions of at most 5, so tiles of 2."""
    prefix_mask, mask = masks([1, 2], [[3, 0], [1, 2]], prefix=3, length=5)
    assert tile_of(5) == 2
    packing = Packing.of(Room(8, 4), prefix_mask, mask, rows=1)
    assert packing.fits
    # Slots of a prompt are 3 of its prefix and 5 + 5 of completions; prompt 1 begins at 13.
    own = [3, 4, 5, -1, 16, 21, 22, -1]
    np.testing.assert_array_equal(packing.slots[0], [*own, 0, 13, 14, -1])
    of_first = [8, -1, -1, 0, 1, 2, *[-1] * 7]
    of_second = [9, 10, -1, 4, *[-1] * 4, 5, 6, *[-1] * 3]
    np.testing.assert_array_equal(packing.places[0], of_first + of_second)
    tokens = jnp.arange(1, 21).reshape(2, 2, 5)
    packed = packing.pack_own(tokens)
    np.testing.assert_array_equal(packed[0], [1, 2, 3, 0, 11, 16, 17, 0])
    np.testing.assert_array_equal(
        packing.unpack_own(packed, tokens.shape), jnp.where(mask, tokens, 0)
    )


def test_prompts_stay_where_they_are_where_there_is_room_for_all_slots():
    prefix_mask, mask = masks([1, 2], [[3, 0], [1, 2]], prefix=3, length=5)
    packing = Packing.of(Room(8, 6), prefix_mask, mask, rows=1)
    np.testing.assert_array_equal(packing.slots[0, 8:], [0, 1, 2, 13, 14, 15])
    x = jnp.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(packing.pack_prefix(x)[0], jnp.arange(6))
    np.testing.assert_array_equal(packing.unpack_prefix(packing.pack_prefix(x), 2), x)


@pytest.mark.parametrize("room", [Room(4, 4), Room(8, 2)])
def test_a_row_that_is_too_long_does_not_fit(room):
    prefix_mask, mask = masks([1, 2], [[3, 0], [1, 2]], prefix=3, length=5)
    assert not Packing.of(room, prefix_mask, mask, rows=1).fits


@pytest.mark.parametrize("rows", [1, 2])
def test_every_real_token_has_one_place_and_comes_back(rows):
    """Of any lengths, empty and full completions among them; gradients are the inverse gathers."""
    rng = np.random.default_rng(rows)
    B, G, C, P = 4, 3, 9, 6
    room = Room(B // rows * (G * C + 3), B // rows * P - 1)

    @jax.jit
    def there_and_back(prefix_mask, mask, x):
        packing = Packing.of(room, prefix_mask, mask, rows=rows)
        back, vjp = jax.vjp(lambda x: packing.unpack(packing.pack(x), B), x)
        return packing.pack(x), back, vjp(x)[0], packing.own_slots, packing.fits

    for _ in range(20):
        lengths = rng.choice([0, 1, 4, 7, C], (B, G))
        lengths[int(rng.integers(B))] = rng.choice([0, C])
        prefix_mask, mask = masks(rng.integers(1, P, B), lengths, prefix=P, length=C)
        x = jnp.asarray(rng.normal(size=(B, P + G * C, 2)), jnp.float32)
        packed, back, gradient, own, fits = there_and_back(prefix_mask, mask, x)
        assert fits
        real = np.concatenate([prefix_mask, mask.reshape(B, -1)], axis=1)
        assert int((packed != 0).all(axis=-1).sum()) == int(real.sum())
        np.testing.assert_array_equal(back, np.where(real[..., None], x, 0))
        np.testing.assert_array_equal(gradient, back)
        # Completions begin at tiles, so that a tile is of one prompt.
        slots = np.asarray(own).reshape(rows, -1, tile_of(C))
        prompts = np.where(slots < 0, -1, slots // (G * C))
        assert ((prompts == prompts[..., :1]) | (prompts == -1)).all()
