import itertools
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

from data import EpochBatches, NoPhotosError, PhotoDataset, collate, color_jitter, draw_jitter
from utils.photos.reading import find_photos

JITTER = (0.9, 0.3, 0.4, 2.0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_jitter_is_torchvisions_for_every_order_and_for_each_photo_its_own(order):
    photos = torch.rand(3, 3, 20, 31)
    factors = torch.tensor([[0.2, 1.3, 0.7, 0.5], [1.9, 0.0, 1.4, 2.3], [1.0, 1.0, 1.0, 1.0]])
    orders = torch.tensor([order, order[::-1], order])
    adjust = (TF.adjust_brightness, TF.adjust_saturation, TF.adjust_contrast, TF.adjust_gamma)
    for photo, factor, steps, result in zip(
        photos, factors, orders, color_jitter(photos, factors, orders), strict=True
    ):
        for step in steps.tolist():
            photo = adjust[step](photo, factor[step].item())
        torch.testing.assert_close(result, photo, atol=1e-6, rtol=0)


def test_neutral_jitter_returns_the_photo():
    photos = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(
        color_jitter(photos, torch.ones(2, 4), torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])), photos
    )


def test_draws_cover_their_range_and_every_order():
    rng = np.random.default_rng(0)
    factors, orders = zip(*(draw_jitter(rng, JITTER) for _ in range(2000)), strict=True)
    factors = torch.stack(factors)
    assert 1 / 3 <= factors[:, 3].min() < 0.35 and 2.9 < factors[:, 3].max() <= 3
    assert abs(factors[:, 3].log().mean()) < 0.03
    for column, amount in enumerate(JITTER[:3]):
        assert 1 - amount <= factors[:, column].min() < 1 - 0.95 * amount
        assert 1 + 0.95 * amount < factors[:, column].max() <= 1 + amount
        assert abs(factors[:, column].mean() - 1) < 0.03
    assert len({tuple(order.tolist()) for order in orders}) == 24


def test_find_photos_walks_subfolders_by_suffix(photos):
    (photos / "train" / "notes.txt").write_text("no photo")
    shutil.copy(photos / "train" / "train1.jpg", photos / "train" / "UPPER.JPG")
    found = find_photos(photos / "train")
    assert len(found) == 11 and found == sorted(found)
    assert photos / "train" / "sub" / "train0.jpg" in found


def random_views(photos, **changes):
    options = {"jitter": JITTER, "seed": 0, "crop_min_area": 0.25, **changes}
    return PhotoDataset(photos / "train", (24, 36), **options)


def test_views_depend_on_seed_epoch_and_photo_alone(photos):
    def same(first, second):
        return all(torch.equal(first[0][k], second[0][k]) for k in (0, 3, 4, 6))

    views = random_views(photos)
    assert same(views[3, 1], random_views(photos)[3, 1])
    assert not same(views[3, 1], views[4, 1])
    assert not same(views[3, 1], random_views(photos, seed=1)[3, 1])


def test_every_view_of_a_photo_has_a_number_of_its_own(photos):
    views = random_views(photos, views_per_photo=3)
    assert [views[1, number][0][-1] for number in range(len(views))] == list(range(len(views)))


def test_loader_gives_the_same_batches_with_and_without_workers(photos):
    def batches(workers):
        dataset = random_views(photos)
        sampler = EpochBatches(len(dataset), 4, seed=0)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        result = []
        for sampler.epoch in (1, 2):
            result += list(loader)
        return result

    for first, second in zip(batches(0), batches(2), strict=True):
        assert first.names == second.names
        assert torch.equal(first.photos, second.photos) and torch.equal(first.factors, second.factors)
        assert torch.equal(first.orders, second.orders)


def test_sampler_shows_every_photo_once_and_goes_on_where_it_stopped():
    sampler = EpochBatches(10, 4, seed=5)
    whole = list(sampler)
    assert [len(batch) for batch in whole] == [3, 3, 4] == [sampler.size(number) for number in range(3)]
    assert sorted(index for batch in whole for _, index in batch) == list(range(10))
    sampler.first_batch = 2
    assert list(sampler) == whole[2:]
    sampler.epoch, sampler.first_batch = 2, 0
    assert [index for _, index in sum(sampler, [])] != [index for _, index in sum(whole, [])]


