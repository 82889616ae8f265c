"""The figure of attention maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from models import build_model
from modules.restriction import attention_mask
from utils import attention, checkpoint


@pytest.fixture
def files(tmp_path):
    """Two checkpoints and an image that is neither square nor small."""
    paths = []
    for name, recovery in (("baseline", "none"), ("ir2net", "cirec")):
        network = {"arch": "resnet20", "recovery": recovery, "weight_bits": 1, "activation_bits": 1}
        path = tmp_path / name / "last.pt"
        path.parent.mkdir()
        checkpoint.save(path, {"network": network, "model": build_model(**network).state_dict()})
        paths.append(path)
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)).save(image)
    return paths, image


def test_maps_and_mask_of_a_network():
    torch.manual_seed(0)
    model = build_model("resnet20").eval()
    images = torch.rand(2, 3, 32, 32)
    maps, mask = attention.attention_of(model, images, lam=1.0)
    assert len(maps) == 4
    for one in maps:
        assert one.shape == (2, 32, 32)
        assert one.amin((1, 2)).tolist() == [0, 0]
        assert one.amax((1, 2)).tolist() == pytest.approx([1, 1])
    normalised = (images - torch.tensor(attention.MEAN).view(3, 1, 1)) / torch.tensor(attention.STD).view(3, 1, 1)
    expected = attention_mask(model.features(normalised)[-1], (32, 32), 1.0)
    assert torch.equal(mask, expected[:, 0])
    assert 0 < mask.mean() < 1


def test_the_figure_is_written(files, tmp_path, capsys):
    checkpoints, image = files
    out = tmp_path / "figure.png"
    attention.main(["--checkpoint", *map(str, checkpoints), "--images", str(image), "--output", str(out)])
    assert "1 images, 2 networks" in capsys.readouterr().out
    with Image.open(out) as figure:
        assert figure.width > figure.height > 100


def test_the_figure_shows_the_maps_and_the_masked_image(files):
    """Every panel of a row: the input, each tap's attention over it, and the input under the mask."""
    torch.manual_seed(0)
    model = build_model("resnet20", recovery="cirec").eval()
    image = torch.rand(3, 32, 32)
    figure = attention.figure_of([("net", model, 32)], [("picture", lambda size: image)], 1.0, "paper")
    panels = [[shown.get_array() for shown in axis.get_images()] for axis in figure.axes]
    maps, mask = attention.attention_of(model, image[None], 1.0)
    pixels = image.permute(1, 2, 0).numpy()
    assert np.array_equal(panels[0][0], pixels)
    for (below, above), expected in zip(panels[1:-1], maps, strict=True):
        assert np.array_equal(below, pixels)
        assert np.array_equal(above, expected[0].numpy())
    assert np.array_equal(panels[-1][0], pixels * mask[0].numpy()[:, :, None])
    assert figure.axes[-1].get_title() == f"IRes: {1 - mask.mean().item():.0%} masked"


def test_an_image_has_the_height_and_width_of_the_network(files, tmp_path, monkeypatch):
    checkpoints, image = files
    assert attention.read_image(image, 20).shape == (3, 20, 20)
    payload = checkpoint.read(checkpoints[0])
    checkpoint.save(checkpoints[0], payload | {"data": {"image_size": [24, 40]}})
    seen = []
    figure_of = attention.figure_of

    def noting(networks, pictures, *args):
        seen.append(pictures[0][1](networks[0][2]))
        return figure_of(networks, pictures, *args)

    monkeypatch.setattr(attention, "figure_of", noting)
    attention.main(["--checkpoint", str(checkpoints[0]), "--images", str(image), "--output", str(tmp_path / "x.png")])
    with Image.open(image) as whole:  # 80x50 covers 40x24 at a scale of 0.5
        middle = whole.resize((40, 24), Image.Resampling.BILINEAR, box=(0, 1, 80, 49))
    assert seen[0].shape == (3, 24, 40)
    assert torch.allclose(seen[0] * 255, torch.from_numpy(np.array(middle)).permute(2, 0, 1).float(), atol=1.01)


def test_test_images_are_picked_by_number(files, tmp_path, capsys, fails):
    out = tmp_path / "figure.png"
    flags = ["--checkpoint", str(files[0][0]), "--dataset", "digits", "--output", str(out)]
    attention.main([*flags, "--pick", "0", "359"])
    assert "2 images, 1 networks" in capsys.readouterr().out
    assert out.stat().st_size > 1000
    assert fails(attention.main, *flags, "--pick", 360)[0] == 2


def test_mistakes_get_one_line(files, tmp_path, fails):
    checkpoints, image = files
    assert fails(attention.main)[0] == 2
    assert fails(attention.main, "--checkpoint", checkpoints[0], "--images", tmp_path / "none.png")[0] == 2
    (tmp_path / "text.png").write_text("no image")
    assert fails(attention.main, "--checkpoint", checkpoints[0], "--images", tmp_path / "text.png")[0] == 1
    assert fails(attention.main, "--checkpoint", tmp_path / "none.pt", "--images", image)[0] == 1
    with_data = ("--checkpoint", checkpoints[0], "--images", image, "--data-dir", tmp_path)
    assert "--pick" in fails(attention.main, *with_data)[1]
    bad = tmp_path / "figure.nonsense"
    assert fails(attention.main, "--checkpoint", checkpoints[0], "--images", image, "--output", bad)[0] == 2


def test_the_overview_has_a_row_per_image_and_the_last_maps_side_by_side():
    torch.manual_seed(0)
    models = [build_model("resnet20", recovery=head).eval() for head in ("none", "cirec")]
    images = torch.rand(3, 3, 48, 48)
    pictures = [(str(i), lambda size, i=i: images[i]) for i in range(3)]
    networks = [(name, model, 48) for name, model in zip(("plain", "head"), models)]
    axes = np.array(attention.overview_of(networks, pictures, 1.0, "paper").axes).reshape(3, 4)
    assert [axis.get_title() for axis in axes[0, :3]] == ["image", "plain", "head"]
    image = pictures[2][1](48)
    for axis, model in zip(axes[2, 1:], models):
        maps, mask = attention.attention_of(model, image[None], 1.0)
        assert np.array_equal(axis.get_images()[1].get_array(), maps[-1][0].numpy())
    shown = torch.from_numpy(np.asarray(axes[2, 3].get_images()[0].get_array()))
    assert torch.equal(shown, (image * mask[0]).permute(1, 2, 0))
    assert axes[2, 3].get_title() == f"{1 - mask.mean().item():.0%} masked"


def test_the_overview_at_a_size_and_under_names_of_its_own(files, tmp_path, fails):
    checkpoints, image = files
    flags = ["--checkpoint", *map(str, checkpoints), "--images", str(image), "--output", str(tmp_path / "figure.png")]
    attention.main([*flags, "--overview", "--image-size", "64", "--names", "one", "two"])
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 3 * figure.height
    assert fails(attention.main, *flags, "--names", "one")[0] == 2
