"""Shifted and mirrored training images."""

import torch

from client_app.augmentation import augmented


def numbered(batch, size=16):
    """Return images whose pixels tell their place: row in the first channel, column in the second, from 1."""
    place = torch.arange(1, size + 1, dtype=torch.uint8)
    row, column = place[:, None].expand(size, size), place[None].expand(size, size)
    return torch.stack([row, column, torch.full_like(row, 255)]).expand(batch, 3, size, size).contiguous()


def test_every_image_is_a_window_of_its_own_mirrored_or_not():
    images = augmented(numbered(400), torch.Generator().manual_seed(0))
    assert (images.shape, images.dtype) == ((400, 3, 16, 16), torch.uint8)
    kinds = set()
    for image in images:
        inside = image[2] == 255
        rows, columns = torch.nonzero(inside).T.tolist()
        # Where the picture begins in the window tells the shift of at most 16 / 8 = 2.
        down = rows[0] + 1 - int(image[0, rows[0], columns[0]])
        mirrored = bool(image[1, rows[0], columns[0]] > image[1, rows[0], columns[-1]])
        flat = image.flip(2) if mirrored else image
        columns = torch.nonzero(flat[2] == 255)[:, 1].tolist()
        across = columns[0] + 1 - int(flat[1, rows[0], columns[0]])
        expected = torch.zeros_like(flat)
        whole = numbered(1)[0]
        for y in range(16):
            for x in range(16):
                if 0 <= y - down < 16 and 0 <= x - across < 16:
                    expected[:, y, x] = whole[:, y - down, x - across]
        assert torch.equal(flat, expected)
        kinds.add((down, across, mirrored))
    assert kinds == {(d, a, m) for d in range(-2, 3) for a in range(-2, 3) for m in (False, True)}


def test_the_generator_alone_decides():
    first, again = (augmented(numbered(8), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augmented(numbered(8), torch.Generator().manual_seed(6)))


def test_each_of_several_pictures_has_a_window_of_its_own():
    pairs = augmented(numbered(12).unflatten(0, (6, 2)), torch.Generator().manual_seed(5))
    assert pairs.shape == (6, 2, 3, 16, 16)
    assert torch.equal(pairs.flatten(0, 1), augmented(numbered(12), torch.Generator().manual_seed(5)))
    assert not torch.equal(pairs[:, 0], pairs[:, 1])
