"""Which room an update takes: few are compiled, and a resumed run takes the same ones."""

import json
from collections import Counter

import numpy as np

from balcap_jax.models.packing import Room
from balcap_jax.rl.balance import Parts
from balcap_jax.training.rooms import PATIENCE, Rooms, least_room, real_share

SIZES = {"length": 8, "prefix_length": 4, "parts": Parts()}
COUNTS = np.array([[3, 8], [2, 5]]), np.array([[True, True], [False, True]]), np.array([4, 3])


def test_the_least_room_is_of_captions_with_a_signal():
    """Tiles of 2: 11 and 5 tokens take 12 + 6, so 20; without its signal the 2 are not there."""
    assert least_room(*COUNTS, **SIZES) == Room(20, 7)
    everything = np.full((2, 2), 8), np.ones((2, 2), bool), np.array([4, 4])
    assert least_room(*everything, **SIZES) is None


def test_the_real_share_by_hand():
    """3 + 8 + 5 tokens of captions and 7 of prompts, of 2 (4 + 2 8) slots or of 20 + 7 places."""
    assert real_share(*COUNTS, None, **SIZES) == 23 / 40
    assert real_share(*COUNTS, Room(20, 7), **SIZES) == 23 / 27
    split = SIZES | {"parts": Parts(2, 2)}
    assert real_share(*COUNTS, Room(10, 4), **split) == 23 / (4 * 14)


def test_a_smaller_room_is_made_once_enough_steps_have_wanted_it():
    rooms = Rooms()
    large, small, wide = Room(80, 8), Room(40, 8), Room(40, 16)
    assert rooms.choose(large) == large
    assert [rooms.choose(small) for _ in range(PATIENCE - 1)] == [large] * (PATIENCE - 1)
    assert rooms.choose(small) == small
    assert rooms.choose(wide) == wide  # nothing else holds it
    assert rooms.choose(Room(35, 8)) == small  # the least that holds it
    assert rooms.made == [large, small, wide]


def test_a_room_of_more_than_twice_the_size_is_not_taken_in_place_of_one():
    """As where large photos share a batch and small ones another."""
    rooms = Rooms()
    large, half, small = Room(80, 88), Room(40, 44), Room(40, 43)
    assert rooms.choose(large) == large
    assert rooms.choose(half) == large
    assert rooms.choose(small) == small
    assert rooms.made == [large, small]
    assert rooms.wanted == {half: 1}


def test_a_resumed_run_takes_the_same_rooms():
    rng = np.random.default_rng(0)
    needed = [Room(int(own), int(prefix)) for own, prefix in rng.choice([4, 5, 6, 7], (300, 2))]
    rooms = Rooms()
    expected = [rooms.choose(room) for room in needed]
    first, second = Rooms(), Rooms()
    start = [first.choose(room) for room in needed[:100]]
    second.restore(json.loads(json.dumps(first.state())))
    assert start + [second.choose(room) for room in needed[100:]] == expected
    for room, need in zip(expected, needed, strict=True):
        assert room.own >= need.own
        assert room.prefix >= need.prefix
    assert len(Counter(expected)) <= 16
