"""Positions and windows against hand-made cases and Hugging Face's torch code."""

import numpy as np
import pytest

from balcap_jax.models.geometry import patch_positions, token_positions, window_ids, window_patches

IMAGE = 4
# (rows, columns) in patches; merge 2, windows of 2 x 2 merged tokens: multiples and odd ones.
GRIDS = [(4, 4), (8, 8), (2, 2), (6, 10), (10, 2), (2, 14), (6, 6)]


def test_patches_come_merged_token_by_merged_token():
    # 2 x 4 patches, merge 2: the left 2 x 2 block row by row, then the right one.
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    np.testing.assert_array_equal(patch_positions((2, 4), merge=2), expected)


def test_windows_at_the_border_are_smaller():
    # 2 x 6 patches are 1 x 3 merged tokens: a window of 2 x 2 takes two of them, then one is left.
    ids = window_ids((2, 6), merge=2, window=2)
    np.testing.assert_array_equal(ids, [0] * 8 + [1] * 4)
    np.testing.assert_array_equal(
        window_patches(ids, slots=16)[:, :9],
        [[0, 1, 2, 3, 4, 5, 6, 7, -1], [8, 9, 10, 11, -1, -1, -1, -1, -1]],
    )
    # 4 x 4 patches in windows of one merged token, row by row; patch ids are merged ones together.
    ids = window_ids((4, 4), merge=2, window=1)
    np.testing.assert_array_equal(window_patches(ids, slots=4), np.arange(16).reshape(4, 4))
    # Patches of a window need not be neighbours in the sequence.
    scattered = window_patches(np.array([1, 0, 1, 1, 0]), slots=4)
    np.testing.assert_array_equal(scattered, [[1, 4, -1, -1], [0, 2, 3, -1]])


def test_text_goes_on_after_the_larger_side_of_an_image():
    # word, 1 x 3 image tokens, word, word: the image starts at 1; text goes on at 1 + max(1, 3).
    tokens = np.array([9, IMAGE, IMAGE, IMAGE, 9, 9])
    positions = token_positions(tokens, [(2, 6)], image_token_id=IMAGE, merge=2)
    np.testing.assert_array_equal(
        positions, [[0, 1, 1, 1, 4, 5], [0, 1, 1, 1, 4, 5], [0, 1, 2, 3, 4, 5]]
    )


@pytest.mark.parametrize(
    ("tokens", "grids", "message"),
    [
        ([9, IMAGE, 9], [(2, 4)], "fewer"),
        ([9, IMAGE], [(2, 4)], "fewer"),
        ([9, IMAGE, IMAGE, IMAGE, 9], [(2, 4)], "more"),
        ([9, 9], [(2, 2)], "no placeholders"),
    ],
)
def test_placeholders_must_fill_the_grids(tokens, grids, message):
    with pytest.raises(ValueError, match=message):
        token_positions(np.array(tokens), grids, image_token_id=IMAGE, merge=2)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the test extra has torch")


@pytest.mark.torch
class TestAgainstTransformers:
    @pytest.mark.parametrize("window", [2, 3, 4])
    def test_windows(self, torch, window):
        """The same groups of patches, for several images in one prompt."""
        from transformers.vision_utils import get_vision_window_index

        index, bounds = get_vision_window_index(
            torch.tensor([(1, *grid) for grid in GRIDS]),
            spatial_merge_size=2,
            window_size=2 * 14 * window,
            patch_size=14,
        )
        patches = index[:, None] * 4 + torch.arange(4)  # merged tokens to patches
        bounds = bounds.tolist()
        theirs = {
            frozenset(patches.reshape(-1)[a:b].tolist())
            for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        }
        ours, first = set(), 0
        for grid in GRIDS:
            ids = window_ids(grid, merge=2, window=window)
            ours |= {frozenset((first + np.flatnonzero(ids == i)).tolist()) for i in set(ids)}
            first += len(ids)
        assert ours == theirs

    def test_patch_positions(self, torch):
        from transformers.vision_utils import get_vision_position_ids

        theirs = get_vision_position_ids(torch.tensor([(1, *grid) for grid in GRIDS]), 2)
        ours = np.concatenate([patch_positions(grid, merge=2) for grid in GRIDS])
        np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("grids", [GRIDS[:1], GRIDS[3:4], GRIDS[2:5], GRIDS])
    def test_token_positions(self, torch, grids):
        import tiny
        from transformers import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

        with torch.device("meta"):  # no weights are needed
            model = Qwen2_5_VLModel(Qwen2_5_VLConfig(**tiny.CONFIG.to_hf()))
        tokens = [9, 9]
        for i, (rows, columns) in enumerate(grids):
            tokens += [IMAGE] * (rows * columns // 4) + [9] * (1 + i % 3)
        theirs, delta = model.get_rope_index(
            torch.tensor([tokens]),
            mm_token_type_ids=(torch.tensor([tokens]) == IMAGE).int(),
            image_grid_thw=torch.tensor([(1, *grid) for grid in grids]),
        )
        ours = token_positions(np.array(tokens), grids, image_token_id=IMAGE, merge=2)
        np.testing.assert_array_equal(ours, theirs[:, 0])
        # The first completion token stands one after the last of the prompt.
        assert ours[0, -1] + 1 == len(tokens) + delta.item()