def test_validation_views_are_fixed_whatever_the_epoch(photos):
    def view(epoch):
        return PhotoDataset(photos / "valid", (24, 24), jitter=JITTER)[epoch, 2][0]

    assert all(torch.equal(view(1)[k], view(9)[k]) for k in (0, 3, 4, 6))


def test_views_are_not_stretched(tmp_path):
    # A circle must stay one: equal extent of the disc along both axes.
    y, x = np.mgrid[0:300, 0:600]
    disc = ((x - 300) ** 2 + (y - 150) ** 2 < 100**2).astype(np.uint8) * 255
    Image.fromarray(disc).convert("RGB").save(tmp_path / "disc.png")
    photo = PhotoDataset(tmp_path, (60, 60), jitter=(0, 0, 0, 0))[1, 0][0][0]
    inside = photo[0] > 128
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1
    assert abs(int(inside.any(0).sum()) - 40) <= 1


@pytest.mark.parametrize(("size", "image_size"), [((2000, 480), (56, 120)), ((403, 302), (352, 256))])
def test_rounding_does_not_push_a_view_out_of_the_photo(tmp_path, size, image_size):
    picture(*size).save(tmp_path / "a.png")
    assert PhotoDataset(tmp_path, image_size, jitter=(0, 0, 0, 0))[1, 0][0][0].shape == (3, *image_size)


def test_orientation_is_applied(tmp_path):
    image = picture(60, 40)
    image.paste((255, 0, 0), (0, 0, 60, 8))  # red along the top as stored: orientation 6 turns it to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    photo = PhotoDataset(tmp_path, (60, 40), jitter=(0, 0, 0, 0))[1, 0][0][0]
    assert photo[0, :, -4:].float().mean() > 240 and photo[1, :, -4:].float().mean() < 15


def test_grey_palette_cmyk_and_transparent_photos_become_rgb(tmp_path):
    image = picture(40, 40)
    image.convert("L").save(tmp_path / "grey.png")
    image.quantize(32).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("RGBA").save(tmp_path / "alpha.webp")
    dataset = PhotoDataset(tmp_path, (32, 32), jitter=(0, 0, 0, 0))
    assert len(dataset) == 4
    for index in range(4):
        assert dataset[1, index][0][0].shape == (3, 32, 32)


def test_corrupt_photo_is_reported_and_replaced_in_training_but_not_in_validation(photos):
    path = photos / "train" / "train5.jpg"
    path.write_bytes(path.read_bytes()[:900])  # the header is whole, the data is not
    training = random_views(photos)
    index = training.paths.index(path)
    sample, failures = training[1, index]
    assert sample is not None and sample[7] != "train5.jpg"
    assert [failure.path for failure in failures] == [str(path)] and "cut short" in failures[0].reason
    sample, failures = PhotoDataset(photos / "train", (24, 36), jitter=JITTER)[1, index]
    assert sample is None and len(failures) == 1
    assert collate([(sample, failures)]).names == []


def test_unreadable_header_is_left_out_at_once(photos):
    (photos / "train" / "empty.png").write_bytes(b"")
    (photos / "train" / "text.jpg").write_text("no photo")
    dataset = random_views(photos)
    assert len(dataset) == 10
    assert {os.path.basename(path): reason.split(":")[0] for path, reason in dataset.failures} == {
        "empty.png": "the file is empty",
        "text.jpg": "not a JPEG, PNG, WebP, TIFF, BMP or AVIF photo",
    }


def test_folders_without_photos_say_what_to_put_where(tmp_path):
    for make, words in (
        (lambda: None, "No such file"),
        (lambda: (tmp_path / "d").mkdir(), "no photos found"),
        (lambda: (tmp_path / "d" / "x.jpg").write_text("no photo"), "none of 1 photos can be read"),
    ):
        make()
        with pytest.raises(NoPhotosError, match=words) as caught:
            PhotoDataset(tmp_path / "d", (24, 24), jitter=JITTER)
        assert str(tmp_path / "d") in str(caught.value) and "put normally exposed photos" in str(caught.value)
